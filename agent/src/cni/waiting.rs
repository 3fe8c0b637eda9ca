//! Those who ask for a pod to be enforced, until a step has done so or their time is over.
//!
//! Invariant: a pod that has been announced and is not enforced yet is closed, as soon as its device can be.

use super::{Answer, Attachment, Request};
use crate::enforcer::Enforcer;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Nobody waits longer, whatever is asked.
const LONGEST: Duration = Duration::from_mins(10);

/// Everybody who waits.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Vec<Add>);

#[derive(Debug)]
struct Add {
    attachment: Attachment,
    begun: Instant,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Waiting {
    /// When the next of them has waited long enough.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.iter().map(|add| add.deadline).min()
    }

    /// Takes a request, and answers it unless a step has to come first; whether there is something to do for a step.
    pub(crate) async fn take(
        &mut self,
        enforcer: &mut Enforcer,
        request: Request,
        answer: oneshot::Sender<Answer>,
    ) -> bool {
        let (said, step) = match request {
            Request::Add { announcement, timeout_ms, gone } => {
                let begun = Instant::now();
                let attachment = announcement.attachment.clone();
                match enforcer.announce(announcement, &gone).await {
                    Ok(()) => {
                        let deadline = begun + LONGEST.min(Duration::from_millis(timeout_ms));
                        self.0.push(Add { attachment, begun, deadline, answer });
                        return true;
                    }
                    Err(said) => {
                        enforcer
                            .metrics
                            .added(if enforcer.active == 0 { "unready" } else { "refused" }, begun.elapsed());
                        (said, false)
                    }
                }
            }
            Request::Del { attachment } => {
                self.0.retain(|add| add.attachment != attachment);
                (Answer::Done, enforcer.forget(|other| *other == attachment))
            }
            Request::Gc { valid } => (Answer::Done, enforcer.forget(|other| !valid.contains(other))),
            Request::Check { announcement } => (enforcer.check_announced(&announcement), false),
            Request::Status => (enforcer.takes_new_pods(), false),
        };
        // Who asked may have gone.
        let _ = answer.send(said);
        step
    }

    /// The networks that somebody waits for.
    pub(crate) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.0.iter().map(|add| &add.attachment)
    }

    /// Answers those of them who are served already; the others go on waiting.
    pub(crate) fn answer_served(&mut self, enforcer: &Enforcer, whom: impl Fn(&Attachment) -> bool) {
        // The plugin may have been killed; its pod stays as closed or as enforced as it is.
        self.0.retain(|add| !add.answer.is_closed());
        let served = |add: &Add| whom(&add.attachment) && enforcer.stands(&add.attachment).is_ok();
        let (served, waiting) = std::mem::take(&mut self.0).into_iter().partition(served);
        self.0 = waiting;
        let served: Vec<Add> = served;
        for add in served {
            add.tell(enforcer, "enforced", Answer::Done);
        }
    }

    /// After a step: answers who is served or has waited too long, and closes the devices of the others.
    pub(crate) fn answer(&mut self, enforcer: &mut Enforcer) {
        self.answer_served(enforcer, |_| true);
        for add in std::mem::take(&mut self.0) {
            let Err(why) = enforcer.stands(&add.attachment) else { continue };
            enforcer.close_announced(&add.attachment);
            if Instant::now() < add.deadline {
                self.0.push(add);
                continue;
            }
            tracing::warn!(container = add.attachment.container, why, "a pod was not enforced in time");
            add.tell(enforcer, "late", Answer::Not { why });
        }
        enforcer.metrics.announced("waiting", self.0.len());
    }
}

impl Add {
    fn tell(self, enforcer: &Enforcer, state: &str, said: Answer) {
        enforcer.metrics.added(state, self.begun.elapsed());
        // Who asked may have gone.
        let _ = self.answer.send(said);
    }
}
