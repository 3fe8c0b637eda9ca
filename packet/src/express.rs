//! The usual packet of a flow that lives, which is most of all packets: let through after one look at its entry.
//!
//! Invariant: lets through what the walk would let through, and leaves behind what the walk would leave behind. Whatever
//! is not plain, or wants more than to be counted, is left to the walk.

use crate::env::{Env, Hook};
use crate::flow;
use crate::mark;
use crate::parse::{self, tcp};
use crate::recent;
use crate::scratch::Scratch;
use crate::walk;
use core::ptr::NonNull;
use reeve_abi::address::Address;
use reeve_abi::conntrack as ct;
use reeve_abi::conntrack::FlowValue;
use reeve_abi::endpoint::{ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6};
use reeve_abi::mark::{KIND_NONE, KIND_POD};
use reeve_abi::policy::VERDICT_ALLOW;
use reeve_abi::stats;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Let through, counted and marked.
    Passes,
    /// It is not one of the usual packets.
    Unusual,
    /// `s.packet` is read.
    Read,
}

/// An outcome, and the entry of the packet's flow at the endpoint, where it was looked for and found: two values, as the
/// verifiers of older kernels refuse to copy what only one of several outcomes has.
pub(crate) type Judged = (Outcome, Option<NonNull<FlowValue>>);

/// Lets the packet through if there is no more to it; otherwise nothing is said of it, and nothing of it is left behind.
#[inline(always)]
pub(crate) fn judge<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> Judged {
    if parse::usual(env, &mut s.packet).is_none() {
        return (Outcome::Unusual, None);
    }
    if s.packet.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
        return (Outcome::Read, None);
    }
    let (passes, row) = recent::passes(env, hook, s);
    if passes {
        return marked(env, hook);
    }
    let generation = env.generation();
    let Some(near) = walk::near(env, env.ifindex(), generation) else { return (Outcome::Read, None) };
    let endpoint = &near.endpoint;
    let (own, contested) = if s.packet.v6 == 1 {
        (&endpoint.address_v6, ENDPOINT_CONTESTED_V6)
    } else {
        (&endpoint.address_v4, ENDPOINT_CONTESTED_V4)
    };
    let (carried, _) = mark::read(env.config(), env.mark());
    let honest = match hook {
        Hook::FromPod => s.packet.source == *own && *own != Address::default(),
        _ => carried == KIND_NONE || carried == KIND_POD,
    };
    if endpoint.flags & contested != 0 || !honest {
        return (Outcome::Read, None);
    }
    s.key = flow::key(endpoint.workload, hook, &s.packet);
    let Some(entry) = env.flow(&s.key) else { return (Outcome::Read, None) };
    let now_ns = walk::tick(env, s);
    // SAFETY: valid for the run of the program (`Env`).
    let found = unsafe { &mut *entry.as_ptr() };
    let original = found.direction == hook.direction();
    let seen = if original { ct::FLOW_SEEN_ORIGINAL } else { ct::FLOW_SEEN_REPLY };
    let flags = found.flags;
    if found.verdict != VERDICT_ALLOW
        || found.revision != endpoint.head_revision
        || flags & (seen | ct::FLOW_PENDING | ct::FLOW_PEER_UNKNOWN) != seen
    {
        return (Outcome::Read, Some(entry));
    }
    if matches!(hook, Hook::ToPod) {
        let by = env.ingress_ifindex();
        let unmarked = flags & ct::FLOW_ARRIVES_MARKED != 0 && carried == KIND_NONE;
        if found.arrives_by != by.wrapping_add(1) || unmarked && by != 0 {
            return (Outcome::Read, Some(entry));
        }
    }
    if let Some(row) = row {
        recent::add_up(env, s, found, row);
    }
    let another = found.last_ns == now_ns;
    if found.last_ns < now_ns {
        let idle_ns = now_ns - found.last_ns;
        let unflushed_ns = now_ns.saturating_sub(found.flushed_ns);
        if idle_ns > flow::timeout_ns(env.config(), s.packet.protocol, found) || unflushed_ns >= env.config().flush_ns {
            return (Outcome::Read, Some(entry));
        }
        found.last_ns = now_ns;
    }
    let (packets, bytes) = if original {
        (&raw mut found.packets[0], &raw mut found.bytes[0])
    } else {
        (&raw mut found.packets[1], &raw mut found.bytes[1])
    };
    env.add(packets, u64::from(env.segments()));
    env.add(bytes, u64::from(s.packet.bytes));
    // One that comes alone in its tick is better off without.
    if another && let Some(row) = row {
        recent::keep(env, hook, s, found, row, generation);
    }
    env.count(stats::ALLOWED_ESTABLISHED);
    marked(env, hook)
}

/// Lets a packet go on that is counted.
#[inline(always)]
fn marked<E: Env>(env: &E, hook: Hook) -> Judged {
    if matches!(hook, Hook::FromPod) {
        env.set_mark(mark::with(env.config(), env.mark(), KIND_POD, 0));
    }
    (Outcome::Passes, None)
}
