//! What a Service should be like.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::lab::{Node, Pod};

/// A transport that Services know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// As manifests write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// As rules write it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Which packets to a pod's port of its node take the node's address on their way to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Those whose answers would not find back otherwise: the pod's own and, with the older rules, its neighbours'.
    Neighbours,
    /// All, as the plugin `portmap` does it with `masqAll`.
    All,
}

/// Who answers what comes from outside: `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalPolicy {
    /// Any backend; the client takes the address of the node that it came to.
    #[default]
    Cluster,
    /// A backend on the node that the client came to, which then sees the client's own address.
    Local,
}

/// Which backend a client gets: `sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Any, each time.
    #[default]
    None,
    /// The one that it had before.
    ClientIp,
}

/// A port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its transport.
    pub transport: Transport,
    /// At the Service's address.
    pub port: u16,
    /// At the backend.
    pub target: u16,
    /// At every node's addresses, if there too.
    pub node_port: Option<u16>,
}

impl ServicePort {
    /// As in manifests, and part of names of rules.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.transport.word(), self.port)
    }
}

/// What a Service should be like.
#[derive(Clone, Debug, Default)]
pub struct ServiceSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique in the namespace.
    pub name: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Who answers what comes from outside.
    pub external_policy: ExternalPolicy,
    /// Which backend a client gets.
    pub affinity: Affinity,
}

impl ServiceSpec {
    /// A Service without ports.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), ..Self::default() }
    }

    /// With one more port.
    #[must_use]
    pub fn port(mut self, transport: Transport, port: u16, target: u16) -> Self {
        self.ports.push(ServicePort { transport, port, target, node_port: None });
        self
    }

    /// With one more port, which nodes have too.
    #[must_use]
    pub fn node_port(mut self, transport: Transport, port: u16, target: u16, node_port: u16) -> Self {
        self.ports.push(ServicePort { transport, port, target, node_port: Some(node_port) });
        self
    }

    /// With this policy for what comes from outside.
    #[must_use]
    pub fn external_policy(mut self, policy: ExternalPolicy) -> Self {
        self.external_policy = policy;
        self
    }

    /// With this affinity.
    #[must_use]
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        self.affinity = affinity;
        self
    }
}

/// Something that answers for a Service.
#[derive(Clone, Debug)]
pub struct Backend {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) node: String,
    /// The pod, as manifests refer to it; null for a process of the node.
    pub(super) target: Value,
}

impl Backend {
    /// A pod.
    pub fn pod(pod: &Pod) -> Self {
        let (namespace, name) = pod.name();
        Self {
            addresses: pod.addresses().to_vec(),
            node: pod.node().name().to_owned(),
            target: json!({ "kind": "Pod", "namespace": namespace, "name": name, "uid": pod.uid() }),
        }
    }

    /// A process of a node, as a pod with `hostNetwork` has.
    pub fn host(node: &Node) -> Self {
        Self { addresses: vec![node.v4(), node.v6()], node: node.name().to_owned(), target: Value::Null }
    }
}
