//! Decisions that the datapath makes by itself, as fixed numbers; policy decisions are hashed above them.

use crate::ids::{DecisionId, FIRST_HASHED};

/// Set in the number of a policy's denial that also holds between a pod and itself, where it reaches itself through a
/// Service.
pub const HOLDS_TO_ITSELF: u64 = 1 << 63;

/// Whether a denial holds between a pod and itself: what a policy denies only where its number says so, what the datapath
/// denies by itself always.
#[must_use]
pub const fn holds_to_itself(id: DecisionId) -> bool {
    id.0 < FIRST_HASHED || id.0 & HOLDS_TO_ITSELF != 0
}

macro_rules! fixed {
    ($($(#[$doc:meta])* $name:ident = $value:expr, $label:expr;)+) => {
        $($(#[$doc])* pub const $name: DecisionId = DecisionId($value);)+
        /// Every fixed decision with its name in records.
        pub const FIXED: &[(DecisionId, &str)] = &[$(($name, $label)),+];
    };
}

fixed! {
    /// Allow: no policy selects the endpoint in this direction.
    NO_POLICY_SELECTS = 1, "noPolicySelects";
    /// Allow: made by a process of the pod's own node.
    OWN_NODE = 2, "ownNode";
    /// Allow: reply on a flow that was allowed.
    REPLY = 3, "reply";
    /// Allow: ICMP error about a flow that was allowed.
    RELATED_ICMP = 4, "relatedIcmp";
    /// Allow: ARP or neighbour discovery for the pod's own addresses.
    NEIGHBOUR_DISCOVERY = 5, "neighbourDiscovery";
    /// Allow: the pod reaches itself, by its own address or, where no denial holds ([`holds_to_itself`]), through a Service.
    SELF = 6, "self";
    /// Allow, until the next packet is judged: the connection was there before its endpoint was enforced.
    ESTABLISHED_BEFORE = 7, "establishedBefore";
    /// Deny: headers that cannot be read, that contradict each other, or by which the packet would reach another
    /// destination than it shows (source routes); a fragment that overlaps the first one.
    MALFORMED_PACKET = 16, "malformedPacket";
    /// Deny: a source address that is not the sender's.
    SPOOFED_SOURCE = 17, "spoofedSource";
    /// Deny: the endpoint's first image is not in yet.
    NOT_READY = 18, "notReady";
    /// Deny: a later fragment whose first fragment was not seen.
    UNKNOWN_FRAGMENT = 19, "unknownFragment";
    /// Deny: not IP and not neighbour discovery.
    NOT_IP = 20, "notIp";
    /// Deny: forged ARP or neighbour discovery, or a router's message from a pod (advertisement, redirect, question who
    /// listens to groups); neighbour discovery in fragments.
    FORGED_NEIGHBOUR = 21, "forgedNeighbour";
    /// Deny: the endpoint's state could not be read whole, or a table row that must exist does not.
    INCONSISTENT_STATE = 22, "inconsistentState";
    /// Deny: the peer's address is unknown while some address could not be stored.
    ADDRESSES_INCOMPLETE = 23, "addressesIncomplete";
    /// Deny: several pods claim an address of this flow, so it is nobody's.
    CONTESTED_ADDRESS = 26, "contestedAddress";
    /// Deny: the flow could not be stored, so its replies could not be told.
    FLOW_TABLE_FULL = 25, "flowTableFull";
    /// Deny: it comes from a pod's device, and what was noted of it there is gone.
    MARK_LOST = 27, "markLost";
}
