//! What staged policies would have said of an event, by the identity that the kernel used.

use crate::decode::{Kind, TypedEvent};
use crate::names::Names;
use crate::record::RecordedDecision;
use reeve_abi::decision::{CONTESTED_ADDRESS, NO_POLICY_SELECTS, SELF};
use reeve_abi::ids::FIRST_HASHED;
use reeve_policy::Preview;
use reeve_policy::model::Family;

/// The second decision of an event; `None` where the same policies would be asked, or where none is: what the datapath
/// decides by itself (a spoofed source, the own node) it decides whatever is staged.
pub fn decision<N: Names>(preview: &Preview, names: &N, event: &TypedEvent) -> Option<RecordedDecision> {
    let raw = &event.raw;
    let by_policy =
        raw.decision.0 >= FIRST_HASHED || [NO_POLICY_SELECTS, CONTESTED_ADDRESS, SELF].contains(&raw.decision);
    if preview.is_empty() || event.kind == Kind::Closed || !by_policy {
        return None;
    }
    let family = if event.remote?.is_ipv4() { Family::V4 } else { Family::V6 };
    let peer = names.identity(raw.peer_identity)?;
    let port = u16::try_from(raw.port & 0xffff).ok()?;
    let (workload, direction, protocol) = (raw.workload, event.direction, event.protocol.0);
    let decision = if raw.peer_workload == workload {
        preview.decide_to_itself(workload, direction, family, &peer, protocol, port)
    } else {
        preview.decide(workload, direction, family, &peer, protocol, port)
    };
    decision.map(Into::into)
}
