//! Whether a selector, a peer or a port of the model matches, read off the model word by word.

use super::Owner;
use crate::model::{
    Labels, NamespaceMatch, NetworkSet, Peer, Peers, PortMatch, Reading, Selector, ServiceAccountMatch, ServiceName,
};
use crate::model::{SetScope, SetSelector, Traffic, TrafficMatch, Workload, WorkloadSelector, World};
use std::net::IpAddr;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Protocols whose ports are looked at: TCP, UDP, SCTP.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

pub(super) fn selector(selector_: &Selector, labels: &Labels) -> bool {
    let value = |key: &String| labels.get(key);
    match selector_ {
        Selector::Everything => true,
        Selector::Nothing => false,
        Selector::Has(key) => value(key).is_some(),
        Selector::Equals(key, wanted) => value(key).is_some_and(|value| value == wanted),
        Selector::In(key, wanted) => value(key).is_some_and(|value| wanted.contains(value)),
        Selector::Contains(key, text) => value(key).is_some_and(|value| value.contains(text.as_str())),
        Selector::StartsWith(key, text) => value(key).is_some_and(|value| value.starts_with(text.as_str())),
        Selector::EndsWith(key, text) => value(key).is_some_and(|value| value.ends_with(text.as_str())),
        Selector::Not(inner) => !selector(inner, labels),
        Selector::And(all) => all.iter().all(|inner| selector(inner, labels)),
        Selector::Or(any) => any.iter().any(|inner| selector(inner, labels)),
    }
}

pub(super) fn workload(world: &World, wanted: &WorkloadSelector, pod: &Workload) -> bool {
    let none = Labels::new();
    let namespace = match &wanted.namespace {
        NamespaceMatch::Any => true,
        NamespaceMatch::Named(name) => *name == pod.namespace,
        NamespaceMatch::Labels(labels) => selector(labels, world.namespaces.get(&pod.namespace).unwrap_or(&none)),
    };
    let account = match &wanted.service_account {
        ServiceAccountMatch::Any => true,
        ServiceAccountMatch::Selected { names, labels } => {
            let place = (pod.namespace.clone(), pod.service_account.clone());
            names.as_ref().is_none_or(|names| names.contains(&pod.service_account))
                && selector(labels, world.service_accounts.get(&place).unwrap_or(&none))
        }
    };
    namespace && account && selector(&wanted.pod, &pod.selector_labels())
}

pub(super) fn peers(world: &World, peers: &Peers, owner: &Owner, address: IpAddr) -> bool {
    match peers {
        Peers::Anyone => true,
        Peers::Nobody => false,
        Peers::OneOf(list) => list.iter().any(|one| peer(world, one, owner, address.to_canonical())),
        Peers::BackendsOf(service) => world.backends(service).any(|backend| backend.address == address.to_canonical()),
    }
}

/// Whether a service has a backend at this address that serves at this port.
pub(super) fn serves(world: &World, service: &ServiceName, address: IpAddr, protocol: u8, port: u16) -> bool {
    world.backends(service).filter(|backend| backend.address == address.to_canonical()).any(|backend| {
        backend.ports.iter().any(|one| one.protocol == protocol && one.port.is_none_or(|only| only == port))
    })
}

/// Whether these peers select, and whether they exclude, a network set, a service's backends or a node's addresses that
/// could not be read whole.
pub(super) fn partial_lists(world: &World, peers: &Peers) -> (bool, bool) {
    let list = match peers {
        Peers::Anyone | Peers::Nobody => return (false, false),
        Peers::BackendsOf(service) => {
            let slices = world.endpoint_slices.get(service);
            return (slices.is_some_and(|all| all.values().any(|slice| slice.reading == Reading::Partial)), false);
        }
        Peers::OneOf(list) => list,
    };
    let partial = |wanted: &SetSelector| {
        world.network_sets.values().any(|one| one.reading == Reading::Partial && set(world, wanted, one))
    };
    let partial_node = |labels: &Selector| {
        world.nodes.values().any(|node| node.reading == Reading::Partial && selector(labels, &node.labels))
    };
    (
        list.iter()
            .any(|peer| peer.sets.as_ref().is_some_and(partial) || peer.nodes.as_ref().is_some_and(partial_node)),
        list.iter().any(|peer| peer.not_sets.iter().any(partial)),
    )
}

fn set(world: &World, wanted: &SetSelector, one: &NetworkSet) -> bool {
    let none = Labels::new();
    let in_scope = match &wanted.scope {
        SetScope::Everywhere => true,
        SetScope::Global => one.namespace.is_none(),
        SetScope::AnyNamespace => one.namespace.is_some(),
        SetScope::Namespace(name) => one.namespace.as_ref() == Some(name),
        SetScope::Namespaces(labels) => {
            let of_namespace = |name| selector(labels, world.namespaces.get(name).unwrap_or(&none));
            one.namespace.as_ref().is_some_and(of_namespace)
        }
    };
    in_scope && selector(&wanted.labels, &one.selector_labels())
}

pub(super) fn peer(world: &World, peer: &Peer, owner: &Owner, address: IpAddr) -> bool {
    let pod = if let Owner::Workload(pod) = owner { Some(pod) } else { None };
    let is_selected = |wanted: &WorkloadSelector| pod.is_some_and(|pod| workload(world, wanted, pod));
    let in_set = |wanted: &SetSelector| {
        let sets = world.network_sets.values().filter(|one| set(world, wanted, one));
        sets.flat_map(|one| &one.nets).any(|net| net.contains(&address))
    };
    let is_node = |labels: &Selector| {
        let mut nodes = world.nodes.values().filter(|node| node.addresses.contains(&address));
        nodes.any(|node| selector(labels, &node.labels))
    };
    let anyone = peer.workload.is_none() && peer.sets.is_none() && peer.nodes.is_none();
    let is_meant = anyone
        || peer.workload.as_ref().is_some_and(is_selected)
        || peer.sets.as_ref().is_some_and(in_set)
        || peer.nodes.as_ref().is_some_and(is_node);
    is_meant
        && !peer.not_sets.iter().any(in_set)
        && !peer.not_workloads.iter().any(is_selected)
        && peer.nets.as_ref().is_none_or(|nets| nets.iter().any(|net| net.contains(&address)))
        && !peer.not_nets.iter().any(|net| net.contains(&address))
}

/// Whether traffic is of this one kind.
pub(super) fn one_traffic(one: &TrafficMatch, protocol: u8, port: u16, destination: &Owner) -> bool {
    one.protocol.is_none_or(|only| only == protocol) && ports(&one.ports, protocol, port, destination)
}

pub(super) fn traffic(wanted: &Traffic, protocol: u8, port: u16, destination: &Owner) -> bool {
    let matches = |one: &TrafficMatch| one_traffic(one, protocol, port, destination);
    wanted.any_of.as_ref().is_none_or(|any| any.iter().any(matches)) && !wanted.none_of.iter().any(matches)
}

fn ports(wanted: &PortMatch, protocol: u8, port: u16, destination: &Owner) -> bool {
    let has_ports = WITH_PORTS.contains(&protocol);
    match wanted {
        PortMatch::Any => true,
        PortMatch::Range(first, last) => has_ports && (*first..=*last).contains(&port),
        PortMatch::Named(name) => {
            let Owner::Workload(pod) = destination else { return false };
            has_ports
                && pod
                    .named_ports
                    .iter()
                    .any(|named| named.name == *name && named.protocol == protocol && named.port == port)
        }
        PortMatch::Icmp(kind, code) => {
            let [its_kind, its_code] = port.to_be_bytes();
            matches!(protocol, ICMP | ICMPV6) && *kind == its_kind && code.is_none_or(|code| code == its_code)
        }
    }
}
