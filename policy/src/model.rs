//! Policy in our own words: every API is lowered into this ordered form, and only this form is evaluated.
//!
//! Absent, empty and everything have three names: a selector that selects everything is [`Selector::Everything`], one
//! that could not be read is [`Selector::Nothing`], and peers that are not restricted are [`Peers::Anyone`].

mod network_set;
mod peer;
mod service;

pub use network_set::{NetworkSet, NetworkSets, Reading, SetName, SetScope, SetSelector};
pub use peer::{
    NamespaceMatch, Peer, Peers, PortMatch, Selector, ServiceAccountMatch, Traffic, TrafficMatch, WorkloadSelector,
};
pub use service::{
    Affinity, Backend, BackendScope, Endpoint, EndpointPort, EndpointSlice, EndpointSlices, Service, ServiceKind,
    ServiceName, ServicePort, TargetPod, TargetPort,
};

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Let through; ends the evaluation.
    Allow,
    /// Drop; ends the evaluation.
    Deny,
    /// Leave this tier, go on with the next.
    Pass,
    /// Mark the path and go on with the next rule.
    Log,
    /// A deny or pass that could not be read: denies, and the decider is the default `unreadablePolicy`.
    DenyUnreadable,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Its index in the object's list for that direction. Where a rule was resolved to several, they share it.
    pub index: u32,
    /// What it does.
    pub action: Action,
    /// Its name, where the API has one.
    pub name: Option<String>,
    /// Only this family; `None`: both.
    pub family: Option<Family>,
    /// The other side.
    pub peer: Peers,
    /// A further condition on the subject itself (Calico's `destination` of an ingress rule); mostly `Anyone`.
    pub own: Peers,
    /// Protocols and ports.
    pub traffic: Traffic,
}

/// What a policy says in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rules {
    /// It does not apply in this direction.
    NotApplied,
    /// It applies, with these rules (an empty list is a rule list nonetheless).
    List(Vec<Rule>),
    /// It applies and denies everything, as it could not be honoured (`unreadablePolicy` or `refusedPolicy`).
    Closed(DefaultDecider),
}

/// Kinds of policy. The order breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyKind {
    /// `projectcalico.org/v3` GlobalNetworkPolicy.
    GlobalNetworkPolicy,
    /// `projectcalico.org/v3` NetworkPolicy.
    #[serde(rename = "CalicoNetworkPolicy")]
    CalicoNetworkPolicy,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// `projectcalico.org/v3` StagedGlobalNetworkPolicy.
    StagedGlobalNetworkPolicy,
    /// `projectcalico.org/v3` StagedNetworkPolicy.
    StagedNetworkPolicy,
    /// `projectcalico.org/v3` StagedKubernetesNetworkPolicy.
    StagedKubernetesNetworkPolicy,
}

impl PolicyKind {
    /// The kind that a staged one is a preview of; others are themselves.
    #[must_use]
    pub const fn enforced(self) -> Self {
        match self {
            Self::StagedGlobalNetworkPolicy => Self::GlobalNetworkPolicy,
            Self::StagedNetworkPolicy => Self::CalicoNetworkPolicy,
            Self::StagedKubernetesNetworkPolicy => Self::NetworkPolicy,
            Self::GlobalNetworkPolicy
            | Self::CalicoNetworkPolicy
            | Self::NetworkPolicy
            | Self::ClusterNetworkPolicy => self,
        }
    }
}

/// Names a policy object for people, at one generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// Kind.
    pub kind: PolicyKind,
    /// Namespace; none for cluster-wide kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// `metadata.generation`, where given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
}

/// One policy, ready to take its place in its tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who it is.
    pub reference: Arc<PolicyRef>,
    /// Name of its tier.
    pub tier: String,
    /// Order in its tier; `None`: last.
    pub order: Option<Order>,
    /// The workloads that it selects.
    pub subject: WorkloadSelector,
    /// Towards the subject.
    pub ingress: Rules,
    /// From the subject.
    pub egress: Rules,
    /// The policy as it was written, where this one has network sets, nodes and services resolved to addresses. The
    /// oracle reads that one, the compiler this one.
    pub written: Option<Arc<Policy>>,
}

impl Policy {
    /// Its rules in a direction.
    pub fn rules(&self, direction: Direction) -> &Rules {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// What a staged policy would do to the enforced ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StagedAction {
    /// Take the place of the enforced policy of the same name, or stand beside the others if there is none.
    Set,
    /// Remove the enforced policy of the same name.
    Delete,
}

/// A policy that is looked at and not enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedPolicy {
    /// What it would do.
    pub action: StagedAction,
    /// The policy. Of one that removes, only the name matters.
    pub policy: Arc<Policy>,
}

/// A finite order number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order(pub f64);

impl Order {
    /// Before all others: of a policy whose order cannot be read, so that nothing passes by it which it may deny.
    pub const FIRST: Self = Self(f64::NEG_INFINITY);
}

impl PartialEq for Order {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Order {}
impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Order {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What a tier does with a subject that its policies select but none of their rules matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TierDefault {
    /// Deny: the policies isolate.
    Deny,
    /// Go on with the next tier.
    Pass,
}

/// A tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Name.
    pub name: String,
    /// Order; `None`: last.
    pub order: Option<Order>,
    /// Default.
    pub default: TierDefault,
}

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// Name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
}

/// At which of a node's addresses something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeAddress {
    /// At each.
    Every,
    /// At this one.
    One(IpAddr),
}

/// A port of a node that leads to a pod there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// Where it is.
    pub at: NodeAddress,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Port.
    pub port: u16,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels, which are kept once for all pods that have the same.
    pub labels: Arc<Labels>,
    /// Service account name.
    pub service_account: String,
    /// Its node, empty while unscheduled.
    pub node: String,
    /// Its own addresses: none for hostNetwork pods and for those that have ended.
    pub addresses: Vec<IpAddr>,
    /// Named ports of its containers (init containers that keep running included).
    pub named_ports: BTreeSet<NamedPort>,
    /// Ports of its node that lead to it; none for hostNetwork pods, whose ports are the node's own, and for those that
    /// have ended.
    pub host_ports: BTreeSet<HostPort>,
    /// Uses the node's network namespace.
    pub host_network: bool,
    /// Has a deletion timestamp.
    pub terminating: bool,
    /// Whether it has ended (phase Succeeded or Failed).
    pub ended: bool,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Its addresses in `status.addresses`, those that could be read.
    pub addresses: Vec<IpAddr>,
    /// Whether those are all. If not, a rule that does more than allow nodes like it denies everyone.
    pub reading: Reading,
    /// Its addresses in tunnels: its own too, and no rule on nodes means them.
    pub tunnels: Vec<IpAddr>,
}

impl Node {
    /// Every address that is known as its own.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().chain(&self.tunnels).copied()
    }
}

/// Direction as the subject sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Towards the subject.
    Ingress,
    /// From the subject.
    Egress,
}

/// Let through or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Let through.
    Allow,
    /// Dropped.
    Deny,
}

/// A decider that is no policy rule. The names are those of records; `reeve_abi::decision::FIXED` has those of the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "those of the datapath are explained at the decision of the same name in reeve-abi")]
pub enum DefaultDecider {
    NoPolicySelects,
    TierDefault,
    UnreadablePolicy,
    RefusedPolicy,
    ContestedAddress,
    OwnNode,
    Reply,
    RelatedIcmp,
    NeighbourDiscovery,
    EstablishedBefore,
    MalformedPacket,
    SpoofedSource,
    NotReady,
    UnknownFragment,
    NotIp,
    ForgedNeighbour,
    InconsistentState,
    AddressesIncomplete,
    FlowTableFull,
    #[serde(rename = "self")]
    ToItself,
    MarkLost,
}

/// The rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleRef {
    /// Its policy.
    #[serde(flatten)]
    pub policy: Arc<PolicyRef>,
    /// Its tier.
    pub tier: String,
    /// Direction.
    pub direction: Direction,
    /// Index in the object's list.
    pub rule: u32,
    /// Name, where given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<String>,
}

/// Who gave the verdict. In records: a key `decider` or a key `default`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Decider {
    /// A rule.
    #[serde(rename = "decider")]
    Rule(RuleRef),
    /// A named default.
    Default(DefaultDecider),
}

/// What happened in a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// A rule allowed.
    Allowed,
    /// A rule denied.
    Denied,
    /// A rule passed to the next tier.
    Passed,
    /// No rule matched and the tier denies.
    DefaultDenied,
    /// No rule matched and the tier passes.
    DefaultPassed,
    /// A log rule matched (the evaluation went on).
    Logged,
}

/// One step of the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Tier.
    pub tier: String,
    /// What happened.
    pub outcome: Outcome,
    /// The policy whose rule did it; none for defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<PolicyRef>>,
    /// The rule's index; none for defaults and closed policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
}

/// Verdict, who decided and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Verdict.
    pub verdict: Verdict,
    /// Decider.
    #[serde(flatten)]
    pub decider: Decider,
    /// Tiers crossed, in order. A tier none of whose policies selects the subject is not crossed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<Step>,
    /// For a tier's default deny: all policies of that tier that select the subject in this direction, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolating: Vec<Arc<PolicyRef>>,
    /// The policies after the decider's, in the deciding tier and in order, that would have decided the same way next:
    /// each policy's first match that is not `Log` counts, policies without a match are passed over, and the first one
    /// that would decide otherwise (or pass) ends the list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Arc<PolicyRef>>,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// Worth knowing; what is written is honoured.
    Note,
    /// Something is not honoured; it was made narrower.
    Warning,
}

/// Something in the input that we cannot honour.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// How bad.
    pub level: Level,
    /// `Kind/namespace/name`, `Kind/name`, or a file's path.
    pub object: String,
    /// Path of the field, such as `spec.ingress[0].ports[1].port`; empty for the whole object; `map NAME` if a map of the
    /// node has no room for it.
    pub field: String,
    /// The value as written (shortened if long).
    pub value: String,
    /// What is wrong with it.
    pub what: String,
    /// What it means for enforcement.
    pub effect: String,
}

impl Problem {
    /// Whether it is about the room that this node has, so that other nodes may have none of it.
    pub fn is_of_node(&self) -> bool {
        self.field.starts_with("map ")
    }
}

/// All facts and policies that hold at one revision, in evaluation order. What the oracle and the compiler read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// This node's name.
    pub node: String,
    /// Pods by UID.
    pub workloads: BTreeMap<String, Arc<Workload>>,
    /// Labels of namespaces by name.
    pub namespaces: BTreeMap<String, Labels>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Labels of service accounts by (namespace, name).
    pub service_accounts: BTreeMap<(String, String), Labels>,
    /// Further addresses of this node (its interfaces').
    pub local_addresses: BTreeSet<IpAddr>,
    /// Services by name.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// Backends of services; see [`World::backends`].
    pub endpoint_slices: EndpointSlices,
    /// Named lists of networks.
    pub network_sets: NetworkSets,
    /// What is enforced.
    pub tiers: Tiers,
    /// What would be enforced if every staged policy were applied; `None`: nothing is staged.
    pub staged: Option<Tiers>,
}

/// Tiers in evaluation order, each with its policies in evaluation order.
pub type Tiers = Vec<(Tier, Vec<Arc<Policy>>)>;
