//! What leaves and enters the node by devices that are no pod's, and what local processes receive.
//!
//! Invariant: nothing is dropped here but what a pod sent: on the verdict of its egress, or because that cannot be
//! told any more. The program for local processes runs for those in pods too, where interfaces have other numbers: what
//! it drops without a valid slot shows by its addresses that it is the node's.

use crate::env::{Action, Env, Hook};
use crate::flow;
use crate::fragment::ports_of_fragment;
use crate::judge;
use crate::mark::{self, KIND_LOST};
use crate::parse::{self, ETHERNET_BYTES, FRAGMENT_LATER, Kind};
use crate::pending;
use crate::walk::{self, Scratch};
use crate::words;
use reeve_abi::address::{OWNER_HOST, OWNER_LOCAL_POD};
use reeve_abi::ids::WorkloadId;
use reeve_abi::mark::{KIND_CLIENT, KIND_NONE, KIND_PENDING, KIND_POD};
use reeve_abi::service::ServiceKey;
use reeve_abi::{decision, stats};

/// Interface index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// Who is asked after this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Others: for us the packet has left.
    Others,
    /// Perhaps this program again, which then stands there twice while its place is put in order.
    Ourselves,
}

/// A packet leaves by a device that is no pod's, after address translation.
#[inline(always)]
pub fn leaving<E: Env>(env: &E, s: &mut Scratch, next: Next) -> Action {
    let (kind, _) = mark::read(env.config(), env.mark());
    let by = env.ingress_ifindex();
    if kind == KIND_NONE && by == 0 {
        return Action::Continue;
    }
    // A mark on what was made here does not count: it is a process's own.
    if by != 0 && kind == KIND_POD && next == Next::Ourselves {
        return Action::Continue;
    }
    if by == 0 || kind == KIND_POD || (kind != KIND_PENDING && !mark::from_pod(env, by)) {
        mark::clear(env);
        return Action::Continue;
    }
    if env.endpoint_flags(env.ifindex()).is_some() {
        return Action::Continue; // it reaches a pod here, whose own program judges
    }
    let header = env.device(env.ifindex()).map_or(ETHERNET_BYTES, |device| device.header_bytes);
    if judged(env, Hook::Uplink, header, s) == 0 {
        return Action::Drop;
    }
    match next {
        Next::Others => mark::clear(env),
        // Without any mark it would be taken for a packet whose mark was lost.
        Next::Ourselves => env.set_mark(mark::with(env.config(), env.mark(), KIND_POD, 0)),
    }
    Action::Continue
}

/// A local process receives a packet, which begins with its IP header.
#[inline(always)]
pub fn received<E: Env>(env: &E, s: &mut Scratch) -> Action {
    let by = env.ingress_ifindex();
    if by == 0 || by == LOOPBACK {
        return Action::Continue;
    }
    let (kind, _) = mark::read(env.config(), env.mark());
    if kind == KIND_POD || (kind != KIND_PENDING && !mark::from_pod(env, by)) {
        return Action::Continue;
    }
    if judged(env, Hook::HostIn, 0, s) == 1 { Action::Continue } else { Action::Drop }
}

/// A packet enters the node by a device that is no pod's, before address translation.
#[inline(always)]
pub fn entering<E: Env>(env: &E, s: &mut Scratch) -> Action {
    let marked = mark::with(env.config(), env.mark(), KIND_NONE, 0) != env.mark();
    let header = env.device(env.ifindex()).map_or(ETHERNET_BYTES, |device| device.header_bytes);
    let to_service = parse::behind(env, header, &mut s.packet) == Kind::Ip
        && s.packet.has_ports()
        && s.packet.fragment != FRAGMENT_LATER
        && env
            .service(&ServiceKey {
                address: s.packet.destination,
                port: u32::from(s.packet.destination_port),
                protocol: u32::from(s.packet.protocol),
            })
            .is_some();
    if (!marked && !to_service) || env.endpoint_flags(env.ifindex()).is_some() {
        return Action::Continue; // a pod's device has a program that marks
    }
    if to_service {
        s.key = flow::key(WorkloadId(0), Hook::FromPod, &s.packet);
        mark::put(env, s, KIND_CLIENT);
        env.count(stats::CLIENT_NOTED);
    } else {
        mark::clear(env);
        env.count(stats::MARK_CLEARED);
    }
    Action::Continue
}

/// Judges what a pod sent; 1: it goes on.
#[inline(always)]
fn judged<E: Env>(env: &E, hook: Hook, header: u32, s: &mut Scratch) -> u32 {
    walk::begin(env, s);
    words::zero(&mut s.peer);
    words::zero(&mut s.seen);
    s.replaces = 0;
    s.to_itself = 0;
    match parse::behind(env, header, &mut s.packet) {
        Kind::Ip => {}
        // Sockets get nothing else; what is not read there is no pending packet of a pod.
        Kind::Arp | Kind::NotIp | Kind::Malformed if matches!(hook, Hook::HostIn) => return 1,
        Kind::Arp | Kind::NotIp | Kind::Malformed => {
            env.count(stats::MARK_LOST);
            return 0;
        }
    }
    if s.packet.fragment != 0
        && matches!(hook, Hook::Uplink)
        && let Some(reason) = ports_of_fragment(env, hook, s)
    {
        return pending::refuse_sender(env, hook, s, reason);
    }
    s.carried = mark::resolve(env, s);
    if s.carried == KIND_PENDING {
        return pending::settle(env, hook, s);
    }
    let by = env.ingress_ifindex();
    let lost = match hook {
        Hook::HostIn if s.carried == KIND_LOST => judge::peer(env, &s.packet.destination).owner != OWNER_LOCAL_POD,
        Hook::HostIn => {
            let source = judge::peer(env, &s.packet.source);
            source.owner == OWNER_LOCAL_POD
                && (source.device == by || source.bridge == by)
                && judge::peer(env, &s.packet.destination).owner == OWNER_HOST
        }
        _ => s.carried == KIND_LOST || mark::from_pod(env, by),
    };
    if lost {
        return pending::refuse_sender(env, hook, s, decision::MARK_LOST);
    }
    1 // the mark was somebody else's
}
