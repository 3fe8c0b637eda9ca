//! What address translation does to a flow on its way: a model, without any state, of what kube-proxy does.
//!
//! A flow names who really speaks with whom; a [`Way`] says what the packets show before and behind translation.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fastrand::Rng;
use reeve_policy::model::{Service, World};
use reeve_policy::oracle::{self, Owner};

use crate::worlds::{Flow, NODE, NODES, chance, outside};

/// Port of every node that leads to a port of a pod of that node (`hostPort`), which no Service knows of.
const HOST_PORT: u16 = 9_443;
/// Where masquerading puts a client's port.
const MASQUERADED_PORT: u16 = 50_000;

/// How packets of a flow come to where they are going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As they are.
    Direct,
    /// As they are, made by a process of the node itself.
    OwnProcess,
    /// Sent to something that stands for the destination.
    Translated {
        /// The address that the client sends to.
        address: IpAddr,
        /// The port that the client sends to.
        port: u16,
        /// The address and port that the destination takes for the client's, if they are not.
        shown: Option<(IpAddr, u16)>,
    },
}

impl Way {
    /// The way as a chain of what it leads through: by what to whom, and whether the client is masqueraded; `None`: not
    /// translated.
    pub fn chain(&self, world: &World, flow: &Flow) -> Option<String> {
        let Self::Translated { address, port, shown } = self else { return None };
        let front = if *port == HOST_PORT {
            "hostPort"
        } else if own_node(*address) {
            "node port"
        } else {
            "Service"
        };
        let to = if flow.source == flow.destination {
            "itself"
        } else if here(world, flow.destination) {
            "a pod here"
        } else if own_node(flow.destination) {
            "a process here"
        } else if matches!(oracle::owner(world, flow.destination), Owner::Workload(_)) {
            "a pod of another node"
        } else {
            "another machine"
        };
        let from = if here(world, flow.source) { "" } else { "from outside " };
        let masqueraded = if shown.is_some() { ", masqueraded" } else { "" };
        Some(format!("{from}by {front} to {to}{masqueraded}"))
    }
}

/// Every address, port and protocol that stands for others at this node, by the Services alone (no `hostPort`).
pub fn fronts(world: &World) -> BTreeSet<(IpAddr, u16, u8)> {
    world.services.values().flat_map(|service| of_service(service)).collect()
}

fn of_service(service: &Service) -> Vec<(IpAddr, u16, u8)> {
    let own = NODES.into_iter().map(|text| text.parse().expect("an address")).filter(|address| own_node(*address));
    let own: Vec<IpAddr> = own.collect();
    let mut found = Vec::new();
    for port in &service.ports {
        found.extend(service.addresses().map(|address| (address, port.port, port.protocol)));
        if let Some(number) = port.node_port {
            found.extend(own.iter().map(|address| (*address, number, port.protocol)));
        }
    }
    found
}

/// This many flows by way of Services and host ports, as far as the world has backends for them.
pub fn translated(rng: &mut Rng, world: &World, count: usize) -> Vec<(Flow, Way)> {
    let pods: Vec<IpAddr> = world.workloads.values().flat_map(|pod| pod.addresses.clone()).collect();
    let (clients, outside) = (pods.iter().copied().filter(|one| here(world, *one)), outside());
    let clients: Vec<_> = clients.collect();
    let strangers: Vec<_> = outside.iter().copied().filter(|one| !own_node(*one)).collect();
    let behind = backends(world);
    let mut found = Vec::with_capacity(count);
    for _ in 0..count * 20 {
        if found.len() == count {
            break;
        }
        let from_outside = chance(rng, 45);
        let Some(source) = rng.choice(if from_outside { &strangers } else { &clients }).copied() else { continue };
        let (front, destination, port) = if chance(rng, 15) {
            let own = NODES.map(|text| text.parse::<IpAddr>().expect("an address"));
            let Some(destination) = rng.choice(&clients).copied() else { continue };
            let family = own.into_iter().find(|one| own_node(*one) && one.is_ipv4() == destination.is_ipv4());
            ((family.expect("each family has one"), HOST_PORT, 6), destination, 8_080)
        } else {
            match rng.choice(&behind) {
                Some(one) => *one,
                None => continue,
            }
        };
        let families = [source, destination, front.0].map(|one| one.is_ipv4());
        let ends_here = here(world, destination);
        // What enters from outside and leaves again is nobody's business here.
        if families.iter().any(|one| *one != families[0]) || from_outside && !ends_here {
            continue;
        }
        let leaves = !ends_here && !own_node(destination);
        // A pod would not take what shows its own address for the sender's.
        let itself = source == destination;
        let shown = if itself || (from_outside && front.1 != HOST_PORT || leaves) && rng.bool() {
            let own = NODES.iter().map(|text| text.parse().expect("an address"));
            let own = own.into_iter().find(|one: &IpAddr| own_node(*one) && one.is_ipv4() == families[0]);
            own.map(|own| (own, MASQUERADED_PORT))
        } else {
            None
        };
        let way = Way::Translated { address: front.0, port: front.1, shown };
        found.push((Flow { source, destination, protocol: front.2, port }, way));
    }
    found
}

/// This many flows of processes of the node to its pods.
pub fn of_own_processes(rng: &mut Rng, world: &World, count: usize) -> Vec<(Flow, Way)> {
    let pods = world.workloads.values().flat_map(|pod| pod.addresses.clone()).filter(|one| here(world, *one));
    let pods: Vec<IpAddr> = pods.collect();
    let mut found = Vec::with_capacity(count);
    for _ in 0..count {
        let Some(destination) = rng.choice(&pods).copied() else { break };
        let own = NODES.iter().map(|text| text.parse().expect("an address"));
        let mut own = own.filter(|one: &IpAddr| own_node(*one) && one.is_ipv4() == destination.is_ipv4());
        let source = own.next().expect("each family has one");
        let protocol = *rng.choice(&[6, 17]).expect("not empty");
        found.push((Flow { source, destination, protocol, port: 8_080 }, Way::OwnProcess));
    }
    found
}

/// Each front with each address and port behind it.
fn backends(world: &World) -> Vec<((IpAddr, u16, u8), IpAddr, u16)> {
    let mut found = Vec::new();
    for service in world.services.values() {
        for front in of_service(service) {
            let named = service
                .ports
                .iter()
                .filter(|one| one.protocol == front.2 && (one.port == front.1 || one.node_port == Some(front.1)));
            for named in named {
                for backend in world.backends(&service.name) {
                    let ports = backend.ports.iter().filter(|one| one.protocol == front.2 && one.name == named.name);
                    let ports = ports.filter_map(|one| one.port);
                    found.extend(ports.map(|port| (front, backend.address, port)));
                }
            }
        }
    }
    found.retain(|(front, backend, _)| front.0.is_ipv4() == backend.is_ipv4());
    found
}

/// Whether an address is a pod's of this node, and of no other's.
pub(crate) fn here(world: &World, address: IpAddr) -> bool {
    matches!(oracle::owner(world, address), Owner::Workload(pod) if pod.node == NODE)
}

/// Whether an address is this node's own.
pub(crate) fn own_node(address: IpAddr) -> bool {
    [NODES[0], NODES[2]].iter().any(|own| own.parse() == Ok(address))
}
