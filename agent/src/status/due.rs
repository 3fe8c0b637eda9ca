//! What the cluster is to be told and has not been told yet. No requests, no clock.
//!
//! Invariant: what is due follows from how policies stand and what there is in the cluster, so only the last state is ever
//! written, whatever was missed; what fails is due again, later each time.

use super::condition::{self, Condition, Conditions};
use super::event::Event;
use super::outcome::Outcome;
use super::pace::Doubling;
use k8s_openapi::jiff::Timestamp;
use reeve_policy::store::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Writes that are made before it is looked again what is due.
const AT_ONCE: usize = 100;
/// What was written is heard of within this time, or is taken for undone.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// An API server forgets events after an hour, unless it is told otherwise: from so long after one was made on, it is looked
/// whether it is still there, so often.
const EVENTS_LAST: Duration = Duration::from_mins(30);
const EVENTS_LOOK: Duration = Duration::from_mins(5);
/// Pauses after what failed, and how long after one it counts as the last failure.
const PAUSES: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_mins(5));
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

/// The kind of events, as RBAC names it.
const EVENTS: &str = "events.events.k8s.io";

/// One thing to write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// Of such a kind, as RBAC names it.
    Condition {
        kind: &'static str,
        outcome: Box<Outcome>,
        condition: Condition,
    },
    Event(Event),
}

/// Whom a failure is about: all objects of a kind in a namespace, or one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Scope {
    kind: &'static str,
    namespace: Option<String>,
    name: Option<String>,
}

/// What a failure says of other writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing: it is about this object.
    Alone,
    /// Others like it would fail as well.
    Common,
}

#[derive(Debug)]
struct Wrote {
    uid: Option<String>,
    condition: Condition,
    at: Instant,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    next: Doubling,
}

/// What a look found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Look {
    /// What to write now, in order.
    pub(super) writes: Vec<Write>,
    /// How many are due, those included that wait because others failed.
    pub(super) left: usize,
    /// Of which kinds those are, as RBAC names them.
    pub(super) kinds: BTreeSet<&'static str>,
    /// When to look again if nothing is heard before.
    pub(super) next: Option<Instant>,
}

/// What was written, and what failed.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Conditions that were written and need not have been heard of yet, of which UID.
    wrote: BTreeMap<ObjectKey, Wrote>,
    /// Events that are there, by namespace and name, and when to look for each again.
    told: BTreeMap<(String, String), Instant>,
    pauses: BTreeMap<Scope, Pause>,
}

impl Write {
    /// As RBAC names it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Condition { kind, .. } => kind,
            Self::Event(_) => EVENTS,
        }
    }

    /// The verb that it takes, and of what.
    pub(super) const fn verb(&self) -> &'static str {
        match self {
            Self::Condition { .. } => "patch (status)",
            Self::Event(_) => "create",
        }
    }

    /// The object's name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Condition { outcome, .. } => &outcome.key.name,
            Self::Event(event) => &event.name,
        }
    }

    /// What its failure may be about: this object, or all its like.
    fn scopes(&self) -> [Scope; 2] {
        let namespace = match self {
            Self::Condition { .. } => None,
            Self::Event(event) => Some(event.namespace.clone()),
        };
        let all = Scope { kind: self.kind(), namespace, name: None };
        [Scope { name: Some(self.name().to_owned()), ..all.clone() }, all]
    }
}

impl Due {
    /// What to write, if policies stand like this and these conditions are there.
    pub(super) fn look(
        &mut self,
        outcomes: &[Outcome],
        there: &Conditions,
        node: &str,
        now: Instant,
        wall: Timestamp,
    ) -> Look {
        self.wrote.retain(|_, wrote| wrote.at + HEARD_WITHIN > now);
        let mut look = Look::default();
        let mut held = BTreeSet::new();
        for outcome in outcomes {
            if let Some(kind) = condition::kind(&outcome.key) {
                let wrote = self.wrote.get(&outcome.key).filter(|wrote| wrote.uid == outcome.uid);
                let known = wrote.map(|wrote| &wrote.condition).or_else(|| there.get(&outcome.key));
                let condition = Condition::of(outcome, known, node, wall);
                if known.is_none_or(|known| !condition.says(known)) {
                    let write = Write::Condition { kind, outcome: Box::new(outcome.clone()), condition };
                    look.add(write, &self.pauses, now);
                }
            }
            for event in Event::of(outcome, node) {
                let place = (event.namespace.clone(), event.name.clone());
                match self.told.get(&place).copied().filter(|again| *again > now) {
                    Some(again) => look.again(again),
                    None => look.add(Write::Event(event), &self.pauses, now),
                }
                held.insert(place);
            }
        }
        self.wrote.values().for_each(|wrote| look.again(wrote.at + HEARD_WITHIN));
        self.told.retain(|place, _| held.contains(place));
        // What was not tried again for so long is due no longer.
        self.pauses.retain(|_, pause| pause.until + FORGOTTEN_AFTER > now);
        look
    }

    /// It was written, or was there.
    pub(super) fn wrote(&mut self, write: Write, was_there: bool, now: Instant) {
        for scope in write.scopes() {
            self.pauses.remove(&scope);
        }
        match write {
            Write::Condition { outcome, condition, .. } => {
                self.wrote.insert(outcome.key, Wrote { uid: outcome.uid, condition, at: now });
            }
            Write::Event(event) => {
                let again = now + if was_there { EVENTS_LOOK } else { EVENTS_LAST };
                self.told.insert((event.namespace, event.name), again);
            }
        }
    }

    /// It could not be written; whether that is the first failure of its kind after what succeeded.
    pub(super) fn failed(&mut self, write: &Write, fault: Fault, now: Instant) -> bool {
        let [alone, common] = write.scopes();
        let scope = if fault == Fault::Alone { alone } else { common };
        let first = !self.pauses.contains_key(&scope);
        let pause = self.pauses.entry(scope).or_insert(Pause { until: now, next: PAUSES });
        pause.until = now + pause.next.next();
        first
    }
}

impl Look {
    /// This is due, unless it has to wait.
    fn add(&mut self, write: Write, pauses: &BTreeMap<Scope, Pause>, now: Instant) {
        self.left += 1;
        self.kinds.insert(write.kind());
        let waits = write.scopes().iter().filter_map(|scope| pauses.get(scope)).map(|pause| pause.until).max();
        match waits.filter(|until| *until > now) {
            Some(until) => self.again(until),
            None if self.writes.len() < AT_ONCE => self.writes.push(write),
            None => {}
        }
    }

    /// Something comes to be due then.
    fn again(&mut self, moment: Instant) {
        self.next = Some(self.next.map_or(moment, |next| next.min(moment)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::{admin, outcomes, policy};
    use super::*;
    use serde_json::Value;

    fn nothing_until(next: Option<Instant>) -> Look {
        Look { next, ..Look::default() }
    }

    fn names(writes: &[Write]) -> Vec<&str> {
        writes.iter().map(Write::name).collect()
    }

    struct World {
        due: Due,
        there: Conditions,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { due: Due::default(), there: Conditions::new(), start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn look(&mut self, objects: &[Value], seconds: u64) -> Look {
            let wall = Timestamp::from_second(i64::try_from(seconds).expect("a few")).expect("a moment");
            self.due.look(&outcomes(objects), &self.there, "one", self.at(seconds), wall)
        }
    }

    #[test]
    fn a_condition_is_due_until_it_is_there_and_again_when_somebody_takes_it_away() {
        let mut world = World::new();
        let accepted = [admin(1, "Accept")];
        let look = world.look(&accepted, 1);
        let [write @ Write::Condition { outcome, condition, .. }] = &look.writes[..] else { panic!("{look:?}") };
        assert_eq!((look.left, look.next), (1, None));
        world.due.wrote(write.clone(), false, world.at(1));
        // It is on its way: nothing is written twice, and what it says of when is taken from it.
        assert_eq!(world.look(&accepted, 2), nothing_until(Some(world.at(11))));
        let next = world.look(&[admin(2, "Accept")], 3);
        let [Write::Condition { condition: second, .. }] = &next.writes[..] else { panic!("{next:?}") };
        assert_eq!(
            Condition::of(&outcomes(&[admin(2, "Accept")])[0], Some(condition), "one", Timestamp::UNIX_EPOCH),
            *second
        );
        world.there.insert(outcome.key.clone(), condition.clone());
        assert_eq!(world.look(&accepted, 20), nothing_until(None));
        world.there.clear();
        assert_eq!(world.look(&accepted, 21).writes.len(), 1);
    }

    #[test]
    fn what_was_written_and_is_not_heard_of_is_written_again() {
        let mut world = World::new();
        let look = world.look(&[admin(1, "Accept")], 0);
        world.due.wrote(look.writes[0].clone(), false, world.at(0));
        assert_eq!(world.look(&[admin(1, "Accept")], 9).left, 0);
        let mut another = admin(1, "Accept");
        another["metadata"]["uid"] = "another of that name".into();
        assert_eq!(world.look(&[another], 9).left, 1);
        assert_eq!(world.look(&[admin(1, "Accept")], 10).left, 1);
    }

    #[test]
    fn an_event_is_due_once_and_again_before_the_server_forgets_it() {
        let mut world = World::new();
        let wrong = [policy(1, "10.0.0.0/99")];
        let look = world.look(&wrong, 0);
        assert!(matches!(&look.writes[..], [Write::Event(_)]), "{look:?}");
        world.due.wrote(look.writes[0].clone(), false, world.at(0));
        let minutes = |minutes: u64| 60 * minutes;
        assert_eq!(world.look(&wrong, 1), nothing_until(Some(world.at(minutes(30)))));
        assert_eq!(world.look(&wrong, minutes(30)).writes, look.writes);
        world.due.wrote(look.writes[0].clone(), true, world.at(minutes(30)));
        assert_eq!(
            world.look(&wrong, minutes(31)),
            nothing_until(Some(world.at(minutes(35)))),
            "it may be gone any time"
        );
        assert_eq!(world.look(&wrong, minutes(35)).writes, look.writes);
        assert_eq!(world.look(&[policy(2, "10.0.0.0/99")], 1).writes.len(), 1, "another generation, another event");
        assert_eq!(world.look(&[policy(3, "10.0.0.0/8")], 2), nothing_until(None));
        assert!(world.due.told.is_empty(), "what is mended is forgotten");
    }

    #[test]
    fn what_fails_waits_longer_each_time_and_keeps_only_its_like_waiting() {
        let mut world = World::new();
        let (mut elsewhere, mut other) = (policy(1, "10.0.0.0/99"), admin(1, "Accept"));
        elsewhere["metadata"]["namespace"] = "till".into();
        other["metadata"]["name"] = "other".into();
        let objects = [policy(1, "10.0.0.0/99"), elsewhere, admin(1, "Accept"), other];
        // Two events, then two conditions.
        let first = world.look(&objects, 0).writes;
        assert_eq!(first.len(), 4);
        assert!(world.due.failed(&first[0], Fault::Common, world.at(0)));
        let look = world.look(&objects, 0);
        assert_eq!(
            (&look.writes[..], look.left, look.next),
            (&first[1..], 4, Some(world.at(1))),
            "one namespace waits"
        );
        assert!(world.due.failed(&first[2], Fault::Alone, world.at(0)));
        let look = world.look(&objects, 0);
        assert_eq!((look.writes, look.left), (vec![first[1].clone(), first[3].clone()], 4));
        assert!(world.due.failed(&first[3], Fault::Common, world.at(0)));
        assert_eq!(world.look(&objects, 0).writes, first[1..2], "events are another matter");

        assert_eq!(names(&world.look(&objects, 1).writes), names(&first));
        assert!(!world.due.failed(&first[3], Fault::Common, world.at(1)), "it fails again");
        assert_eq!(names(&world.look(&objects, 2).writes), names(&first[..2]));
        assert_eq!(names(&world.look(&objects, 3).writes), names(&first));
        world.due.wrote(first[2].clone(), false, world.at(3));
        assert!(world.due.failed(&first[3], Fault::Common, world.at(3)), "it succeeded in between");
    }

    #[test]
    fn not_more_than_so_many_are_written_before_the_next_look() {
        let mut world = World::new();
        let named = |index: usize| {
            let mut object = admin(1, "Accept");
            object["metadata"]["name"] = format!("p{index}").into();
            object
        };
        let objects: Vec<Value> = (0..AT_ONCE + 5).map(named).collect();
        let look = world.look(&objects, 0);
        assert_eq!((look.writes.len(), look.left), (AT_ONCE, AT_ONCE + 5));
    }
}
