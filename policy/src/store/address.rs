//! Which pods and nodes claim which address, to name the claimants of those that several claim.

use crate::holders::Holders;
use crate::model::{Level, Node, Problem, Workload, World};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Claims by address; only addresses with several claimants are looked at when problems are asked for.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pods: Holders<IpAddr, String>,
    nodes: Holders<IpAddr, String>,
    /// Those that several pods claim, or a pod and a node.
    contested: BTreeSet<IpAddr>,
}

impl Claims {
    pub(super) fn replace_pod(&mut self, before: Option<&Workload>, after: Option<&Workload>) {
        let Some(uid) = before.or(after).map(|pod| &pod.uid) else { return };
        let claim = |workload: Option<&Workload>| -> Vec<IpAddr> {
            let claims = workload.filter(|workload| !workload.ended && !workload.host_network);
            claims.map(|workload| workload.addresses.clone()).unwrap_or_default()
        };
        self.pods.replace(uid, claim(before), claim(after)).into_iter().for_each(|address| self.review(address));
    }

    pub(super) fn replace_node(&mut self, before: Option<&Node>, after: Option<&Node>) {
        let Some(name) = before.or(after).map(|node| &node.name) else { return };
        let claim = |node: Option<&Node>| -> Vec<IpAddr> { node.into_iter().flat_map(Node::own_addresses).collect() };
        self.nodes.replace(name, claim(before), claim(after)).into_iter().for_each(|address| self.review(address));
    }

    fn review(&mut self, address: IpAddr) {
        let pods = self.pods.of(&address).len();
        if pods > 1 || pods == 1 && self.nodes.of(&address).len() > 0 {
            self.contested.insert(address);
        } else {
            self.contested.remove(&address);
        }
    }

    /// One problem for each pod that claims an address which others claim with the same right.
    pub(super) fn problems(&self, world: &World) -> Vec<Problem> {
        let mut problems = Vec::new();
        let local = world.local_addresses.iter().filter(|address| self.pods.of(address).len() > 0);
        for address in self.contested.iter().chain(local).collect::<BTreeSet<_>>() {
            let pods = self.pods.of(address).filter_map(|uid| world.workloads.get(uid));
            let (ending, staying): (Vec<_>, Vec<_>) = pods.partition(|workload| workload.terminating);
            let pods = if staying.is_empty() { ending } else { staying };
            let mut names: Vec<String> = pods.iter().map(|pod| format!("Pod/{}/{}", pod.namespace, pod.name)).collect();
            let claimants = names.len();
            names.extend(self.nodes.of(address).map(|node| format!("Node/{node}")));
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
