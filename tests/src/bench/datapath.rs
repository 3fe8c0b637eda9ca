//! What the programs cost by themselves, in the kernel's own test runs, above a program that does nothing.

use std::net::Ipv4Addr;

use anyhow::Context;
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};
use reeve_abi::stats;
use reeve_packet::env::Hook;

use super::Sheet;
use super::cluster::Cluster;
use super::dealer::{Dealer, Segment};
use super::measure::{Measure, Target};
use super::testbed::Testbed;
use crate::frames::Ends;
use crate::kernel::Program;

/// Runs over one frame in one round.
const REPEAT: u32 = 200_000;
/// New flows in one round.
const NEW_FLOWS: u32 = 4_096;

const FROM_POD: &str = "program/established-from-pod";
const TO_POD: &str = "program/established-to-pod";
const NEW: &str = "program/new-flow";
const DRAWN: &str = "program/new-flow-drawn";
const DENIED: &str = "program/denied-again";
const PENDING: &str = "program/pending-from-pod";
const LEAVING: &str = "program/leaving-unmarked";
const STRANGER: &str = "program/no-endpoint";

/// What this area measures.
pub fn measures() -> Vec<Measure> {
    let cost = |name: &str, how: &str| Measure::new(name, "ns", format!("{how}; a test run, less an empty program's"));
    vec![
        cost(FROM_POD, "a packet of a live flow at the pod that sends it").target(Target::AtMost(80.0)),
        cost(TO_POD, "a packet of a live flow at the pod that receives it").target(Target::AtMost(80.0)),
        cost(NEW, "the first packet of a connection, one peer and one policy").target(Target::AtMost(500.0)),
        cost(DRAWN, "the same, peer, policy and pod drawn from 10,000 pods, 1,000 policies and 100 local pods")
            .target(Target::AtMost(1_300.0)),
        cost(DENIED, "a packet that was denied a moment before"),
        cost(PENDING, "a packet to an address that is no pod's, at the pod that sends it"),
        cost(LEAVING, "a packet without mark that leaves the node"),
        cost(STRANGER, "a packet at an interface without endpoint"),
    ]
}

/// See [`measures`].
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    if [FROM_POD, TO_POD, DENIED, PENDING, LEAVING, STRANGER].iter().any(|name| sheet.wants(name)) {
        same_frame(sheet)?;
    }
    if sheet.wants(NEW) {
        let mut bed = Testbed::new(Cluster { pods: 1_000, policies: 1, peers: 250 })?;
        let peer = bed.draw(0, 1)[0];
        let deals: Vec<_> = (0..NEW_FLOWS)
            .map(|number| Ok(super::dealer::Deal { source: (peer.source.0, u16::try_from(10_000 + number)?), ..peer }))
            .collect::<anyhow::Result<_>>()?;
        let dealer = Dealer::new(&deals, Segment::Opening)?;
        let mut rounds = Vec::new();
        // The round before the first one warms.
        for _ in 0..=sheet.rounds() {
            rounds.push(bed.cost(&dealer, 0, NEW_FLOWS, stats::ALLOWED_JUDGED)?);
            bed.forget_flows()?;
        }
        sheet.put(NEW, rounds.split_off(1));
    }
    if sheet.wants(DRAWN) {
        let mut bed = Testbed::new(Cluster { pods: 10_000, policies: 1_000, peers: 250 })?;
        bed.cost_of_drawn()?;
        let rounds = (0..sheet.rounds()).map(|_| bed.cost_of_drawn()).collect::<anyhow::Result<_>>()?;
        sheet.put(DRAWN, rounds);
    }
    Ok(())
}

fn same_frame(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let mut bed = Testbed::new(Cluster { pods: 1_000, policies: 1, peers: 250 })?;
    let allowed = bed.draw(0, 1)[0];
    let (pod, uplink, stranger) = (bed.device(0), bed.uplink(), bed.uplink() + 1);
    let ends = |source: Ipv4Addr, destination: Ipv4Addr| Ends {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: source.into(),
        destination: destination.into(),
    };
    let (peer, own) = (allowed.source, allowed.destination);
    let inwards = ends(peer.0, own.0);
    let open = inwards.tcp(peer.1, own.1, "S", 1, 0);
    let to_pod = inwards.tcp(peer.1, own.1, ".", 2, 2);
    let from_pod = ends(own.0, peer.0).tcp(own.1, peer.1, ".", 2, 2);
    let refused = inwards.tcp(peer.1, own.1 - 1, "S", 1, 0);
    let to_service = ends(own.0, Ipv4Addr::new(10, 96, 0, 1)).udp(4002, 53, b"0123456789abcdef");

    let opened = bed.kernel.run(Hook::ToPod, &open, pod, uplink)?;
    let verdict = opened.events.first().map(|event| u32::from(event.verdict));
    anyhow::ensure!(verdict == Some(VERDICT_ALLOW), "the connection is not let in: {opened:?}");
    let denied = bed.kernel.run(Hook::ToPod, &refused, pod, uplink)?;
    let verdict = denied.events.first().map(|event| u32::from(event.verdict));
    anyhow::ensure!(verdict == Some(VERDICT_DENY), "the other port is not denied: {denied:?}");
    let pending = bed.kernel.run(Hook::FromPod, &to_service, pod, 0)?;
    anyhow::ensure!(pending.events.is_empty() && pending.mark != 0, "the Service's flow is not pending: {pending:?}");
    bed.kernel.run_marked(Program::Uplink, &from_pod, uplink, pod, 0).context("the uplink")?;

    let [mut from, mut to, mut again, mut waits, mut leaves, mut passes] = [const { Vec::new() }; 6];
    for _ in 0..sheet.rounds() {
        let base = bed.empty_run(&to_pod, pod, REPEAT)?;
        let mut cost = |hook, frame: &[u8], at, by| -> anyhow::Result<f64> {
            Ok(bed.kernel.measure(hook, frame, at, by, REPEAT)? - base)
        };
        to.push(cost(Hook::ToPod, &to_pod, pod, uplink)?);
        from.push(cost(Hook::FromPod, &from_pod, pod, 0)?);
        again.push(cost(Hook::ToPod, &refused, pod, uplink)?);
        waits.push(cost(Hook::FromPod, &to_service, pod, 0)?);
        leaves.push(cost(Hook::Uplink, &from_pod, uplink, 0)?);
        passes.push(cost(Hook::FromPod, &from_pod, stranger, 0)?);
    }
    for (name, rounds) in
        [(FROM_POD, from), (TO_POD, to), (DENIED, again), (PENDING, waits), (LEAVING, leaves), (STRANGER, passes)]
    {
        sheet.put(name, rounds);
    }
    Ok(())
}
