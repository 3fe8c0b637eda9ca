//! Services and their backends, as facts: who answers behind which address and port.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Reading, World};

/// Names a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How a Service is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceKind {
    /// At its cluster addresses only.
    ClusterIp,
    /// Without a cluster address: by its backends' names and addresses.
    Headless,
    /// Also at a port of each node.
    NodePort,
    /// Also at a load balancer's addresses (and, mostly, at a port of each node).
    LoadBalancer,
    /// As another DNS name; it has no addresses.
    ExternalName,
}

/// What a Service port leads to at the backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetPort {
    /// This port (the Service's own, where nothing else is said).
    Number(u16),
    /// The backend's container port of this name.
    Named(String),
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// Name; empty where there is only one port.
    pub name: String,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Port at the Service's addresses.
    pub port: u16,
    /// Where it leads to.
    pub target: TargetPort,
    /// Port at each node's addresses; `None`: not published there.
    pub node_port: Option<u16>,
}

/// Whether one client stays with one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Affinity {
    /// Each connection goes anywhere.
    None,
    /// All connections of a client address go to one backend until it has been silent for so many seconds.
    ClientIp(u32),
}

/// Which backends traffic of a kind may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendScope {
    /// All.
    Cluster,
    /// Those on the node where the traffic arrives.
    Local,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Who it is.
    pub name: ServiceName,
    /// UID.
    pub uid: String,
    /// How it is published.
    pub kind: ServiceKind,
    /// Cluster addresses, at most one of each family. Empty for headless ones, for external names, and until allocated.
    pub cluster_addresses: BTreeSet<IpAddr>,
    /// Addresses that somebody else routes to the nodes (`spec.externalIPs`).
    pub external_addresses: BTreeSet<IpAddr>,
    /// Addresses of the load balancer that arrive at a node unchanged (`ipMode: VIP`).
    pub balancer_addresses: BTreeSet<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Session affinity.
    pub affinity: Affinity,
    /// For traffic from outside of the cluster.
    pub external_scope: BackendScope,
    /// For traffic from within.
    pub internal_scope: BackendScope,
    /// The port at which nodes tell a load balancer whether they have backends.
    pub health_check_port: Option<u16>,
    /// Backends count although they are not ready.
    pub publishes_not_ready: bool,
}

impl Service {
    /// Every address at which a node takes traffic for it (node ports aside).
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.cluster_addresses.iter().chain(&self.external_addresses).chain(&self.balancer_addresses).copied()
    }
}

/// The object that an endpoint stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; `None`: not said.
    pub uid: Option<String>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses, all of the slice's family.
    pub addresses: BTreeSet<IpAddr>,
    /// Takes new traffic (unknown counts as ready, as the API says).
    pub ready: bool,
    /// Answers, even while it ends (unknown: as `ready`).
    pub serving: bool,
    /// Is ending.
    pub terminating: bool,
    /// The node it runs on; `None`: not said.
    pub node: Option<String>,
    /// The pod it is; `None`: it is none, or not said.
    pub pod: Option<TargetPod>,
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointPort {
    /// The Service port's name.
    pub name: String,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Port at the endpoint; `None`: every port.
    pub port: Option<u16>,
}

/// A part of the backends of one Service, all of one family and with the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its own name, in the Service's namespace.
    pub name: String,
    /// The Service.
    pub service: ServiceName,
    /// Ports.
    pub ports: BTreeSet<EndpointPort>,
    /// Endpoints, those that could be read.
    pub endpoints: Vec<Endpoint>,
    /// Whether that is all. If not, a rule that does more than allow the service's backends denies everyone.
    pub reading: Reading,
}

/// The slices of each Service by their names; a Service need not be known to have some.
pub type EndpointSlices = BTreeMap<ServiceName, BTreeMap<String, std::sync::Arc<EndpointSlice>>>;

/// One address behind a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<'a> {
    /// The address.
    pub address: IpAddr,
    /// Its ports.
    pub ports: &'a BTreeSet<EndpointPort>,
    /// The endpoint that has it.
    pub endpoint: &'a Endpoint,
}

impl World {
    /// Every address behind a Service, in the order of its slices. An address that several slices list comes several
    /// times, with the ports of each.
    pub fn backends(&self, service: &ServiceName) -> impl Iterator<Item = Backend<'_>> {
        let slices = self.endpoint_slices.get(service).into_iter().flat_map(BTreeMap::values);
        slices.flat_map(|slice| {
            slice.endpoints.iter().flat_map(|endpoint| {
                endpoint.addresses.iter().map(|address| Backend { address: *address, ports: &slice.ports, endpoint })
            })
        })
    }
}
