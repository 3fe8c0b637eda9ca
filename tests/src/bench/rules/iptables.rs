//! The rules as chains of iptables, addresses in sets of ipset.

use std::fmt::Write;
use std::process::Command;

use super::{MARK, Rules};
use crate::bench::policies::{TCP_PORT, UDP_PORT};
use crate::lab::Node;

pub(super) fn load(node: &Node, rules: &Rules<'_>) -> anyhow::Result<()> {
    node.netns().feed(Command::new("ipset").arg("restore"), &sets(rules))?;
    node.netns().feed(Command::new("iptables-nft-restore").arg("--noflush"), &text(rules))
}

fn sets(rules: &Rules<'_>) -> String {
    let mut text = String::new();
    for (policy, peers) in rules.peers.iter().enumerate() {
        let _ = writeln!(text, "create peers-{policy} hash:ip family inet");
        for peer in peers {
            let _ = writeln!(text, "add peers-{policy} {peer}");
        }
    }
    text
}

fn text(rules: &Rules<'_>) -> String {
    let mut text = String::from("*filter\n");
    for direction in ["out", "in"] {
        for policy in 0..rules.peers.len() {
            let _ = writeln!(text, ":policy-{direction}-{policy} - [0:0]");
        }
        for pod in 0..rules.pods.len() {
            let _ = writeln!(text, ":pod-{direction}-{pod} - [0:0]");
        }
    }
    text.push_str("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n");
    for (direction, own, end) in [("out", "-s", "dst"), ("in", "-d", "src")] {
        for policy in 0..rules.peers.len() {
            for (transport, port) in [("tcp", TCP_PORT), ("udp", UDP_PORT)] {
                let _ = writeln!(
                    text,
                    "-A policy-{direction}-{policy} -p {transport} --dport {port} -m set --match-set peers-{policy} {end} \
                     -j MARK --set-xmark {MARK}/{MARK}"
                );
            }
        }
        for (pod, address) in rules.pods.iter().enumerate() {
            let chain = format!("pod-{direction}-{pod}");
            let _ = writeln!(text, "-A FORWARD {own} {address} -j {chain}");
            let _ = writeln!(text, "-A {chain} -j MARK --set-xmark 0x0/{MARK}");
            for policy in 0..rules.peers.len() {
                let _ = writeln!(text, "-A {chain} -j policy-{direction}-{policy}");
                let _ = writeln!(text, "-A {chain} -m mark --mark {MARK}/{MARK} -j RETURN");
            }
            let _ = writeln!(text, "-A {chain} -j DROP");
        }
    }
    text.push_str("COMMIT\n");
    text
}
