//! Events about policies that are not honoured as they are written: one for each problem of each generation.
//!
//! An event's name follows from what it is about, so whoever writes it, and however often it changes who does, there is one. The
//! client library's recorder makes names of the moment, and would tell everything again with each new writer.

use super::outcome::{cut, sentence};
use super::standing::{Named, Standing, State};
use k8s_openapi::jiff::Timestamp;
use reeve_policy::model::Problem;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// Events of one policy, at most: the last tells how many problems it stands for.
const MOST: usize = 10;
/// How long it is told that a policy was mended.
const MENDED_FOR: Duration = Duration::from_mins(10);
/// Bytes that the API takes of a note, and of whom it is from.
const LONGEST_NOTE: usize = 1_024;
const LONGEST_INSTANCE: usize = 128;
/// Bytes of a policy's name that go into an event's.
const LONGEST_NAME: usize = 200;

const CONTROLLER: &str = "reeve";

/// An event that should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) namespace: String,
    pub(super) name: String,
    kind: &'static str,
    reason: &'static str,
    note: String,
}

impl Event {
    /// Those that should be there because of a policy.
    pub(super) fn of(standing: &Standing, now: Instant) -> Vec<Self> {
        let named = &standing.named;
        let reason = match standing.state {
            State::Refused => "Refused",
            State::Narrowed => "NotUnderstood",
            State::Accepted => {
                let lately = |at: Instant| now.saturating_duration_since(at) < MENDED_FOR;
                let note = "The policy is enforced as it is written.".to_owned();
                return standing
                    .mended
                    .filter(|at| lately(*at))
                    .map(|_| Self::new(named, "Normal", "Accepted", note, &[]))
                    .into_iter()
                    .collect();
            }
        };
        let warnings: Vec<&Problem> = standing.warnings().collect();
        let (told, left) = if warnings.len() > MOST { warnings.split_at(MOST - 1) } else { (&warnings[..], &[][..]) };
        let event = |problem: &&Problem| {
            Self::new(named, "Warning", reason, sentence(problem), &[&problem.field, &problem.value, &problem.what])
        };
        let mut events: Vec<Self> = told.iter().map(event).collect();
        if !left.is_empty() {
            let note = format!("There are {} more: the agents' problems tell each.", left.len());
            events.push(Self::new(named, "Warning", reason, note, &["more"]));
        }
        events
    }

    fn new(named: &Named, kind: &'static str, reason: &'static str, note: String, about: &[&str]) -> Self {
        let generation = named.generation.map(|generation| generation.to_string()).unwrap_or_default();
        let uid = named.uid.as_deref().unwrap_or_default();
        let mut hash = Sha256::new();
        for part in [&named.text, uid, &generation, reason].iter().chain(about) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let name = cut(&named.key.name, LONGEST_NAME).trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        // What is in no namespace is told where the API looks for it.
        let namespace = named.key.namespace.clone().unwrap_or_else(|| "default".to_owned());
        Self { namespace, name: format!("{name}.{hash}"), kind, reason, note: cut(&note, LONGEST_NOTE).to_owned() }
    }

    /// The object, as written now by whom runs on this node.
    pub(super) fn object(&self, named: &Named, node: &str, now: Timestamp) -> Value {
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": { "namespace": self.namespace, "name": self.name },
            "eventTime": micros(now),
            "type": self.kind, "reason": self.reason, "action": "Enforce", "note": self.note,
            "reportingController": CONTROLLER, "reportingInstance": cut(node, LONGEST_INSTANCE),
            "regarding": {
                "apiVersion": named.version, "kind": named.key.kind, "namespace": named.key.namespace,
                "name": named.key.name, "uid": named.uid,
            },
        })
    }

    /// Whether it is told again while it holds.
    pub(super) fn lasts(&self) -> bool {
        self.kind == "Warning"
    }
}

/// What is merged into an event that still holds: told so often by now, and last now.
pub(super) fn renewed(count: i64, now: Timestamp) -> Value {
    json!({ "series": { "count": count, "lastObservedTime": micros(now) } })
}

/// The API reads six decimals, and no others.
fn micros(moment: Timestamp) -> String {
    format!("{moment:.6}")
}

#[cfg(test)]
mod tests {
    use super::super::standing::tests::{policy, standings};
    use super::*;

    fn events(object: &Value) -> Vec<Event> {
        Event::of(&standings(std::slice::from_ref(object))[0], Instant::now())
    }

    #[test]
    fn an_event_is_the_same_for_whoever_writes_it_and_another_for_each_generation_and_value() {
        let first = events(&policy(1, "10.0.0.0/99"));
        assert_eq!(first, events(&policy(1, "10.0.0.0/99")));
        let names = |value: &Value| events(value).iter().map(|event| event.name.clone()).collect::<Vec<_>>();
        let all = [names(&policy(1, "10.0.0.0/99")), names(&policy(2, "10.0.0.0/99")), names(&policy(1, "10.0.0.0/98"))];
        let different: std::collections::BTreeSet<_> = all.iter().flatten().collect();
        assert_eq!(different.len(), 3, "{all:?}");
        assert_eq!(events(&policy(1, "10.0.0.0/8")), []);
    }

    #[test]
    fn an_event_says_what_is_wrong_with_which_policy() {
        let object = policy(1, "10.0.0.0/99");
        let event = events(&object).swap_remove(0);
        let named = &standings(&[object])[0].named;
        let told = event.object(named, "one", Timestamp::UNIX_EPOCH);
        assert_eq!((told["reason"].as_str(), told["type"].as_str()), (Some("NotUnderstood"), Some("Warning")));
        let note = told["note"].as_str().expect("text");
        assert!(note.starts_with("spec.ingress[0].from[0].ipBlock.cidr: 10.0.0.0/99: "), "{note}");
        assert_eq!(told["eventTime"], "1970-01-01T00:00:00.000000Z");
        let about = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "shop", "name": "web", "uid": "u",
        });
        assert_eq!((&told["regarding"], &told["metadata"]["namespace"]), (&about, &json!("shop")));
    }

    #[test]
    fn a_policy_with_very_many_problems_has_few_events_and_the_last_tells_how_many_there_are() {
        let mut object = policy(1, "10.0.0.0/8");
        let wrong = |index: u32| json!({ "ipBlock": { "cidr": format!("10.0.0.0/{}", 40 + index) } });
        object["spec"]["ingress"][0]["from"] = (0..30).map(wrong).collect();
        let events = events(&object);
        assert_eq!(events.len(), MOST);
        assert_eq!(events[MOST - 1].note, "There are 21 more: the agents' problems tell each.");
    }

    #[test]
    fn names_of_events_are_names_whatever_the_policy_is_called() {
        let mut object = policy(1, "10.0.0.0/99");
        object["metadata"]["name"] = json!(format!("{}-.x", "a".repeat(LONGEST_NAME - 1)));
        let name = events(&object).swap_remove(0).name;
        assert_eq!(&name[LONGEST_NAME - 2..LONGEST_NAME + 1], "a.".to_owned() + &name[LONGEST_NAME..=LONGEST_NAME]);
        assert!(name.len() <= 253);
    }

    #[test]
    fn a_mended_policy_is_told_of_for_a_while() {
        let mut standing = standings(&[policy(1, "10.0.0.0/8")]).swap_remove(0);
        let now = Instant::now();
        assert_eq!(Event::of(&standing, now), []);
        standing.mended = Some(now);
        let told = Event::of(&standing, now);
        assert_eq!((told.len(), told[0].kind, told[0].reason, told[0].lasts()), (1, "Normal", "Accepted", false));
        assert_eq!(Event::of(&standing, now + MENDED_FOR), []);
    }
}
