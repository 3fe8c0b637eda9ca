//! ARP and IPv6 neighbour discovery: let through, from pods only for their own addresses.

use crate::env::{Env, Hook};
use crate::judge;
use crate::parse::{Packet, protocol};
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
        _ => Finding::Forged,
    }
}

/// Judges an IPv6 packet that may be neighbour discovery. RFC 4861 wants hop limit 255: others are ordinary ICMPv6.
#[inline(always)]
pub fn discovery<E: Env>(env: &E, hook: Hook, endpoint: &EndpointValue, packet: &Packet) -> Finding {
    if packet.v6 == 0 || packet.protocol != protocol::ICMPV6 || packet.fragment != 0 {
        return Finding::Other;
    }
    if matches!(packet.icmp_type, 130 | 131 | 132 | 143) {
        return Finding::Pass; // multicast listener discovery, also made by the kernel itself
    }
    if !matches!(packet.icmp_type, 133..=137) {
        return Finding::Other;
    }
    if packet.hop_limit != 255 {
        return Finding::Other;
    }
    if matches!(hook, Hook::ToPod) {
        return Finding::Pass;
    }
    match packet.icmp_type {
        // Solicitations: an unspecified source is duplicate address detection.
        133 | 135 if packet.source == Address::default() || claims(env, endpoint, &packet.source) => Finding::Pass,
        136 => {
            let mut target = Address::default();
            if packet.l4_offset + 24 <= packet.end
                && env.load(packet.l4_offset + 8, &mut target.0)
                && claims(env, endpoint, &target)
                && claims(env, endpoint, &packet.source)
            {
                Finding::Pass
            } else {
                Finding::Forged
            }
        }
        _ => Finding::Forged,
    }
}

/// Whether the pod may speak for the address: its own, or a link-local one that nobody else is known to have.
#[inline(always)]
fn claims<E: Env>(env: &E, endpoint: &EndpointValue, address: &Address) -> bool {
    if *address == endpoint.address_v6 {
        return *address != Address::default();
    }
    if address.0[0] != 0xfe || address.0[1] & 0xc0 != 0x80 {
        return false;
    }
    let owner = judge::peer(env, address);
    owner.unknown != 0 || owner.workload == endpoint.workload
}

#[cfg(test)]
mod tests;
