//! A lab: a network of nodes, their pods, and a machine outside, all of them network namespaces.
//!
//! Every node hangs with its `eth0` on one switch; each knows the way to the others' pods, as nodes of a flat
//! Kubernetes network do. Node number `i` has 172.18.0.`i` and fd00:18::`i`, its pods 10.244.`i`.0/24 and
//! fd00:244:`i`::/64.
//!
//! Invariant: whatever a lab makes is written into its register before it is made, so that the next lab can remove
//! what a killed one left.

mod admin;
mod agent;
mod ip;
mod manifests;
mod metrics;
mod netns;
mod node;
mod pod;
mod records;
mod register;
mod wait;

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context;

pub use admin::Response;
pub use agent::{Agent, AgentOptions, agent_program};
pub use ip::program as ip_program;
pub use manifests::{Labels, Manifests};
pub use netns::Netns;
pub use node::{Mode, Node};
pub use pod::{Families, Pod, PodSpec};
pub use records::Records;
pub use register::own_cgroup;
pub use wait::until;

use node::Addressing;
use register::Register;

/// A network of nodes; removed when the last handle to it or to anything in it is dropped.
#[derive(Clone)]
pub struct Lab {
    inner: Arc<Inner>,
}

/// What the handles share. Fields are dropped in this order, so the register, which cleans, comes last.
struct Inner {
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
    /// An empty network, named after the test; first removes what killed labs left behind.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let register = Register::open(name)?;
        let switch = Netns::create(&register, "switch", None)?;
        switch.sysctls(&[("net/ipv6/conf/all/disable_ipv6", "1")])?;
        switch.ip(&["link add switch type bridge mcast_snooping 0".to_owned(), "link set switch up".to_owned()])?;
        Ok(Self {
            inner: Arc::new(Inner {
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

    /// A machine that is neither node nor pod but reaches both: what policies call the world.
    pub fn outside(&self, name: &str) -> anyhow::Result<Netns> {
        let netns = Netns::create(&self.inner.register, name, None)?;
        self.connect(&netns, false)?;
        Ok(netns)
    }

    /// Manifests that every node's agent reads; a pod made in the lab writes its own.
    pub fn manifests(&self) -> &Manifests {
        &self.inner.manifests
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
        for old in places.iter().filter(|place| place.has_pods) {
            commands.extend(old.addressing.routes());
        }
        netns.ip(&commands)?;
        if has_pods {
            for old in places.iter() {
                old.netns.ip(&new.routes())?;
            }
        }
        places.push(Place { netns: netns.clone(), addressing: new.clone(), has_pods });
        Ok(new)
    }

    fn register(&self) -> &Register {
        &self.inner.register
    }
}
