//! Flow keys, directions and timeouts: the state machine, without the maps.

use crate::env::Hook;
use crate::parse::{Packet, protocol, tcp};
use reeve_abi::config::Config;
use reeve_abi::conntrack as ct;
use reeve_abi::conntrack::{FlowKey, FlowValue};
use reeve_abi::endpoint::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use reeve_abi::event::EVENT_FLAG_BEGAN_UNSEEN;
use reeve_abi::ids::WorkloadId;

/// Whether an ICMP type asks (`Some(true)`), answers (`Some(false)`) or does neither. Queries carry an identifier.
#[inline(always)]
pub fn icmp_query(packet: &Packet) -> Option<bool> {
    if packet.v6 == 0 {
        match packet.icmp_type {
            8 | 13 | 15 | 17 => Some(true),
            0 | 14 | 16 | 18 => Some(false),
            _ => None,
        }
    } else {
        match packet.icmp_type {
            128 => Some(true),
            129 => Some(false),
            _ => None,
        }
    }
}

/// Whether an ICMP packet quotes the packet that it is about.
#[inline(always)]
pub fn icmp_error(packet: &Packet) -> bool {
    if packet.v6 == 0 { matches!(packet.icmp_type, 3 | 4 | 5 | 11 | 12) } else { packet.icmp_type < 128 }
}

/// Key of the packet's flow at the pod's interface.
#[inline(always)]
pub fn key(workload: WorkloadId, hook: Hook, packet: &Packet) -> FlowKey {
    let (remote, local_port, remote_port) = match hook {
        Hook::ToPod => (packet.source, packet.destination_port, packet.source_port),
        _ => (packet.destination, packet.source_port, packet.destination_port),
    };
    let mut ports = u32::from(local_port) << 16 | u32::from(remote_port);
    let mut kind = u32::from(packet.protocol);
    if packet.is_icmp() {
        let from_pod = !matches!(hook, Hook::ToPod);
        match icmp_query(packet) {
            Some(asks) => {
                ports = u32::from(packet.icmp_id);
                kind |= if asks == from_pod { ct::KEY_FROM_POD } else { ct::KEY_TO_POD };
            }
            None => {
                ports = u32::from(packet.icmp_type) << 24 | u32::from(packet.icmp_code) << 16;
                kind |= if from_pod { ct::KEY_FROM_POD } else { ct::KEY_TO_POD };
            }
        }
    }
    FlowKey { workload, remote, ports, protocol: kind }
}

/// Key of a denied tuple: one direction each.
#[inline(always)]
pub fn denied_key(key: &FlowKey, hook: Hook) -> FlowKey {
    let side = match hook {
        Hook::ToPod => ct::KEY_TO_POD << 4,
        _ => ct::KEY_FROM_POD << 4,
    };
    FlowKey { protocol: key.protocol | side, ..*key }
}

/// The port that rules speak of if the packet opens a flow: destination port, or ICMP type << 8 | code.
#[inline(always)]
pub fn judged_port(packet: &Packet) -> u16 {
    if packet.is_icmp() {
        u16::from(packet.icmp_type) << 8 | u16::from(packet.icmp_code)
    } else {
        packet.destination_port
    }
}

/// The port that rules speak of if the other side opened the flow; none for an ICMP message that answers nothing.
#[inline(always)]
pub fn opposite_port(packet: &Packet) -> Option<u16> {
    if !packet.is_icmp() {
        return Some(packet.source_port);
    }
    if icmp_query(packet) != Some(false) {
        return None;
    }
    // The query that a reply belongs to.
    let asked: u16 = match (packet.v6, packet.icmp_type) {
        (0, 0) => 8,
        (0, kind) => u16::from(kind).saturating_sub(1),
        _ => 128,
    };
    Some(asked << 8)
}

/// The other direction.
#[inline(always)]
pub fn opposite(direction: u32) -> u32 {
    if direction == DIRECTION_EGRESS { DIRECTION_INGRESS } else { DIRECTION_EGRESS }
}

/// Whether the packet opens a TCP connection. FIN beside SYN is no excuse: some stacks open one all the same.
#[inline(always)]
pub fn is_bare_syn(packet: &Packet) -> bool {
    packet.protocol == protocol::TCP && packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

/// Whether the packet ends a TCP connection at once, or refuses it.
#[inline(always)]
pub fn is_reset(packet: &Packet) -> bool {
    packet.protocol == protocol::TCP && packet.tcp_flags & tcp::RST != 0
}

/// Whether an ICMP error asks for smaller packets: what it quotes was not turned away for good.
#[inline(always)]
pub fn too_big(packet: &Packet) -> bool {
    if packet.v6 == 0 { packet.icmp_type == 3 && packet.icmp_code == 4 } else { packet.icmp_type == 2 }
}

/// `EVENT_FLAG_BEGAN_UNSEEN` of a packet that nothing is known of, if a pod answers by it.
#[inline(always)]
pub fn began_unseen(packet: &Packet, hook: Hook) -> u8 {
    let answers = packet.protocol == protocol::TCP && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK;
    if answers && !matches!(hook, Hook::ToPod) { EVENT_FLAG_BEGAN_UNSEEN } else { 0 }
}

/// Flow bits that a packet in the original direction (`original`) or back adds.
#[inline(always)]
pub fn seen(packet: &Packet, original: bool) -> u32 {
    let mut bits = if original { ct::FLOW_SEEN_ORIGINAL } else { ct::FLOW_SEEN_REPLY };
    if packet.protocol == protocol::TCP {
        if packet.tcp_flags & tcp::FIN != 0 {
            bits |= if original { ct::FLOW_FIN_ORIGINAL } else { ct::FLOW_FIN_REPLY };
        }
        if packet.tcp_flags & tcp::RST != 0 {
            bits |= ct::FLOW_RST;
        }
    }
    bits
}

/// Whether a TCP flow is over but for stragglers.
#[inline(always)]
pub fn closing(flags: u32) -> bool {
    flags & ct::FLOW_RST != 0
        || flags & (ct::FLOW_FIN_ORIGINAL | ct::FLOW_FIN_REPLY) == ct::FLOW_FIN_ORIGINAL | ct::FLOW_FIN_REPLY
}

/// Verdict of a flow entry whose end has been told: as good as none, and free to be removed.
pub const VERDICT_ENDED: u32 = 0;
/// Verdict of a flow entry that nobody has judged yet: the packet is on its way to where that can be done.
pub const VERDICT_PENDING: u32 = 3;

/// Idle time after which a flow ends, in ns.
#[inline(always)]
pub fn timeout_ns(config: &Config, ip_protocol: u8, flow: &FlowValue) -> u64 {
    let both =
        flow.flags & (ct::FLOW_SEEN_ORIGINAL | ct::FLOW_SEEN_REPLY) == ct::FLOW_SEEN_ORIGINAL | ct::FLOW_SEEN_REPLY;
    if flow.verdict == VERDICT_ENDED {
        return 0;
    }
    if flow.verdict == VERDICT_PENDING {
        return if ip_protocol == protocol::TCP { config.tcp_opening_ns } else { config.udp_opening_ns };
    }
    if flow.verdict != reeve_abi::policy::VERDICT_ALLOW {
        // A cut flow is remembered so that its other side cannot revive it. TCP resends after up to 120 s.
        return if ip_protocol == protocol::TCP { config.tcp_established_ns } else { config.tcp_opening_ns };
    }
    match ip_protocol {
        protocol::TCP if closing(flow.flags) => config.tcp_closing_ns,
        protocol::TCP if both || flow.flags & ct::FLOW_PICKED_UP != 0 => config.tcp_established_ns,
        protocol::TCP => config.tcp_opening_ns,
        protocol::UDP if both => config.udp_ns,
        protocol::UDP => config.udp_opening_ns,
        protocol::ICMP | protocol::ICMPV6 => config.icmp_ns,
        _ => config.other_ns,
    }
}
