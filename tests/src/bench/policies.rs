//! Policies that reeve and the rule sets that it is compared with enforce alike.
//!
//! Every policy selects all pods of `shop` in both directions and lets five pods of its own, which are on other nodes, in
//! and out at the measured ports. One in the middle does so for the measured client and server too; nothing does for
//! the guest.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::lab::Node;

/// The namespace.
pub const NAMESPACE: &str = "shop";
/// The label that policies let in and out.
pub const GROUP: &str = "group";
/// The measured TCP port.
pub const TCP_PORT: u16 = 8080;
/// The measured UDP port.
pub const UDP_PORT: u16 = 9000;

/// Pods of other nodes that each policy names.
const PEERS: u32 = 5;

/// So many policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies(pub u32);

impl Policies {
    /// The value of [`GROUP`] that the measured pods have.
    pub fn admitted(self) -> String {
        group(self.middle())
    }

    fn middle(self) -> u32 {
        self.0 / 2
    }

    /// Whom each policy lets in and out, given the measured pods.
    pub fn peers(self, measured: &[Ipv4Addr]) -> Vec<Vec<Ipv4Addr>> {
        let of = |policy: u32| {
            let own = measured.iter().copied().filter(move |_| policy == self.middle());
            own.chain((0..PEERS).map(move |nth| address(policy, nth))).collect()
        };
        (0..self.0).map(of).collect()
    }

    /// Writes them, and the pods of other nodes, for a node's agent.
    pub fn write(self, node: &Node) -> anyhow::Result<()> {
        let pods: Vec<_> = (0..self.0).flat_map(|policy| (0..PEERS).map(move |nth| peer(policy, nth))).collect();
        write(node, "peers.json", &pods)?;
        write(node, "policies.json", &(0..self.0).map(manifest).collect::<Vec<_>>())
    }
}

fn write(node: &Node, file: &str, items: &[Value]) -> anyhow::Result<()> {
    node.manifests().write_text(file, &json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())
}

fn group(policy: u32) -> String {
    format!("g-{policy}")
}

fn address(policy: u32, nth: u32) -> Ipv4Addr {
    let number = policy * PEERS + nth;
    let [_, _, _, low] = (1 + number % 250).to_be_bytes();
    let [_, _, _, high] = (128 + number / 250).to_be_bytes();
    Ipv4Addr::new(10, 244, high, low)
}

fn peer(policy: u32, nth: u32) -> Value {
    let name = format!("peer-{policy}-{nth}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "uid": name, "labels": { GROUP: group(policy) } },
        "spec": { "nodeName": "elsewhere", "containers": [] },
        "status": { "phase": "Running", "podIPs": [{ "ip": address(policy, nth) }] },
    })
}

fn manifest(policy: u32) -> Value {
    let name = format!("policy-{policy}");
    let peers = json!([{ "podSelector": { "matchLabels": { GROUP: group(policy) } } }]);
    let ports = json!([{ "protocol": "TCP", "port": TCP_PORT }, { "protocol": "UDP", "port": UDP_PORT }]);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": NAMESPACE, "uid": name },
        "spec": {
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": peers, "ports": ports }],
            "egress": [{ "to": peers, "ports": ports }],
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_policy_has_peers_of_its_own_and_one_admits_what_is_measured() {
        let measured = [Ipv4Addr::new(10, 244, 1, 10), Ipv4Addr::new(10, 244, 1, 11)];
        for count in [1, 100, 1_000] {
            let peers = Policies(count).peers(&measured);
            let all: HashSet<_> = peers.iter().flatten().collect();
            assert_eq!((peers.len(), all.len()), (count as usize, 5 * count as usize + 2));
            assert_eq!(peers.iter().filter(|peers| peers.contains(&measured[0])).count(), 1);
        }
    }
}
