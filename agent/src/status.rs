//! Tells the cluster how policies stand: a condition where a kind has a status, and Events about what is not honoured. One agent
//! does it for all, which they elect by a Lease; with manifests instead of an API server, nobody does.
//!
//! Invariant: telling never delays enforcing. What is to be told is worked out after a step, and written by tasks of their own,
//! which see the last state only. Invariant: nothing here changes what is enforced: a status is no part of the facts.

mod complaint;
mod condition;
mod due;
mod election;
mod event;
mod lease;
mod outcome;
mod pace;
mod writer;

pub(crate) use complaint::Complaints;
pub(crate) use condition::{Condition, Conditions, own};
pub(crate) use outcome::{Outcome, Outcomes};

use crate::config::Config;
use crate::enforcer::Enforcer;
use crate::watch::Source;
use lease::{Campaign, Seat};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use writer::Writer;

/// For how long nobody takes over from an agent that writes, after it was heard of last.
const LASTS: Duration = Duration::from_secs(30);

/// How long an agent that ends takes to give its Lease back, at most.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(2);

/// The tasks of an agent that stands for election, and writes while it is elected.
#[derive(Debug)]
pub(crate) struct Teller {
    stop: oneshot::Sender<()>,
    campaign: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Teller {
    /// Begins, if there is an API server and settings name a Lease.
    pub(crate) fn start(config: &Config, enforcer: &Enforcer) -> Option<Self> {
        let Source::Cluster(cluster) = &enforcer.source else { return None };
        if config.status_lease.is_empty() {
            return None;
        }
        let access = cluster.access();
        let seat = Seat {
            namespace: access.namespace(),
            name: config.status_lease.clone(),
            // Who had this node's name before must not be taken for this one, nor anybody who has it by mistake.
            holder: format!("{}_{:08x}", enforcer.node, fastrand::u32(..)),
            lasts: LASTS,
        };
        let (stop, stopped) = oneshot::channel();
        let (elected, leads_until) = watch::channel(None);
        let (metrics, complaints) = (&enforcer.metrics, &enforcer.untold);
        let outcomes = enforcer.outcomes.subscribe();
        let campaign = Campaign::new(Arc::clone(&access), seat, elected, Arc::clone(metrics), complaints.clone());
        let writer = Writer {
            access,
            node: enforcer.node.clone(),
            outcomes: outcomes.clone(),
            conditions: cluster.conditions(),
            leads_until,
            metrics: Arc::clone(metrics),
            complaints: complaints.clone(),
        };
        let campaign = tokio::spawn(campaign.run(outcomes, stopped));
        Some(Self { stop, campaign, writer: tokio::spawn(writer.run()) })
    }

    /// Ends, and gives the Lease back if this agent has it, so that the next one need not wait until it is over.
    pub(crate) async fn stop(self) {
        self.writer.abort();
        drop(self.stop);
        if tokio::time::timeout(GIVE_UP_WITHIN, self.campaign).await.is_err() {
            tracing::warn!("the Lease could not be given back in time; another agent writes when it is over");
        }
    }
}
