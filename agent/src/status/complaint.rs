//! What the API server does not let this agent write, for those who ask for problems.

use kube::Error;
use kube::core::Status;
use reeve_policy::model::{Level, Problem};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// A kind as RBAC names it, and the verbs that are wanted.
type Right = (&'static str, &'static str);

/// Rights that are missing, and the server's words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Complaints(Arc<Mutex<BTreeMap<Right, String>>>);

impl Complaints {
    /// A request failed: takes note if it is for want of rights. Returns what metrics call it.
    pub(super) fn failed(&self, kind: &'static str, verbs: &'static str, error: &Error) -> &'static str {
        match error {
            // What leaves with its namespace is not for want of rights.
            Error::Api(status) if status.code == 403 && !leaves(status) => {
                self.known().insert((kind, verbs), status.message.clone());
                "forbidden"
            }
            _ => "failed",
        }
    }

    /// It is refused no longer.
    pub(super) fn taken(&self, kind: &'static str, verbs: &'static str) {
        self.known().remove(&(kind, verbs));
    }

    /// Forgets those of kinds of which nobody wants anything.
    pub(super) fn keep(&self, wanted: impl Fn(&str) -> bool) {
        self.known().retain(|(kind, _), _| wanted(kind));
    }

    /// A problem for each.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let problem = |((kind, verbs), what): (&Right, &String)| Problem {
            level: Level::Warning,
            object: (*kind).to_owned(),
            field: format!("RBAC verbs {verbs}"),
            value: String::new(),
            what: what.clone(),
            effect: "this agent does not tell the cluster how policies stand; it enforces all the same".to_owned(),
        };
        self.known().iter().map(problem).collect()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Right, String>> {
        self.0.lock().expect("nobody panics while complaining")
    }
}

fn leaves(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_a_problem_until_it_is_taken_or_nobody_wants_it() {
        let complaints = Complaints::default();
        let answered = |code| Error::Api(Status { code, message: "no".to_owned(), ..Status::default() }.boxed());
        assert_eq!(complaints.failed("events", "create", &answered(500)), "failed");
        assert_eq!(complaints.problems(), []);
        assert_eq!(complaints.failed("events", "create", &answered(403)), "forbidden");
        let problems = complaints.problems();
        assert_eq!(problems.len(), 1);
        assert_eq!((problems[0].object.as_str(), problems[0].what.as_str()), ("events", "no"));
        assert_eq!(problems[0].field, "RBAC verbs create");
        complaints.taken("leases", "create");
        complaints.keep(|kind| kind == "events");
        assert_eq!(complaints.problems(), problems);
        complaints.keep(|kind| kind == "leases");
        assert_eq!(complaints.problems(), []);
        complaints.failed("events", "create", &answered(403));
        complaints.taken("events", "create");
        assert_eq!(complaints.problems(), []);
    }
}
