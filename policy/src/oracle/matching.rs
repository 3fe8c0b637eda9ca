//! Whether a selector, a peer or a port of the model matches, read off the model word by word.

use super::Owner;
use crate::model::{
    Labels, NamespaceMatch, Peer, Peers, PortMatch, Selector, ServiceAccountMatch, Traffic, TrafficMatch,
};
use crate::model::{Workload, WorkloadSelector, World};
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
    }
}

fn peer(world: &World, peer: &Peer, owner: &Owner, address: IpAddr) -> bool {
    let pod = if let Owner::Workload(pod) = owner { Some(pod) } else { None };
    let is_selected = |wanted: &WorkloadSelector| pod.is_some_and(|pod| workload(world, wanted, pod));
    peer.workload.as_ref().is_none_or(is_selected)
        && !peer.not_workloads.iter().any(is_selected)
        && peer.nets.as_ref().is_none_or(|nets| nets.iter().any(|net| net.contains(&address)))
        && !peer.not_nets.iter().any(|net| net.contains(&address))
}

pub(super) fn traffic(wanted: &Traffic, protocol: u8, port: u16, destination: &Owner) -> bool {
    let matches = |one: &TrafficMatch| {
        one.protocol.is_none_or(|only| only == protocol) && ports(&one.ports, protocol, port, destination)
    };
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
