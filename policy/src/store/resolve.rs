//! Policies with the network sets, nodes and services that they name put as addresses.
//!
//! The compiler knows workloads and networks only; what else a rule may name is a list of addresses that changes with
//! other facts. The policy as it was written is kept beside, and the oracle reads that one.

use crate::identity::selects;
use crate::model::{
    Action, Direction, EndpointSlices, Labels, NetworkSets, Node, Peer, Peers, Policy, PortMatch, Reading, Rule, Rules,
    Selector, ServiceName, SetScope, SetSelector, Tiers, Traffic, TrafficMatch, World,
};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A kind of list that a rule may name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Sets,
    Nodes,
    Services,
}

/// The facts that policies are resolved by.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    sets: &'a NetworkSets,
    namespaces: &'a BTreeMap<String, Labels>,
    nodes: &'a BTreeMap<String, Arc<Node>>,
    slices: &'a EndpointSlices,
}

impl<'a> Sources<'a> {
    /// A world's, apart from what is resolved by them: the enforced tiers and the staged ones.
    pub(super) fn beside(world: &'a mut World) -> (Self, &'a mut Tiers, &'a mut Option<Tiers>) {
        let World { network_sets: sets, namespaces, nodes, endpoint_slices: slices, tiers, staged, .. } = world;
        (Self { sets, namespaces, nodes, slices }, tiers, staged)
    }

    /// The policy as it is enforced; itself, if it names nothing of these.
    pub(super) fn resolve(self, policy: &Arc<Policy>) -> Arc<Policy> {
        let list = |rules: &Rules, direction| match rules {
            Rules::List(list) => Rules::List(list.iter().flat_map(|rule| self.rule(rule, direction)).collect()),
            other => other.clone(),
        };
        if ![Source::Sets, Source::Nodes, Source::Services].into_iter().any(|source| names(policy, source)) {
            return Arc::clone(policy);
        }
        Arc::new(Policy {
            ingress: list(&policy.ingress, Direction::Ingress),
            egress: list(&policy.egress, Direction::Egress),
            written: Some(Arc::clone(policy)),
            ..Policy::clone(policy)
        })
    }

    fn rule(self, rule: &Rule, direction: Direction) -> Vec<Rule> {
        let only_opens = matches!(rule.action, Action::Allow | Action::Log);
        let faults: Vec<Fault> = [&rule.peer, &rule.own].into_iter().flat_map(|peers| self.faults(peers)).collect();
        if !only_opens && !faults.is_empty() {
            return vec![Rule {
                action: Action::DenyUnreadable,
                family: None,
                peer: Peers::Anyone,
                own: Peers::Anyone,
                traffic: Traffic { any_of: None, none_of: Vec::new() },
                ..rule.clone()
            }];
        }
        if faults.contains(&Fault::Excluded) {
            return vec![Rule { peer: Peers::Nobody, ..rule.clone() }];
        }
        let rule = Rule { own: self.peers(&rule.own), ..rule.clone() };
        let Peers::BackendsOf(service) = &rule.peer else {
            return vec![Rule { peer: self.peers(&rule.peer), ..rule }];
        };
        let within = |nets: BTreeSet<IpNet>| Peers::OneOf(vec![Peer { nets: Some(nets), ..Peer::default() }]);
        let groups = self.backends(service);
        if groups.is_empty() {
            return vec![Rule { peer: Peers::Nobody, ..rule }];
        }
        match direction {
            Direction::Ingress => vec![Rule { peer: within(groups.into_values().flatten().collect()), ..rule }],
            // No address is in two groups, so no more than one of these rules speaks of a peer.
            Direction::Egress => groups
                .into_iter()
                .map(|(ports, nets)| Rule {
                    peer: within(nets),
                    traffic: at_ports(&rule.traffic, &ports),
                    ..rule.clone()
                })
                .collect(),
        }
    }

    fn faults(self, peers: &Peers) -> Vec<Fault> {
        if let Peers::BackendsOf(service) = peers {
            let mut slices = self.slices.get(service).into_iter().flat_map(BTreeMap::values);
            return slices
                .find(|slice| slice.reading == Reading::Partial)
                .map(|_| Fault::Selected)
                .into_iter()
                .collect();
        }
        let partial = |selector: &&SetSelector| self.selected(selector).1 == Reading::Partial;
        let partial_nodes = |labels: &&Selector| self.nodes(labels).any(|node| node.reading == Reading::Partial);
        let list: &[Peer] = if let Peers::OneOf(list) = peers { list } else { &[] };
        list.iter()
            .flat_map(|peer| {
                let sets = peer.sets.iter().filter(partial).map(|_| Fault::Selected);
                let nodes = peer.nodes.iter().filter(partial_nodes).map(|_| Fault::Selected);
                sets.chain(nodes).chain(peer.not_sets.iter().filter(partial).map(|_| Fault::Excluded))
            })
            .collect()
    }

    fn peers(self, peers: &Peers) -> Peers {
        let Peers::OneOf(list) = peers else { return peers.clone() };
        let resolved: Vec<Peer> = list.iter().flat_map(|peer| self.peer(peer)).collect();
        if resolved.is_empty() { Peers::Nobody } else { Peers::OneOf(resolved) }
    }

    /// One peer for the workloads it means, and one for each kind of address list.
    fn peer(self, peer: &Peer) -> Vec<Peer> {
        let mut not_nets = peer.not_nets.clone();
        for excluded in &peer.not_sets {
            not_nets.extend(self.selected(excluded).0);
        }
        let base = Peer { sets: None, nodes: None, not_sets: Vec::new(), not_nets, workload: None, ..peer.clone() };
        if peer.workload.is_none() && peer.sets.is_none() && peer.nodes.is_none() {
            return vec![base];
        }
        let mut found = Vec::new();
        if peer.workload.is_some() {
            found.push(Peer { workload: peer.workload.clone(), ..base.clone() });
        }
        let sets = peer.sets.as_ref().map(|sets| self.selected(sets).0);
        let nodes = peer.nodes.as_ref().map(|labels| self.node_addresses(labels));
        for nets in [sets, nodes].into_iter().flatten() {
            let nets = match &peer.nets {
                None => nets,
                Some(given) => both(given, &nets),
            };
            if !nets.is_empty() {
                found.push(Peer { nets: Some(nets), ..base.clone() });
            }
        }
        found
    }

    /// The networks of the sets that this selects, and whether those are all of theirs.
    fn selected(self, selector: &SetSelector) -> (BTreeSet<IpNet>, Reading) {
        let none = Labels::new();
        let mut found = (BTreeSet::new(), Reading::Whole);
        for set in self.sets.values() {
            let in_scope = match (&selector.scope, &set.namespace) {
                (SetScope::Everywhere, _) | (SetScope::Global, None) | (SetScope::AnyNamespace, Some(_)) => true,
                (SetScope::Namespace(name), Some(namespace)) => name == namespace,
                (SetScope::Namespaces(labels), Some(namespace)) => {
                    selects(labels, self.namespaces.get(namespace).unwrap_or(&none))
                }
                _ => false,
            };
            if in_scope && selects(&selector.labels, &set.selector_labels()) {
                found.0.extend(&set.nets);
                if set.reading == Reading::Partial {
                    found.1 = Reading::Partial;
                }
            }
        }
        found
    }

    fn nodes<'b>(self, labels: &'b Selector) -> impl Iterator<Item = &'b Arc<Node>>
    where
        'a: 'b,
    {
        self.nodes.values().filter(|node| selects(labels, &node.labels))
    }

    fn node_addresses(self, labels: &Selector) -> BTreeSet<IpNet> {
        self.nodes(labels).flat_map(|node| &node.addresses).map(|address| IpNet::from(*address)).collect()
    }

    /// The addresses behind a service, by the ports that they serve at.
    fn backends(self, service: &ServiceName) -> BTreeMap<BTreeSet<Served>, BTreeSet<IpNet>> {
        let mut ports: BTreeMap<IpAddr, BTreeSet<Served>> = BTreeMap::new();
        for slice in self.slices.get(service).into_iter().flat_map(BTreeMap::values) {
            for address in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
                let served = slice.ports.iter().map(|port| (port.protocol, port.port));
                ports.entry(*address).or_default().extend(served);
            }
        }
        let mut groups: BTreeMap<_, BTreeSet<IpNet>> = BTreeMap::new();
        for (address, ports) in ports {
            groups.entry(ports).or_default().insert(IpNet::from(address));
        }
        groups
    }
}

/// Protocol, and port or every port.
type Served = (u8, Option<u16>);

/// What a list that could not be read whole is to a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The rule is about it.
    Selected,
    /// The rule is about all but it.
    Excluded,
}

/// Whether a policy's rules name lists of this kind.
pub(super) fn names(policy: &Policy, source: Source) -> bool {
    let in_peers = |peers: &Peers| match peers {
        Peers::Anyone | Peers::Nobody => false,
        Peers::BackendsOf(_) => source == Source::Services,
        Peers::OneOf(list) => list.iter().any(|peer| match source {
            Source::Sets => peer.sets.is_some() || !peer.not_sets.is_empty(),
            Source::Nodes => peer.nodes.is_some(),
            Source::Services => false,
        }),
    };
    [&policy.ingress, &policy.egress].into_iter().any(|rules| match rules {
        Rules::NotApplied | Rules::Closed(_) => false,
        Rules::List(list) => list.iter().any(|rule| in_peers(&rule.peer) || in_peers(&rule.own)),
    })
}

/// The networks that lie in a network of both lists.
fn both(one: &BTreeSet<IpNet>, other: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (a, b)));
    pairs.filter_map(|(a, b)| if a.contains(b) { Some(*b) } else { b.contains(a).then_some(*a) }).collect()
}

/// The part of some traffic that goes to these ports.
fn at_ports(traffic: &Traffic, ports: &BTreeSet<Served>) -> Traffic {
    let meant = |protocol: u8| {
        traffic.any_of.as_ref().is_none_or(|any| {
            any.iter().any(|one| one.ports == PortMatch::Any && one.protocol.is_none_or(|only| only == protocol))
        })
    };
    let served = ports.iter().filter(|(protocol, _)| meant(*protocol)).map(|(protocol, port)| TrafficMatch {
        protocol: Some(*protocol),
        ports: port.map_or(PortMatch::Any, |port| PortMatch::Range(port, port)),
    });
    Traffic { any_of: Some(served.collect()), none_of: traffic.none_of.clone() }
}
