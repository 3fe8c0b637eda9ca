//! Scenarios as text: manifests, then one row for every pod, other pod and port, with verdict and both deciders;
//! a line `! object field` for every problem that the manifests make. A row ends in `staged` and two further columns,
//! `Verdict:decider` for each end, where staged policies would change what is asked there (`none`: they would not).
//! `itself` for the other pod is the pod again, by way of a Service; a table has such rows for all pods or for none.

use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::manifest;
use reeve_policy::model::{Decider, Decision, Direction, Family, Verdict, Workload};
use reeve_policy::oracle::{self, Explanation, Owner};
use reeve_policy::provenance::workload_id;
use reeve_policy::store::Change;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

type Judge = fn(&Nodes, IpAddr, IpAddr, u8, u16) -> Explanation;
const JUDGES: &[(&str, Judge)] = &[("oracle", by_oracle), ("image", by_image)];

/// The same facts as each node sees them.
struct Nodes(BTreeMap<String, Engine>);

impl Nodes {
    fn new(changes: &[Change]) -> Self {
        let engine = |node: &str| {
            let mut engine = Engine::new(node, 0);
            engine.apply(changes.to_vec());
            engine
        };
        let first = engine("node-1");
        let names: BTreeSet<String> = first.world().workloads.values().map(|pod| pod.node.clone()).collect();
        Self(names.iter().map(|name| (name.clone(), engine(name))).chain([("node-1".to_owned(), first)]).collect())
    }

    fn first(&self) -> &Engine {
        &self.0["node-1"]
    }
}

fn by_oracle(nodes: &Nodes, from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> Explanation {
    let explain = if from == to { oracle::explain_through_service } else { oracle::explain };
    explain(nodes.first().world(), from, to, protocol, port)
}

/// What each end's node finds in its image; it must be the oracle's decision, whole.
fn by_image(nodes: &Nodes, from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> Explanation {
    let family = if from.is_ipv4() { Family::V4 } else { Family::V6 };
    let end = |own: IpAddr, peer: IpAddr, direction| {
        let Owner::Workload(pod) = oracle::owner(nodes.first().world(), own) else { return None };
        let engine = &nodes.0[&pod.node];
        let (image, subject) = (engine.image(), workload_id(&pod.uid));
        let id = if own == peer {
            image.lookup_to_itself(subject, direction, family, protocol, port)
        } else {
            image.lookup(subject, direction, family, mapped(peer), protocol, port)
        };
        let id = id.unwrap_or_else(|| panic!("{} has no endpoint on {}", pod.name, pod.node));
        let decision = engine
            .dictionary()
            .get_decision(id)
            .map_or_else(|| panic!("decision {id} has no entry"), Arc::unwrap_or_clone);
        Some((pod, decision))
    };
    let egress: Option<(Arc<Workload>, Decision)> = end(from, to, Direction::Egress);
    let ingress = end(to, from, Direction::Ingress);
    let denied = [&egress, &ingress].into_iter().flatten().any(|(_, decision)| decision.verdict == Verdict::Deny);
    let verdict = if denied { Verdict::Deny } else { Verdict::Allow };
    let wanted = by_oracle(nodes, from, to, protocol, port);
    let found = Explanation { egress, ingress, verdict, staged: wanted.staged.clone() };
    assert_eq!(found, wanted, "{from} -> {to} {protocol}/{port}");
    found
}

fn decider(decision: &Decision) -> String {
    match &decision.decider {
        Decider::Rule(rule) => format!("{}[{}]", rule.policy, rule.rule),
        Decider::Default(default) => {
            let isolating: Vec<String> = decision.isolating.iter().map(ToString::to_string).collect();
            let by = if isolating.is_empty() { String::new() } else { format!("({})", isolating.join(",")) };
            format!("{default:?}{by}")
        }
    }
}

fn run(name: &str, text: &str) {
    let (manifests, table) = text.split_once("\n=== ").expect("a scenario has a table");
    let (ports, table) = table.split_once('\n').expect("the table begins with its ports");
    let objects = manifest::parse(manifests, name).expect("the manifests are readable");
    let changes: Vec<Change> = objects.into_iter().map(Change::Apply).collect();
    let problems = Engine::new("node-1", 0).apply(changes.clone()).problems;
    let found: Vec<String> = problems.iter().map(|problem| format!("{} {}", problem.object, problem.field)).collect();
    let told: Vec<&str> = table.lines().filter_map(|row| row.strip_prefix("! ")).collect();
    assert_eq!(found, told, "{name}: problems");
    let nodes = Nodes::new(&changes);
    let world = nodes.first().world();
    let pods: BTreeMap<&str, IpAddr> =
        world.workloads.values().filter_map(|pod| Some((pod.name.as_str(), *pod.addresses.first()?))).collect();
    let itself = table.lines().any(|row| row.split_whitespace().nth(1) == Some("itself"));
    let mut missing: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
    for from in pods.keys() {
        let others = pods.keys().filter(|to| *to != from).copied();
        for to in others.chain(itself.then_some("itself")) {
            missing.extend(ports.split_whitespace().map(|port| (*from, to, port)));
        }
    }
    for row in table.lines().filter(|row| !row.trim().is_empty() && !row.starts_with(['#', '!'])) {
        let (row, staged) = row.split_once(" staged ").map_or((row, ["none", "none"]), |(row, staged)| {
            let columns: Vec<_> = staged.split_whitespace().collect();
            (row, columns.try_into().unwrap_or_else(|_| panic!("{name}: two columns after `staged`: {row}")))
        });
        let [from, to, port, verdict, egress, ingress] = row.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{name}: a row has six columns: {row}")
        };
        assert!(missing.remove(&(from, to, port)), "{name}: unknown or repeated row: {row}");
        let (protocol, number) = port.split_once('/').expect("protocol/port");
        let protocol = match protocol {
            "tcp" => 6,
            "udp" => 17,
            "icmp" => 1,
            "sctp" => 132,
            other => panic!("{name}: {other} is no protocol"),
        };
        for (judge, explain) in JUDGES {
            let to = if to == "itself" { from } else { to };
            let found = explain(&nodes, pods[from], pods[to], protocol, number.parse().expect("a port"));
            let found_staged = &found.staged;
            let verdict_found = if found.verdict == Verdict::Allow { "allow" } else { "deny" };
            let side = |side: &Option<_>| side.as_ref().map_or("none".to_owned(), |(_, decision)| decider(decision));
            let previews = [&found_staged.egress, &found_staged.ingress].map(|decision| {
                decision.as_ref().map_or("none".to_owned(), |d| format!("{:?}:{}", d.verdict, decider(d)).to_owned())
            });
            assert_eq!(previews, staged, "{name}, {judge}: staged, {row}");
            let found = [verdict_found.to_owned(), side(&found.egress), side(&found.ingress)];
            assert_eq!(found, [verdict, egress, ingress], "{name}, {judge}: {row}");
        }
    }
    assert!(missing.is_empty(), "{name}: rows are missing: {missing:?}");
}

#[test]
fn every_row_of_every_scenario_holds() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/scenarios");
    let mut ran = 0;
    for entry in std::fs::read_dir(folder).expect("the scenarios are there") {
        let path = entry.expect("the folder is readable").path();
        run(&path.display().to_string(), &std::fs::read_to_string(&path).expect("a scenario is text"));
        ran += 1;
    }
    assert!(ran > 0, "no scenario was found");
}
