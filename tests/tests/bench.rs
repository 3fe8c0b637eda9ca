//! What the benchmarks set up: whoever is compared enforces, whoever does not is noticed, and what is said to be measured
//! is what runs.

use std::process::Command;

use reeve_abi::stats;
use reeve_tests::bench;
use reeve_tests::bench::cluster::Cluster;
use reeve_tests::bench::dealer::{Dealer, Segment};
use reeve_tests::bench::policies::Policies;
use reeve_tests::bench::rules::Rival;
use reeve_tests::bench::side::{Enforcer, Sides, Tracking};
use reeve_tests::bench::testbed::Testbed;
use reeve_tests::bench::traffic::{Kind, Line};
use reeve_tests::require::{Capability, skip_unless};

#[test]
fn rule_sets_show_that_they_enforce_and_are_refused_without_their_rules() {
    if skip_unless(&[Capability::Root, Capability::Netns, Capability::Nat]) {
        return;
    }
    let enforcers = [Enforcer::Nobody, Enforcer::Rules(Rival::Nftables), Enforcer::Rules(Rival::Iptables)];
    let sides = Sides::new("bench-proof", &enforcers, Policies(3), Tracking::WithServices).unwrap();
    for side in &sides.all {
        side.prove().unwrap();
        let flushed = side.node.netns().run(|| Command::new("nft").args(["flush", "ruleset"]).status());
        assert!(flushed.unwrap().unwrap().success());
        let enforces = side.enforcer != Enforcer::Nobody;
        assert_eq!(side.prove().is_err(), enforces, "{:?}", side.enforcer);
    }
}

#[test]
fn every_kind_of_traffic_passes_where_nobody_enforces() {
    if skip_unless(&[Capability::Root, Capability::Netns]) {
        return;
    }
    let sides = Sides::new("bench-traffic", &[Enforcer::Nobody], Policies(1), Tracking::None).unwrap();
    for kind in Kind::ALL {
        let mut samples = Vec::new();
        Line::open(&sides.all[0], kind).unwrap().slice(&mut samples).unwrap();
        assert!(!samples.is_empty() && samples.iter().all(|sample| *sample > 0.0), "{kind:?}");
    }
}

#[test]
fn dealt_packets_are_new_flows_once_and_live_ones_from_then_on() {
    if skip_unless(&[Capability::Root, Capability::Bpf, Capability::Netns]) {
        return;
    }
    let mut bed = Testbed::new(Cluster { pods: 1_000, policies: 100, peers: 250 }).unwrap();
    let deals = bed.draw(0, 50);
    let opening = Dealer::new(&deals, Segment::Opening).unwrap();
    bed.cost(&opening, 0, 50, stats::ALLOWED_JUDGED).unwrap();
    let again = bed.cost(&opening, 0, 50, stats::ALLOWED_JUDGED).unwrap_err().to_string();
    assert!(again.starts_with("0 of 50 packets"), "{again}");
    bed.cost(&Dealer::new(&deals, Segment::Open).unwrap(), 0, 50, stats::ALLOWED_ESTABLISHED).unwrap();
    bed.forget_flows().unwrap();
    bed.cost(&opening, 0, 50, stats::ALLOWED_JUDGED).unwrap();
    bed.cost_of_drawn().unwrap();
}

#[test]
fn names_of_measures_are_unique_and_choose_no_others() {
    let all = bench::measures(&[]);
    let mut names: Vec<_> = all.iter().map(|measure| measure.name.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all.len());
    let some = bench::measures(&["udp-send".to_owned()]);
    assert!(!some.is_empty() && some.iter().all(|measure| measure.name.contains("udp-send")));
}
