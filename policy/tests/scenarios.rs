//! Scenarios as text: manifests, then one row for every pod, other pod and port, with verdict and both deciders.

use reeve_policy::manifest;
use reeve_policy::model::{Decider, Decision, Verdict, World};
use reeve_policy::oracle::{self, Explanation};
use reeve_policy::store::{Change, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

type Judge = fn(&World, IpAddr, IpAddr, u8, u16) -> Explanation;
const JUDGES: &[(&str, Judge)] = &[("oracle", oracle::explain)];

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
    let mut store = Store::new("node-1");
    for object in manifest::parse(manifests, name).expect("the manifests are readable") {
        store.apply(Change::Apply(object));
    }
    assert_eq!(store.problems(), [], "{name}");
    let world = store.world();
    let pods: BTreeMap<&str, IpAddr> =
        world.workloads.values().map(|pod| (pod.name.as_str(), pod.addresses[0])).collect();
    let mut missing: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
    for from in pods.keys() {
        for to in pods.keys().filter(|to| *to != from) {
            missing.extend(ports.split_whitespace().map(|port| (*from, *to, port)));
        }
    }
    for row in table.lines().filter(|row| !row.trim().is_empty() && !row.starts_with('#')) {
        let [from, to, port, verdict, egress, ingress] = row.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{name}: a row has six columns: {row}")
        };
        assert!(missing.remove(&(from, to, port)), "{name}: unknown or repeated row: {row}");
        let (protocol, number) = port.split_once('/').expect("protocol/port");
        let protocol = match protocol {
            "tcp" => 6,
            "udp" => 17,
            "icmp" => 1,
            other => panic!("{name}: {other} is no protocol"),
        };
        for (judge, explain) in JUDGES {
            let found = explain(world, pods[from], pods[to], protocol, number.parse().expect("a port"));
            let verdict_found = if found.verdict == Verdict::Allow { "allow" } else { "deny" };
            let side = |side: &Option<_>| side.as_ref().map_or("none".to_owned(), |(_, decision)| decider(decision));
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
