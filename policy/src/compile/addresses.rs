//! Who owns which address.

use crate::identity::{Prefixes, Reads};
use crate::image::mapped;
use crate::model::{Level, Problem, Workload, World};
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

/// All owned addresses, the pods that own each of theirs (by UID), and problems with contested ones.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    pub(crate) addresses: BTreeMap<Address, Owned>,
    pub(crate) own: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) problems: Vec<Problem>,
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
    let mut nodes: BTreeMap<IpAddr, (bool, String)> = BTreeMap::new();
    for node in world.nodes.values() {
        for address in &node.addresses {
            let host = node.name == world.node;
            let entry = nodes.entry(*address).or_insert_with(|| (host, node.name.clone()));
            entry.0 |= host;
        }
    }
    for address in &world.local_addresses {
        nodes.insert(*address, (true, world.node.clone()));
    }

    let mut found = Owners::default();
    let bare: BTreeMap<&str, Identity> =
        pods.values().flatten().map(|w| (w.uid.as_str(), reads.pod(world, w))).collect();
    for (address, claimants) in &mut pods {
        if claimants.iter().any(|w| !w.terminating) {
            claimants.retain(|w| !w.terminating);
        }
        let mut names: Vec<String> = claimants.iter().map(|w| format!("Pod/{}/{}", w.namespace, w.name)).collect();
        if let Some((_, node)) = nodes.remove(address) {
            names.push(format!("Node/{node}"));
        }
        let value = if names.len() > 1 {
            found.problems.push(contested(&names, *address));
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
    for (address, (host, _)) in nodes {
        let (kind, owner) = if host { (IdentityKind::Host, OWNER_HOST) } else { (IdentityKind::Node, OWNER_NODE) };
        let identity = Identity::bare(kind, prefixes.containing(address, bits(address)));
        found.addresses.insert(mapped(address), Owned { identity, workload: WorkloadId(0), owner });
    }
    found
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn contested(names: &[String], address: IpAddr) -> Problem {
    Problem {
        level: Level::Warning,
        object: names[0].clone(),
        field: "status.podIPs".to_owned(),
        value: address.to_string(),
        what: format!("also claimed by {}", names[1..].join(", ")),
        effect: "the address is nobody's: closed for every pod that a policy selects".to_owned(),
    }
}
