//! A cluster of any size as manifests: what the engine and the programs are measured with.
//!
//! Pods are spread over 50 namespaces; the first 100 are this node's, two of each namespace. Each policy selects every
//! pod of one namespace, so all policies bear on this node, and lets in one application of any namespace at a port of
//! its own. A number of policies ([`Cluster::readers`]) lets in one of two roles instead: every pod has one.

use std::net::Ipv4Addr;

use fastrand::Rng;
use reeve_policy::store::{Change, Object};
use serde_json::{Value, json};

use super::dealer::Deal;

/// Pods of this node.
pub const ENDPOINTS: u32 = 100;
/// Namespaces.
pub const NAMESPACES: u32 = 50;
/// This node.
pub const NODE: &str = "node-1";

/// How large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Pods, this node's included; a multiple of 50 times the number of applications.
    pub pods: u32,
    /// Policies.
    pub policies: u32,
    /// Pods that a policy lets in.
    pub peers: u32,
}

impl Cluster {
    /// How many policies read the label that [`Cluster::relabelled`] changes.
    pub fn readers(&self) -> u32 {
        (self.policies / 10).min(100)
    }

    fn applications(&self) -> u32 {
        (self.pods / self.peers).max(1)
    }

    /// Everything there is.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        let namespaces = (0..NAMESPACES).map(namespace);
        let pods = (0..self.pods).map(|number| self.pod(number, role(number)));
        namespaces.chain(pods).chain((0..self.policies).map(|number| self.policy(number)))
    }

    /// How many pods are of other nodes.
    pub fn pods_elsewhere(&self) -> u32 {
        self.pods - ENDPOINTS
    }

    /// A pod of another node, with the other role in every odd round.
    pub fn relabelled(&self, number: u32, round: u32) -> Change {
        let number = ENDPOINTS + number % self.pods_elsewhere();
        self.pod(number, (role(number) + 1 + round) % 2)
    }

    fn pod(&self, number: u32, role: u32) -> Change {
        let node = if number < ENDPOINTS { NODE } else { "node-2" };
        object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("pod-{number}"), "namespace": format!("ns-{}", number % NAMESPACES),
                "uid": format!("uid-{number}"),
                "labels": {
                    "app": format!("app-{}", number / NAMESPACES % self.applications()),
                    "role": format!("role-{role}"),
                    "pod-template-hash": format!("hash-{}", number / 10),
                },
            },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": "Running", "podIPs": [{ "ip": address(number) }] }
        }))
    }

    fn policy(&self, number: u32) -> Change {
        let peers = if number < self.readers() {
            json!({ "role": format!("role-{}", number % 2) })
        } else {
            json!({ "app": format!("app-{}", number % self.applications()) })
        };
        object(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {
                "name": format!("policy-{number}"), "namespace": format!("ns-{}", number % NAMESPACES),
                "uid": format!("policy-{number}"),
            },
            "spec": { "podSelector": {}, "ingress": [{
                "from": [{ "namespaceSelector": {}, "podSelector": { "matchLabels": peers } }],
                "ports": [{ "port": port(number), "protocol": "TCP" }]
            }] }
        }))
    }

    /// A pod of this node that policies select.
    pub fn draw_endpoint(&self, rng: &mut Rng) -> u32 {
        let policy = rng.u32(self.readers()..self.policies);
        policy % NAMESPACES + NAMESPACES * rng.u32(0..ENDPOINTS / NAMESPACES)
    }

    /// The first packet of a connection that a random policy lets in to this pod, from a random peer of another node.
    pub fn draw(&self, rng: &mut Rng, endpoint: u32) -> Deal {
        let namespace = endpoint % NAMESPACES;
        let policy = loop {
            let drawn = namespace + NAMESPACES * rng.u32(0..self.policies.div_ceil(NAMESPACES));
            if (self.readers()..self.policies).contains(&drawn) {
                break drawn;
            }
        };
        let applications = self.applications();
        let peer = loop {
            let block = rng.u32(0..self.pods / NAMESPACES / applications) * applications + policy % applications;
            let drawn = block * NAMESPACES + rng.u32(0..NAMESPACES);
            if drawn >= ENDPOINTS {
                break drawn;
            }
        };
        Deal { source: (address(peer), rng.u16(1024..)), destination: (address(endpoint), port(policy)) }
    }
}

/// A pod's address.
pub fn address(number: u32) -> Ipv4Addr {
    let [_, high, middle, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 64 + high, middle, low)
}

fn port(policy: u32) -> u16 {
    8000 + u16::try_from(policy).expect("there are fewer policies than ports")
}

fn role(number: u32) -> u32 {
    number / 3 % 2
}

fn namespace(number: u32) -> Change {
    let name = format!("ns-{number}");
    object(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } }
    }))
}

fn object(value: Value) -> Change {
    Change::Apply(Object { value, origin: "bench".to_owned() })
}
