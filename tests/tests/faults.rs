//! Faults under traffic: whatever breaks, no verdict is wrong, every count is exact, and nothing is left behind.
//!
//! `REEVE_KILLS` (default 5) and `REEVE_STORM_SECONDS` (default 3) make the longest of them longer; `REEVE_SEED` is where
//! random moments start (default: random, printed).
#![allow(clippy::float_cmp, clippy::cast_precision_loss, reason = "metrics are whole numbers, and small ones")]

#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/interfaces.rs"]
mod interfaces;
#[path = "faults/kill.rs"]
mod kill;
#[path = "faults/pins.rs"]
mod pins;
#[path = "faults/room.rs"]
mod room;
#[path = "faults/storm.rs"]
mod storm;

use std::time::Duration;

use reeve_tests::lab::{Node, Objects, until};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::stage::Stage;

/// Longest wait for the agent to see what has happened, and for the kernel to let go of what nobody holds.
const PATIENCE: Duration = Duration::from_secs(15);

/// Whether the machine lacks something; says so.
#[track_caller]
fn skipped() -> bool {
    use Capability::{Agent, Bpf, Cgroup, Netns, Root};
    skip_unless(&[Root, Bpf, Netns, Cgroup, Agent])
}

/// The node holds what it held before, and no more.
#[track_caller]
fn check_nothing_leaked(node: &Node, before: &Objects) {
    let mut now = None;
    let same = until("what is held to be what was held", PATIENCE, || {
        let found = node.objects()?;
        let same = found == *before;
        now = Some(found);
        Ok(same.then_some(()))
    });
    same.unwrap_or_else(|error| panic!("{error:#}: {now:#?}\nand before {before:#?}"));
}

/// Waits until the agent is not ready and says this.
#[track_caller]
fn check_unready(stage: &mut Stage, said: &str) {
    let unready = until("the reason", PATIENCE, || {
        let answer = stage.agent().request("GET", "/readyz")?;
        Ok((answer.status == 503 && answer.body.contains(said)).then_some(()))
    });
    unready.unwrap_or_else(|error| panic!("{error:#}: {said}\n{}", stage.agent().log()));
}

#[track_caller]
fn metric(stage: &mut Stage, name: &str, labels: &[(&str, &str)]) -> f64 {
    stage.agent().metric(name, labels).expect("a metric")
}
