//! From what was typed to addresses and numbers, by the facts.

use super::target::{Destination, Place, Port};
use crate::facts::known_names;
use anyhow::{Context, bail};
use reeve_flow::record::{Icmp, Protocol};
use reeve_policy::model::{Family, ServiceName, ServicePort, Workload, World};
use reeve_policy::oracle::{self, Owner};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// A flow that the oracle can be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    /// As in [`oracle::Query`]: a port, or an ICMP type and code, or 0.
    pub(super) port: u16,
}

const ECHO_REQUEST: Icmp = Icmp { kind: 8, code: 0 };
const ECHO_REQUEST_V6: Icmp = Icmp { kind: 128, code: 0 };

/// Finds addresses of one family for both ends, and the port's number.
pub(super) fn flow(
    world: &World,
    source: &Place,
    destination: &Destination,
    family: Option<Family>,
) -> anyhow::Result<Flow> {
    let sources = addresses(world, source).context("SRC")?;
    let destinations = addresses(world, &destination.place).context("DST")?;
    let protocol = destination.protocol;
    let families: Vec<Family> = [Family::V4, Family::V6]
        .into_iter()
        .filter(|one| family.is_none_or(|only| only == *one))
        .filter(|one| !matches!((protocol, one), (Protocol::ICMP, Family::V6) | (Protocol::ICMPV6, Family::V4)))
        .collect();
    let of = |list: &[IpAddr], family| list.iter().copied().find(|address| family_of(*address) == family);
    let pair = families.iter().find_map(|family| Some((of(&sources, *family)?, of(&destinations, *family)?)));
    let Some((source, destination_address)) = pair else {
        let what = match families.as_slice() {
            [] => bail!("{protocol} is not sent over {}", family.map_or("IP", family_name)),
            [one] => format!("{} address", family_name(*one)),
            _ => "address of one family".to_owned(),
        };
        bail!("SRC and DST do not both have an {what}: SRC has {}, DST has {}", list(&sources), list(&destinations));
    };
    let port = match &destination.port {
        Port::Number(number) => *number,
        Port::Named(name) => named_port(world, destination_address, protocol, name).context("DST")?,
        Port::Icmp(Some(icmp)) => icmp_port(*icmp),
        Port::Icmp(None) if protocol == Protocol::ICMP => icmp_port(ECHO_REQUEST),
        Port::Icmp(None) => icmp_port(ECHO_REQUEST_V6),
        Port::None => 0,
    };
    Ok(Flow { source, destination: destination_address, protocol, port })
}

fn icmp_port(icmp: Icmp) -> u16 {
    u16::from_be_bytes([icmp.kind, icmp.code])
}

/// The addresses that packets from or to this place carry.
fn addresses(world: &World, place: &Place) -> anyhow::Result<Vec<IpAddr>> {
    let (namespace, name) = match place {
        Place::Address(address) => return Ok(vec![*address]),
        Place::Service(namespace, name) => {
            bail!("service {namespace}/{name} sends nothing, and answers by its backends only")
        }
        Place::Pod(namespace, name) => (namespace, name),
    };
    let pod = pod(world, namespace, name)?;
    if pod.host_network {
        let node = world.nodes.get(&pod.node);
        let addresses =
            node.map_or_else(|| "not known".to_owned(), |node| list(&node.own_addresses().collect::<Vec<_>>()));
        bail!(
            "pod {namespace}/{name} uses the network of its node {:?}, whose addresses are {addresses}: ask for one of those",
            pod.node
        );
    }
    match (pod.addresses.as_slice(), pod.ended) {
        ([], true) => bail!("pod {namespace}/{name} has ended and has no address"),
        ([], false) => bail!("pod {namespace}/{name} has no address yet"),
        (addresses, _) => Ok(addresses.to_vec()),
    }
}

/// The Service that is asked for by name, or by one of its addresses and ports.
pub(super) fn service(world: &World, destination: &Destination) -> Option<ServiceName> {
    let (address, number) = match (&destination.place, &destination.port) {
        (Place::Service(namespace, name), _) => {
            return Some(ServiceName { namespace: namespace.clone(), name: name.clone() });
        }
        (Place::Address(address), Port::Number(number)) => (*address, *number),
        _ => return None,
    };
    let takes = |port: &ServicePort| port.protocol == destination.protocol.0 && port.port == number;
    let mut services = world.services.values();
    let found =
        services.find(|service| service.addresses().any(|own| own == address) && service.ports.iter().any(takes))?;
    Some(found.name.clone())
}

/// The addresses and ports that a Service's port leads to, in order.
pub(super) fn backends(
    world: &World,
    wanted: &ServiceName,
    destination: &Destination,
) -> anyhow::Result<Vec<Destination>> {
    let Some(service) = world.services.get(wanted) else {
        let names: Vec<String> = world.services.keys().map(ToString::to_string).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        bail!("there is no service {wanted}; {}", known_names("services", &names));
    };
    let protocol = destination.protocol;
    let matches = |port: &&ServicePort| {
        port.protocol == protocol.0
            && match &destination.port {
                Port::Number(number) => port.port == *number,
                Port::Named(name) => port.name == *name,
                Port::Icmp(_) | Port::None => false,
            }
    };
    let Some(port) = service.ports.iter().find(matches) else {
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| {
                format!(
                    "{}{}/{}",
                    port.port,
                    if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) },
                    Protocol(port.protocol)
                )
            })
            .collect();
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        bail!("service {wanted} has no such port of {protocol}; {}", known_names("ports", &ports));
    };
    let live = world.backends(wanted).filter(|backend| backend.endpoint.ready || service.publishes_not_ready);
    let found: BTreeSet<(IpAddr, u16)> = live
        .flat_map(|backend| {
            let ports = backend.ports.iter().filter(|one| one.protocol == port.protocol && one.name == port.name);
            ports.map(move |one| (backend.address, one.port.unwrap_or(port.port)))
        })
        .collect();
    if found.is_empty() {
        bail!("service {wanted} has no backend that takes {} {protocol}", port.port);
    }
    let backend = |(address, port)| Destination { place: Place::Address(address), protocol, port: Port::Number(port) };
    Ok(found.into_iter().map(backend).collect())
}

fn pod<'a>(world: &'a World, namespace: &str, name: &str) -> anyhow::Result<&'a Arc<Workload>> {
    let pods = || world.workloads.values();
    if let Some(pod) = pods().find(|pod| pod.namespace == namespace && pod.name == name) {
        return Ok(pod);
    }
    let namespaces: BTreeSet<&str> = pods().map(|pod| pod.namespace.as_str()).collect();
    if !namespaces.contains(namespace) {
        let names: Vec<&str> = namespaces.into_iter().collect();
        bail!("there are no pods in namespace {namespace:?}; {}", known_names("namespaces", &names));
    }
    let mut names: Vec<&str> = pods().filter(|pod| pod.namespace == namespace).map(|pod| pod.name.as_str()).collect();
    names.sort_unstable();
    bail!("there is no pod {name:?} in namespace {namespace:?}; {}", known_names("pods", &names))
}

/// The number that the pod at this address gives a port's name.
fn named_port(world: &World, address: IpAddr, protocol: Protocol, name: &str) -> anyhow::Result<u16> {
    let Owner::Workload(pod) = oracle::owner(world, address) else {
        bail!("port {name:?} is a name, and {address} is no pod's address that could give it a number");
    };
    let ports = || pod.named_ports.iter().filter(|port| port.protocol == protocol.0);
    let numbers: BTreeSet<u16> = ports().filter(|port| port.name == name).map(|port| port.port).collect();
    match numbers.iter().copied().collect::<Vec<_>>().as_slice() {
        [one] => Ok(*one),
        [] => {
            let names: BTreeSet<&str> = ports().map(|port| port.name.as_str()).collect();
            let names: Vec<&str> = names.into_iter().collect();
            let known = known_names(&format!("{protocol} ports"), &names);
            bail!("pod {}/{} has no {protocol} port named {name:?}; {known}", pod.namespace, pod.name)
        }
        several => {
            let numbers: Vec<String> = several.iter().map(ToString::to_string).collect();
            let numbers = numbers.join(" and ");
            bail!("port {name:?} of pod {}/{} is {numbers}: ask for one of those", pod.namespace, pod.name)
        }
    }
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn list(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
