//! The rules as one table of nftables.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::process::Command;

use super::{MARK, Rules};
use crate::bench::policies::{TCP_PORT, UDP_PORT};
use crate::lab::Node;

pub(super) fn load(node: &Node, rules: &Rules<'_>) -> anyhow::Result<()> {
    node.netns().feed(Command::new("nft").args(["-f", "-"]), &text(rules))
}

fn text(rules: &Rules<'_>) -> String {
    let mut text = String::from("table ip policies {\n");
    let directions = [("out", "daddr"), ("in", "saddr")];
    for (policy, peers) in rules.peers.iter().enumerate() {
        let addresses: Vec<String> = peers.iter().map(Ipv4Addr::to_string).collect();
        let _ = writeln!(text, "set peers-{policy} {{ type ipv4_addr; elements = {{ {} }}; }}", addresses.join(", "));
        for (direction, end) in directions {
            let _ = writeln!(text, "chain policy-{direction}-{policy} {{");
            for (transport, port) in [("tcp", TCP_PORT), ("udp", UDP_PORT)] {
                let _ = writeln!(
                    text,
                    "ip {end} @peers-{policy} {transport} dport {port} meta mark set meta mark or {MARK}"
                );
            }
            text.push_str("}\n");
        }
    }
    for pod in 0..rules.pods.len() {
        for (direction, _) in directions {
            let _ = writeln!(text, "chain pod-{direction}-{pod} {{");
            let _ = writeln!(text, "meta mark set meta mark and 0xfffeffff");
            for policy in 0..rules.peers.len() {
                let _ = writeln!(text, "jump policy-{direction}-{policy}");
                let _ = writeln!(text, "meta mark and {MARK} == {MARK} return");
            }
            text.push_str("drop\n}\n");
        }
    }
    text.push_str("chain forward { type filter hook forward priority filter; policy accept;\n");
    text.push_str("ct state established,related accept\n");
    for (direction, end) in [("out", "saddr"), ("in", "daddr")] {
        let ways: Vec<String> =
            rules.pods.iter().enumerate().map(|(pod, own)| format!("{own} : jump pod-{direction}-{pod}")).collect();
        let _ = writeln!(text, "ip {end} vmap {{ {} }}", ways.join(", "));
    }
    text.push_str("}\n}\n");
    text
}
