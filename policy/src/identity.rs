//! Workloads and addresses as policies see them: only labels, ports and prefixes that something reads.
//!
//! Not here: numbers (`provenance`) and who owns an address (`compile::addresses`).

use crate::model::{
    Labels, NamespaceMatch, Peer, Peers, Policy, PortMatch, Rule, Rules, Selector, ServiceAccountMatch, Workload,
    WorkloadSelector, World,
};
use crate::provenance::{Identity, IdentityKind, IdentityPort};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the policies of a world read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    pod: BTreeSet<String>,
    namespace: BTreeSet<String>,
    service_account: BTreeSet<String>,
    service_account_names: BTreeSet<()>,
    ports: BTreeSet<String>,
    networks: BTreeSet<IpNet>,
}

impl Reads {
    /// What these policies read.
    pub fn of<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let mut reads = Self::default();
        for policy in policies {
            reads.workload(&policy.subject);
            for rules in [&policy.ingress, &policy.egress] {
                for rule in rule_list(rules) {
                    reads.rule(rule);
                }
            }
        }
        reads
    }

    /// The prefixes that some rule names, host bits zero.
    pub fn networks(&self) -> &BTreeSet<IpNet> {
        &self.networks
    }

    fn rule(&mut self, rule: &Rule) {
        for peers in [&rule.peer, &rule.own] {
            for peer in peer_list(peers) {
                for selector in peer.workload.iter().chain(&peer.not_workloads) {
                    self.workload(selector);
                }
                self.networks.extend(peer.nets.iter().flatten().chain(&peer.not_nets).map(IpNet::trunc));
            }
        }
        for traffic in rule.traffic.any_of.iter().flatten().chain(&rule.traffic.none_of) {
            if let PortMatch::Named(name) = &traffic.ports {
                self.ports.insert(name.clone());
            }
        }
    }

    fn workload(&mut self, selector: &WorkloadSelector) {
        keys(&selector.pod, &mut self.pod);
        if let NamespaceMatch::Labels(labels) = &selector.namespace {
            keys(labels, &mut self.namespace);
        }
        if let ServiceAccountMatch::Selected { names, labels } = &selector.service_account {
            if names.is_some() {
                self.service_account_names.insert(());
            }
            keys(labels, &mut self.service_account);
        }
    }

    /// A pod without an address.
    pub fn pod(&self, world: &World, workload: &Workload) -> Identity {
        let account = (workload.namespace.clone(), workload.service_account.clone());
        Identity {
            kind: IdentityKind::Pod,
            namespace: Some(workload.namespace.clone()),
            labels: only(&workload.selector_labels(), &self.pod),
            namespace_labels: world
                .namespaces
                .get(&workload.namespace)
                .map_or_else(Labels::new, |l| only(l, &self.namespace)),
            service_account: (!self.service_account_names.is_empty()).then(|| workload.service_account.clone()),
            service_account_labels: world
                .service_accounts
                .get(&account)
                .map_or_else(Labels::new, |l| only(l, &self.service_account)),
            networks: BTreeSet::new(),
            ports: workload
                .named_ports
                .iter()
                .filter(|port| self.ports.contains(&port.name))
                .map(|port| IdentityPort { name: port.name.clone(), protocol: port.protocol, port: port.port })
                .collect(),
        }
    }
}

/// Prefixes, to be asked which of them contain an address.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    nets: BTreeSet<IpNet>,
    lengths: BTreeSet<(bool, u8)>,
}

impl Prefixes {
    /// From prefixes whose host bits are zero.
    pub fn new(nets: &BTreeSet<IpNet>) -> Self {
        Self { nets: nets.clone(), lengths: nets.iter().map(|net| (net.addr().is_ipv4(), net.prefix_len())).collect() }
    }

    /// Those that contain the network `address/bits` whole.
    pub fn containing(&self, address: IpAddr, bits: u8) -> BTreeSet<IpNet> {
        self.lengths
            .iter()
            .filter(|(v4, length)| *v4 == address.is_ipv4() && *length <= bits)
            .filter_map(|(_, length)| {
                let net = IpNet::new(address, *length).expect("a length of this family").trunc();
                self.nets.contains(&net).then_some(net)
            })
            .collect()
    }
}

fn only(labels: &Labels, keys: &BTreeSet<String>) -> Labels {
    if labels.len() < keys.len() {
        labels.iter().filter(|(key, _)| keys.contains(*key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    } else {
        keys.iter().filter_map(|key| labels.get_key_value(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

fn keys(selector: &Selector, into: &mut BTreeSet<String>) {
    match selector {
        Selector::Everything | Selector::Nothing => {}
        Selector::Has(key)
        | Selector::Equals(key, _)
        | Selector::In(key, _)
        | Selector::Contains(key, _)
        | Selector::StartsWith(key, _)
        | Selector::EndsWith(key, _) => {
            into.insert(key.clone());
        }
        Selector::Not(inner) => keys(inner, into),
        Selector::And(all) | Selector::Or(all) => all.iter().for_each(|inner| keys(inner, into)),
    }
}

/// The rules of a list, none for the other forms.
pub(crate) fn rule_list(rules: &Rules) -> &[Rule] {
    match rules {
        Rules::List(list) => list,
        Rules::NotApplied | Rules::Closed(_) => &[],
    }
}

/// The members of a peer list, none for the other forms.
pub(crate) fn peer_list(peers: &Peers) -> &[Peer] {
    match peers {
        Peers::OneOf(list) => list,
        Peers::Anyone | Peers::Nobody | Peers::BackendsOf(_) => &[],
    }
}

/// Whether a selector holds for labels.
pub(crate) fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    let value = |key: &String| labels.get(key);
    match selector {
        Selector::Everything => true,
        Selector::Nothing => false,
        Selector::Has(key) => value(key).is_some(),
        Selector::Equals(key, text) => value(key) == Some(text),
        Selector::In(key, texts) => value(key).is_some_and(|v| texts.contains(v)),
        Selector::Contains(key, text) => value(key).is_some_and(|v| v.contains(text.as_str())),
        Selector::StartsWith(key, text) => value(key).is_some_and(|v| v.starts_with(text.as_str())),
        Selector::EndsWith(key, text) => value(key).is_some_and(|v| v.ends_with(text.as_str())),
        Selector::Not(inner) => !selects(inner, labels),
        Selector::And(all) => all.iter().all(|inner| selects(inner, labels)),
        Selector::Or(any) => any.iter().any(|inner| selects(inner, labels)),
    }
}

impl Identity {
    /// Whether it is a pod that this selects.
    pub fn is_selected(&self, selector: &WorkloadSelector) -> bool {
        self.kind == IdentityKind::Pod
            && match &selector.namespace {
                NamespaceMatch::Any => true,
                NamespaceMatch::Named(name) => self.namespace.as_ref() == Some(name),
                NamespaceMatch::Labels(labels) => selects(labels, &self.namespace_labels),
            }
            && match &selector.service_account {
                ServiceAccountMatch::Any => true,
                ServiceAccountMatch::Selected { names, labels } => {
                    names
                        .as_ref()
                        .is_none_or(|names| self.service_account.as_ref().is_some_and(|name| names.contains(name)))
                        && selects(labels, &self.service_account_labels)
                }
            }
            && selects(&selector.pod, &self.labels)
    }

    /// Whether this kind of peer includes it.
    pub fn is_peer(&self, peer: &Peer) -> bool {
        let inside = |net: &IpNet| self.networks.contains(&net.trunc());
        peer.workload.as_ref().is_none_or(|selector| self.is_selected(selector))
            && !peer.not_workloads.iter().any(|selector| self.is_selected(selector))
            && peer.nets.as_ref().is_none_or(|nets| nets.iter().any(inside))
            && !peer.not_nets.iter().any(inside)
    }

    /// Whether these peers include it.
    pub fn is_among(&self, peers: &Peers) -> bool {
        match peers {
            Peers::Anyone => true,
            // Those of a service are addresses by now.
            Peers::Nobody | Peers::BackendsOf(_) => false,
            Peers::OneOf(list) => list.iter().any(|peer| self.is_peer(peer)),
        }
    }
}
