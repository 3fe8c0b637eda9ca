//! Fragments: the ports of a later one are those that the first one showed.

use crate::env::{Env, Hook};
use crate::parse::{FRAGMENT_FIRST, FRAGMENT_LATER};
use crate::walk::Scratch;
use reeve_abi::conntrack::{self as ct, FragmentKey, FragmentValue};
use reeve_abi::ids::DecisionId;
use reeve_abi::{decision, stats};

/// Fills in the ports of a later fragment, or remembers those of a first one; else why it is to be denied.
#[inline(always)]
pub(crate) fn ports_of_fragment<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> Option<DecisionId> {
    let p = &mut s.packet;
    let side = match hook {
        Hook::FromPod => ct::KEY_FROM_POD,
        Hook::ToPod | Hook::Reached => ct::KEY_TO_POD,
        Hook::Uplink | Hook::HostIn | Hook::Refused => ct::KEY_LEAVING,
    };
    let key = FragmentKey {
        source: p.source,
        destination: p.destination,
        identification: p.identification,
        protocol: side | if p.v6 == 1 { 0 } else { u32::from(p.protocol) },
    };
    if p.fragment == FRAGMENT_FIRST {
        let value = FragmentValue {
            // An ICMP query's identifier stands where the ports would.
            ports: u32::from(p.source_port) << 16 | u32::from(p.destination_port | p.icmp_id),
            kind: u32::from(p.protocol) << 16 | u32::from(p.icmp_type) << 8 | u32::from(p.icmp_code),
            seen_ns: s.now_ns,
            first_end: p.fragment_edge,
            reserved: 0,
        };
        if !env.put_fragment(&key, &value) {
            env.count(stats::FRAGMENTS_LOST);
        }
        return None;
    }
    debug_assert!(p.fragment == FRAGMENT_LATER);
    let Some(found) = env.fragment(&key) else { return Some(decision::UNKNOWN_FRAGMENT) };
    // The kernel itself gives up reassembly after 30 s (IPv4) or 60 s (IPv6).
    if s.now_ns.saturating_sub(found.seen_ns) > 60 * reeve_abi::config::SECOND_NS {
        return Some(decision::UNKNOWN_FRAGMENT);
    }
    if p.fragment_edge < found.first_end {
        env.count(stats::MALFORMED);
        return Some(decision::MALFORMED_PACKET); // it would write over the header that was judged
    }
    p.protocol = (found.kind >> 16 & 0xff) as u8;
    if p.is_icmp() {
        p.icmp_id = (found.ports & 0xffff) as u16;
    } else {
        p.source_port = (found.ports >> 16) as u16;
        p.destination_port = (found.ports & 0xffff) as u16;
    }
    p.icmp_type = (found.kind >> 8 & 0xff) as u8;
    p.icmp_code = (found.kind & 0xff) as u8;
    None
}
