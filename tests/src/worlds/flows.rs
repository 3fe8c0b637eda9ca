//! Flows through a random world: mostly towards what rules speak of.

use std::net::IpAddr;

use fastrand::Rng;
use reeve_policy::model::{PortMatch, Rules, TrafficMatch, World};

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
    let backends: Vec<IpAddr> =
        world.endpoint_slices.keys().flat_map(|name| world.backends(name)).map(|b| b.address).collect();
    let meant = spoken_of(world);
    while found.len() < count && tries < count * 50 {
        tries += 1;
        let Some(inside) = rng.choice(&pods).copied() else { break };
        let others: &[IpAddr] = match rng.u8(..100) {
            0..50 => &pods,
            50..62 => &backends,
            _ => &outside,
        };
        let Some(other) = rng.choice(others).copied() else { continue };
        if other == inside || other.is_ipv4() != inside.is_ipv4() {
            continue;
        }
        let (source, destination) = if rng.bool() { (inside, other) } else { (other, inside) };
        let named = named_ports(world, destination);
        let (protocol, port) = match (rng.choice(&named), rng.choice(&meant)) {
            (Some(named), _) if chance(rng, 45) => *named,
            (_, Some(one)) if chance(rng, 75) => match meant_traffic(rng, one, source.is_ipv4()) {
                Some(meant) => meant,
                None => continue,
            },
            _ => traffic(rng, source.is_ipv4()),
        };
        found.push(Flow { source, destination, protocol, port });
    }
    found
}

/// The protocols and ports that rules name by number, the rarer ones several times.
fn spoken_of(world: &World) -> Vec<TrafficMatch> {
    let policies = world.tiers.iter().flat_map(|(_, policies)| policies);
    let rules = policies.flat_map(|policy| [&policy.ingress, &policy.egress]).filter_map(|rules| match rules {
        Rules::List(list) => Some(list),
        Rules::NotApplied | Rules::Closed(_) => None,
    });
    let named = rules.flatten().flat_map(|rule| rule.traffic.any_of.iter().flatten().chain(&rule.traffic.none_of));
    named
        .filter(|one| one.protocol.is_some() && !matches!(one.ports, PortMatch::Named(_)))
        .flat_map(|one| {
            let times = match (&one.ports, one.protocol) {
                (PortMatch::Icmp(..), _) => 20,
                (_, Some(47)) => 10,
                _ => 1,
            };
            std::iter::repeat_n(one.clone(), times)
        })
        .collect()
}

/// A protocol and port of those meant; `None` if the family has none.
fn meant_traffic(rng: &mut Rng, one: &TrafficMatch, v4: bool) -> Option<(u8, u16)> {
    let protocol = one.protocol?;
    if protocol == 1 && !v4 || protocol == 58 && v4 {
        return None;
    }
    let port = match &one.ports {
        PortMatch::Any if [6, 17, 132].contains(&protocol) => *rng.choice(&PORTS).expect("not empty"),
        PortMatch::Any if protocol == 58 => 128 << 8,
        PortMatch::Any if protocol == 1 => 8 << 8,
        PortMatch::Any => 0,
        PortMatch::Range(first, last) => rng.u16(*first..=*last),
        PortMatch::Icmp(kind, code) => u16::from_be_bytes([*kind, code.unwrap_or_else(|| rng.u8(..2))]),
        PortMatch::Named(_) => return None,
    };
    Some((protocol, port))
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
        90..97 if v4 => (1, *rng.choice(&[8 << 8, 40 << 8]).expect("not empty")),
        90..97 => (58, *rng.choice(&[128 << 8, 200 << 8]).expect("not empty")),
        _ => (47, 0),
    }
}
