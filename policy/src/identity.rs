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

/// How often something is read. Only what is read is there.
type Counted<K> = BTreeMap<K, usize>;

/// What one policy reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Keys of pod labels.
    pub(crate) pod: BTreeSet<String>,
    /// Keys of namespace labels.
    pub(crate) namespace: BTreeSet<String>,
    /// Keys of service account labels.
    pub(crate) service_account: BTreeSet<String>,
    /// Names of service accounts: all or none.
    pub(crate) service_account_names: BTreeSet<()>,
    /// Names of ports.
    pub(crate) ports: BTreeSet<String>,
    /// Prefixes, host bits zero.
    pub(crate) networks: BTreeSet<IpNet>,
}

impl Reading {
    fn of(policy: &Policy) -> Self {
        let mut reading = Self::default();
        reading.workload(&policy.subject);
        for rules in [&policy.ingress, &policy.egress] {
            for rule in rule_list(rules) {
                reading.rule(rule);
            }
        }
        reading
    }

    /// Whether a pod shows any of this.
    pub(crate) fn is_shown_by(&self, workload: &Workload) -> bool {
        // See `Workload::selector_labels` for those that every pod has.
        let labelled = |key: &String| workload.labels.contains_key(key) || key.starts_with("projectcalico.org/");
        !self.namespace.is_empty()
            || !self.service_account.is_empty()
            || !self.service_account_names.is_empty()
            || self.pod.iter().any(labelled)
            || workload.named_ports.iter().any(|port| self.ports.contains(&port.name))
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
}

/// What all policies read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    pod: Counted<String>,
    namespace: Counted<String>,
    service_account: Counted<String>,
    service_account_names: Counted<()>,
    ports: Counted<String>,
    networks: Counted<IpNet>,
}

impl Reads {
    /// Puts policies in the place of others, and says what is read now that was not before, or the other way round.
    pub(crate) fn replace<'a>(
        &mut self,
        before: impl IntoIterator<Item = &'a Policy>,
        after: impl IntoIterator<Item = &'a Policy>,
    ) -> Reading {
        let mut held = Reading::default();
        for policy in after {
            self.count(&Reading::of(policy), &mut held, 1);
        }
        for policy in before {
            self.count(&Reading::of(policy), &mut held, -1);
        }
        held
    }

    fn count(&mut self, reading: &Reading, flipped: &mut Reading, by: isize) {
        count(&mut self.pod, &reading.pod, &mut flipped.pod, by);
        count(&mut self.namespace, &reading.namespace, &mut flipped.namespace, by);
        count(&mut self.service_account, &reading.service_account, &mut flipped.service_account, by);
        let names = (&reading.service_account_names, &mut flipped.service_account_names);
        count(&mut self.service_account_names, names.0, names.1, by);
        count(&mut self.ports, &reading.ports, &mut flipped.ports, by);
        count(&mut self.networks, &reading.networks, &mut flipped.networks, by);
    }

    /// A pod without an address.
    pub(crate) fn pod(&self, world: &World, workload: &Workload) -> Identity {
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
                .filter(|port| self.ports.contains_key(&port.name))
                .map(|port| IdentityPort { name: port.name.clone(), protocol: port.protocol, port: port.port })
                .collect(),
        }
    }
}

/// Prefixes, to be asked which of them contain an address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefixes {
    nets: BTreeSet<IpNet>,
    /// How many there are of a family and length.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Prefixes {
    /// Adds a prefix, whose host bits are zero, if it is not there, and takes it out if it is.
    pub(crate) fn flip(&mut self, net: IpNet) {
        let length = self.lengths.entry((net.addr().is_ipv4(), net.prefix_len())).or_default();
        if self.nets.insert(net) {
            *length += 1;
            return;
        }
        self.nets.remove(&net);
        *length -= 1;
        if *length == 0 {
            self.lengths.remove(&(net.addr().is_ipv4(), net.prefix_len()));
        }
    }

    /// Whether this is one of them.
    pub(crate) fn has(&self, net: &IpNet) -> bool {
        self.nets.contains(net)
    }

    /// Those within a network, itself included.
    pub(crate) fn within(&self, net: IpNet) -> impl Iterator<Item = &IpNet> {
        let last = IpNet::new(net.broadcast(), net.max_prefix_len()).expect("the longest length");
        self.nets.range(net..=last)
    }

    /// Those that contain the network `address/bits` whole.
    pub(crate) fn containing(&self, address: IpAddr, bits: u8) -> BTreeSet<IpNet> {
        self.lengths
            .keys()
            .filter(|(v4, length)| *v4 == address.is_ipv4() && *length <= bits)
            .filter_map(|(_, length)| {
                let net = IpNet::new(address, *length).expect("a length of this family").trunc();
                self.nets.contains(&net).then_some(net)
            })
            .collect()
    }
}

/// Counts on or back; keys whose presence flips are noted, those that flip back are not.
fn count<K: Ord + Clone>(counts: &mut Counted<K>, keys: &BTreeSet<K>, flipped: &mut BTreeSet<K>, by: isize) {
    for key in keys {
        let held = counts.get(key).copied().unwrap_or_default();
        let now = held.checked_add_signed(by).unwrap_or_default();
        if now == 0 {
            counts.remove(key);
        } else {
            counts.insert(key.clone(), now);
        }
        if (held == 0) != (now == 0) && !flipped.remove(key) {
            flipped.insert(key.clone());
        }
    }
}

fn only<C>(labels: &Labels, keys: &BTreeMap<String, C>) -> Labels {
    if labels.len() < keys.len() {
        labels.iter().filter(|(key, _)| keys.contains_key(*key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    } else {
        keys.keys().filter_map(|key| labels.get_key_value(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

/// Adds the keys that a selector reads.
pub(crate) fn keys(selector: &Selector, into: &mut BTreeSet<String>) {
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
        // A list may name a cluster's worth of addresses; an address lies in few networks that are named.
        let inside = |nets: &BTreeSet<IpNet>| self.networks.iter().any(|net| nets.contains(net));
        peer.workload.as_ref().is_none_or(|selector| self.is_selected(selector))
            && !peer.not_workloads.iter().any(|selector| self.is_selected(selector))
            && peer.nets.as_ref().is_none_or(inside)
            && !inside(&peer.not_nets)
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
