//! Which pods and nodes claim which address, to name the claimants of those that several claim.

use crate::model::{Level, Node, Problem, Workload, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Claims by address; only addresses with several claimants are looked at when problems are asked for.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pods: BTreeMap<IpAddr, BTreeSet<String>>,
    nodes: BTreeMap<IpAddr, BTreeSet<String>>,
    shared: BTreeSet<IpAddr>,
}

impl Claims {
    pub(super) fn replace_pod(&mut self, before: Option<&Workload>, after: Option<&Workload>) {
        let claim = |workload: Option<&Workload>| {
            let claims = workload.filter(|workload| !workload.ended && !workload.host_network);
            claims.map(|workload| (workload.uid.clone(), workload.addresses.clone()))
        };
        replace(&mut self.pods, claim(before), claim(after)).into_iter().for_each(|address| self.review(address));
    }

    pub(super) fn replace_node(&mut self, before: Option<&Node>, after: Option<&Node>) {
        let claim = |node: Option<&Node>| node.map(|node| (node.name.clone(), node.own_addresses().collect()));
        replace(&mut self.nodes, claim(before), claim(after)).into_iter().for_each(|address| self.review(address));
    }

    fn review(&mut self, address: IpAddr) {
        let pods = self.pods.get(&address).map_or(0, BTreeSet::len);
        if pods > 1 || pods == 1 && self.nodes.contains_key(&address) {
            self.shared.insert(address);
        } else {
            self.shared.remove(&address);
        }
    }

    /// One problem for each pod that claims an address which others claim with the same right.
    pub(super) fn problems(&self, world: &World) -> Vec<Problem> {
        let mut problems = Vec::new();
        let local = world.local_addresses.iter().filter(|address| self.pods.contains_key(address));
        for address in self.shared.iter().chain(local).collect::<BTreeSet<_>>() {
            let pods = self.pods.get(address).into_iter().flatten().filter_map(|uid| world.workloads.get(uid));
            let (ending, staying): (Vec<_>, Vec<_>) = pods.partition(|workload| workload.terminating);
            let pods = if staying.is_empty() { ending } else { staying };
            let mut names: Vec<String> = pods.iter().map(|pod| format!("Pod/{}/{}", pod.namespace, pod.name)).collect();
            let claimants = names.len();
            names.extend(self.nodes.get(address).into_iter().flatten().map(|node| format!("Node/{node}")));
            if names.len() == claimants && world.local_addresses.contains(address) {
                names.push("this node's interfaces".to_owned());
            }
            if names.len() < 2 {
                continue;
            }
            problems.extend(names.iter().take(claimants).map(|name| {
                Problem {
                    level: Level::Warning,
                    object: name.clone(),
                    field: "status.podIPs".to_owned(),
                    value: address.to_string(),
                    what: format!("several claim this address: {}", names.join(", ")),
                    effect: "the address is nobody's: as a peer it is denied for every workload that a policy selects"
                        .to_owned(),
                }
            }));
        }
        problems
    }
}

type Claim = Option<(String, Vec<IpAddr>)>;

/// Moves claims, and returns the addresses that they were about.
fn replace(claims: &mut BTreeMap<IpAddr, BTreeSet<String>>, before: Claim, after: Claim) -> BTreeSet<IpAddr> {
    let mut about = BTreeSet::new();
    if let Some((who, addresses)) = before {
        for address in addresses {
            about.insert(address);
            if let Some(all) = claims.get_mut(&address) {
                all.remove(&who);
                if all.is_empty() {
                    claims.remove(&address);
                }
            }
        }
    }
    if let Some((who, addresses)) = after {
        for address in addresses {
            about.insert(address);
            claims.entry(address).or_default().insert(who.clone());
        }
    }
    about
}
