//! Who owns which address: the claims of pods and nodes, and how they are settled.

use super::pods::Pods;
use crate::holders::Holders;
use crate::model::{Node, Workload};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Claims by address.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// UIDs.
    pods: Holders<IpAddr, String>,
    /// Names of nodes.
    nodes: Holders<IpAddr, String>,
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
    pub(super) fn replace_pod(&mut self, before: Option<&Workload>, after: Option<&Workload>) -> BTreeSet<IpAddr> {
        let Some(uid) = before.or(after).map(|pod| &pod.uid) else { return BTreeSet::new() };
        self.pods.replace(uid, claimed(before), claimed(after))
    }

    /// The same for a node.
    pub(super) fn replace_node(&mut self, before: Option<&Node>, after: Option<&Node>) -> BTreeSet<IpAddr> {
        let Some(name) = before.or(after).map(|node| &node.name) else { return BTreeSet::new() };
        let own = |node: Option<&Node>| -> Vec<IpAddr> { node.into_iter().flat_map(Node::own_addresses).collect() };
        self.nodes.replace(name, own(before), own(after))
    }

    /// The same for this node's interfaces.
    pub(super) fn replace_local(&mut self, after: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let changed = self.local.symmetric_difference(after).copied().collect();
        self.local.clone_from(after);
        changed
    }

    /// Claimed addresses from the first to the last.
    pub(super) fn between(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> + '_ {
        let (pods, nodes) = (self.pods.between(&first, &last), self.nodes.between(&first, &last));
        pods.chain(nodes).chain(self.local.range(first..=last)).copied()
    }

    /// UIDs of the pods that claim an address.
    pub(super) fn claimants(&self, address: IpAddr) -> impl Iterator<Item = &String> {
        self.pods.of(&address)
    }

    /// Settles the claims to an address. A pod that is ending gives way to one that is not.
    pub(super) fn owner(&self, address: IpAddr, pods: &Pods, node: &str) -> Owner {
        let nodes = || self.nodes.of(&address);
        let local = self.local.contains(&address);
        let claimants = self.claimants(address).filter_map(|uid| pods.get(uid));
        let (ending, staying): (Vec<_>, Vec<_>) = claimants.partition(|pod| pod.workload.terminating);
        let claimants = if staying.is_empty() { ending } else { staying };
        match claimants.as_slice() {
            [] if local || nodes().any(|name| name == node) => Owner::Host,
            [] if nodes().len() > 0 => Owner::Node,
            [] => Owner::Nobody,
            [pod] if nodes().len() == 0 && !local => Owner::Pod(pod.workload.uid.clone()),
            _ => Owner::Contested,
        }
    }
}

/// The addresses that a pod claims.
fn claimed(workload: Option<&Workload>) -> impl Iterator<Item = IpAddr> + '_ {
    workload.filter(|workload| claims(workload)).into_iter().flat_map(|workload| workload.addresses.iter().copied())
}
