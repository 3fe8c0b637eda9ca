//! The demo on a control plane, as a user runs it.

use std::process::Command;

use crate::town::skipped;

#[test]
fn demo_on_a_control_plane_shows_its_commands_and_agrees_with_the_oracle() {
    if skipped() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_reeve-demo")).arg("--cluster").output().expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "stdout:\n{out}\nstderr:\n{err}");
    for text in [
        "$ kubectl label pod report-gen -n reports PCI-",
        "ClusterNetworkPolicy pci-isolation ingress rule 1 \"from-others\"",
        "NetworkPolicy shop/web-readers",
        "re-judged",
        "agree in all of them",
    ] {
        assert!(out.contains(text), "{text:?} is missing in\n{out}");
    }
}
