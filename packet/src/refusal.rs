//! What a pod sends to its own node, where nobody listens: no socket's program sees it, and the kernel answers itself.
//!
//! Invariant: only this node's own answer about one of its own addresses counts as a refusal; what it refuses is judged
//! and told before the pod hears of it.

use crate::env::{Action, Env, Hook};
use crate::judge;
use crate::parse::{Packet, protocol, tcp};
use crate::walk::{self, Scratch};
use crate::words;
use reeve_abi::address::OWNER_HOST;
use reeve_abi::conntrack::{self as ct, FlowKey};

/// The packet at hand is the answer itself: a segment back.
pub(crate) const ANSWERED: u32 = 0;
/// The packet at hand is an error that quotes what was sent: `s.quoted`.
pub(crate) const QUOTED: u32 = 1;

/// Whether a packet to the pod that was made here speaks of a flow to one of this node's own addresses.
#[inline(always)]
pub(crate) fn by_this_node<E: Env>(env: &E, key: &FlowKey) -> bool {
    env.ingress_ifindex() == 0 && judge::peer(env, &key.remote).owner == OWNER_HOST
}

/// Judges, for the pod, the flow with `s.key` that nobody has judged and this node has refused; what becomes of the
/// answer.
#[inline(never)]
pub(crate) fn judge<E: Env>(env: &E, s: &mut Scratch, answer: u32) -> Action {
    let Some(found) = env.flow(&s.key) else { return Action::Drop };
    let bytes = u64::from(s.packet.bytes);
    // SAFETY: valid for the run of the program (`Env`); read only.
    s.unjudged = unsafe { [(*found.as_ptr()).packets[0], (*found.as_ptr()).bytes[0]] };
    if answer == QUOTED {
        s.packet = s.quoted;
    } else {
        turn(&mut s.packet);
    }
    if s.packet.protocol == protocol::TCP {
        s.packet.tcp_flags = tcp::SYN; // it is judged as what opens a flow
    }
    words::zero(&mut s.seen);
    if walk::miss(env, Hook::Refused, s) == 0 {
        return Action::Drop;
    }
    if answer == ANSWERED
        && let Some(found) = env.flow(&s.key)
    {
        // SAFETY: valid for the run of the program (`Env`); counters are added to atomically.
        unsafe {
            let found = &mut *found.as_ptr();
            found.flags |= ct::FLOW_SEEN_REPLY | ct::FLOW_RST;
            env.add(&raw mut found.packets[1], 1);
            env.add(&raw mut found.bytes[1], bytes);
        }
    }
    Action::Continue
}

/// Makes of an answer what it answers, as far as a judgement asks.
#[inline(always)]
fn turn(packet: &mut Packet) {
    core::mem::swap(&mut packet.source, &mut packet.destination);
    core::mem::swap(&mut packet.source_port, &mut packet.destination_port);
}
