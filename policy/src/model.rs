//! Policy in our own words: every API is lowered into this ordered form, and only this form is evaluated.
//!
//! Absent, empty and everything have three names: a selector that selects everything is [`Selector::Everything`], one
//! that could not be read is [`Selector::Nothing`], and peers that are not restricted are [`Peers::Anyone`].

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

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

/// One kind of peer: all parts must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// The peer must be a workload that this selects; `None`: it need not be a workload.
    pub workload: Option<WorkloadSelector>,
    /// The peer must not be a workload that one of these selects (an address that is no workload's passes).
    pub not_workloads: Vec<WorkloadSelector>,
    /// The address must lie in one of these; `None`: anywhere. Empty: nowhere (all were unreadable).
    pub nets: Option<BTreeSet<IpNet>>,
    /// The address must lie in none of these.
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

/// One rule. Its number is its index in the policy's list for that direction, as in the object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
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
}

/// A finite order number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order(pub f64);
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

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Service account name.
    pub service_account: String,
    /// Its node, empty while unscheduled.
    pub node: String,
    /// Its own addresses: none for hostNetwork pods and for those that have ended.
    pub addresses: Vec<IpAddr>,
    /// Named ports of its containers (init containers that keep running included).
    pub named_ports: BTreeSet<NamedPort>,
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
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
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
    /// Path of the field, such as `spec.ingress[0].ports[1].port`; empty for the whole object.
    pub field: String,
    /// The value as written (shortened if long).
    pub value: String,
    /// What is wrong with it.
    pub what: String,
    /// What it means for enforcement.
    pub effect: String,
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
    /// Tiers in evaluation order, each with its policies in evaluation order.
    pub tiers: Vec<(Tier, Vec<Arc<Policy>>)>,
}
