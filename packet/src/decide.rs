//! Who decides about a packet that no flow speaks for.

use crate::env::{Env, Hook};
use crate::flow;
use crate::judge::{self, Ruling};
use crate::mark;
use crate::parse::{self, FRAGMENT_LATER};
use crate::pending;
use crate::walk::{Scratch, own_node, spoofed};
use reeve_abi::address::OWNER_HOST;
use reeve_abi::conntrack as ct;
use reeve_abi::mark::KIND_NONE;
use reeve_abi::{decision, stats};

/// Who sends what reaches the pod, and in `s.seen` who that really is behind this node's own address; `FLOW_*` bits.
#[inline(always)]
fn arriving<E: Env>(env: &E, s: &mut Scratch) -> u32 {
    s.peer = judge::peer(env, &s.key.remote);
    if env.ingress_ifindex() == 0 || s.peer.owner != OWNER_HOST {
        return 0;
    }
    // Passed on by this node with its own address for the sender's: never taken for the node itself.
    if mark::has_slot(s.carried) {
        s.seen.real = s.slot.source;
        s.seen.ports |= pending::client_port(s) << 16;
        s.to_itself = u32::from(s.slot.workload == s.endpoint.workload);
        s.peer = judge::peer(env, &s.slot.source);
    } else {
        s.peer = judge::masqueraded(env, &s.key.remote);
    }
    ct::FLOW_MASQUERADED
}

/// Judges a packet without flow: `s.ruling`, and in `s.flow` the direction in which it was judged, the port that rules
/// speak of, and `FLOW_*` bits; 1: it is only judged where its destination is known. A call of its own: its stack is not
/// there while the outcome is told.
#[inline(never)]
pub(crate) fn decide<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    let port = flow::judged_port(&s.packet);
    let mut direction = hook.direction();
    let mut flags = 0;
    let mut judged = port;
    match hook {
        Hook::FromPod => {
            s.peer = judge::peer(env, &s.key.remote);
            if pending::may_be_rewritten(&s.peer, s) {
                return 1;
            }
        }
        Hook::ToPod => flags = arriving(env, s),
        Hook::Reached | Hook::Uplink => s.peer = judge::peer(env, &s.packet.destination),
        Hook::HostIn | Hook::Refused => {
            s.peer = judge::host(env, &s.packet.destination);
            flags = ct::FLOW_TO_HOST;
        }
    }
    if matches!(hook, Hook::ToPod) && spoofed(env, s) {
        s.ruling = Ruling::deny(decision::SPOOFED_SOURCE);
    } else if matches!(hook, Hook::ToPod) && s.carried == KIND_NONE && mark::from_pod(env, env.ingress_ifindex()) {
        env.count(stats::MARK_LOST);
        s.ruling = Ruling::deny(decision::MARK_LOST);
    } else if matches!(hook, Hook::ToPod) && own_node(env, s) {
        s.ruling = Ruling::allow(decision::OWN_NODE);
        flags |= ct::FLOW_OWN_NODE;
    } else {
        s.ruling = judge::rule(env, &s.endpoint, direction, s.packet.v6, &s.peer, s.packet.protocol, port);
        if s.to_itself != 0 {
            s.ruling = s.ruling.between_itself();
            flags |= ct::FLOW_SELF;
        }
        // A later fragment has no flags to show; alone it is nobody's answer.
        let segment = s.packet.protocol == parse::protocol::TCP && s.packet.fragment != FRAGMENT_LATER;
        let answer = segment && !flow::is_bare_syn(&s.packet)
            || s.packet.is_icmp() && flow::icmp_query(&s.packet) == Some(false);
        if s.packet.protocol == parse::protocol::TCP && answer {
            flags |= ct::FLOW_PICKED_UP;
        }
        let middle = flags & ct::FLOW_PICKED_UP != 0 && s.packet.tcp_flags & parse::tcp::SYN == 0;
        let mixed = env.config().mixed_generations != 0 && !flow::is_bare_syn(&s.packet);
        if !s.ruling.allows()
            && (middle || mixed)
            && let Some(opened) = flow::opposite_port(&s.packet)
        {
            // Perhaps the middle of a connection that the other side opened.
            let translated = !matches!(hook, Hook::ToPod) && s.packet.has_ports();
            let from = if translated { (s.key.ports >> 16 & 0xffff) as u16 } else { opened };
            let other = if matches!(hook, Hook::HostIn | Hook::Refused) {
                // What the own node opened is let in whatever policies say.
                flags |= ct::FLOW_OWN_NODE;
                Ruling::allow(decision::OWN_NODE)
            } else {
                let opposite = flow::opposite(direction);
                let other = judge::rule(env, &s.endpoint, opposite, s.packet.v6, &s.peer, s.packet.protocol, from);
                if s.to_itself != 0 { other.between_itself() } else { other }
            };
            if other.allows() {
                s.ruling = other;
                direction = flow::opposite(direction);
                judged = from;
                if !middle {
                    env.count(stats::EITHER_ORIENTATION);
                }
            }
        }
    }
    s.flow.direction = direction;
    s.flow.port = u32::from(judged);
    s.flow.flags = flags;
    0
}
