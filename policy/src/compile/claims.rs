//! Who owns which address: the claims of pods and nodes, and how they are settled.

use super::pods::Pods;
use crate::model::{Node, Workload};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Claims by address.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// UIDs.
    pods: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Names of nodes.
    nodes: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Of this node's interfaces.
    local: BTreeSet<IpAddr>,
}

/// Whom an address belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Nobody,
    /// By UID.
    Pod(String),
    /// Another node.
    Node,
    /// This node.
    Host,
    /// Several claim it with the same right. Who they are is told by the store.
    Contested,
}

/// Whether a pod has an address of its own.
pub(super) fn claims(workload: &Workload) -> bool {
    !workload.ended && !workload.host_network
}

impl Claims {
    /// Takes a pod's addresses in place of those it had, and says which may have changed hands.
    pub(super) fn replace_pod(&mut self, before: Option<&Workload>, after: Option<&Workload>) -> Vec<IpAddr> {
        fn of(workload: Option<&Workload>) -> Option<(&str, &[IpAddr])> {
            workload.filter(|w| claims(w)).map(|w| (w.uid.as_str(), w.addresses.as_slice()))
        }
        replace(&mut self.pods, of(before), of(after))
    }

    /// The same for a node.
    pub(super) fn replace_node(&mut self, before: Option<&Node>, after: Option<&Node>) -> Vec<IpAddr> {
        let own = |node: Option<&Node>| -> Vec<IpAddr> { node.into_iter().flat_map(Node::own_addresses).collect() };
        let (left, taken) = (own(before), own(after));
        let before = before.map(|node| (node.name.as_str(), left.as_slice()));
        replace(&mut self.nodes, before, after.map(|node| (node.name.as_str(), taken.as_slice())))
    }

    /// The same for this node's interfaces.
    pub(super) fn replace_local(&mut self, after: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let changed = self.local.symmetric_difference(after).copied().collect();
        self.local.clone_from(after);
        changed
    }

    /// Claimed addresses from the first to the last.
    pub(super) fn between(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> + '_ {
        let pods = self.pods.range(first..=last).map(|(address, _)| *address);
        let nodes = self.nodes.range(first..=last).map(|(address, _)| *address);
        pods.chain(nodes).chain(self.local.range(first..=last).copied())
    }

    /// UIDs of the pods that claim an address.
    pub(super) fn claimants(&self, address: IpAddr) -> impl Iterator<Item = &String> {
        self.pods.get(&address).into_iter().flatten()
    }

    /// Settles the claims to an address. A pod that is ending gives way to one that is not.
    pub(super) fn owner(&self, address: IpAddr, pods: &Pods, node: &str) -> Owner {
        let nodes = self.nodes.get(&address);
        let local = self.local.contains(&address);
        let claimants = self.claimants(address).filter_map(|uid| pods.get(uid));
        let (ending, staying): (Vec<_>, Vec<_>) = claimants.partition(|pod| pod.workload.terminating);
        let claimants = if staying.is_empty() { ending } else { staying };
        match claimants.as_slice() {
            [] if local || nodes.is_some_and(|nodes| nodes.contains(node)) => Owner::Host,
            [] if nodes.is_some() => Owner::Node,
            [] => Owner::Nobody,
            [pod] if nodes.is_none() && !local => Owner::Pod(pod.workload.uid.clone()),
            _ => Owner::Contested,
        }
    }
}

fn replace(
    claims: &mut BTreeMap<IpAddr, BTreeSet<String>>,
    before: Option<(&str, &[IpAddr])>,
    after: Option<(&str, &[IpAddr])>,
) -> Vec<IpAddr> {
    let mut about = Vec::new();
    if let Some((who, addresses)) = before {
        for address in addresses {
            about.push(*address);
            if let Some(all) = claims.get_mut(address) {
                all.remove(who);
                if all.is_empty() {
                    claims.remove(address);
                }
            }
        }
    }
    if let Some((who, addresses)) = after {
        for address in addresses {
            about.push(*address);
            claims.entry(*address).or_default().insert(who.to_owned());
        }
    }
    about
}
