//! `cargo xtask bench`: costs as ratios within one run, medians of several rounds with their spread.

use std::process::ExitCode;
use std::time::Instant;

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

fn object(value: Value) -> Change {
    Change::Apply(Object { value, origin: "bench".to_owned() })
}

/// Namespaces over which pods and policies are spread, and different labels that pods carry.
const NAMESPACES: u32 = 50;
const APPS: u32 = 40;
/// Endpoints of this node.
const ENDPOINTS: u32 = 100;

fn pod(number: u32, pods: u32, app: u32) -> Change {
    let node = if number.is_multiple_of(pods / ENDPOINTS) { "node-1" } else { "node-2" };
    let [_, high, middle, low] = number.to_be_bytes();
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("pod-{number}"), "namespace": format!("ns-{}", number % NAMESPACES), "uid": format!("uid-{number}"),
                      "labels": { "app": format!("app-{app}") } },
        "spec": { "nodeName": node, "containers": [] },
        "status": { "phase": "Running", "podIPs": [{ "ip": format!("10.{}.{middle}.{low}", 64 + high) }] }
    }))
}

fn policy(number: u32, port: u32) -> Change {
    object(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": format!("policy-{number}"), "namespace": format!("ns-{}", number % NAMESPACES), "uid": format!("policy-{number}") },
        "spec": { "podSelector": {}, "ingress": [{
            "from": [{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": format!("app-{}", number % APPS) } } }],
            "ports": [{ "port": port, "protocol": "TCP" }]
        }] }
    }))
}

/// Names of what is measured in a world.
struct Size {
    pods: u32,
    policies: u32,
    compile: &'static str,
    relabel: &'static str,
    edit: &'static str,
}

/// The engine in a world and in one of ten times its size: what a change costs must depend on what it touches.
fn engine() -> anyhow::Result<Vec<Measured>> {
    let small = Size {
        pods: 1_000,
        policies: 100,
        compile: "compile 1,000 pods and 100 policies",
        relabel: "relabel one of 1,000 pods",
        edit: "edit one of 100 policies",
    };
    let large = Size {
        pods: 10_000,
        policies: 1_000,
        compile: "compile 10,000 pods and 1,000 policies",
        relabel: "relabel one of 10,000 pods",
        edit: "edit one of 1,000 policies",
    };
    let mut all = in_world(&small)?;
    all.extend(in_world(&large)?);
    let ratio = all[5].rounds.iter().zip(&all[1].rounds).map(|(large, small)| large / small).collect();
    all.push(Measured { measure: "relabel in ten times the world", unit: "ratio", rounds: ratio });
    Ok(all)
}

fn in_world(size: &Size) -> anyhow::Result<Vec<Measured>> {
    let mut changes: Vec<Change> = (0..size.pods).map(|number| pod(number, size.pods, number % APPS)).collect();
    changes.extend((0..size.policies).map(|number| policy(number, 8000 + number)));
    let (mut compile, mut relabel, mut worst, mut edit) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut engine = Engine::new("node-1", 0);
        let begun = Instant::now();
        let update = engine.apply(changes.clone());
        compile.push(begun.elapsed().as_secs_f64() * 1e3);
        anyhow::ensure!(update.changed, "nothing was compiled");
        let mut relabels = Vec::new();
        // Pods of other nodes take labels that others have, one after the other.
        for number in (1..=700).step_by(7) {
            let begun = Instant::now();
            let update = engine.apply(vec![pod(number, size.pods, (number + 1) % APPS)]);
            relabels.push(begun.elapsed().as_secs_f64() * 1e3);
            anyhow::ensure!(update.changed, "the relabelled pod changed nothing");
        }
        relabels.sort_by(f64::total_cmp);
        relabel.push(relabels[relabels.len() / 2]);
        worst.push(relabels[relabels.len() - 1]);
        let begun = Instant::now();
        let update = engine.apply(vec![policy(0, 7000)]);
        edit.push(begun.elapsed().as_secs_f64() * 1e3);
        anyhow::ensure!(update.changed, "the edited policy changed nothing");
    }
    Ok(vec![
        Measured { measure: size.compile, unit: "ms", rounds: compile },
        Measured { measure: size.relabel, unit: "ms", rounds: relabel },
        Measured { measure: "the slowest of a hundred of these", unit: "ms", rounds: worst },
        Measured { measure: size.edit, unit: "ms", rounds: edit },
    ])
}
