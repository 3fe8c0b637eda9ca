//! The flow record: the only form in which reeve tells what happened to traffic.
//!
//! Form: JSON with camelCase keys, times in RFC 3339 with nanoseconds, one record per enforcement point (a pod-to-pod
//! flow on one node gives two), absent rather than null. Both ends carry their labels as the kernel used them.

use crate::time::Timestamp;
use ipnet::IpNet;
use reeve_policy::model::{Decider, Decision, DefaultDecider, Direction, Labels, PolicyRef, RuleRef, Step, Verdict};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// The version of this form, in [`FlowRecord::schema`].
pub const SCHEMA: u32 = 1;

/// What happened to one flow, at one enforcement point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it was judged, or ended; for a window: its end.
    pub time: Timestamp,
    /// First packet.
    pub first: Timestamp,
    /// Last packet.
    pub last: Timestamp,
    /// The node that enforced.
    pub node: String,
    /// What this record tells of.
    pub event: EventKind,
    /// As the pod that was judged for sees it.
    pub direction: Direction,
    /// What became of the packets.
    pub verdict: RecordVerdict,
    /// Who decided, and how.
    pub decision: RecordedDecision,
    /// The decision that held before, where another one has taken its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<RecordedDecision>,
    /// What would be decided if every staged policy were applied, where other policies would then be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<RecordedDecision>,
    /// Revision of the policies that were in force at this endpoint.
    pub policy_revision: u64,
    /// The side that began.
    pub source: Side,
    /// The other side.
    pub destination: Side,
    /// What the source asked for, where translation led to another destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceAddress>,
    /// IP protocol.
    pub protocol: Protocol,
    /// ICMP and ICMPv6 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Packets. A denied flow's are those that this record stands for.
    pub packets: BothWays,
    /// Bytes, from the IP header on.
    pub bytes: BothWays,
    /// Windows only: connections judged, or tuples denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// What a reader must know to count rightly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<Flag>,
    /// Why this record was made.
    pub reason: Reason,
}

/// An address and port that stand for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServiceAddress {
    /// Address.
    pub address: IpAddr,
    /// Port, for protocols that have ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// A flow was judged and let through.
    Opened,
    /// Packets were denied.
    Denied,
    /// A live flow was judged again, with another decision.
    Rejudged,
    /// A flow has ended.
    Closed,
    /// All flows alike over a span of time.
    Window,
}

impl EventKind {
    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Denied => "denied",
            Self::Rejudged => "rejudged",
            Self::Closed => "closed",
            Self::Window => "window",
        }
    }
}

/// What became of the packets. It differs from the decision's verdict for the last two only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordVerdict {
    /// Let through.
    Allow,
    /// Dropped.
    Deny,
    /// Let through, though the decision is a deny: it is only watched.
    AuditDeny,
    /// Let through for a while, though the decision is a deny: the flow was established.
    EstablishedGrace,
}

impl RecordVerdict {
    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::AuditDeny => "audit_deny",
            Self::EstablishedGrace => "established_grace",
        }
    }
}

impl From<Verdict> for RecordVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

/// Why a record was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The flow had not been judged before.
    NewFlow,
    /// The tuple was denied before; this record counts the packets since.
    RepeatedDeny,
    /// What decides over this live flow has changed.
    DecisionChanged,
    /// What decides over this live flow has changed, and cuts it.
    FlowCut,
    /// The flow expired, or a new one took its ports.
    FlowEnded,
    /// The span of time is over.
    WindowEnded,
}

/// What a reader must know to count rightly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Flag {
    /// The flow was picked up in the middle: TCP without its SYN.
    PickedUp,
    /// The source answers what no program has seen: something may lead packets around the programs at its device.
    BeganUnseen,
    /// Besides the packet that this record is of, it stands for so many further denied packets.
    RateLimited(u64),
    /// Told after a time in which no agent was there to tell; that every packet of it was counted is proven.
    Backfilled,
    /// Told after a time in which nothing proves that every packet was counted: there were at least so many.
    Unproven,
    /// An agent that was ended while it told this may have told it before.
    MayRepeat,
    /// Stands for various peers and ports: the kernel had no room to count them apart.
    Overflowed,
    /// The decision's path is not whole.
    Truncated,
    /// The peer's identity was older than its labels when it was judged.
    StaleIdentity,
    /// The source is another node, which may have put its own address there for somebody else.
    MayBeMasqueraded,
}

/// A decision as a record has it: exactly one of `decider`, `default` and `unknown`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedDecision {
    /// As the policies gave it.
    Known(Arc<Decision>),
    /// Its number has no entry in the dictionary; the verdict is the kernel's.
    Unknown {
        /// The kernel's verdict.
        verdict: Verdict,
        /// The number, 16 hexadecimal digits.
        unknown: String,
    },
}

impl RecordedDecision {
    /// The decision's verdict.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Known(decision) => decision.verdict,
            Self::Unknown { verdict, .. } => *verdict,
        }
    }

    /// The decision, if the dictionary had it.
    pub fn known(&self) -> Option<&Decision> {
        match self {
            Self::Known(decision) => Some(decision),
            Self::Unknown { .. } => None,
        }
    }
}

impl From<Decision> for RecordedDecision {
    fn from(decision: Decision) -> Self {
        Self::Known(Arc::new(decision))
    }
}

/// How an unknown decision is written.
#[derive(Serialize)]
struct UnknownForm<'a> {
    verdict: Verdict,
    unknown: &'a str,
}

impl Serialize for RecordedDecision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(decision) => decision.serialize(serializer),
            Self::Unknown { verdict, unknown } => UnknownForm { verdict: *verdict, unknown }.serialize(serializer),
        }
    }
}

/// Every key that a decision can have, so that a reader can tell none from several deciders.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DecisionForm {
    verdict: Verdict,
    decider: Option<RuleRef>,
    default: Option<DefaultDecider>,
    unknown: Option<String>,
    #[serde(default)]
    path: Vec<Step>,
    #[serde(default)]
    isolating: Vec<Arc<PolicyRef>>,
    #[serde(default)]
    also: Vec<Arc<PolicyRef>>,
}

impl<'de> Deserialize<'de> for RecordedDecision {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let DecisionForm { verdict, decider, default, unknown, path, isolating, also } =
            DecisionForm::deserialize(deserializer)?;
        let decider = match (decider, default, unknown) {
            (Some(rule), None, None) => Decider::Rule(rule),
            (None, Some(default), None) => Decider::Default(default),
            (None, None, Some(unknown)) => return Ok(Self::Unknown { verdict, unknown }),
            _ => {
                return Err(serde::de::Error::custom(
                    "a decision has exactly one of the keys decider, default and unknown",
                ));
            }
        };
        Ok(Decision { verdict, decider, path, isolating, also }.into())
    }
}

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// What the address belongs to.
    pub owner: Owner,
    /// The workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadRef>,
    /// Namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Pod name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Pod UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The labels that policies read, as they were when the kernel judged.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Prefixes named by policies that contain the address, as they were when the kernel judged.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub networks: BTreeSet<IpNet>,
    /// Number of the identity, 16 hexadecimal digits.
    pub identity: String,
    /// Address. Windows have none: they stand for many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Port, for protocols that have ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Numbers of the kernel's that the dictionary has no entry for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<UnknownNumber>,
}

/// What an address belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// A pod.
    Pod,
    /// The node that enforced.
    Host,
    /// Another node.
    Node,
    /// Several pods claim it, so it is nobody's.
    Contested,
    /// The node's own, which stands for somebody else whom nobody noted.
    Masqueraded,
    /// No pod and no node, within a prefix that some policy names.
    Network,
    /// No pod and no node.
    World,
    /// Not told apart: the kernel had no room to count each peer.
    Various,
    /// The dictionary does not know.
    #[default]
    Unknown,
}

/// A number that the dictionary has no entry for, 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnknownNumber {
    /// Of a workload: names are missing.
    Workload(String),
    /// Of an identity: labels are missing.
    Identity(String),
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadRef {
    /// Kind.
    pub kind: WorkloadKind,
    /// Name.
    pub name: String,
}

/// Kinds of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkloadKind {
    /// A pod by itself.
    Pod,
}

/// A pair of counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BothWays {
    /// From source to destination.
    pub forward: u64,
    /// From destination to source.
    pub back: u64,
}

impl From<[u64; 2]> for BothWays {
    fn from([forward, back]: [u64; 2]) -> Self {
        Self { forward, back }
    }
}

/// What an ICMP or ICMPv6 packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Icmp {
    /// Type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Code.
    pub code: u8,
}

pub use crate::protocol::Protocol;
