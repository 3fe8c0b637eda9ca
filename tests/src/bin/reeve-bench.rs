//! `cargo xtask bench`: costs as ratios within one run, medians of several rounds with their spread.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use reeve_abi::address::Address;
use reeve_abi::endpoint::{ENDPOINT_READY, EndpointValue};
use reeve_abi::ids::{IdentityId, PolicyNumber, Revision, WorkloadId};
use reeve_abi::policy::{PeerKey, PeerValue, VERDICT_ALLOW, VERDICT_DENY};
use reeve_packet::env::Hook;
use reeve_policy::engine::Engine;
use reeve_policy::store::{Change, Object};
use reeve_tests::frames::Ends;
use reeve_tests::kernel::Kernel;
use serde_json::{Value, json};

/// Rounds per measure: the median is told, with the least and the most.
const ROUNDS: usize = 7;
/// Runs of a program in one round.
const REPEAT: u32 = 200_000;

/// Measure costs as ratios within one run.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Only measures whose name contains one of these.
    names: Vec<String>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// One measure's result.
struct Measured {
    measure: &'static str,
    unit: &'static str,
    rounds: Vec<f64>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut all = datapath()?;
    all.extend(engine()?);
    all.retain(|one| {
        arguments.names.is_empty() || arguments.names.iter().any(|name| one.measure.contains(name.as_str()))
    });
    for mut one in all {
        one.rounds.sort_by(f64::total_cmp);
        let (median, least) = (one.rounds[one.rounds.len() / 2], one.rounds[0]);
        let most = one.rounds[one.rounds.len() - 1];
        if arguments.json {
            println!(
                "{}",
                json!({ "measure": one.measure, "value": median, "unit": one.unit, "least": least, "most": most })
            );
        } else {
            println!("{:<44} {median:>10.2} {:<6} ({least:.2} to {most:.2})", one.measure, one.unit);
        }
    }
    Ok(())
}

const POD: u32 = 4001;
const UNKNOWN: u32 = 4002;

/// The programs over one frame, in the kernel's own test runs. The unit is a frame at an interface that has no
/// endpoint: one look-up and the way in and out.
fn datapath() -> anyhow::Result<Vec<Measured>> {
    let mut kernel = Kernel::load()?;
    kernel.clear()?;
    let (own, peer) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let policy = PolicyNumber(1 << 20);
    let endpoint = EndpointValue {
        flags: ENDPOINT_READY,
        head_revision: Revision(1),
        workload: WorkloadId(1 << 21),
        identity: IdentityId(1 << 22),
        policies: [policy, policy, PolicyNumber(0), PolicyNumber(0)],
        address_v4: Address::v4(own),
        ..EndpointValue::default()
    };
    kernel.set_endpoint(POD, endpoint)?;
    let denies =
        PeerValue { decision: reeve_abi::ids::DecisionId(1 << 23), verdict: VERDICT_DENY, ..PeerValue::default() };
    kernel.peers().put(&PeerKey { policy, ..PeerKey::default() }, &denies)?;
    let ends = |source: [u8; 4], destination: [u8; 4]| Ends {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: source.into(),
        destination: destination.into(),
    };
    let from_pod = ends(own, peer).udp(4000, 53, b"0123456789abcdef");
    let to_pod = ends(peer, own).udp(4001, 80, b"0123456789abcdef");
    let opened = kernel.run(Hook::FromPod, &from_pod, POD, 0)?;
    anyhow::ensure!(
        opened.events.first().is_some_and(|e| u32::from(e.verdict) == VERDICT_ALLOW),
        "the flow is not allowed"
    );
    let denied = kernel.run(Hook::ToPod, &to_pod, POD, UNKNOWN)?;
    anyhow::ensure!(
        denied.events.first().is_some_and(|e| u32::from(e.verdict) == VERDICT_DENY),
        "the packet is not denied"
    );
    let (mut unit, mut established, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let base = kernel.measure(Hook::FromPod, &from_pod, UNKNOWN, 0, REPEAT)?;
        unit.push(base);
        established.push(kernel.measure(Hook::FromPod, &from_pod, POD, 0, REPEAT)? - base);
        repeated.push(kernel.measure(Hook::ToPod, &to_pod, POD, UNKNOWN, REPEAT)? - base);
    }
    Ok(vec![
        Measured { measure: "frame at an unknown interface", unit: "ns", rounds: unit },
        Measured { measure: "established flow, above that", unit: "ns", rounds: established },
        Measured { measure: "repeated denial, above that", unit: "ns", rounds: repeated },
    ])
}

/// Pods in the engine's world.
const PODS: u32 = 2_000;
/// Policies in it, each in one of 50 namespaces.
const POLICIES: u32 = 200;

fn object(value: Value) -> Change {
    Change::Apply(Object { value, origin: "bench".to_owned() })
}

fn pod(number: u32, app: u32) -> Change {
    // Every hundredth pod is an endpoint of this node.
    let node = if number.is_multiple_of(100) { "node-1" } else { "node-2" };
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("pod-{number}"), "namespace": format!("ns-{}", number % 50), "uid": format!("uid-{number}"),
                      "labels": { "app": format!("app-{app}") } },
        "spec": { "nodeName": node, "containers": [] },
        "status": { "phase": "Running", "podIPs": [{ "ip": format!("10.{}.{}.{}", 64 + (number >> 16), number >> 8 & 255, number & 255) }] }
    }))
}

fn engine() -> anyhow::Result<Vec<Measured>> {
    let mut changes: Vec<Change> = (0..PODS).map(|number| pod(number, number % 40)).collect();
    changes.extend((0..POLICIES).map(|number| {
        object(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": format!("policy-{number}"), "namespace": format!("ns-{}", number % 50), "uid": format!("policy-{number}") },
            "spec": { "podSelector": {}, "ingress": [{
                "from": [{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": format!("app-{}", number % 40) } } }],
                "ports": [{ "port": 8000 + number, "protocol": "TCP" }]
            }] }
        }))
    }));
    let (mut full, mut relabel, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..u32::try_from(ROUNDS).context("rounds")? {
        let mut engine = Engine::new("node-1", 0);
        let begun = Instant::now();
        let update = engine.apply(changes.clone());
        let whole = begun.elapsed().as_secs_f64() * 1e3;
        anyhow::ensure!(update.changed, "nothing was compiled");
        let begun = Instant::now();
        let update = engine.apply(vec![pod(100, 41 + round)]);
        let one = begun.elapsed().as_secs_f64() * 1e3;
        anyhow::ensure!(update.changed, "the relabelled pod changed nothing");
        full.push(whole);
        relabel.push(one);
        ratio.push(one / whole);
    }
    Ok(vec![
        Measured { measure: "compile 2,000 pods and 200 policies", unit: "ms", rounds: full },
        Measured { measure: "relabel one of these pods", unit: "ms", rounds: relabel },
        Measured { measure: "relabel / whole compile", unit: "ratio", rounds: ratio },
    ])
}
