//! The mark that a packet carries through the node's stack, and the slot in which its first hook noted what it saw.
//!
//! Invariant: a mark counts only on a packet that came in by the interface (or its bridge) where it was put on, and a
//! slot only for a packet that has what the slot's check was made of.

use crate::env::Env;
use crate::parse::{FRAGMENT_LATER, Packet, protocol};
use crate::walk::Scratch;
use reeve_abi::config::Config;
use reeve_abi::device::DEVICE_POD_BRIDGE;
use reeve_abi::endpoint::ENDPOINT_MARKS;
use reeve_abi::ids::WorkloadId;
use reeve_abi::mark::{KIND_BITS, KIND_CLIENT, KIND_NONE, KIND_PENDING, KIND_POD, MASK, SLOT_BITS, SLOTS, SlotValue};

/// Beside the `KIND_*`: from a pod, pending, and its slot speaks of another packet by now.
pub const KIND_LOST: u32 = 1 << KIND_BITS;

/// Kind and slot of a mark.
#[inline(always)]
pub fn read(config: &Config, mark: u32) -> (u32, u32) {
    let bits = mark >> (config.mark_shift & 31) & MASK;
    (bits >> SLOT_BITS, bits & (SLOTS - 1))
}

/// A mark with our bits replaced.
#[inline(always)]
pub fn with(config: &Config, mark: u32, kind: u32, slot: u32) -> u32 {
    let shift = config.mark_shift & 31;
    mark & !(MASK << shift) | (kind << SLOT_BITS | slot & (SLOTS - 1)) << shift
}

/// Takes our bits off the packet.
#[inline(always)]
pub fn clear<E: Env>(env: &E) {
    env.set_mark(with(env.config(), env.mark(), KIND_NONE, 0));
}

/// Notes the packet of `s` as it came in at this interface, and marks it.
#[inline(never)]
pub fn put<E: Env>(env: &E, s: &mut Scratch, kind: u32) -> u32 {
    let turns = env.config().slots_per_cpu;
    s.next_slot = s.next_slot.wrapping_add(1);
    let number = env.cpu().wrapping_mul(turns).wrapping_add(s.next_slot & turns.wrapping_sub(1)) & (SLOTS - 1);
    let check = check(env, &s.packet);
    s.slot = SlotValue {
        head_check: check,
        ifindex: env.ifindex(),
        bridge: if kind == KIND_PENDING { s.endpoint.bridge } else { 0 },
        kind,
        workload: if kind == KIND_PENDING { s.endpoint.workload } else { WorkloadId(0) },
        source: s.packet.source,
        destination: s.packet.destination,
        ports: s.key.ports,
        protocol: s.key.protocol,
        reserved: 0,
        tail_check: check,
    };
    if let Some(slot) = env.slot(number) {
        let slot = slot.as_ptr();
        // SAFETY: valid for the run of the program (`Env`). A reader on another CPU believes it only with both checks.
        unsafe {
            (&raw mut (*slot).head_check).write_volatile(0);
            (&raw mut (*slot).tail_check).write_volatile(0);
            (*slot).ifindex = s.slot.ifindex;
            (*slot).bridge = s.slot.bridge;
            (*slot).kind = kind;
            (*slot).workload = s.slot.workload;
            (*slot).source = s.slot.source;
            (*slot).destination = s.slot.destination;
            (*slot).ports = s.slot.ports;
            (*slot).protocol = s.slot.protocol;
            (&raw mut (*slot).tail_check).write_volatile(check);
            (&raw mut (*slot).head_check).write_volatile(check);
        }
    }
    env.set_mark(with(env.config(), env.mark(), kind, number));
    0
}

/// What the packet's mark counts for, here: a `KIND_*` or [`KIND_LOST`]. With a slot, `s.slot` is it.
#[inline(never)]
pub fn resolve<E: Env>(env: &E, s: &mut Scratch) -> u32 {
    let (kind, number) = read(env.config(), env.mark());
    let by = env.ingress_ifindex();
    if by == 0 || kind == KIND_NONE {
        return KIND_NONE; // nothing that was made here came in by a pod's device
    }
    if kind == KIND_POD {
        return KIND_POD;
    }
    if let Some(slot) = env.slot(number) {
        let later = s.packet.fragment == FRAGMENT_LATER;
        let check = if later { 0 } else { check(env, &s.packet) };
        // SAFETY: valid for the run of the program (`Env`); another CPU may write it meanwhile, which the checks tell.
        unsafe {
            let slot = slot.as_ptr();
            let head = (&raw const (*slot).head_check).read_volatile();
            s.slot = *slot;
            let tail = (&raw const (*slot).tail_check).read_volatile();
            s.slot.head_check = head;
            s.slot.tail_check = tail;
        }
        let whole = s.slot.head_check == s.slot.tail_check && s.slot.head_check != 0;
        let here = s.slot.ifindex == by || s.slot.bridge == by;
        let same = s.slot.protocol & 0xff == u32::from(s.packet.protocol) && (later || s.slot.head_check == check);
        if whole && here && same && s.slot.kind == kind {
            return kind;
        }
    }
    if kind == KIND_PENDING && from_pod(env, by) { KIND_LOST } else { KIND_NONE }
}

/// Whether everything that comes in by this interface is a pod's and carries a mark.
///
/// Every socket of the node and its pods asks, for each packet: it is looked up once for each `GENERATION`.
#[inline(always)]
pub fn from_pod<E: Env>(env: &E, ifindex: u32) -> bool {
    if ifindex == 0 {
        return false;
    }
    // Before the look: what it finds is at least as new.
    let generation = env.generation();
    let Some(near) = env.near(ifindex) else { return look(env, ifindex) };
    // SAFETY: valid for the run of the program (`Env`), and this CPU's own.
    let near = unsafe { &mut *near.as_ptr() };
    if near.looked_generation != generation || near.looked_ifindex != ifindex {
        near.arrives_marked = u32::from(look(env, ifindex));
        near.looked_generation = generation;
        near.looked_ifindex = ifindex;
    }
    near.arrives_marked == 1
}

/// The same, from the tables.
#[inline(always)]
fn look<E: Env>(env: &E, ifindex: u32) -> bool {
    if let Some(device) = env.device(ifindex) {
        return device.kind == DEVICE_POD_BRIDGE;
    }
    env.endpoint_flags(ifindex).is_some_and(|flags| flags & ENDPOINT_MARKS != 0)
}

/// Whether `carried` has a slot.
#[inline(always)]
pub fn has_slot(carried: u32) -> bool {
    carried == KIND_PENDING || carried == KIND_CLIENT
}

/// A number made of what routing and address translation leave alone; never 0.
#[inline(always)]
fn check<E: Env>(env: &E, packet: &Packet) -> u32 {
    let at = packet.l4_offset;
    let (mut a, mut b) = ([0u8; 4], [0u8; 4]);
    // What is not there stays 0.
    let _ = match packet.protocol {
        // Sequence and acknowledgement.
        protocol::TCP => env.load(at + 4, &mut a) && env.load(at + 8, &mut b),
        // Length; the first bytes of the payload.
        protocol::UDP => {
            env.load(at + 4, &mut a);
            a[2] = 0; // the checksum changes with the addresses
            a[3] = 0;
            at + 12 <= packet.end && env.load(at + 8, &mut b)
        }
        // The verification tag.
        protocol::SCTP => env.load(at + 4, &mut a),
        // The sequence number of an echo, the first bytes of its payload; an identifier may be translated.
        protocol::ICMP | protocol::ICMPV6 => {
            env.load(at + 4, &mut a);
            a[0] = 0;
            a[1] = 0;
            at + 12 <= packet.end && env.load(at + 8, &mut b)
        }
        _ => at + 4 <= packet.end && env.load(at, &mut a),
    };
    // Reassembly takes IPv6's identification away with its header.
    let id = if packet.v6 == 1 { 0 } else { packet.identification };
    let (a, b) = (u32::from_ne_bytes(a), u32::from_ne_bytes(b));
    let mixed = (a ^ b.rotate_left(13)).wrapping_mul(0x9e37_79b1) ^ id.wrapping_mul(0x85eb_ca6b);
    mixed ^ mixed >> 15 | 1
}

const _: () = assert!(SLOT_BITS + KIND_BITS <= 16);
