//! Who writes for all: the rules of election by a Lease, as Kubernetes' own components keep them. No clock, no requests.
//!
//! Invariant: another's Lease is taken over only when this agent has itself seen no renewal of it for as long as it lasts, by its
//! own clock; times that are written in it are compared with nothing. What the Lease was when it was seen last goes with each
//! write, so of two who try only one succeeds.

use super::pace::Doubling;
use std::time::{Duration, Instant};

/// A Lease as it was last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    /// Which the API server gave it; a write that names another is refused.
    pub(super) version: String,
    /// Nobody, if it was given back.
    pub(super) holder: Option<String>,
    /// Changes with each renewal; means nothing else here.
    pub(super) renewed: String,
    pub(super) lasts: Duration,
    /// How often it has changed hands.
    pub(super) transitions: i32,
}

/// What is known of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing yet.
    Nothing,
    /// There is none, since then.
    Absent { since: Instant },
    /// It has been like this since then.
    Held { holding: Holding, since: Instant },
}

/// What there is to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing before that moment, or at all, unless something is heard.
    Wait(Option<Instant>),
    /// To write the Lease.
    Write(Claim),
}

/// A Lease that is to be written with this agent as its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The version to replace; none: it is to be created.
    pub(super) over: Option<String>,
    pub(super) transitions: i32,
    /// Whether it changes hands by this.
    pub(super) acquires: bool,
}

/// One candidate's view.
#[derive(Debug)]
pub(super) struct Election {
    holder: String,
    lasts: Duration,
    known: Known,
    /// Between 0 and 1: which part of the spread this candidate waits for, so that not all try at once.
    chance: f64,
    /// When the last write that succeeded began.
    renewed_at: Option<Instant>,
    /// Nothing is written before: the last write failed.
    not_before: Option<Instant>,
    retries: Doubling,
}

/// Pauses after a write that failed: a holder has to try several times before it is over, those who may not write give up soon.
const RETRIES: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_mins(5));

/// Why a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// For a reason that may be over soon.
    Passing,
    /// For want of rights.
    Lasting,
}

impl Election {
    /// A candidate of this name, which is nobody else's; `lasts`: for how long nobody takes over from it.
    pub(super) fn new(holder: String, lasts: Duration) -> Self {
        Self { holder, lasts, known: Known::Nothing, chance: 0.0, renewed_at: None, not_before: None, retries: RETRIES }
    }

    /// The Lease is like this, or there is none; `chance`: this candidate's of now.
    pub(super) fn heard(&mut self, lease: Option<Holding>, now: Instant, chance: f64) {
        if lease.as_ref().is_none_or(|lease| lease.holder.as_deref() != Some(&self.holder)) {
            self.renewed_at = None;
        }
        let since = match (&lease, &self.known) {
            (None, Known::Absent { since }) => Some(*since),
            // Labels may have changed; whoever holds it has not renewed it.
            (Some(holding), Known::Held { holding: before, since }) if same(holding, before) => Some(*since),
            _ => None,
        };
        if since.is_none() {
            self.chance = chance;
        }
        let since = since.unwrap_or(now);
        self.known = lease.map_or(Known::Absent { since }, |holding| Known::Held { holding, since });
    }

    /// What to do now.
    pub(super) fn next(&self, now: Instant) -> Next {
        let spread = self.lasts.div_f64(6.0).mul_f64(self.chance);
        let (due, claim) = match &self.known {
            Known::Nothing => return Next::Wait(None),
            Known::Absent { since } => (*since + spread, Claim { over: None, transitions: 0, acquires: true }),
            Known::Held { holding, since } => {
                let over = Some(holding.version.clone());
                let transitions = holding.transitions;
                match holding.holder.as_deref() {
                    Some(holder) if holder == self.holder => {
                        let due = self.renewed_at.map_or(*since, |renewed| renewed + self.lasts / 3);
                        (due, Claim { over, transitions, acquires: false })
                    }
                    holder => {
                        // One that was given back is nobody's.
                        let lasts = if holder.is_some() { holding.lasts } else { Duration::ZERO };
                        (*since + lasts + spread, Claim { over, transitions: transitions + 1, acquires: true })
                    }
                }
            }
        };
        let due = self.not_before.map_or(due, |not_before| due.max(not_before));
        if due <= now { Next::Write(claim) } else { Next::Wait(Some(due)) }
    }

    /// A write that began at `begun` succeeded: the Lease is like this now.
    pub(super) fn wrote(&mut self, lease: Holding, begun: Instant, now: Instant) {
        self.known = Known::Held { holding: lease, since: now };
        self.renewed_at = Some(begun);
        (self.not_before, self.retries) = (None, RETRIES);
    }

    /// A write failed; whether it was done all the same is heard of.
    pub(super) fn failed(&mut self, now: Instant, refusal: Refusal) {
        let mut pause = self.retries.next();
        if refusal == Refusal::Passing {
            pause = pause.min(self.lasts); // so that a cluster whose server was away has a writer soon after
        }
        self.not_before = Some(now + pause.mul_f64(1.0 + self.chance));
    }

    /// Until when this agent may act as the holder, if it may now: well before anybody takes over, unless it renews it.
    pub(super) fn leads_until(&self, now: Instant) -> Option<Instant> {
        let until = self.renewed_at? + self.lasts.mul_f64(2.0 / 3.0);
        (now < until).then_some(until)
    }

    /// The version of the Lease to give back, if this agent has it.
    pub(super) fn to_give_back(&self) -> Option<(&str, i32)> {
        match &self.known {
            Known::Held { holding, .. } if holding.holder.as_deref() == Some(&self.holder) => {
                Some((&holding.version, holding.transitions))
            }
            _ => None,
        }
    }
}

/// Whether one is no renewal of the other.
fn same(one: &Holding, other: &Holding) -> bool {
    *one == Holding { version: one.version.clone(), ..other.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(30);

    /// A Lease and its server, for candidates with clocks of their own.
    struct World {
        lease: Option<Holding>,
        writes: u32,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { lease: None, writes: 0, start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn wait(&self, seconds: u64) -> Next {
            Next::Wait(Some(self.at(seconds)))
        }

        /// A candidate that has looked at the Lease then.
        fn candidate(&self, name: &str, seconds: u64) -> Election {
            let mut candidate = Election::new(name.to_owned(), LASTS);
            self.tell(&mut candidate, seconds);
            candidate
        }

        fn tell(&self, who: &mut Election, seconds: u64) {
            who.heard(self.lease.clone(), self.at(seconds), 0.0);
        }

        /// What the server does with what this candidate wants to write then; whoever is refused looks again.
        fn write(&mut self, who: &mut Election, seconds: u64) -> bool {
            let now = self.at(seconds);
            let claim = match who.next(now) {
                Next::Write(claim) => claim,
                Next::Wait(until) => panic!("waits until {until:?}"),
            };
            if claim.over.as_deref() != self.lease.as_ref().map(|lease| lease.version.as_str()) {
                self.tell(who, seconds);
                return false;
            }
            self.writes += 1;
            let (holder, text) = (Some(who.holder.clone()), self.writes.to_string());
            let transitions = claim.transitions;
            let lease = Holding { version: text.clone(), holder, renewed: text, lasts: who.lasts, transitions };
            self.lease = Some(lease.clone());
            who.wrote(lease, now, now);
            true
        }
    }

    #[test]
    fn who_has_heard_nothing_of_the_lease_writes_nothing() {
        let world = World::new();
        assert_eq!(Election::new("one".to_owned(), LASTS).next(world.at(1_000)), Next::Wait(None));
    }

    #[test]
    fn the_first_of_two_who_find_no_lease_gets_it_and_the_other_waits() {
        let mut world = World::new();
        let (mut one, mut two) = (world.candidate("one", 0), world.candidate("two", 0));
        assert_eq!(one.next(world.at(0)), Next::Write(Claim { over: None, transitions: 0, acquires: true }));
        assert!(world.write(&mut one, 2));
        assert!(!world.write(&mut two, 2));
        assert_eq!(two.next(world.at(2)), world.wait(32));
        assert_eq!((one.leads_until(world.at(2)), two.leads_until(world.at(2))), (Some(world.at(22)), None));
    }

    #[test]
    fn a_lease_is_taken_over_when_no_renewal_was_seen_for_as_long_as_it_lasts_by_the_own_clock() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        assert!(world.write(&mut one, 2));
        // Whatever times are in it, far in the past or the future: heard of for the first time, it has just begun.
        world.lease.as_mut().expect("a lease").renewed = "1970-01-01T00:00:00.000000Z".to_owned();
        let mut two = world.candidate("two", 1_000);
        assert_eq!(two.next(world.at(1_029)), world.wait(1_030));
        // Told again, as after a watch that broke off, it is as old as before; with another label, too.
        world.lease.as_mut().expect("a lease").version = "labelled".to_owned();
        world.tell(&mut two, 1_010);
        assert_eq!(two.next(world.at(1_029)), world.wait(1_030));
        let claim = Claim { over: Some("labelled".to_owned()), transitions: 1, acquires: true };
        assert_eq!(two.next(world.at(1_030)), Next::Write(claim));
        assert!(world.write(&mut two, 1_030));
        // Who had it hears of it and acts no longer.
        assert_eq!(one.leads_until(world.at(3)), Some(world.at(22)));
        world.tell(&mut one, 1_030);
        assert_eq!(one.leads_until(world.at(3)), None);
        assert_eq!(one.next(world.at(1_059)), world.wait(1_060));
    }

    #[test]
    fn a_holder_renews_in_time_and_acts_no_longer_before_anybody_may_take_over() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        assert!(world.write(&mut one, 2));
        let mut two = world.candidate("two", 2);
        assert_eq!(one.next(world.at(11)), world.wait(12));
        let renewal = Claim { over: Some("1".to_owned()), transitions: 0, acquires: false };
        assert_eq!(one.next(world.at(12)), Next::Write(renewal));
        assert!(world.write(&mut one, 12));
        world.tell(&mut two, 12);
        assert_eq!(two.next(world.at(41)), world.wait(42));
        // Its renewals fail from here on.
        one.failed(world.at(22), Refusal::Passing);
        assert_eq!(one.next(world.at(22)), world.wait(23));
        one.failed(world.at(23), Refusal::Passing);
        assert_eq!(one.next(world.at(23)), world.wait(25));
        assert_eq!((one.leads_until(world.at(31)), one.leads_until(world.at(32))), (Some(world.at(32)), None));
        assert!(world.write(&mut two, 42));
        assert!(!world.write(&mut one, 42), "a renewal of what another has by now is refused");
        assert_eq!(one.leads_until(world.at(13)), None);
    }

    #[test]
    fn who_succeeds_after_failures_waits_as_little_as_at_first_after_the_next() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        (0..4).for_each(|_| one.failed(world.at(0), Refusal::Passing));
        assert_eq!(one.next(world.at(0)), world.wait(8));
        assert!(world.write(&mut one, 8));
        one.failed(world.at(20), Refusal::Passing);
        assert_eq!(one.next(world.at(20)), world.wait(21));
    }

    #[test]
    fn who_may_not_write_waits_longer_than_who_was_not_answered() {
        let world = World::new();
        for (refusal, most) in [(Refusal::Passing, 30), (Refusal::Lasting, 300)] {
            let mut one = world.candidate("one", 0);
            (0..10).for_each(|_| one.failed(world.at(0), refusal));
            assert_eq!(one.next(world.at(0)), world.wait(most), "{refusal:?}");
        }
    }

    #[test]
    fn a_lease_that_is_given_back_is_taken_at_once() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        assert!(world.write(&mut one, 2));
        let mut two = world.candidate("two", 2);
        assert_eq!((one.to_give_back(), two.to_give_back()), (Some(("1", 0)), None));
        let lease = world.lease.as_mut().expect("a lease");
        (lease.holder, lease.version) = (None, "given back".to_owned());
        world.tell(&mut two, 5);
        assert!(world.write(&mut two, 5));
        assert_eq!(world.lease.map(|lease| lease.transitions), Some(1));
    }

    #[test]
    fn a_write_whose_answer_was_lost_is_found_out_about_and_the_lease_is_kept() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        assert!(world.write(&mut one, 2));
        let mut again = world.candidate("one", 3);
        assert_eq!(again.leads_until(world.at(3)), None);
        let renewal = Claim { over: Some("1".to_owned()), transitions: 0, acquires: false };
        assert_eq!(again.next(world.at(3)), Next::Write(renewal));
        assert!(world.write(&mut again, 3));
    }

    #[test]
    fn candidates_do_not_all_try_at_once() {
        let world = World::new();
        let mut one = world.candidate("one", 0);
        let lease = Holding {
            version: "1".to_owned(),
            holder: Some("two".to_owned()),
            renewed: "1".to_owned(),
            lasts: LASTS,
            transitions: 0,
        };
        one.heard(Some(lease.clone()), world.at(0), 0.5);
        let then = world.start + Duration::from_millis(32_500);
        assert_eq!(one.next(world.at(0)), Next::Wait(Some(then)));
        one.heard(Some(lease), world.at(1), 0.9);
        assert_eq!(one.next(world.at(0)), Next::Wait(Some(then)), "the same again is no other chance");
    }

    #[test]
    fn a_lease_that_somebody_deletes_is_lost_to_its_holder_and_made_again() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        assert!(world.write(&mut one, 2));
        world.lease = None;
        world.tell(&mut one, 3);
        assert_eq!((one.leads_until(world.at(3)), one.to_give_back()), (None, None));
        assert!(world.write(&mut one, 3));
    }
}
