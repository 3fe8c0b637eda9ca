//! Who writes for all: the rules of election by a Lease, as Kubernetes' own components keep them. No clock, no requests.
//!
//! Invariant: another's Lease is taken over only when this agent has itself seen no renewal of it for as long as it lasts, by its
//! own clock; times that are written in it are compared with nothing. What the Lease was when it was seen last goes with each
//! write, so of two who try only one succeeds.

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
    /// Nothing yet, since then.
    Nothing { since: Instant },
    /// There is none, since then.
    Absent { since: Instant },
    /// It has been like this since then.
    Held { holding: Holding, since: Instant },
}

/// What there is to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing before that moment, unless something is heard.
    Wait(Instant),
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
    /// Since when it is known that the Lease is another than the one that is known: a write was refused for it.
    outdated: Option<Instant>,
}

impl Election {
    /// A candidate of this name, which is nobody else's; `lasts`: for how long nobody takes over from it.
    pub(super) fn new(holder: String, lasts: Duration, now: Instant, chance: f64) -> Self {
        let known = Known::Nothing { since: now };
        Self { holder, lasts, known, chance, renewed_at: None, not_before: None, outdated: None }
    }

    /// The Lease is like this, or there is none.
    pub(super) fn heard(&mut self, lease: Option<Holding>, now: Instant, chance: f64) {
        self.outdated = None;
        if lease.as_ref().is_none_or(|lease| lease.holder.as_deref() != Some(&self.holder)) {
            self.renewed_at = None;
        }
        self.known = match (lease, &self.known) {
            (None, Known::Absent { since }) => Known::Absent { since: *since },
            (None, _) => {
                self.chance = chance;
                Known::Absent { since: now }
            }
            // Labels may have changed; whoever holds it has not renewed it.
            (Some(holding), Known::Held { holding: before, since }) if same(&holding, before) => {
                Known::Held { holding, since: *since }
            }
            (Some(holding), _) => {
                self.chance = chance;
                Known::Held { holding, since: now }
            }
        };
    }

    /// What to do now.
    pub(super) fn next(&self, now: Instant) -> Next {
        let spread = self.lasts.div_f64(6.0).mul_f64(self.chance);
        let (due, claim) = match &self.known {
            // A server that has one tells of it at once.
            Known::Nothing { since } | Known::Absent { since } => {
                let patience = if matches!(self.known, Known::Nothing { .. }) { self.retry() } else { Duration::ZERO };
                (*since + patience + spread, Claim { over: None, transitions: 0, acquires: true })
            }
            Known::Held { holding, since } => {
                let over = Some(holding.version.clone());
                match holding.holder.as_deref() {
                    Some(holder) if holder == self.holder => {
                        let due = self.renewed_at.map_or(*since, |renewed| renewed + self.renew_every());
                        (due, Claim { over, transitions: holding.transitions, acquires: false })
                    }
                    None => {
                        (*since + spread, Claim { over, transitions: holding.transitions + 1, acquires: true })
                    }
                    Some(_) => {
                        let due = *since + holding.lasts + spread;
                        (due, Claim { over, transitions: holding.transitions + 1, acquires: true })
                    }
                }
            }
        };
        // It is heard of soon. If not, it was deleted while nobody watched.
        let (due, claim) = match self.outdated {
            Some(since) => (since + self.lasts + spread, Claim { over: None, transitions: 0, acquires: true }),
            None => (due, claim),
        };
        let due = self.not_before.map_or(due, |not_before| due.max(not_before));
        if due <= now { Next::Write(claim) } else { Next::Wait(due) }
    }

    /// A write that began at `begun` succeeded: the Lease is like this now.
    pub(super) fn wrote(&mut self, lease: Holding, begun: Instant, now: Instant) {
        self.known = Known::Held { holding: lease, since: now };
        self.renewed_at = Some(begun);
        self.not_before = None;
    }

    /// A write was refused because the Lease is another by now, which is heard of soon.
    pub(super) fn conflicted(&mut self, now: Instant) {
        self.outdated = Some(now);
        self.renewed_at = None;
    }

    /// A write failed; whether it was done all the same is heard of.
    pub(super) fn failed(&mut self, now: Instant) {
        self.not_before = Some(now + self.retry().mul_f64(1.0 + self.chance));
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

    fn renew_every(&self) -> Duration {
        self.lasts / 3
    }

    fn retry(&self) -> Duration {
        self.lasts / 15
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

    /// A Lease and candidates, each with a clock of its own, in one world.
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

        fn candidate(&self, name: &str, seconds: u64) -> Election {
            Election::new(name.to_owned(), LASTS, self.at(seconds), 0.0)
        }

        /// What the server does with a claim.
        fn write(&mut self, who: &mut Election, claim: &Claim, now: Instant) -> bool {
            if claim.over.as_deref() != self.lease.as_ref().map(|lease| lease.version.as_str()) {
                who.conflicted(now);
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

        fn tell(&self, who: &mut Election, now: Instant) {
            who.heard(self.lease.clone(), now, 0.0);
        }
    }

    fn claim(next: Next) -> Claim {
        match next {
            Next::Write(claim) => claim,
            Next::Wait(until) => panic!("waits until {until:?}"),
        }
    }

    #[test]
    fn the_first_of_two_who_find_no_lease_gets_it_and_the_other_waits_for_news() {
        let mut world = World::new();
        let (mut one, mut two) = (world.candidate("one", 0), world.candidate("two", 0));
        // A server that has a Lease may still be about to tell of it.
        assert_eq!(one.next(world.at(0)), Next::Wait(world.at(2)));
        let now = world.at(2);
        let (first, second) = (claim(one.next(now)), claim(two.next(now)));
        assert_eq!(first, Claim { over: None, transitions: 0, acquires: true });
        assert!(world.write(&mut one, &first, now));
        assert!(!world.write(&mut two, &second, now));
        assert_eq!(two.next(now), Next::Wait(world.at(32)), "it is about to hear of it");
        assert_eq!((one.leads_until(now), two.leads_until(now)), (Some(world.at(22)), None));
        world.tell(&mut two, now);
        assert_eq!(two.next(now), Next::Wait(world.at(32)));
    }

    #[test]
    fn a_lease_is_taken_over_when_no_renewal_was_seen_for_as_long_as_it_lasts_by_the_own_clock() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        let first = claim(one.next(world.at(2)));
        assert!(world.write(&mut one, &first, world.at(2)));
        // Whatever times are in it, far in the past or the future: heard of for the first time, it has just begun.
        world.lease.as_mut().expect("a lease").renewed = "1970-01-01T00:00:00.000000Z".to_owned();
        let mut two = world.candidate("two", 1_000);
        world.tell(&mut two, world.at(1_000));
        assert_eq!(two.next(world.at(1_029)), Next::Wait(world.at(1_030)));
        // Told again, as after a watch that broke off, it is as old as before; with another label, too.
        world.lease.as_mut().expect("a lease").version = "labelled".to_owned();
        world.tell(&mut two, world.at(1_010));
        assert_eq!(two.next(world.at(1_029)), Next::Wait(world.at(1_030)));
        let taken = claim(two.next(world.at(1_030)));
        assert_eq!(taken, Claim { over: Some("labelled".to_owned()), transitions: 1, acquires: true });
        assert!(world.write(&mut two, &taken, world.at(1_030)));
        // Who had it hears of it and acts no longer.
        world.tell(&mut one, world.at(1_030));
        assert_eq!(one.leads_until(world.at(2)), None);
        assert_eq!(one.next(world.at(1_059)), Next::Wait(world.at(1_060)));
    }

    #[test]
    fn a_holder_renews_in_time_and_acts_no_longer_before_anybody_may_take_over() {
        let mut world = World::new();
        let (mut one, mut two) = (world.candidate("one", 0), world.candidate("two", 0));
        let first = claim(one.next(world.at(2)));
        assert!(world.write(&mut one, &first, world.at(2)));
        world.tell(&mut two, world.at(2));
        assert_eq!(one.next(world.at(11)), Next::Wait(world.at(12)));
        let renewal = claim(one.next(world.at(12)));
        assert!(!renewal.acquires && renewal.transitions == 0, "{renewal:?}");
        assert!(world.write(&mut one, &renewal, world.at(12)));
        world.tell(&mut two, world.at(12));
        assert_eq!(two.next(world.at(41)), Next::Wait(world.at(42)));
        // Its renewals fail from here on.
        one.failed(world.at(22));
        assert_eq!(one.next(world.at(22)), Next::Wait(world.at(24)));
        assert_eq!(one.leads_until(world.at(31)), Some(world.at(32)));
        assert_eq!(one.leads_until(world.at(32)), None);
        let taken = claim(two.next(world.at(42)));
        assert!(world.write(&mut two, &taken, world.at(42)));
        let late = claim(one.next(world.at(42)));
        assert!(!world.write(&mut one, &late, world.at(42)), "a renewal of what another has by now is refused");
    }

    #[test]
    fn a_lease_that_is_given_back_is_taken_at_once() {
        let mut world = World::new();
        let (mut one, mut two) = (world.candidate("one", 0), world.candidate("two", 0));
        let first = claim(one.next(world.at(2)));
        assert!(world.write(&mut one, &first, world.at(2)));
        world.tell(&mut two, world.at(2));
        assert_eq!((one.to_give_back(), two.to_give_back()), (Some(("1", 0)), None));
        let lease = world.lease.as_mut().expect("a lease");
        (lease.holder, lease.version) = (None, "given back".to_owned());
        world.tell(&mut two, world.at(5));
        assert_eq!(claim(two.next(world.at(5))).transitions, 1);
    }

    #[test]
    fn a_write_whose_answer_was_lost_is_found_out_about_and_the_lease_is_kept() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        let first = claim(one.next(world.at(2)));
        assert!(world.write(&mut one, &first, world.at(2)));
        let mut again = world.candidate("one", 2);
        again.failed(world.at(2));
        world.tell(&mut again, world.at(3));
        assert_eq!(again.leads_until(world.at(3)), None);
        let renewal = claim(again.next(world.at(4)));
        assert_eq!(renewal, Claim { over: Some("1".to_owned()), transitions: 0, acquires: false });
    }

    #[test]
    fn a_lease_that_was_deleted_while_nobody_watched_is_made_again() {
        let mut world = World::new();
        let (mut one, mut two) = (world.candidate("one", 0), world.candidate("two", 0));
        let first = claim(one.next(world.at(2)));
        assert!(world.write(&mut one, &first, world.at(2)));
        world.tell(&mut two, world.at(2));
        world.lease = None;
        let stale = claim(two.next(world.at(32)));
        assert!(!world.write(&mut two, &stale, world.at(32)));
        assert_eq!(two.next(world.at(61)), Next::Wait(world.at(62)));
        let anew = claim(two.next(world.at(62)));
        assert!(anew.over.is_none() && world.write(&mut two, &anew, world.at(62)));
    }

    #[test]
    fn candidates_do_not_all_try_at_once() {
        let world = World::new();
        let mut one = world.candidate("one", 0);
        one.heard(None, world.at(0), 0.5);
        assert_eq!(one.next(world.at(0)), Next::Wait(world.start + Duration::from_millis(2_500)));
        one.heard(None, world.at(1), 0.9);
        assert_eq!(one.next(world.at(0)), Next::Wait(world.start + Duration::from_millis(2_500)));
    }

    #[test]
    fn a_lease_that_somebody_deletes_is_lost_to_its_holder() {
        let mut world = World::new();
        let mut one = world.candidate("one", 0);
        let first = claim(one.next(world.at(2)));
        assert!(world.write(&mut one, &first, world.at(2)));
        world.lease = None;
        world.tell(&mut one, world.at(3));
        assert_eq!((one.leads_until(world.at(3)), one.to_give_back()), (None, None));
        assert_eq!(claim(one.next(world.at(3))).over, None);
    }
}
