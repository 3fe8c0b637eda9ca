//! What would be decided if every staged policy were applied.
//!
//! Invariant: nothing here reaches a map of the kernel or changes what is enforced; a preview is worked out where a flow is
//! told, from the identity that the kernel used.

use super::rows::{decide, includes};
use super::subject::{Applied, named_resolved};
use crate::image::position;
use crate::model::{Decision, DefaultDecider, Direction, Family, Verdict};
use crate::provenance::{Identity, IdentityKind};
use reeve_abi::ids::WorkloadId;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Who would be asked about an endpoint in one direction and family.
#[derive(Clone, Debug, Default)]
pub(super) enum Asked {
    /// The policies that are asked now.
    #[default]
    Same,
    /// No policy.
    Nobody,
    /// These.
    Policies(Arc<Applied>),
}

/// By endpoint: only those for which others would be asked.
#[derive(Clone, Debug, Default)]
pub struct Preview {
    endpoints: HashMap<WorkloadId, [Asked; 4]>,
}

impl Preview {
    pub(super) fn set(&mut self, endpoint: WorkloadId, asked: [Asked; 4]) {
        if asked.iter().all(|asked| matches!(asked, Asked::Same)) {
            self.endpoints.remove(&endpoint);
        } else {
            self.endpoints.insert(endpoint, asked);
        }
    }

    pub(super) fn forget(&mut self, endpoint: WorkloadId) {
        self.endpoints.remove(&endpoint);
    }

    /// Whether nothing is staged for any endpoint.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The same for an endpoint that reaches itself through a Service; `own` is how it is seen.
    pub fn decide_to_itself(
        &self,
        endpoint: WorkloadId,
        direction: Direction,
        family: Family,
        own: &Identity,
        protocol: u8,
        port: u16,
    ) -> Option<Decision> {
        let decision = self.decide(endpoint, direction, family, own, protocol, port)?;
        let holds = decision.holds_to_itself();
        Some(if holds { decision } else { Decision::bare(Verdict::Allow, DefaultDecider::ToItself) })
    }

    /// What would be decided for an endpoint's flow with this peer; `None` if the same policies would be asked. `port` is
    /// the destination port, or ICMP type << 8 | code, or 0.
    pub fn decide(
        &self,
        endpoint: WorkloadId,
        direction: Direction,
        family: Family,
        peer: &Identity,
        protocol: u8,
        port: u16,
    ) -> Option<Decision> {
        let applied = match &self.endpoints.get(&endpoint)?[position(direction, family)] {
            Asked::Same => return None,
            Asked::Nobody => return Some(Decision::bare(Verdict::Allow, DefaultDecider::NoPolicySelects)),
            Asked::Policies(applied) => applied,
        };
        if peer.kind == IdentityKind::Contested {
            return Some(Decision::bare(Verdict::Deny, DefaultDecider::ContestedAddress));
        }
        let matches = applied.rules().map(|rule| {
            rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|one| peer.is_peer(one)))
                && includes(&named_resolved(&rule.traffic, peer), Some(protocol), port)
        });
        let matching: BTreeSet<usize> = matches.enumerate().filter(|(_, matches)| *matches).map(|(at, _)| at).collect();
        Some(decide(applied, &matching))
    }
}
