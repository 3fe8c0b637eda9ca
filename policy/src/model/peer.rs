//! Whom and what a rule speaks of: selectors, peers and traffic.

use super::{ServiceName, SetSelector};
use ipnet::IpNet;
use std::collections::BTreeSet;

/// A condition on one set of labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// Matches every object.
    Everything,
    /// Matches no object.
    Nothing,
    /// The key is present.
    Has(String),
    /// The key is present with this value.
    Equals(String, String),
    /// The key is present with one of these values.
    In(String, BTreeSet<String>),
    /// The key is present and its value contains the text.
    Contains(String, String),
    /// The key is present and its value starts with the text.
    StartsWith(String, String),
    /// The key is present and its value ends with the text.
    EndsWith(String, String),
    /// The inner selector does not match.
    Not(Box<Selector>),
    /// All match.
    And(Vec<Selector>),
    /// At least one matches.
    Or(Vec<Selector>),
}

/// A condition on a workload's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamespaceMatch {
    /// Every namespace.
    Any,
    /// This one.
    Named(String),
    /// Those whose labels match. A namespace that is not known has no labels.
    Labels(Selector),
}

/// A condition on a workload's service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceAccountMatch {
    /// Every service account.
    Any,
    /// One of these names (in the workload's namespace), or any name if `None`; and its labels match.
    Selected {
        /// Allowed names.
        names: Option<BTreeSet<String>>,
        /// Condition on the service account's labels.
        labels: Selector,
    },
}

/// Which workloads: all parts must match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadSelector {
    /// Namespace.
    pub namespace: NamespaceMatch,
    /// Pod labels. For Calico they include `projectcalico.org/namespace` and the like, see `Workload::selector_label`.
    pub pod: Selector,
    /// Service account.
    pub service_account: ServiceAccountMatch,
}

/// One kind of peer: all parts must hold, where `workload`, `sets` and `nodes` are one part: the peer must be selected
/// by one of those that are given, and if none is, it may be anyone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// Workloads that this selects.
    pub workload: Option<WorkloadSelector>,
    /// Addresses within network sets that this selects. In a policy as it stands in its tier they are resolved.
    pub sets: Option<SetSelector>,
    /// Addresses of nodes whose labels match. In a policy as it stands in its tier they are resolved.
    pub nodes: Option<Selector>,
    /// The peer must not be a workload that one of these selects (an address that is no workload's passes).
    pub not_workloads: Vec<WorkloadSelector>,
    /// The address must lie in no network set that one of these selects. In a policy as it stands in its tier they are
    /// resolved.
    pub not_sets: Vec<SetSelector>,
    /// The address must lie in one of these, whose host bits are zero; `None`: anywhere. Empty: nowhere.
    pub nets: Option<BTreeSet<IpNet>>,
    /// The address must lie in none of these, whose host bits are zero.
    pub not_nets: BTreeSet<IpNet>,
}

/// Whom a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peers {
    /// Not restricted.
    Anyone,
    /// Nobody: what was written could not be read.
    Nobody,
    /// Any of these.
    OneOf(Vec<Peer>),
    /// The backends of this service; as destinations by the ports at which they serve only. In a policy as it stands in
    /// its tier they are resolved.
    BackendsOf(ServiceName),
}

/// A set of ports (destination side) or ICMP types.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// Every port; also protocols that have none.
    Any,
    /// First to last, inclusive.
    Range(u16, u16),
    /// The destination workload's container ports of that name and the protocol at hand. Matches no address that is not a workload's.
    Named(String),
    /// ICMP or ICMPv6 type, and code if given.
    Icmp(u8, Option<u8>),
}

/// Protocol with ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrafficMatch {
    /// IP protocol number; `None`: every protocol.
    pub protocol: Option<u8>,
    /// Ports.
    pub ports: PortMatch,
}

/// Which traffic: one of `any_of` (`None`: all; empty: nothing) and none of `none_of`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Traffic {
    /// What is meant.
    pub any_of: Option<Vec<TrafficMatch>>,
    /// What is taken out.
    pub none_of: Vec<TrafficMatch>,
}
