//! Ten pods a second that come and go: no connection gets a wrong verdict at any moment.
//!
//! `REEVE_CHURN_SECONDS` (default 20) is how long it goes on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use reeve_tests::cluster::Administrator;
use reeve_tests::lab::until;
use reeve_tests::require::number;

use crate::crowd::{Crowd, Member};
use crate::town::{Company, LONG, Town, skipped};

/// Pods that come together, and the time from one burst to the next: ten in a second.
const BURST: usize = 30;
const EVERY: Duration = Duration::from_secs(3);
/// Between the moment when it is known who leaves and when they do.
const NOTICE: Duration = Duration::from_millis(700);
/// Pods that stay, one of each kind.
const STAY: usize = 6;
/// Those who make and end pods, and those who try connections.
const WORKERS: usize = 6;
const PROBERS: usize = 8;
/// Addresses of the node's pods, in each family: those of two bursts and of who stays, and a few more.
const LAST_ADDRESS: [&str; 2] = ["210", "d2"];

enum Task {
    Make,
    End(Arc<Member>),
    /// The policy, to its other form.
    Alter,
}

/// What workers share.
struct Work {
    tasks: Mutex<mpsc::Receiver<Task>>,
    made: Mutex<Vec<Arc<Member>>>,
    done: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Work {
    fn run(&self, crowd: &Crowd<'_>, administrator: &Administrator) {
        loop {
            let next = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let result = match next {
                Ok(Task::Make) => crowd.make(administrator).map(|member| {
                    self.made.lock().unwrap_or_else(PoisonError::into_inner).push(member);
                }),
                Ok(Task::End(member)) => crowd.end(administrator, &member),
                Ok(Task::Alter) => crowd.alter(administrator),
                Err(mpsc::RecvError) => return,
            };
            if let Err(error) = result {
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until so many tasks are done; the pods that were made meanwhile.
    #[track_caller]
    fn wait_for(&self, done: usize) -> Vec<Arc<Member>> {
        let ended = until("the burst to be over", 2 * LONG, || {
            let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
            Ok((self.done.load(Ordering::Relaxed) >= done).then_some(()))
        });
        ended.unwrap_or_else(|error| panic!("{error:#}"));
        std::mem::take(&mut self.made.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[test]
fn pods_that_come_and_go_in_bursts_are_judged_rightly_at_every_moment() {
    if skipped() {
        return;
    }
    let seconds = number("REEVE_CHURN_SECONDS", || 20);
    let mut town = Town::new("churn", Company::Alone);
    town.start();
    let links = town.node.links().expect("links").len();
    let chain = town.enforced_chain_ending_at(&town.node, LAST_ADDRESS);
    let crowd = Crowd::new(&town, chain);
    let (send, tasks) = mpsc::channel();
    let (made, failures) = (Mutex::default(), Mutex::default());
    let work = Work { tasks: Mutex::new(tasks), made, done: AtomicUsize::new(0), failures };
    let stopped = AtomicBool::new(false);
    let (_never, pause) = mpsc::channel::<()>();
    let (mut submitted, mut pods, mut here) = (0, 0, Vec::new());
    let (mut taken, mut before) = (Duration::ZERO, None);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let asked = town.cluster.ask(|administrator| {
                    work.run(&crowd, administrator);
                    Ok(())
                });
                asked.expect("an administrator");
            });
        }
        // Whatever goes wrong here, the others end.
        let send = send;
        let _stop = Stop(&stopped);
        let mut submit = |task| {
            send.send(task).expect("workers wait");
            submitted += 1;
            submitted
        };
        let mut due = 0;
        for _ in 0..STAY {
            due = submit(Task::Make);
        }
        let _stay = work.wait_for(due);
        // A wire is taken for one that leads elsewhere until its pod is announced.
        let settled = until("two links of each pod", LONG, || {
            let now = town.node.links()?;
            let of_pods = now.iter().filter(|link| link.ends_with("-from") || link.ends_with("-to")).count();
            let settled = of_pods == 2 * STAY && now.len() == links + of_pods;
            Ok(if settled { Some(town.node.objects()?) } else { None })
        });
        before = Some(settled.expect("what is held"));
        for _ in 0..PROBERS {
            scope.spawn(|| crowd.probe(&stopped));
        }
        let begun = Instant::now();
        let mut next = begun;
        for burst in 0..seconds / EVERY.as_secs() {
            // Nobody ever sends: these are pauses.
            let _ = pause.recv_timeout(next.saturating_duration_since(Instant::now()));
            Crowd::bid_farewell(&here);
            let _ = pause.recv_timeout(NOTICE);
            let leaving = std::mem::take(&mut here);
            let mut leaving = leaving.into_iter();
            if burst % 8 == 1 {
                due = submit(Task::Alter);
            }
            for _ in 0..BURST {
                due = submit(Task::Make);
                pods += 1;
                if let Some(member) = leaving.next() {
                    due = submit(Task::End(member));
                }
            }
            here = work.wait_for(due);
            next = Instant::max(next + EVERY, Instant::now());
        }
        Crowd::bid_farewell(&here);
        let _ = pause.recv_timeout(NOTICE);
        for member in std::mem::take(&mut here) {
            due = submit(Task::End(member));
        }
        work.wait_for(due);
        taken = begun.elapsed();
        stopped.store(true, Ordering::Relaxed);
    });
    let outcome = crowd.account(&mut town.own().records());
    let (allowed, denied, overlapped) = (outcome.allowed, outcome.denied, outcome.left + outcome.altered);
    let rate = f64::from(pods) / taken.as_secs_f64();
    println!(
        "{pods} pods made and ended in {:.1} s ({rate:.1} in a second), {} of them with an address of one before, the \
         slowest ADD took {} ms; {allowed} connections allowed and {denied} denied, of {} an end left and for {} \
         the policy was changed, the records of {} compared",
        taken.as_secs_f64(),
        outcome.reused,
        outcome.slowest_add.as_millis(),
        outcome.left,
        outcome.altered,
        outcome.compared(),
    );
    assert!(overlapped * 100 < allowed + denied, "{overlapped} of {} overlapped a change", allowed + denied);
    assert!(allowed > 50 && denied > 50, "{allowed} allowed, {denied} denied");
    assert!(outcome.reused > 10, "{} addresses of pods before", outcome.reused);
    assert!(outcome.compared() > 100, "{} connections compared", outcome.compared());
    let lost = town.own().metric("reeve_records_lost_total", &[]).expect("a metric");
    assert_eq!(lost, 0.0, "records lost");
    let mut now = None;
    let left = until("nothing to be left", LONG, || {
        now = Some(town.node.objects()?);
        Ok((now == before).then_some(()))
    });
    left.unwrap_or_else(|error| panic!("{error:#}: {now:#?}\nand before {before:#?}"));
    assert_eq!(town.node.rows("ENDPOINTS").expect("a map"), STAY);
}

/// Ends those who probe, even where the test has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
