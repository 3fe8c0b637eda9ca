//! ARP, IPv6 neighbour and listener discovery: let through, from pods only for their own addresses and to their own link.

use crate::env::{Env, Hook};
use crate::judge;
use crate::parse::{FRAGMENT_LATER, FRAGMENT_NONE, Packet};
use reeve_abi::address::Address;
use reeve_abi::endpoint::EndpointValue;

/// What neighbour discovery makes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Not neighbour discovery: go on.
    Other,
    /// Let through.
    Pass,
    /// Somebody else's address, or a router's message from a pod.
    Forged,
}

/// Judges an ARP packet.
#[inline(always)]
pub fn arp(hook: Hook, endpoint: &EndpointValue, packet: &Packet) -> Finding {
    let own = endpoint.address_v4;
    match hook {
        Hook::ToPod => Finding::Pass,
        // A probe (RFC 5227) has no sender address yet.
        Hook::FromPod if own != Address::default() && packet.arp_sender() == own => Finding::Pass,
        Hook::FromPod if packet.arp_sender() == Address::v4([0; 4]) && packet.destination == own => Finding::Pass,
        Hook::FromPod => Finding::Forged,
    }
}

/// Judges a packet that may be a neighbour's or a router's message.
///
/// What is let through here is neither judged by policy nor recorded, so it must be plainly what it says: meant for
/// this link only, of the shape that its RFC gives it. Everything else is ordinary ICMP.
#[inline(always)]
pub fn discovery<E: Env>(env: &E, hook: Hook, endpoint: &EndpointValue, packet: &Packet) -> Finding {
    if !packet.is_icmp() || packet.fragment == FRAGMENT_LATER {
        return Finding::Other;
    }
    let from_pod = matches!(hook, Hook::FromPod);
    if packet.v6 == 0 {
        // A redirect changes its receiver's routes, whatever live flow it quotes; so does a router's advertisement.
        let router = matches!(packet.icmp_type, ICMP_REDIRECT | ICMP_ROUTER_ADVERTISEMENT);
        return if from_pod && router { Finding::Forged } else { Finding::Other };
    }
    match packet.icmp_type {
        LISTENER_QUERY | LISTENER_REPORT | LISTENER_DONE | LISTENER_REPORT_2 => {
            listener(env, from_pod, endpoint, packet)
        }
        // RFC 4861: what has another hop limit has crossed a router, and no receiver takes it for discovery.
        ROUTER_SOLICITATION..=REDIRECT if packet.hop_limit == 255 => {
            if packet.fragment != FRAGMENT_NONE {
                Finding::Forged // RFC 6980: never in fragments
            } else if from_pod {
                spoken(env, endpoint, packet)
            } else {
                Finding::Pass
            }
        }
        _ => Finding::Other,
    }
}

const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;
const LISTENER_QUERY: u8 = 130;
const LISTENER_REPORT: u8 = 131;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_2: u8 = 143;

/// Multicast listener discovery (RFC 3810), which the kernel itself makes too: hop limit 1, from a link-local address or
/// none yet, to a group.
#[inline(always)]
fn listener<E: Env>(env: &E, from_pod: bool, endpoint: &EndpointValue, packet: &Packet) -> Finding {
    let nobody = packet.source == Address::default();
    let here = nobody || is_link_local(&packet.source);
    if packet.hop_limit != 1 || !here || !is_multicast(&packet.destination) {
        return Finding::Other;
    }
    if !from_pod {
        return Finding::Pass;
    }
    // Who asks is the link's router, and switches send it every group.
    let own = packet.icmp_type != LISTENER_QUERY && (nobody || claims(env, endpoint, &packet.source));
    if own { Finding::Pass } else { Finding::Forged }
}

/// Judges neighbour discovery that a pod sends.
#[inline(always)]
fn spoken<E: Env>(env: &E, endpoint: &EndpointValue, packet: &Packet) -> Finding {
    let to = &packet.destination;
    // The node would forward it to anyone else, and nobody has judged it then.
    let on_link = is_link_local(to) || is_link_multicast(to) || env.address(to).is_some();
    let fixed = match packet.icmp_type {
        ROUTER_SOLICITATION => 8,
        SOLICITATION | ADVERTISEMENT => 24,
        _ => return Finding::Forged,
    };
    let mut target = Address::default();
    if fixed == 24 && !(packet.l4_offset + 24 <= packet.end && env.load(packet.l4_offset + 8, &mut target.0)) {
        return Finding::Forged;
    }
    if !options_are_whole(env, packet.l4_offset + fixed, packet.end) {
        return Finding::Forged;
    }
    let unspecified = packet.source == Address::default();
    let honest = match packet.icmp_type {
        ROUTER_SOLICITATION => unspecified || claims(env, endpoint, &packet.source),
        // Without a source it asks whether its target is taken: who asks for another's address takes it away.
        SOLICITATION if unspecified => claims(env, endpoint, &target),
        SOLICITATION => claims(env, endpoint, &packet.source),
        _ => claims(env, endpoint, &packet.source) && claims(env, endpoint, &target),
    };
    match (honest, on_link) {
        (true, true) => Finding::Pass,
        (true, false) => Finding::Other,
        (false, _) => Finding::Forged,
    }
}

/// Whether the options fill what is left of the message: none empty, none beyond its end, and few.
#[inline(always)]
fn options_are_whole<E: Env>(env: &E, from: u32, to: u32) -> bool {
    let mut at = from;
    let mut left = MAX_OPTIONS;
    while at < to {
        let mut length = [0u8];
        if left == 0 || !env.load(at + 1, &mut length) || length[0] == 0 {
            return false;
        }
        left -= 1;
        at += u32::from(length[0]) * 8;
    }
    at == to
}

/// Secure neighbour discovery (RFC 3971) has five; a message with more is something else.
const MAX_OPTIONS: u32 = 8;

#[inline(always)]
fn is_link_local(address: &Address) -> bool {
    address.0[0] == 0xfe && address.0[1] & 0xc0 == 0x80
}

#[inline(always)]
fn is_multicast(address: &Address) -> bool {
    address.0[0] == 0xff
}

/// A group that no router forwards to.
#[inline(always)]
fn is_link_multicast(address: &Address) -> bool {
    is_multicast(address) && matches!(address.0[1] & 0x0f, 1 | 2)
}

/// Whether the pod may speak for the address: its own, or a link-local one that nobody else is known to have.
#[inline(always)]
fn claims<E: Env>(env: &E, endpoint: &EndpointValue, address: &Address) -> bool {
    if *address == endpoint.address_v6 {
        return *address != Address::default();
    }
    if !is_link_local(address) {
        return false;
    }
    let owner = judge::peer(env, address);
    owner.unknown != 0 || owner.workload == endpoint.workload
}

#[cfg(test)]
mod tests;
