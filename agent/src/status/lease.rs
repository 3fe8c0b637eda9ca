//! The Lease by which agents elect the one that writes: heard of by a watch on it alone, renewed by its holder.
//!
//! With the default of 30 seconds the holder writes it every 10, and each agent hears of that; each asks for its watch again every
//! four to five minutes.

use super::election::{Claim, Election, Holding, Next};
use super::pace::{Doubling, PATIENCE};
use crate::metrics::Metrics;
use crate::watch::kube::{Access, words};
use ::kube::Error;
use ::kube::api::{Api, PostParams, WatchEvent, WatchParams};
use futures_util::TryStreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Seconds after which a server ends the watch, at least; it is up to `WATCH_SPREAD` more.
const WATCH_SECONDS: u32 = 240;
const WATCH_SPREAD: u32 = 50;
/// Between two attempts to watch, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(2));

/// Which Lease, and as whom.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) holder: String,
    pub(super) lasts: Duration,
}

/// An agent that stands for election, and renews the Lease while it has it.
pub(super) struct Campaign {
    access: Arc<Access>,
    seat: Seat,
    elected: watch::Sender<Option<Instant>>,
    metrics: Arc<Metrics>,
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
    ) -> Self {
        let election = Election::new(seat.holder.clone(), seat.lasts, Instant::now(), fastrand::f64());
        Self { access, seat, elected, metrics, election, acquired: None }
    }

    /// Until it is told to stop; gives back what it has.
    pub(super) async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let (tell, mut told) = mpsc::channel(16);
        let (access, seat) = (Arc::clone(&self.access), self.seat.clone());
        let metrics = Arc::clone(&self.metrics);
        let hearing = tokio::spawn(async move { hear(&access, &seat, &metrics, &tell).await });
        loop {
            let now = Instant::now();
            self.publish(now);
            let until = match self.election.next(now) {
                Next::Write(claim) => {
                    self.write(claim).await;
                    continue;
                }
                Next::Wait(until) => until,
            };
            // Who has it acts no longer when it is over, whether or not anything else happens then.
            let over = self.election.leads_until(now);
            let until = over.map_or(until, |over| until.min(over));
            tokio::select! {
                Some(lease) = told.recv() => self.election.heard(lease, Instant::now(), fastrand::f64()),
                () = tokio::time::sleep_until(until.into()) => {}
                _ = &mut stopped => break,
            }
        }
        hearing.abort();
        self.elected.send_replace(None);
        self.give_back().await;
        self.metrics.leads(false);
    }

    fn publish(&self, now: Instant) {
        let until = self.election.leads_until(now);
        let changed = self.elected.borrow().is_some() != until.is_some();
        if changed {
            let (lease, holder) = (&self.seat.name, &self.seat.holder);
            tracing::info!(lease, holder, elected = until.is_some(), "election of the agent that writes policies' status");
        }
        self.metrics.leads(until.is_some());
        self.elected.send_if_modified(|told| {
            *told = until;
            changed
        });
    }

    async fn write(&mut self, claim: Claim) {
        let begun = Instant::now();
        let now = MicroTime(Timestamp::now());
        if claim.acquires {
            self.acquired = Some(now.clone());
        }
        let lease = self.lease(claim.over.clone(), claim.transitions, Some(self.seat.holder.clone()), now);
        let api = self.api();
        let written = tokio::time::timeout(PATIENCE, async {
            match &claim.over {
                None => api.create(&PostParams::default(), &lease).await,
                Some(_) => api.replace(&self.seat.name, &PostParams::default(), &lease).await,
            }
        });
        let result = written.await;
        self.metrics.status_written("lease", &result);
        match result {
            Ok(Ok(lease)) => self.election.wrote(holding(lease), begun, Instant::now()),
            Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => self.election.conflicted(Instant::now()),
            Ok(Err(error)) => {
                tracing::warn!(lease = self.seat.name, error = words(&error), "the Lease cannot be written");
                renew_if_unknown(&self.access, &error).await;
                self.election.failed(Instant::now());
            }
            Err(_) => {
                tracing::warn!(lease = self.seat.name, "the API server does not answer: the Lease is not written");
                self.election.failed(Instant::now());
            }
        }
    }

    async fn give_back(&mut self) {
        let Some((version, transitions)) = self.election.to_give_back() else { return };
        let lease = self.lease(Some(version.to_owned()), transitions, None, MicroTime(Timestamp::now()));
        let result = self.api().replace(&self.seat.name, &PostParams::default(), &lease).await;
        if let Err(error) = result {
            tracing::warn!(lease = self.seat.name, error = words(&error), "the Lease cannot be given back");
        }
    }

    fn lease(&self, version: Option<String>, transitions: i32, holder: Option<String>, now: MicroTime) -> Lease {
        let lasts = i32::try_from(self.seat.lasts.as_secs()).unwrap_or(i32::MAX);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.seat.name.clone()),
                namespace: Some(self.seat.namespace.clone()),
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

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.access.client(), &self.seat.namespace)
    }
}

/// Reads the credentials anew if the server does not know them.
pub(super) async fn renew_if_unknown(access: &Access, error: &Error) {
    if let Error::Api(status) = error
        && status.code == 401
        && let Err(error) = access.renew().await
    {
        tracing::warn!(error = format!("{error:#}"), "credentials cannot be read anew");
    }
}

/// Tells what becomes of the Lease.
async fn hear(access: &Access, seat: &Seat, metrics: &Metrics, tell: &mpsc::Sender<Option<Holding>>) {
    let mut pause = Doubling::new(PAUSES);
    let mut said = false;
    loop {
        let begun = Instant::now();
        match watch(access, seat, tell).await {
            Ok(()) => {}
            Err(error) => {
                metrics.status_failed("lease", &error);
                if !std::mem::replace(&mut said, true) {
                    let (lease, namespace) = (&seat.name, &seat.namespace);
                    tracing::warn!(lease, namespace, error = words(&error), "the Lease cannot be watched");
                }
                renew_if_unknown(access, &error).await;
            }
        }
        if begun.elapsed() > PAUSES.1 {
            pause = Doubling::new(PAUSES);
            said = false;
        }
        tokio::time::sleep(pause.next().mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

/// One watch: what there is, then what changes, until the server ends it.
async fn watch(access: &Access, seat: &Seat, tell: &mpsc::Sender<Option<Holding>>) -> ::kube::Result<()> {
    let seconds = WATCH_SECONDS + fastrand::u32(..WATCH_SPREAD);
    let parameters = WatchParams::default().timeout(seconds).fields(&format!("metadata.name={}", seat.name));
    let api = Api::<Lease>::namespaced(access.client(), &seat.namespace);
    // No version: what there is comes first.
    let mut events = std::pin::pin!(api.watch(&parameters, "").await?);
    let patience = Duration::from_secs(u64::from(seconds)) + PATIENCE;
    while let Ok(event) = tokio::time::timeout(patience, events.try_next()).await {
        let lease = match event? {
            Some(WatchEvent::Added(lease) | WatchEvent::Modified(lease)) => Some(holding(lease)),
            Some(WatchEvent::Deleted(_)) => None,
            Some(WatchEvent::Bookmark(_)) => continue,
            Some(WatchEvent::Error(status)) => return Err(Error::Api(status.boxed())),
            None => break,
        };
        if tell.send(lease).await.is_err() {
            break;
        }
    }
    Ok(())
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
