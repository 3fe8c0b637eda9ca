//! Flows of which this CPU has just let packets through: further ones like them are let through and counted here, without
//! a look at the flow's entry.
//!
//! Invariant: lets through, until the next tick and while no endpoint changes, what differs in nothing that was looked at
//! from a packet that was let through; whoever ends, judges or tells of a flow on this CPU has its counts before; and what
//! was counted here belongs to the decision that it was let through by.

use crate::env::{Env, Hook};
use crate::mark;
use crate::parse::Packet;
use crate::scratch::Scratch;
use crate::tell;
use crate::words::zero;
use core::ptr::NonNull;
use reeve_abi::address::Address;
use reeve_abi::conntrack::FlowValue;
use reeve_abi::endpoint::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use reeve_abi::policy::VERDICT_ALLOW;
use reeve_abi::recent::{RECENT_PLACES, RecentValue};
use reeve_abi::stats;

/// What tells a flow at one interface, as a packet of TCP or UDP shows it.
#[derive(Clone, Copy)]
struct Ends<'a> {
    local: &'a Address,
    remote: &'a Address,
    ports: u32,
}

#[inline(always)]
fn ends(hook: Hook, packet: &Packet) -> Ends<'_> {
    let (source, destination) = (u32::from(packet.source_port), u32::from(packet.destination_port));
    match hook {
        Hook::ToPod => Ends { local: &packet.destination, remote: &packet.source, ports: destination << 16 | source },
        _ => Ends { local: &packet.source, remote: &packet.destination, ports: source << 16 | destination },
    }
}

/// Where this CPU keeps a flow, if it does.
#[inline(always)]
fn place<E: Env>(env: &E, remote: &Address, ports: u32) -> Option<NonNull<RecentValue>> {
    let mixed = (u64::from(remote.words()[3]) << 32 | u64::from(ports)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let place = (mixed >> 40) as u32 & (RECENT_PLACES - 1);
    env.recent(env.cpu() * RECENT_PLACES + place)
}

/// Lets the packet of `s` through if it is like others of this tick, and counts it; and the row where its flow would be.
#[inline(always)]
pub(crate) fn passes<E: Env>(env: &E, hook: Hook, s: &Scratch) -> (bool, Option<NonNull<RecentValue>>) {
    let Ends { local, remote, ports } = ends(hook, &s.packet);
    let Some(found) = place(env, remote, ports) else { return (false, None) };
    let (row, way) = (found.as_ptr(), hook.direction());
    // SAFETY: valid for the run of the program (`Env`); what is read here only this CPU writes.
    unsafe {
        let same = (*row).key.ports == ports
            && (*row).key.protocol == u32::from(s.packet.protocol)
            && (*row).ifindex == env.ifindex()
            && (*row).key.remote == *remote
            && (*row).local == *local
            && (*row).ways & 1 << way != 0;
        if !same || (*row).ticks != env.ticks() || (*row).generation != env.generation() {
            return (false, Some(found));
        }
        if matches!(hook, Hook::ToPod) {
            let (carried, _) = mark::read(env.config(), env.mark());
            if (*row).carried != carried || (*row).arrives_by != env.ingress_ifindex() {
                return (false, Some(found));
            }
        }
        let (packets, bytes) = (&raw mut (*row).packets[way as usize], &raw mut (*row).bytes[way as usize]);
        // Who adds them up reads them meanwhile: each is written once.
        packets.write_volatile((*packets).wrapping_add(u64::from(env.segments())));
        bytes.write_volatile((*bytes).wrapping_add(u64::from(s.packet.bytes)));
        let frames = &raw mut (*row).frames;
        frames.write_volatile((*frames).wrapping_add(1));
    }
    (true, Some(found))
}

/// Lets further packets of this tick through that are like the one of `s`, which `flow` has let through. `generation`: as
/// it stood before anything was looked at; what the agent has written since then, the next packet is to see.
#[inline(always)]
pub(crate) fn keep<E: Env>(
    env: &E,
    hook: Hook,
    s: &Scratch,
    flow: &FlowValue,
    found: NonNull<RecentValue>,
    generation: u64,
) {
    let (row, ticks) = (found.as_ptr(), s.ticks);
    // SAFETY: valid for the run of the program (`Env`); this CPU alone writes it, while it holds it.
    unsafe {
        let same = (*row).key == s.key && is_of(row, flow);
        let others = !same && (*row).ticks == ticks;
        if others || env.swap(&raw mut (*row).held, 1) != 0 {
            return;
        }
        if !same && !add_to_flow(env, row) {
            release(env, row);
            return;
        }
        if !same || (*row).ticks != ticks || (*row).generation != generation {
            (*row).key = s.key;
            (*row).local = if matches!(hook, Hook::ToPod) { s.packet.destination } else { s.packet.source };
            (*row).ticks = ticks;
            (*row).generation = generation;
            (*row).ifindex = env.ifindex();
            (*row).ways = 0;
            (*row).first_ns = flow.first_ns;
            (*row).decision = flow.decision;
            (*row).revision = flow.revision;
            (*row).peer_workload = flow.peer_workload;
            (*row).peer_identity = flow.peer_identity;
            (*row).own_identity = flow.own_identity;
            (*row).direction = flow.direction;
            (*row).port = flow.port;
        }
        (*row).ways |= 1 << hook.direction();
        if matches!(hook, Hook::ToPod) {
            (*row).arrives_by = env.ingress_ifindex();
            (*row).carried = mark::read(env.config(), env.mark()).0;
        }
        release(env, row);
    }
}

/// Adds to `flow`, which is that of `s.key`, what this CPU has counted of it, if anything.
#[inline(always)]
pub(crate) fn add_up<E: Env>(env: &E, s: &Scratch, flow: &mut FlowValue, found: NonNull<RecentValue>) {
    let row = found.as_ptr();
    // SAFETY: as in `keep`.
    unsafe {
        if (*row).key != s.key || !owes(row) || !is_of(row, flow) || env.swap(&raw mut (*row).held, 1) != 0 {
            return;
        }
        add(env, row, flow);
        release(env, row);
    }
}

/// The same for whoever has not looked for the row, and looks closer at the flow: the next packet of it is to be looked at
/// as well.
#[inline(never)]
pub(crate) fn look_and_add_up<E: Env>(env: &E, s: &Scratch, flow: &mut FlowValue) -> u32 {
    if let Some(found) = place(env, &s.key.remote, s.key.ports) {
        add_up(env, s, flow, found);
        let row = found.as_ptr();
        // SAFETY: as in `keep`; nobody but this CPU reads or writes `ways`.
        unsafe {
            if (*row).key == s.key {
                (*row).ways = 0;
            }
        }
    }
    0
}

/// Adds up what one row has counted, which may be another CPU's: to its flow or, if that is no more what it was, to the
/// edge. Which row, is the packet's mark; it is raised, so that the next run of the program sees to the next one.
#[inline(always)]
pub fn settle<E: Env>(env: &E, s: &mut Scratch) {
    let number = env.mark();
    env.set_mark(number.wrapping_add(1));
    let Some(found) = env.recent(number) else { return };
    let row = found.as_ptr();
    // SAFETY: valid for the run of the program (`Env`). Its CPU goes on counting, but changes nothing else of a row that
    // is held.
    unsafe {
        if !owes(row) || env.swap(&raw mut (*row).held, 1) != 0 {
            return;
        }
        if !add_to_flow(env, row) {
            s.now_ns = env.now_ns();
            s.key = (*row).key;
            s.endpoint.workload = s.key.workload;
            s.packet.protocol = (s.key.protocol & 0xff) as u8;
            count_frames(env, row);
            describe(row, &mut s.flow);
            tell::edge(env, s, 0);
        }
        release(env, row);
    }
}

/// The flow that a row is of, as far as the row knows it, with what it has counted that nobody has added up yet.
pub fn owed(row: &RecentValue) -> FlowValue {
    let (mut row, mut flow) = (*row, FlowValue::default());
    // SAFETY: a copy of our own.
    unsafe { describe(&raw mut row, &mut flow) };
    flow
}

/// Makes `flow` that which a row is of that is held, with what it has counted; it counts as added up from here on. Field by
/// field: a value made whole would lie on the stack first.
///
/// # Safety
///
/// As for [`add_to_flow`].
#[inline(always)]
unsafe fn describe(row: *mut RecentValue, flow: &mut FlowValue) {
    zero(flow);
    // SAFETY: says the caller.
    unsafe {
        flow.verdict = VERDICT_ALLOW;
        flow.decision = (*row).decision;
        flow.revision = (*row).revision;
        flow.peer_workload = (*row).peer_workload;
        flow.peer_identity = (*row).peer_identity;
        flow.own_identity = (*row).own_identity;
        flow.first_ns = (*row).first_ns;
        flow.direction = (*row).direction;
        flow.port = (*row).port;
        let counted = take(row);
        flow.packets = [counted[0], counted[1]];
        flow.bytes = [counted[2], counted[3]];
    }
}

/// Whether the row is of this very flow, still decided by whom it was when the row was filled.
///
/// # Safety
///
/// `row` points to a row.
#[inline(always)]
unsafe fn is_of(row: *const RecentValue, flow: &FlowValue) -> bool {
    // SAFETY: says the caller.
    unsafe { (*row).first_ns == flow.first_ns && (*row).decision == flow.decision && flow.verdict == VERDICT_ALLOW }
}

/// Whether the row has counted what nobody has added up yet. Whoever adds up while its CPU counts may have seen the packets
/// of a frame and not yet its bytes: so each counter is asked.
///
/// # Safety
///
/// As for [`is_of`].
#[inline(always)]
unsafe fn owes(row: *const RecentValue) -> bool {
    // SAFETY: says the caller.
    unsafe {
        ((*row).packets[0] ^ (*row).added_packets[0])
            | ((*row).packets[1] ^ (*row).added_packets[1])
            | ((*row).bytes[0] ^ (*row).added_bytes[0])
            | ((*row).bytes[1] ^ (*row).added_bytes[1])
            | ((*row).frames ^ (*row).added_frames)
            != 0
    }
}

/// Adds up what a row has counted that is held, if the flow is there; false: it is not, and the row owes something.
///
/// # Safety
///
/// As for [`is_of`], and the caller holds it.
#[inline(always)]
unsafe fn add_to_flow<E: Env>(env: &E, row: *mut RecentValue) -> bool {
    // SAFETY: says the caller; the flow is valid for the run of the program (`Env`).
    unsafe {
        if !owes(row) {
            return true;
        }
        match env.flow(&(*row).key) {
            Some(flow) if is_of(row, &*flow.as_ptr()) => {
                add(env, row, &mut *flow.as_ptr());
                true
            }
            _ => false,
        }
    }
}

/// Adds what a row has counted that is held to its flow.
///
/// # Safety
///
/// As for [`add_to_flow`].
#[inline(always)]
unsafe fn add<E: Env>(env: &E, row: *mut RecentValue, flow: &mut FlowValue) {
    // SAFETY: says the caller.
    let counted = unsafe {
        count_frames(env, row);
        take(row)
    };
    env.add(&raw mut flow.packets[0], counted[0]);
    env.add(&raw mut flow.packets[1], counted[1]);
    env.add(&raw mut flow.bytes[0], counted[2]);
    env.add(&raw mut flow.bytes[1], counted[3]);
}

/// What a row has counted that nobody has added up yet, packets and bytes in the flow's direction and back; it counts as
/// added up from here on.
///
/// # Safety
///
/// As for [`add_to_flow`].
#[inline(always)]
unsafe fn take(row: *mut RecentValue) -> [u64; 4] {
    // SAFETY: says the caller. Its CPU may go on counting: each is read once.
    unsafe {
        let packets = [(&raw const (*row).packets[0]).read_volatile(), (&raw const (*row).packets[1]).read_volatile()];
        let bytes = [(&raw const (*row).bytes[0]).read_volatile(), (&raw const (*row).bytes[1]).read_volatile()];
        let (to_pod, from_pod) = (
            [packets[0].wrapping_sub((*row).added_packets[0]), bytes[0].wrapping_sub((*row).added_bytes[0])],
            [packets[1].wrapping_sub((*row).added_packets[1]), bytes[1].wrapping_sub((*row).added_bytes[1])],
        );
        (*row).added_packets = packets;
        (*row).added_bytes = bytes;
        let (there, back) = if (*row).direction == DIRECTION_EGRESS { (from_pod, to_pod) } else { (to_pod, from_pod) };
        [there[0], back[0], there[1], back[1]]
    }
}

/// Has `STATS` know of the frames that a row has counted that is held.
///
/// # Safety
///
/// As for [`add_to_flow`].
#[inline(always)]
unsafe fn count_frames<E: Env>(env: &E, row: *mut RecentValue) {
    // SAFETY: says the caller; read once, as in `take`.
    unsafe {
        let frames = (&raw const (*row).frames).read_volatile();
        env.count_more(stats::ALLOWED_ESTABLISHED, frames.wrapping_sub((*row).added_frames));
        (*row).added_frames = frames;
    }
}

/// Lets go of a row.
///
/// # Safety
///
/// As for [`add_to_flow`].
#[inline(always)]
unsafe fn release<E: Env>(env: &E, row: *mut RecentValue) {
    // SAFETY: says the caller. An exchange, so that nobody sees the row free before it is whole.
    env.swap(unsafe { &raw mut (*row).held }, 0);
}

const _: () = assert!(DIRECTION_INGRESS == 0 && DIRECTION_EGRESS == 1);
