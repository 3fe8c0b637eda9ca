//! Flows through a random world: mostly towards what rules speak of.

use std::net::IpAddr;

use fastrand::Rng;
use reeve_policy::model::World;

use super::{chance, outside};

/// One flow, from its first packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who begins.
    pub source: IpAddr,
    /// Towards whom.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or ICMP type << 8 | code, or 0.
    pub port: u16,
}

/// Ports at and around what policies name.
const PORTS: [u16; 16] = [80, 80, 8080, 8080, 8033, 8077, 443, 53, 8000, 8001, 8050, 8099, 8100, 5432, 1, 65535];

/// This many flows between pods, and between pods and the outside.
pub fn flows(rng: &mut Rng, world: &World, count: usize) -> Vec<Flow> {
    let pods: Vec<IpAddr> = world.workloads.values().flat_map(|pod| pod.addresses.clone()).collect();
    let mut found = Vec::with_capacity(count);
    let (mut tries, outside) = (0, outside());
    while found.len() < count && tries < count * 50 {
        tries += 1;
        let Some(inside) = rng.choice(&pods).copied() else { break };
        let others: &[IpAddr] = if chance(rng, 60) { &pods } else { &outside };
        let Some(other) = rng.choice(others).copied() else { continue };
        if other == inside || other.is_ipv4() != inside.is_ipv4() {
            continue;
        }
        let (source, destination) = if rng.bool() { (inside, other) } else { (other, inside) };
        let named = named_ports(world, destination);
        let (protocol, port) = match rng.choice(&named) {
            Some(named) if chance(rng, 65) => *named,
            _ => traffic(rng, source.is_ipv4()),
        };
        found.push(Flow { source, destination, protocol, port });
    }
    found
}

/// Protocols and ports that the pods at an address have names for.
fn named_ports(world: &World, address: IpAddr) -> Vec<(u8, u16)> {
    let pods = world.workloads.values().filter(|pod| pod.addresses.contains(&address));
    pods.flat_map(|pod| &pod.named_ports).map(|named| (named.protocol, named.port)).collect()
}

fn traffic(rng: &mut Rng, v4: bool) -> (u8, u16) {
    let port = *rng.choice(&PORTS).expect("not empty");
    match rng.u8(..100) {
        0..65 => (6, port),
        65..82 => (17, port),
        82..90 => (132, port),
        // Echo requests, and a message that asks nothing.
        90..97 if v4 => (1, *rng.choice(&[8 << 8, 9 << 8]).expect("not empty")),
        90..97 => (58, *rng.choice(&[128 << 8, 200 << 8]).expect("not empty")),
        _ => (47, 0),
    }
}
