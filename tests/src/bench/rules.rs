//! The rule sets that reeve is compared with, as engines write them: `established` is accepted first; a chain for each
//! pod and direction, which jumps to a chain for each policy and returns as soon as one has set a mark; a set of
//! addresses for each policy.

mod iptables;
mod nftables;

use std::net::Ipv4Addr;

use super::policies::Policies;
use crate::lab::Node;

/// Set on a packet that a policy lets through, taken off before each direction.
const MARK: &str = "0x10000";

/// Who enforces the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// Sets and verdict maps of nftables.
    Nftables,
    /// iptables with sets of ipset.
    Iptables,
}

/// What rules are made of.
pub struct Rules<'a> {
    /// Pods of this node, all of which every policy selects.
    pub pods: &'a [Ipv4Addr],
    /// Whom each policy lets in and out.
    pub peers: &'a [Vec<Ipv4Addr>],
}

/// Loads the rules of policies into a node whose pods have these addresses; policies are about `measured` alike.
pub fn load(
    rival: Rival,
    node: &Node,
    policies: Policies,
    pods: &[Ipv4Addr],
    measured: &[Ipv4Addr],
) -> anyhow::Result<()> {
    let peers = policies.peers(measured);
    let rules = Rules { pods, peers: &peers };
    match rival {
        Rival::Nftables => nftables::load(node, &rules),
        Rival::Iptables => iptables::load(node, &rules),
    }
}
