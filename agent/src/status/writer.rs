//! Writes what is due, one thing after the other, while this agent is the one that writes.
//!
//! Conditions are applied by the server, which keeps whatever others have in the same list: it takes only what is ours from us.

use super::complaint::Complaints;
use super::condition::{self, Conditions};
use super::due::{Due, Fault, Look, Write};
use super::lease;
use super::outcome::Outcomes;
use super::pace::{BETWEEN, PATIENCE};
use crate::metrics::Metrics;
use crate::watch::kube::{Access, words};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Error;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Whose fields of a status are ours.
const MANAGER: &str = "reeve";
/// What metrics call an object that was there already.
const THERE: &str = "there";
/// Longest time until it is looked again what is due.
const LOOK_ANYWAY: Duration = Duration::from_mins(10);

/// What an agent writes with.
pub(super) struct Writer {
    pub(super) access: Arc<Access>,
    pub(super) node: String,
    pub(super) outcomes: watch::Receiver<Outcomes>,
    pub(super) conditions: watch::Receiver<Conditions>,
    /// Until when this agent is the one that writes, if it is.
    pub(super) leads_until: watch::Receiver<Option<Instant>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) complaints: Complaints,
}

/// How a write ended that did not succeed.
enum Failure {
    /// The server has not answered.
    Silence,
    Answer(Box<Error>),
}

impl Writer {
    /// Until the task is dropped, or who elects ends.
    pub(super) async fn run(mut self) {
        let mut due = Due::default();
        loop {
            let look = if self.leads() { self.look(&mut due) } else { Look::default() };
            self.metrics.status_left(look.left);
            self.complaints.keep(|kind| kind == lease::KIND || look.kinds.contains(kind));
            if look.writes.is_empty() {
                let anyway = Instant::now() + LOOK_ANYWAY;
                let until = look.next.map_or(anyway, |next| next.min(anyway));
                tokio::select! {
                    changed = self.outcomes.changed() => if changed.is_err() { return },
                    changed = self.conditions.changed() => if changed.is_err() { return },
                    changed = self.leads_until.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep_until(until.into()) => {}
                }
            }
            for write in look.writes {
                if !self.leads() {
                    break;
                }
                let fault = self.carry_out(&mut due, write).await;
                tokio::time::sleep(BETWEEN).await;
                // Others like it would fail for the same reason, and wait longer each time.
                if fault == Some(Fault::Common) {
                    break;
                }
            }
        }
    }

    fn leads(&self) -> bool {
        self.leads_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn look(&mut self, due: &mut Due) -> Look {
        let outcomes = self.outcomes.borrow_and_update().clone().unwrap_or_default();
        // The watch waits for who looks at them.
        let there = self.conditions.borrow_and_update().clone();
        due.look(&outcomes, &there, &self.node, Instant::now(), Timestamp::now())
    }

    /// Writes one thing; what it says of others if that fails.
    async fn carry_out(&self, due: &mut Due, write: Write) -> Option<Fault> {
        let kind = write.kind();
        let mut said = None;
        let state = match self.write(&write).await {
            Ok(state) => {
                self.complaints.taken(kind, write.verb());
                due.wrote(write, state == THERE, Instant::now());
                state
            }
            Err(Failure::Silence) => {
                said = Some(Fault::Common);
                if due.failed(&write, Fault::Common, Instant::now()) {
                    tracing::warn!(kind, "the API server does not answer: policies' status is not written");
                }
                "failed"
            }
            Err(Failure::Answer(error)) => {
                let fault = fault(&error);
                said = Some(fault);
                if due.failed(&write, fault, Instant::now()) {
                    let object = write.name();
                    tracing::warn!(kind, object, error = words(&*error), "policies' status is not written");
                }
                self.access.renew_if_unknown(&error).await;
                self.complaints.failed(kind, write.verb(), &error)
            }
        };
        self.metrics.status_asked(kind, state);
        said
    }

    /// What metrics call it.
    async fn write(&self, write: &Write) -> Result<&'static str, Failure> {
        let client = self.access.client();
        let request = async {
            match write {
                Write::Condition { kind, outcome, condition } => {
                    let api = Api::<DynamicObject>::all_with(client, &condition::resource(outcome, kind));
                    // What somebody else has made of our own condition is not theirs.
                    let parameters = PatchParams::apply(MANAGER).force();
                    let patch = Patch::Apply(condition.applied_to(outcome));
                    api.patch_status(&outcome.key.name, &parameters, &patch).await.map(|_| "written")
                }
                Write::Event(event) => {
                    let api = Api::<Event>::namespaced(client, &event.namespace);
                    let object = event.object(&self.node, Timestamp::now());
                    let object = Event::deserialize(object).map_err(Error::SerdeError)?;
                    match api.create(&PostParams::default(), &object).await {
                        Err(Error::Api(status)) if status.code == 409 => Ok(THERE),
                        other => other.map(|_| "written"),
                    }
                }
            }
        };
        match tokio::time::timeout(PATIENCE, request).await {
            Ok(result) => result.map_err(|error| Failure::Answer(Box::new(error))),
            Err(_) => Err(Failure::Silence),
        }
    }
}

/// An object that is gone, is another by now, or is not taken says nothing of others.
fn fault(error: &Error) -> Fault {
    match error {
        Error::Api(status) if matches!(status.code, 400 | 404 | 409 | 422) => Fault::Alone,
        _ => Fault::Common,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn who_is_refused_for_an_object_goes_on_with_others_and_who_is_not_known_does_not() {
        let answered = |code| Error::Api(Status { code, ..Status::default() }.boxed());
        for (code, wanted) in [
            (400, Fault::Alone),
            (404, Fault::Alone),
            (409, Fault::Alone),
            (422, Fault::Alone),
            (401, Fault::Common),
            (403, Fault::Common),
            (429, Fault::Common),
            (500, Fault::Common),
        ] {
            assert_eq!(fault(&answered(code)), wanted, "{code}");
        }
    }
}
