//! How policies stand: when each was heard of, compiled and in force on this node, and what of it cannot be honoured. Told on
//! the socket, in metrics, and by one agent for all to the cluster.
//!
//! Invariant: telling never delays enforcing. What is told is worked out after a step; what is written to the API server is
//! written by a task of its own, which sees the last state only and is held back by nothing but itself.

mod condition;
mod election;
mod event;
mod due;
mod lease;
mod outcome;
mod pace;
mod standing;
mod writer;

pub(crate) use condition::{Condition, own};
pub(crate) use standing::{Register, Standing};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::watch::kube::Cluster;
use lease::{Campaign, Seat};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use writer::Writer;

/// How long an agent that ends takes to give its Lease back, at most.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(2);

/// What tells the cluster: it stands for election, and writes while it is elected.
#[derive(Debug)]
pub(crate) struct Teller {
    stop: oneshot::Sender<()>,
    campaign: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Teller {
    /// Begins, unless settings say that nothing is to be written.
    pub(crate) fn start(
        config: &Config,
        node: &str,
        cluster: &Cluster,
        standings: watch::Receiver<Arc<Vec<Standing>>>,
        metrics: &Arc<Metrics>,
    ) -> Option<Self> {
        if !config.status {
            return None;
        }
        let access = cluster.access();
        let seat = Seat {
            namespace: config.namespace.clone().unwrap_or_else(|| access.namespace()),
            name: config.status_lease.clone(),
            // Others of the same node's name must not be taken for this one: one before it, or another by mistake.
            holder: format!("{node}_{:08x}", fastrand::u32(..)),
            lasts: Duration::from_secs(config.status_lease_seconds),
        };
        let (stop, stopped) = oneshot::channel();
        let (elected, leading) = watch::channel(None);
        let writer = Writer::new(Arc::clone(&access), cluster.conditions(), node, standings, leading, Arc::clone(metrics));
        let campaign = Campaign::new(access, seat, elected, Arc::clone(metrics));
        Some(Self { stop, campaign: tokio::spawn(campaign.run(stopped)), writer: tokio::spawn(writer.run()) })
    }

    /// Ends, and gives the Lease back if this agent has it, so that another need not wait until it is over.
    pub(crate) async fn stop(self) {
        self.writer.abort();
        drop(self.stop);
        if tokio::time::timeout(GIVE_UP_WITHIN, self.campaign).await.is_err() {
            tracing::warn!("the Lease could not be given back in time; another agent writes when it is over");
        }
    }
}
