//! The demo as a user runs it: green on a working node, red when a program is taken away behind its back.

use std::process::{Command, Output};

use reeve_tests::require::{Capability, skip_unless};

const NEEDS: &[Capability] = &[Capability::Root, Capability::Bpf, Capability::Netns];

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reeve-demo")).args(arguments).output().expect("the demo's program runs")
}

#[track_caller]
fn check(arguments: &[&str], ends_well: bool, said: &[&str]) {
    let output = demo(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.success(), ends_well, "stdout:\n{out}\nstderr:\n{err}");
    for text in said {
        assert!(out.contains(text) || err.contains(text), "{text:?} is missing\nstdout:\n{out}\nstderr:\n{err}");
    }
}

const STORY: &[&str] =
    &["GlobalNetworkPolicy pci-isolation", "NetworkPolicy shop/web-readers", "agree in all of them", "re-judged"];

#[test]
fn the_demo_is_green_with_routed_pods() {
    if !skip_unless(NEEDS) {
        check(&[], true, STORY);
    }
}

#[test]
fn the_demo_is_green_with_bridged_pods() {
    if !skip_unless(NEEDS) {
        check(&["--bridged"], true, STORY);
    }
}

#[test]
fn the_demo_fails_when_a_program_is_detached_in_the_middle() {
    if !skip_unless(NEEDS) {
        check(&["--sabotage"], false, &["disagreement(s)", "shop/web -> payments/card-db 5432/TCP"]);
    }
}
