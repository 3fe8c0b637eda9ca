//! Real sockets between pods under a running agent: what the socket saw, the records and the oracle agree.
#![allow(clippy::float_cmp, reason = "metrics are whole numbers")]

#[path = "netns/before.rs"]
mod before;
#[path = "netns/builds.rs"]
mod builds;
#[path = "netns/changes.rs"]
mod changes;
#[path = "netns/clsact.rs"]
mod clsact;
#[path = "netns/drift.rs"]
mod drift;
#[path = "netns/hooks.rs"]
mod hooks;
#[path = "netns/input.rs"]
mod input;
#[path = "netns/interfaces.rs"]
mod interfaces;
#[path = "netns/life.rs"]
mod life;
#[path = "netns/marks.rs"]
mod marks;
#[path = "netns/nodes.rs"]
mod nodes;
#[path = "netns/numbers.rs"]
mod numbers;
#[path = "netns/origin.rs"]
mod origin;
#[path = "netns/packets.rs"]
mod packets;
#[path = "netns/reach.rs"]
mod reach;
#[path = "netns/room.rs"]
mod room;
#[path = "netns/staged.rs"]
mod staged;
#[path = "netns/standing.rs"]
mod standing;
#[path = "netns/upgrade.rs"]
mod upgrade;
#[path = "netns/windows.rs"]
mod windows;

use reeve_tests::require::{Capability, skip_unless};

/// Whether the machine lacks something; says so.
#[track_caller]
fn skipped() -> bool {
    use Capability::{Agent, Bpf, Cgroup, Netns, Root};
    skip_unless(&[Root, Bpf, Netns, Cgroup, Agent])
}
