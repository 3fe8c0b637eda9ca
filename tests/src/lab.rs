//! A lab: a network of nodes, their pods, and a machine outside, all of them network namespaces.
//!
//! Every node hangs with its `eth0` on one switch and knows the way to the others' pods, by one of two [`Network`]s.
//! Node number `i` has 172.18.0.`i` and fd00:18::`i`, its pods 10.244.`i`.0/24 and fd00:244:`i`::/64. Services have
//! 10.96.0.0/16 and fd00:96::/112, if something makes them ([`Services`]).
//!
//! Invariant: whatever a lab makes is written into its register before it is made, so that the next lab can remove
//! what a killed one left.

mod addressing;
pub(crate) mod admin;
mod agent;
pub mod cni;
pub mod hierarchies;
mod ip;
mod manifests;
mod metrics;
mod netns;
mod network;
mod node;
mod objects;
mod pod;
mod records;
mod register;
mod services;
mod wait;

use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use anyhow::Context;

pub use admin::Response;
pub use agent::{Agent, AgentOptions, Facts, agent_program};
pub use ip::program as ip_program;
pub use manifests::{Labels, Manifests};
pub use netns::Netns;
pub use network::Network;
pub use node::{Mode, Node};
pub use objects::Objects;
pub use pod::{Families, Pod, PodSpec};
pub use records::Records;
pub use register::own_cgroup;
pub use services::{
    Affinity, Backend, ExternalPolicy, Flavour, Masquerade, Service, ServicePort, ServiceSpec, Services, Transport,
    rules_programs,
};
pub use wait::until;

use addressing::Addressing;
pub(crate) use addressing::POD_NETWORKS;
use register::Register;
pub(crate) use services::SERVICE_NETWORKS;

/// A network of nodes; removed when the last handle to it or to anything in it is dropped.
#[derive(Clone)]
pub struct Lab {
    inner: Arc<Inner>,
}

/// What the handles share. Fields are dropped in this order, so the register, which cleans, comes last.
struct Inner {
    network: Network,
    manifests: Manifests,
    /// Namespaces on the switch: nodes first come first numbered, and machines outside.
    places: Mutex<Vec<Place>>,
    switch: Netns,
    register: Register,
}

/// A namespace with an `eth0` on the switch.
struct Place {
    netns: Netns,
    addressing: Addressing,
    has_pods: bool,
}

impl Lab {
    /// An empty flat network, named after the test; first removes what killed labs left behind.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::joined(name, Network::Flat)
    }

    /// An empty network of either kind.
    pub fn joined(name: &str, network: Network) -> anyhow::Result<Self> {
        let register = Register::open(name)?;
        let switch = Netns::create(&register, "switch", None)?;
        switch.sysctls(&[("net/ipv6/conf/all/disable_ipv6", "1")])?;
        switch.ip(&["link add switch type bridge mcast_snooping 0".to_owned(), "link set switch up".to_owned()])?;
        Ok(Self {
            inner: Arc::new(Inner {
                network,
                manifests: Manifests::default(),
                places: Mutex::new(Vec::new()),
                switch,
                register,
            }),
        })
    }

    /// A node without pods, known to the others.
    pub fn node(&self, name: &str, mode: Mode) -> anyhow::Result<Node> {
        Node::create(self, name, mode)
    }

    /// A machine that is neither node nor pod: what policies call the world.
    ///
    /// It reaches the nodes, and in a flat network the pods.
    pub fn outside(&self, name: &str) -> anyhow::Result<Netns> {
        self.machine(name).map(|(netns, _)| netns)
    }

    /// The same, with its IPv4 address.
    pub(crate) fn machine(&self, name: &str) -> anyhow::Result<(Netns, IpAddr)> {
        let netns = Netns::create(&self.inner.register, name, None)?;
        let addressing = self.connect(&netns, false)?;
        Ok((netns, addressing.node_v4.into()))
    }

    /// A program as a process of this namespace, ended with the lab at the latest.
    pub(crate) fn spawn(&self, netns: &Netns, command: &mut Command) -> anyhow::Result<Child> {
        // A process starts in the namespace and the cgroup of the thread that starts it.
        let spawned = netns.run(|| command.spawn())?;
        let child = spawned.with_context(|| format!("cannot start {}", command.get_program().display()))?;
        self.register().child(child.id())?;
        Ok(child)
    }

    /// Manifests that every node's agent reads; a pod made in the lab writes its own.
    pub fn manifests(&self) -> &Manifests {
        &self.inner.manifests
    }

    /// How the nodes reach each other's pods.
    pub fn network(&self) -> Network {
        self.inner.network
    }

    /// The lab's own directory, gone with it.
    pub fn directory(&self) -> &Path {
        self.inner.register.directory()
    }

    /// Puts a namespace on the switch and exchanges routes with the others there.
    fn connect(&self, netns: &Netns, has_pods: bool) -> anyhow::Result<Addressing> {
        let mut places = self.inner.places.lock().expect("no thread panics while it holds the list of places");
        let number = u8::try_from(places.len() + 1).context("a lab has at most 255 nodes")?;
        let new = Addressing::of(number);
        self.inner.switch.ip(&[
            format!("link add port{number} type veth peer name eth0 netns {}", netns.name()),
            format!("link set port{number} master switch up"),
        ])?;
        let mut commands = vec![
            format!("addr add {}/16 dev eth0", new.node_v4),
            format!("addr add {}/64 dev eth0 nodad", new.node_v6),
            "link set eth0 up".to_owned(),
        ];
        let network = self.inner.network;
        if has_pods {
            commands.extend(network.devices(&new));
        }
        netns.ip(&commands)?;
        for old in places.iter() {
            if old.has_pods {
                network.lead(netns, has_pods, &old.addressing)?;
            }
            if has_pods {
                network.lead(&old.netns, old.has_pods, &new)?;
            }
        }
        places.push(Place { netns: netns.clone(), addressing: new.clone(), has_pods });
        Ok(new)
    }

    fn register(&self) -> &Register {
        &self.inner.register
    }
}
