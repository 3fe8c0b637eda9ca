//! The Lease by which agents elect the one that writes: heard of by a watch on it alone, renewed by its holder.
//!
//! The holder writes it every ten seconds, and each agent hears of that; each asks for its watch again every four to five
//! minutes. Libraries for this compare the times that are written in the Lease with the own clock, or take what is over from
//! its holder whether or not it was renewed meanwhile: with thousands of candidates that is several who write.

use super::complaint::Complaints;
use super::election::{Claim, Election, Holding, Next, Refusal};
use super::outcome::Outcomes;
use super::pace::{Doubling, PATIENCE, jittered};
use crate::metrics::Metrics;
use crate::watch::kube::{Access, words};
use futures_util::TryStreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Error;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// As RBAC names it.
pub(super) const KIND: &str = "leases.coordination.k8s.io";
const READ: &str = "get, watch";
const WRITE: &str = "create, update";

/// Seconds after which a server ends the watch, at least; it is up to `WATCH_SPREAD` more.
const WATCH_SECONDS: u32 = 240;
const WATCH_SPREAD: u32 = 50;
/// Between two attempts to watch.
const PAUSES: Doubling = Doubling::new(Duration::from_millis(500), Duration::from_mins(2));
/// A watch that stood for so long was worth something.
const STEADY: Duration = Duration::from_mins(1);

/// Which Lease, and as whom.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) holder: String,
    pub(super) lasts: Duration,
}

/// The way to the Lease.
#[derive(Clone)]
struct Way {
    access: Arc<Access>,
    seat: Seat,
    metrics: Arc<Metrics>,
    complaints: Complaints,
}

/// An agent that stands for election, and renews the Lease while it has it.
pub(super) struct Campaign {
    way: Way,
    elected: watch::Sender<Option<Instant>>,
    election: Election,
    /// When it got the Lease that it has.
    acquired: Option<MicroTime>,
}

impl Campaign {
    /// `elected` is told until when this agent may write, if it may.
    pub(super) fn new(
        access: Arc<Access>,
        seat: Seat,
        elected: watch::Sender<Option<Instant>>,
        metrics: Arc<Metrics>,
        complaints: Complaints,
    ) -> Self {
        let election = Election::new(seat.holder.clone(), seat.lasts);
        Self { way: Way { access, seat, metrics, complaints }, elected, election, acquired: None }
    }

    /// From when there is something to tell until it is told to stop; gives back what it has.
    pub(super) async fn run(mut self, mut outcomes: watch::Receiver<Outcomes>, mut stopped: oneshot::Receiver<()>) {
        self.way.metrics.leads(false);
        tokio::select! {
            told = outcomes.wait_for(Option::is_some) => if told.is_err() { return },
            _ = &mut stopped => return,
        }
        let (tell, mut told) = mpsc::channel(16);
        let way = self.way.clone();
        let hearing = tokio::spawn(async move { way.hear(&tell).await });
        loop {
            let now = Instant::now();
            let over = self.publish(now);
            let due = match self.election.next(now) {
                Next::Write(claim) => {
                    self.write(claim).await;
                    continue;
                }
                Next::Wait(due) => due,
            };
            // Who has it acts no longer when it is over, whether or not anything else happens then.
            let until = [due, over].into_iter().flatten().min();
            let moment = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(lease) = told.recv() => self.heard(lease),
                () = moment => {}
                _ = &mut stopped => break,
            }
        }
        hearing.abort();
        self.elected.send_replace(None);
        self.give_back().await;
        self.way.metrics.leads(false);
    }

    fn heard(&mut self, lease: Option<Holding>) {
        if lease.as_ref().and_then(|lease| lease.holder.as_ref()).is_some() {
            // Whoever has it may write it; they are all one account.
            self.way.complaints.taken(KIND, WRITE);
        }
        self.election.heard(lease, Instant::now(), fastrand::f64());
    }

    /// Says until when this agent leads.
    fn publish(&self, now: Instant) -> Option<Instant> {
        let until = self.election.leads_until(now);
        let mut before = None;
        self.elected.send_if_modified(|told| {
            before = std::mem::replace(told, until);
            before != until
        });
        if before.is_some() != until.is_some() {
            let (lease, holder) = (&self.way.seat.name, &self.way.seat.holder);
            tracing::info!(
                lease,
                holder,
                elected = until.is_some(),
                "election of the agent that writes policies' status"
            );
        }
        self.way.metrics.leads(until.is_some());
        until
    }

    async fn write(&mut self, claim: Claim) {
        let begun = Instant::now();
        let now = MicroTime(Timestamp::now());
        if claim.acquires {
            self.acquired = Some(now.clone());
        }
        let holder = Some(self.way.seat.holder.clone());
        let lease = self.lease(claim.over.clone(), claim.transitions, holder, now);
        let api = self.way.api();
        let write = async {
            match &claim.over {
                None => api.create(&PostParams::default(), &lease).await,
                Some(_) => api.replace(&self.way.seat.name, &PostParams::default(), &lease).await,
            }
        };
        let result = tokio::time::timeout(PATIENCE, write).await;
        let metrics = &self.way.metrics;
        let mut refusal = Refusal::Passing;
        match result {
            Ok(Ok(lease)) => {
                metrics.status_asked(KIND, "written");
                self.way.complaints.taken(KIND, WRITE);
                self.election.wrote(holding(lease), begun, Instant::now());
                return;
            }
            // Another was quicker.
            Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => {
                metrics.status_asked(KIND, "outdated");
                self.election.failed(Instant::now(), Refusal::Passing);
                if let Ok(lease) = self.way.read().await {
                    self.heard(lease);
                }
                return;
            }
            Ok(Err(error)) => {
                if matches!(&error, Error::Api(status) if status.code == 403) {
                    refusal = Refusal::Lasting;
                }
                self.way.failed(&error, WRITE).await;
            }
            Err(_) => {
                metrics.status_asked(KIND, "failed");
                tracing::warn!(lease = self.way.seat.name, "the API server does not answer: the Lease is not written");
            }
        }
        self.election.failed(Instant::now(), refusal);
    }

    async fn give_back(&mut self) {
        let Some((version, transitions)) = self.election.to_give_back() else { return };
        let lease = self.lease(Some(version.to_owned()), transitions, None, MicroTime(Timestamp::now()));
        if let Err(error) = self.way.api().replace(&self.way.seat.name, &PostParams::default(), &lease).await {
            self.way.failed(&error, WRITE).await;
        }
    }

    fn lease(&self, version: Option<String>, transitions: i32, holder: Option<String>, now: MicroTime) -> Lease {
        let lasts = i32::try_from(self.way.seat.lasts.as_secs()).unwrap_or(i32::MAX);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.way.seat.name.clone()),
                namespace: Some(self.way.seat.namespace.clone()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                acquire_time: self.acquired.clone(),
                // Given back, as Kubernetes' own components do it: nobody's.
                holder_identity: Some(holder.unwrap_or_default()),
                lease_duration_seconds: Some(lasts),
                lease_transitions: Some(transitions),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}

impl Way {
    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.access.client(), &self.seat.namespace)
    }

    /// The Lease, if there is one.
    async fn read(&self) -> kube::Result<Option<Holding>> {
        let lease = tokio::time::timeout(PATIENCE, async { self.api().get_opt(&self.seat.name).await }).await;
        Ok(lease.unwrap_or_else(|_| Err(silence()))?.map(holding))
    }

    /// Tells what becomes of the Lease.
    async fn hear(&self, tell: &mpsc::Sender<Option<Holding>>) {
        let mut pauses = PAUSES;
        loop {
            let begun = Instant::now();
            if let Err(error) = self.watch(tell).await {
                self.failed(&error, READ).await;
            }
            if begun.elapsed() > STEADY {
                pauses = PAUSES;
            }
            tokio::time::sleep(jittered(pauses.next())).await;
        }
    }

    /// One watch: what there is, then what changes, until the server ends it.
    async fn watch(&self, tell: &mpsc::Sender<Option<Holding>>) -> kube::Result<()> {
        // A watch says nothing of what is not there.
        let there = self.read().await?;
        let seconds = WATCH_SECONDS + fastrand::u32(..WATCH_SPREAD);
        let parameters = WatchParams::default().timeout(seconds).fields(&format!("metadata.name={}", self.seat.name));
        // No version: it begins with what there is by then.
        let api = self.api();
        let begun = tokio::time::timeout(PATIENCE, api.watch(&parameters, "")).await;
        let mut events = std::pin::pin!(begun.unwrap_or_else(|_| Err(silence()))?);
        self.complaints.taken(KIND, READ);
        let patience = Duration::from_secs(u64::from(seconds)) + PATIENCE;
        let mut last = Some(there);
        loop {
            if let Some(lease) = last.take()
                && tell.send(lease).await.is_err()
            {
                return Ok(());
            }
            // A server that says nothing for longer than a watch may last is gone.
            let Ok(event) = tokio::time::timeout(patience, events.try_next()).await else { return Ok(()) };
            last = match event? {
                Some(WatchEvent::Added(lease) | WatchEvent::Modified(lease)) => Some(Some(holding(lease))),
                Some(WatchEvent::Deleted(_)) => Some(None),
                Some(WatchEvent::Bookmark(_)) => None,
                Some(WatchEvent::Error(status)) => return Err(Error::Api(status.boxed())),
                None => return Ok(()),
            };
        }
    }

    /// Counts and says what failed, and reads the credentials anew if the server does not know them.
    async fn failed(&self, error: &Error, verbs: &'static str) {
        let (lease, namespace) = (&self.seat.name, &self.seat.namespace);
        self.metrics.status_asked(KIND, self.complaints.failed(KIND, verbs, error));
        tracing::warn!(lease, namespace, verbs, error = words(error), "the Lease cannot be read or written");
        self.access.renew_if_unknown(error).await;
    }
}

/// The server has not answered in time.
fn silence() -> Error {
    Error::Service(format!("no answer within {} s", PATIENCE.as_secs()).into())
}

fn holding(lease: Lease) -> Holding {
    let spec = lease.spec.unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
    Holding {
        version: lease.metadata.resource_version.unwrap_or_default(),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        lasts: Duration::from_secs(seconds),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}
