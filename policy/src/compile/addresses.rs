//! Who owns which address.

use crate::identity::{Prefixes, Reads};
use crate::image::mapped;
use crate::model::{Workload, World};
use crate::provenance::{Identity, IdentityKind, workload_id};
use reeve_abi::address::{Address, OWNER_CONTESTED, OWNER_HOST, OWNER_LOCAL_POD, OWNER_NODE, OWNER_REMOTE_POD};
use reeve_abi::ids::WorkloadId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// An address with its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) identity: Identity,
    pub(crate) workload: WorkloadId,
    pub(crate) owner: u32,
}

/// All owned addresses, and the addresses that each pod owns (by UID). Whom a contested one is claimed by is told by the store.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    pub(crate) addresses: BTreeMap<Address, Owned>,
    pub(crate) own: BTreeMap<String, Vec<IpAddr>>,
}

/// Whether a pod has an address of its own.
pub(crate) fn claims(workload: &Workload) -> bool {
    !workload.ended && !workload.host_network
}

/// Settles the claims of pods and nodes.
pub(crate) fn owners(world: &World, reads: &Reads, prefixes: &Prefixes) -> Owners {
    let mut pods: BTreeMap<IpAddr, Vec<&Workload>> = BTreeMap::new();
    for workload in world.workloads.values().filter(|w| claims(w)) {
        for address in workload.addresses.iter().collect::<BTreeSet<_>>() {
            pods.entry(*address).or_default().push(workload);
        }
    }
    // Address -> whether it is this node's.
    let mut nodes: BTreeMap<IpAddr, bool> = BTreeMap::new();
    for node in world.nodes.values() {
        for address in &node.addresses {
            *nodes.entry(*address).or_default() |= node.name == world.node;
        }
    }
    nodes.extend(world.local_addresses.iter().map(|address| (*address, true)));

    let mut found = Owners::default();
    let bare: BTreeMap<&str, Identity> =
        pods.values().flatten().map(|w| (w.uid.as_str(), reads.pod(world, w))).collect();
    for (address, claimants) in &mut pods {
        if claimants.iter().any(|w| !w.terminating) {
            claimants.retain(|w| !w.terminating);
        }
        let is_node = nodes.remove(address).is_some();
        let value = if is_node || claimants.len() > 1 {
            let identity = Identity::bare(IdentityKind::Contested, BTreeSet::new());
            Owned { identity, workload: WorkloadId(0), owner: OWNER_CONTESTED }
        } else {
            let pod = claimants[0];
            found.own.entry(pod.uid.clone()).or_default().push(*address);
            let mut identity = bare[pod.uid.as_str()].clone();
            identity.networks = prefixes.containing(*address, bits(*address));
            let owner = if pod.node == world.node { OWNER_LOCAL_POD } else { OWNER_REMOTE_POD };
            Owned { identity, workload: workload_id(&pod.uid), owner }
        };
        found.addresses.insert(mapped(*address), value);
    }
    for (address, host) in nodes {
        let (kind, owner) = if host { (IdentityKind::Host, OWNER_HOST) } else { (IdentityKind::Node, OWNER_NODE) };
        let identity = Identity::bare(kind, prefixes.containing(address, bits(address)));
        found.addresses.insert(mapped(address), Owned { identity, workload: WorkloadId(0), owner });
    }
    found
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
