//! A cluster's API server: watches every kind that facts are made of, and hands on what has changed.
//!
//! Invariant: facts are whole once every served kind was listed. A server that is away, or refuses a kind, changes
//! nothing of what is known; kinds come and go with the definitions that serve them.

mod access;
mod discovery;
mod inbox;
mod resources;
mod stream;
mod told;

pub use access::Access;
pub(crate) use access::connect;
pub(crate) use stream::words;

use super::Scan;
use crate::metrics::Metrics;
use crate::run::Wake;
use crate::status::{Condition, Conditions};
use inbox::{Discovery, Failure, Inbox, Listed};
use reeve_policy::model::World;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// A cluster whose objects are watched.
#[derive(Debug)]
pub struct Cluster {
    access: Arc<Access>,
    shared: Arc<Shared>,
    discovering: JoinHandle<()>,
}

/// What watches and those who take from them share.
#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: mpsc::Sender<Wake>,
    metrics: Arc<Metrics>,
}

/// An object, as it is told.
#[derive(Debug)]
struct Told {
    /// What facts are made of.
    value: Value,
    /// Ours in its status.
    condition: Option<Condition>,
}

/// What a watch hears.
#[derive(Debug)]
enum Heard<'a> {
    ListBegins { name: &'a str },
    Applied { name: &'a str, object: Told, listed: Listed },
    Deleted { name: &'a str, value: Value },
    ListEnds { name: &'a str },
    Stands { name: &'a str },
    Fails { name: &'a str, failure: Failure },
}

impl Cluster {
    /// Begins to watch.
    pub(super) fn watch(access: Access, wake: mpsc::Sender<Wake>, metrics: Arc<Metrics>) -> Self {
        let shared = Arc::new(Shared { inbox: Mutex::default(), wake, metrics });
        let access = Arc::new(access);
        let discovering = tokio::spawn(discovery::follow(Arc::clone(&access), Arc::clone(&shared)));
        Self { access, shared, discovering }
    }

    /// The way to the API server.
    pub(crate) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access)
    }

    /// Our conditions in the status of policies, as they are and whenever they change.
    pub(crate) fn conditions(&self) -> watch::Receiver<Conditions> {
        self.shared.lock().conditions()
    }

    /// What was heard since the last look.
    pub(super) fn scan(&mut self) -> Scan {
        let mut inbox = self.shared.lock();
        let scan = inbox.take();
        self.shared.metrics.watched(inbox.counts());
        scan
    }

    /// The objects in force. Of pods there is what the engine knows of them.
    pub(super) fn objects(&self, world: &World) -> Vec<Value> {
        self.shared.lock().kept().chain(world.workloads.values().map(|pod| told::pod(pod))).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Takes the watches along, which it owns.
        self.discovering.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("nobody panics while hearing")
    }

    /// Takes note, and wakes who acts on it.
    fn hear(&self, heard: Heard<'_>) {
        let mut inbox = self.lock();
        match heard {
            Heard::ListBegins { name } => inbox.list_begins(name),
            Heard::Applied { name, object, listed } => {
                if !inbox.apply(name, object, listed) {
                    return;
                }
            }
            Heard::Deleted { name, value } => inbox.delete(name, &value),
            Heard::ListEnds { name } => {
                self.metrics.listed(name);
                inbox.list_ends(name);
            }
            Heard::Stands { name } => inbox.stands(name, None),
            Heard::Fails { name, failure } => {
                self.metrics.watch_failed(name);
                inbox.stands(name, Some(failure));
            }
        }
        drop(inbox);
        self.wake();
    }

    fn discovered(&self, discovery: Discovery) {
        self.lock().discovery = discovery;
        self.wake();
    }

    fn wake(&self) {
        // A full queue holds a wake-up already.
        let _ = self.wake.try_send(Wake::Facts);
    }
}
