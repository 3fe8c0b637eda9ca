//! Who decides: address -> identity -> class, (policy, class) -> decision or port table, (table, port) -> decision.

use crate::env::Env;
use reeve_abi::address::{Address, OWNER_CONTESTED, OWNER_HOST, OWNER_LOCAL_POD, OWNER_REMOTE_POD};
use reeve_abi::decision;
use reeve_abi::endpoint::{ENDPOINT_ADDRESSES_INCOMPLETE, ENDPOINT_READY, EndpointValue, policy_index};
use reeve_abi::ids::{
    ClassId, DecisionId, IDENTITY_HOST, IDENTITY_MASQUERADED, IDENTITY_WORLD, IdentityId, PolicyNumber, WorkloadId,
};
use reeve_abi::policy::{
    ANY_PORT, PEER_RANGES, PEER_TABLE, PeerKey, PortKey, RANGE_BASE_BITS, RangeKey, VERDICT_ALLOW, VERDICT_DENY,
};

/// The other side, as the maps know it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// Its workload, 0 if it is not a pod.
    pub workload: WorkloadId,
    /// Its identity.
    pub identity: IdentityId,
    /// The identity whose class it has: its own, or that of the prefix around an address that stands for somebody else.
    pub judged_as: IdentityId,
    /// One of `OWNER_*`, 0 if the address is nobody's.
    pub owner: u32,
    /// Interface of a local pod.
    pub device: u32,
    /// Bridge of a local pod.
    pub bridge: u32,
    /// 1 if no exact address was found.
    pub unknown: u32,
}

/// What was decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ruling {
    /// Decision.
    pub decision: DecisionId,
    /// Its verdict.
    pub verdict: u32,
}

impl Ruling {
    /// A denial by one of the datapath's own deciders.
    #[inline(always)]
    pub const fn deny(decision: DecisionId) -> Self {
        Self { decision, verdict: VERDICT_DENY }
    }

    /// Let through by one of the datapath's own deciders.
    #[inline(always)]
    pub const fn allow(decision: DecisionId) -> Self {
        Self { decision, verdict: VERDICT_ALLOW }
    }

    /// The same between a pod and itself: only what is meant to holds there.
    #[inline(always)]
    #[must_use]
    pub fn between_itself(self) -> Self {
        if self.allows() || !decision::holds_to_itself(self.decision) { Self::allow(decision::SELF) } else { self }
    }

    /// Whether the packet may pass.
    #[inline(always)]
    pub fn allows(&self) -> bool {
        self.verdict == VERDICT_ALLOW
    }
}

/// Looks up who owns an address.
#[inline(always)]
pub fn peer<E: Env>(env: &E, address: &Address) -> Peer {
    if let Some(found) = env.address(address) {
        return Peer {
            workload: found.workload,
            identity: found.identity,
            judged_as: found.identity,
            owner: found.owner,
            device: found.device,
            bridge: found.bridge,
            unknown: 0,
        };
    }
    let identity = env.network(address).unwrap_or(IDENTITY_WORLD);
    Peer { identity, judged_as: identity, unknown: 1, ..Peer::default() }
}

/// Somebody behind this node's own address: rules on prefixes see the address, and no rule sees anything else.
#[inline(always)]
pub fn masqueraded<E: Env>(env: &E, address: &Address) -> Peer {
    let judged_as = env.network(address).unwrap_or(IDENTITY_WORLD);
    Peer { identity: IDENTITY_MASQUERADED, judged_as, ..Peer::default() }
}

/// A process of this node, whatever address it receives at.
#[inline(always)]
pub fn host<E: Env>(env: &E, address: &Address) -> Peer {
    let found = peer(env, address);
    if found.owner == OWNER_HOST {
        return found;
    }
    Peer { identity: IDENTITY_HOST, judged_as: IDENTITY_HOST, owner: OWNER_HOST, ..Peer::default() }
}

/// Whether an address belongs to a pod.
#[inline(always)]
pub fn is_pod(peer: &Peer) -> bool {
    matches!(peer.owner, OWNER_LOCAL_POD | OWNER_REMOTE_POD | OWNER_CONTESTED)
}

/// Judges a flow of the endpoint in its original direction.
#[inline(always)]
pub fn rule<E: Env>(
    env: &E,
    endpoint: &EndpointValue,
    direction: u32,
    v6: u32,
    peer: &Peer,
    protocol: u8,
    port: u16,
) -> Ruling {
    if endpoint.flags & ENDPOINT_READY == 0 {
        return Ruling::deny(decision::NOT_READY);
    }
    // All are read before one is chosen, and volatile: the compiler would make an index of the choice, which older
    // verifiers cannot bound.
    // SAFETY: a field of this value.
    let [a, b, c, d] = unsafe { (&raw const endpoint.policies).read_volatile() };
    let policy = match policy_index(direction, v6) {
        0 => a,
        1 => b,
        2 => c,
        _ => d,
    };
    if policy == PolicyNumber(0) {
        return Ruling::allow(decision::NO_POLICY_SELECTS);
    }
    if peer.unknown != 0 && endpoint.flags & ENDPOINT_ADDRESSES_INCOMPLETE != 0 {
        return Ruling::deny(decision::ADDRESSES_INCOMPLETE);
    }
    let class = env.class(peer.judged_as).unwrap_or(ClassId(0));
    let row = match env.peer(&PeerKey { policy, class }) {
        Some(row) => row,
        None => match env.peer(&PeerKey { policy, class: ClassId(0) }) {
            Some(row) => row,
            None => return Ruling::deny(decision::INCONSISTENT_STATE),
        },
    };
    if row.flags & PEER_TABLE != 0 {
        let mut key = PortKey { table: row.table, protocol: u32::from(protocol), port: u32::from(port) };
        if let Some(found) = env.port(&key) {
            return Ruling { decision: found.decision, verdict: found.verdict };
        }
        if row.flags & PEER_RANGES != 0 {
            let range = RangeKey {
                prefix_bits: RANGE_BASE_BITS + 16,
                table: row.table.0.to_ne_bytes(),
                protocol_be: u16::from(protocol).to_be_bytes(),
                port_be: port.to_be_bytes(),
            };
            if let Some(found) = env.range(&range) {
                return Ruling { decision: found.decision, verdict: found.verdict };
            }
        }
        key.port = ANY_PORT;
        if let Some(found) = env.port(&key) {
            return Ruling { decision: found.decision, verdict: found.verdict };
        }
    }
    Ruling { decision: row.decision, verdict: row.verdict }
}
