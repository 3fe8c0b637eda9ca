//! Events about policies that are not honoured as they are written: one for each problem of each generation.
//!
//! An event's name follows from what it is about, so whoever writes it, and however often it changes who does, there is one. The
//! client library's recorder makes names of the moment, and would tell everything again with each new writer.

use super::outcome::{Outcome, cut, sentence};
use crate::standing::State;
use k8s_openapi::jiff::Timestamp;
use reeve_policy::model::Problem;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Events of one policy, at most: the last tells how many problems it stands for.
const MOST: usize = 10;
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
    reason: &'static str,
    note: String,
    regarding: Value,
}

impl Event {
    /// Those that should be there because of a policy, as this node sees it.
    pub(super) fn of(outcome: &Outcome, node: &str) -> Vec<Self> {
        let reason = match outcome.state {
            State::Refused => "Refused",
            State::Narrowed => "NotUnderstood",
            State::Accepted => return Vec::new(),
        };
        let problems = &outcome.problems[..];
        let (told, left) = if problems.len() > MOST { problems.split_at(MOST - 1) } else { (problems, &[][..]) };
        let event = |problem: &Problem| {
            // How many rows are wanted changes with every policy, and is no news.
            let about = if problem.is_of_node() { [node, ""] } else { [problem.value.as_str(), problem.what.as_str()] };
            Self::new(outcome, reason, &sentence(problem, node), &[&problem.field, about[0], about[1]])
        };
        let mut events: Vec<Self> = told.iter().map(event).collect();
        if !left.is_empty() {
            let note = format!("There are {} more: `GET /problems` of an agent tells each.", left.len());
            events.push(Self::new(outcome, reason, &note, &["more"]));
        }
        events
    }

    fn new(outcome: &Outcome, reason: &'static str, note: &str, about: &[&str]) -> Self {
        let key = &outcome.key;
        let generation = outcome.generation.map(|generation| generation.to_string()).unwrap_or_default();
        let uid = outcome.uid.as_deref().unwrap_or_default();
        let mut hash = Sha256::new();
        for part in [&key.to_string(), uid, &generation, reason].iter().chain(about) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hash: [u8; 32] = hash.finalize().into();
        let hash = u64::from_be_bytes(*hash.first_chunk().expect("it is longer"));
        let name = cut(&key.name, LONGEST_NAME).trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        Self {
            // What is in no namespace is told where the API looks for it.
            namespace: key.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            name: format!("{name}.{hash:016x}"),
            reason,
            note: cut(note, LONGEST_NOTE).to_owned(),
            regarding: json!({
                "apiVersion": outcome.version, "kind": key.kind, "namespace": key.namespace, "name": key.name,
                "uid": outcome.uid,
            }),
        }
    }

    /// The object, as written now from this node.
    pub(super) fn object(&self, node: &str, now: Timestamp) -> Value {
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": { "namespace": self.namespace, "name": self.name },
            // The API reads six decimals, and no others.
            "eventTime": format!("{now:.6}"),
            "type": "Warning", "reason": self.reason, "action": "Enforce", "note": self.note,
            "reportingController": CONTROLLER, "reportingInstance": cut(node, LONGEST_INSTANCE),
            "regarding": self.regarding,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::{admin, no_room, outcomes, policy};
    use super::*;

    fn events(object: &Value) -> Vec<Event> {
        outcomes(std::slice::from_ref(object)).iter().flat_map(|outcome| Event::of(outcome, "one")).collect()
    }

    fn names(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.name.as_str()).collect()
    }

    #[test]
    fn an_event_is_the_same_for_whoever_writes_it_and_another_for_each_generation_and_value() {
        let wrong = outcomes(&[policy(1, "10.0.0.0/99")]).swap_remove(0);
        assert_eq!(Event::of(&wrong, "one"), Event::of(&wrong, "two"));
        let all =
            [events(&policy(1, "10.0.0.0/99")), events(&policy(2, "10.0.0.0/99")), events(&policy(1, "10.0.0.0/98"))];
        let different: std::collections::BTreeSet<&str> = all.iter().flat_map(|events| names(events)).collect();
        assert_eq!(different.len(), 3, "{all:?}");
        assert_eq!(events(&policy(1, "10.0.0.0/8")), []);
        assert_eq!(events(&admin(1, "Accept")), []);
    }

    #[test]
    fn an_event_about_room_is_one_however_much_is_wanted_and_another_for_each_node() {
        let outcome = |needed| {
            let accepted = outcomes(&[admin(1, "Accept")]).swap_remove(0);
            Outcome { problems: vec![no_room(needed)], state: State::Refused, ..accepted }
        };
        let (first, later) = (Event::of(&outcome(9), "one"), Event::of(&outcome(10), "one"));
        assert_eq!((first.len(), &first), (1, &later));
        assert_ne!(names(&first), names(&Event::of(&outcome(9), "two")));
        assert!(first[0].note.starts_with("Node one: map PEERS "), "{first:?}");
    }

    #[test]
    fn an_event_says_what_is_wrong_with_which_policy() {
        let event = events(&policy(1, "10.0.0.0/99")).swap_remove(0);
        let told = event.object("one", Timestamp::UNIX_EPOCH);
        assert_eq!((told["reason"].as_str(), told["type"].as_str()), (Some("NotUnderstood"), Some("Warning")));
        let note = told["note"].as_str().expect("text");
        assert!(note.starts_with("spec.ingress[0].from[0].ipBlock.cidr: 10.0.0.0/99: "), "{note}");
        assert_eq!(told["eventTime"], "1970-01-01T00:00:00.000000Z");
        let about = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "shop", "name": "web", "uid": "u",
        });
        assert_eq!((&told["regarding"], &told["metadata"]["namespace"]), (&about, &json!("shop")));
        let of_cluster = events(&admin(1, "Perhaps")).swap_remove(0).object("one", Timestamp::UNIX_EPOCH);
        assert_eq!(of_cluster["metadata"]["namespace"], "default");
    }

    #[test]
    fn a_policy_with_very_many_problems_has_few_events_and_the_last_tells_how_many_there_are() {
        let mut object = policy(1, "10.0.0.0/8");
        let wrong = |index: u32| json!({ "ipBlock": { "cidr": format!("10.0.0.0/{}", 40 + index) } });
        object["spec"]["ingress"][0]["from"] = (0..30).map(wrong).collect();
        let events = events(&object);
        assert_eq!(events.len(), MOST);
        assert_eq!(events[MOST - 1].note, "There are 21 more: `GET /problems` of an agent tells each.");
    }

    #[test]
    fn names_of_events_are_names_whatever_the_policy_is_called() {
        let mut object = policy(1, "10.0.0.0/99");
        object["metadata"]["name"] = json!(format!("{}-.x", "a".repeat(LONGEST_NAME - 1)));
        let name = events(&object).swap_remove(0).name;
        let (of_policy, hash) = name.split_once('.').expect("a dot");
        assert_eq!((of_policy.len(), hash.len()), (LONGEST_NAME - 1, 16), "{name}");
    }
}
