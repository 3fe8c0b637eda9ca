//! The walk of one packet through the pod's interface: endpoint, headers, flow, verdict.
//!
//! Invariant: a packet that the walk does not understand, or whose state it cannot read whole, is dropped; a frame of
//! an interface without endpoint is not ours and goes on.

use crate::budget;
use crate::decide;
use crate::env::{Action, Env, Hook};
use crate::express::{self, Judged, Outcome};
use crate::flow;
use crate::fragment::ports_of_fragment;
use crate::judge::{self, Peer, Ruling};
use crate::mark::{self, KIND_LOST};
use crate::neighbour::{self, Finding};
use crate::parse::{self, FRAGMENT_LATER, Kind, Packet};
use crate::pending;
use crate::recent;
use crate::refusal;
use crate::tell;
use crate::words::{copy, zero};
use reeve_abi::address::{Address, OWNER_HOST, OWNER_LOCAL_POD};
use reeve_abi::conntrack::{self as ct, DeniedValue, FlowKey, FlowValue};
use reeve_abi::endpoint::{
    DIRECTION_EGRESS, DIRECTION_INGRESS, ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6, NearValue,
};
use reeve_abi::ids::DecisionId;
use reeve_abi::mark::{KIND_CLIENT, KIND_NONE, KIND_PENDING, KIND_POD};
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};
use reeve_abi::{decision, event, stats};

pub use crate::scratch::{Rewritten, Scratch};

/// How often a torn endpoint is read again before the packet is dropped.
const ENDPOINT_RETRIES: u32 = 2;

/// Judges one frame at a pod's interface, and marks what the pod sends.
#[inline(always)]
pub fn run<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> Action {
    let judged = express::judge(env, hook, s);
    if judged.0 == Outcome::Passes {
        return Action::Continue;
    }
    s.stamp = KIND_NONE;
    let action = walk(env, hook, s, judged);
    if matches!(hook, Hook::FromPod) && matches!(action, Action::Continue) {
        if s.stamp == KIND_PENDING {
            mark::put(env, s, KIND_PENDING);
        } else if s.stamp == KIND_POD {
            env.set_mark(mark::with(env.config(), env.mark(), KIND_POD, 0));
        }
    }
    action
}

#[inline(always)]
fn walk<E: Env>(env: &E, hook: Hook, s: &mut Scratch, (outcome, found): Judged) -> Action {
    match read_endpoint(env, env.ifindex(), s) {
        Some(true) => {}
        Some(false) => {
            env.count(stats::NO_ENDPOINT);
            return Action::Continue;
        }
        None => {
            env.count(stats::INCONSISTENT);
            return Action::Drop;
        }
    }
    // What was found belongs to the pod that the device was of then; and what comes to a pod may be another flow's by the
    // time that its mark is looked at.
    let same = matches!(hook, Hook::FromPod) && s.key.workload == s.endpoint.workload;
    let found = if same { found } else { None };
    begin(env, s);
    zero(&mut s.peer);
    s.replaces = 0;
    s.to_itself = 0;
    s.carried = KIND_NONE;
    s.stamp = KIND_POD;
    zero(&mut s.seen);
    let kind = match outcome {
        Outcome::Passes | Outcome::Unusual => parse::behind(env, parse::ETHERNET_BYTES, &mut s.packet),
        Outcome::Read => Kind::Ip,
    };
    match kind {
        Kind::Ip => {}
        Kind::Arp => return discovered(env, hook, s, neighbour::arp(hook, &s.endpoint, &s.packet)),
        Kind::NotIp => {
            env.count(stats::NOT_IP);
            return Action::Drop;
        }
        Kind::Malformed => {
            env.count(stats::MALFORMED);
            s.key = FlowKey { workload: s.endpoint.workload, ..FlowKey::default() };
            s.packet = Packet::default();
            return refuse(env, hook, s, decision::MALFORMED_PACKET);
        }
    }
    match neighbour::discovery(env, hook, &s.endpoint, &s.packet) {
        Finding::Other => {}
        finding => return discovered(env, hook, s, finding),
    }
    s.key = flow::key(s.endpoint.workload, hook, &s.packet);
    let contested = if s.packet.v6 == 1 { ENDPOINT_CONTESTED_V6 } else { ENDPOINT_CONTESTED_V4 };
    if s.endpoint.flags & contested != 0 {
        return refuse(env, hook, s, decision::CONTESTED_ADDRESS);
    }
    if matches!(hook, Hook::FromPod) {
        let own = if s.packet.v6 == 1 { s.endpoint.address_v6 } else { s.endpoint.address_v4 };
        if s.packet.source != own || own == Address::default() {
            return refuse(env, hook, s, decision::SPOOFED_SOURCE);
        }
    }
    // After the source: a first fragment in another pod's name must not say what that pod's later ones are.
    if s.packet.fragment != 0 {
        if let Some(reason) = ports_of_fragment(env, hook, s) {
            return refuse(env, hook, s, reason);
        }
        s.key = flow::key(s.endpoint.workload, hook, &s.packet);
    }
    if matches!(hook, Hook::ToPod) {
        let (kind, _) = mark::read(env.config(), env.mark());
        s.carried = if kind == KIND_PENDING || kind == KIND_CLIENT { mark::resolve(env, s) } else { kind };
        if s.carried == KIND_PENDING {
            if pending::settle(env, Hook::Reached, s) == 0 {
                return Action::Drop;
            }
            if read_endpoint(env, env.ifindex(), s) != Some(true) {
                env.count(stats::INCONSISTENT);
                return Action::Drop;
            }
            zero(&mut s.peer);
            s.replaces = 0;
            zero(&mut s.seen);
        }
        if mark::has_slot(s.carried) {
            let port = s.slot.ports & 0xffff;
            let moved = s.packet.has_ports() && u32::from(s.packet.destination_port) != port;
            if moved || s.packet.destination != s.slot.destination {
                s.seen.service = s.slot.destination;
                s.seen.ports = if s.packet.has_ports() { port } else { 0 };
            }
        }
        s.key = flow::key(s.endpoint.workload, hook, &s.packet);
        if s.carried == KIND_LOST {
            return lost(env, hook, s);
        }
    }
    // What a later fragment carries is payload, also where a quoted packet would stand.
    let quotes = s.packet.fragment != FRAGMENT_LATER && s.packet.is_icmp() && flow::icmp_error(&s.packet);
    if quotes && let Some(action) = related(env, hook, s) {
        return action;
    }
    if let Some(found) = found.or_else(|| env.flow(&s.key)) {
        // SAFETY: valid for the run of the program (`Env`).
        let found = unsafe { &mut *found.as_ptr() };
        recent::look_and_add_up(env, s, found);
        if let Some(action) = known(env, hook, s, found) {
            return action;
        }
    }
    if miss(env, hook, s) == 1 { Action::Continue } else { Action::Drop }
}

/// Notes the moment at which a packet is judged.
///
/// The address epoch is read before any address is looked up: one that becomes known in between must find the flow that
/// missed it under the epoch of before.
#[inline(always)]
pub(crate) fn begin<E: Env>(env: &E, s: &mut Scratch) {
    s.address_epoch = env.config().address_epoch;
    s.now_ns = tick(env, s);
}

/// The time of the last tick, ns; the clock is looked at once in each.
#[inline(always)]
pub(crate) fn tick<E: Env>(env: &E, s: &mut Scratch) -> u64 {
    let ticks = env.ticks();
    if s.ticks != ticks {
        s.ticks = ticks;
        s.tick_ns = env.tick_ns();
    }
    s.tick_ns
}

/// Copies the endpoint of an interface. `Some(true)`: read whole; `Some(false)`: there is none; `None`: stays torn.
#[inline(always)]
pub(crate) fn read_endpoint<E: Env>(env: &E, ifindex: u32, s: &mut Scratch) -> Option<bool> {
    // Before the table: what is read there is at least as new.
    let generation = env.generation();
    if let Some(near) = near(env, ifindex, generation) {
        copy(&near.endpoint, &mut s.endpoint);
        return Some(true);
    }
    read_far_endpoint(env, ifindex, generation, s)
}

/// What this CPU has kept of an interface's endpoint, if it still counts.
#[inline(always)]
pub(crate) fn near<E: Env>(env: &E, ifindex: u32, generation: u64) -> Option<&NearValue> {
    // SAFETY: valid for the run of the program (`Env`), and this CPU's own.
    let near = unsafe { &*env.near(ifindex)?.as_ptr() };
    (near.generation == generation && near.endpoint.head_ifindex == ifindex).then_some(near)
}

/// See [`read_endpoint`]: from `ENDPOINTS` itself.
#[inline(always)]
fn read_far_endpoint<E: Env>(env: &E, ifindex: u32, generation: u64, s: &mut Scratch) -> Option<bool> {
    let mut tries = 0;
    while tries <= ENDPOINT_RETRIES {
        if !env.endpoint(ifindex, &mut s.endpoint) {
            return Some(false);
        }
        let e = &s.endpoint;
        if e.head_ifindex == ifindex && e.tail_ifindex == ifindex && e.head_revision == e.tail_revision {
            if let Some(near) = env.near(ifindex) {
                // SAFETY: as above.
                let near = unsafe { &mut *near.as_ptr() };
                near.generation = generation;
                copy(&s.endpoint, &mut near.endpoint);
            }
            return Some(true);
        }
        env.count(stats::ENDPOINT_RETRIES);
        tries += 1;
    }
    None
}

#[inline(always)]
fn discovered<E: Env>(env: &E, hook: Hook, s: &mut Scratch, finding: Finding) -> Action {
    if matches!(finding, Finding::Pass) {
        env.count(stats::NEIGHBOUR);
        return Action::Continue;
    }
    env.count(stats::FORGED_NEIGHBOUR);
    s.key = FlowKey { workload: s.endpoint.workload, remote: s.packet.destination, ports: 0, protocol: 0 };
    refuse(env, hook, s, decision::FORGED_NEIGHBOUR)
}

/// What becomes of an ICMP error that quotes a flow of this pod; `None`: none that lives, it is judged on its own.
#[inline(always)]
fn related<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> Option<Action> {
    let at = s.packet.l4_offset + 8;
    let kind = if s.packet.v6 == 1 {
        parse::ipv6(env, at, true, &mut s.quoted)
    } else {
        parse::ipv4(env, at, true, &mut s.quoted)
    };
    if kind != Kind::Ip || s.quoted.fragment == FRAGMENT_LATER {
        return None;
    }
    // The quoted packet went the other way through this interface.
    let (other_way, local) = match hook {
        Hook::FromPod => (Hook::ToPod, s.quoted.destination),
        _ => (Hook::FromPod, s.quoted.source),
    };
    let own = if s.packet.v6 == 1 { s.endpoint.address_v6 } else { s.endpoint.address_v4 };
    if local != own {
        return None;
    }
    let key = flow::key(s.endpoint.workload, other_way, &s.quoted);
    // SAFETY: valid for the run of the program (`Env`); read only.
    let found = unsafe { &*env.flow(&key)?.as_ptr() };
    if s.now_ns.saturating_sub(found.last_ns) > flow::timeout_ns(env.config(), s.quoted.protocol, found) {
        return None;
    }
    if matches!(hook, Hook::ToPod) && found.verdict == flow::VERDICT_PENDING && !flow::too_big(&s.packet) {
        s.key = key;
        if refusal::by_this_node(env, &s.key) {
            return Some(refusal::judge(env, s, refusal::QUOTED));
        }
        s.key = flow::key(s.endpoint.workload, hook, &s.packet);
        return None;
    }
    if found.verdict != VERDICT_ALLOW || found.revision != s.endpoint.head_revision {
        return None;
    }
    env.count(stats::RELATED_ICMP);
    Some(Action::Continue)
}

/// A packet with a flow entry. `None`: the entry does not speak for this packet, judge anew.
#[inline(always)]
pub(crate) fn known<E: Env>(env: &E, hook: Hook, s: &mut Scratch, found: &mut FlowValue) -> Option<Action> {
    let original = found.direction == hook.direction();
    if found.verdict == flow::VERDICT_ENDED {
        return None;
    }
    if s.now_ns.saturating_sub(found.last_ns) > flow::timeout_ns(env.config(), s.packet.protocol, found) {
        ended(env, hook, s, found);
        return None;
    }
    // A SYN from the other side, or on a flow that is over, opens a flow of its own; this one ends if that is allowed.
    let sent_again = matches!(hook, Hook::FromPod) && original && found.verdict == flow::VERDICT_PENDING;
    let over = !original || flow::closing(found.flags) || found.verdict != VERDICT_ALLOW;
    if flow::is_bare_syn(&s.packet) && over && !sent_again {
        s.replaces = 1;
        return None;
    }
    if matches!(hook, Hook::FromPod) && original && found.flags & ct::FLOW_PENDING != 0 {
        if sent_again {
            // Told if this node turns it away; who judges it elsewhere counts there.
            found.last_ns = s.now_ns;
            env.add(&raw mut found.packets[0], u64::from(env.segments()));
            env.add(&raw mut found.bytes[0], u64::from(s.packet.bytes));
        }
        if pending::forward(env, s) == 1 {
            return Some(Action::Continue);
        }
        deny(env, hook, s);
        return Some(Action::Drop);
    }
    if hook.settles() && !pending::same_destination(s, found) {
        s.replaces = 1;
        return None; // nobody has judged it yet, or translation leads elsewhere now
    }
    if matches!(hook, Hook::ToPod) {
        let by = env.ingress_ifindex();
        let from_there = by != 0 && found.arrives_by == by.wrapping_add(1);
        if from_there && found.flags & ct::FLOW_ARRIVES_MARKED != 0 && s.carried == KIND_NONE {
            return Some(lost(env, hook, s));
        }
        if found.verdict == flow::VERDICT_PENDING {
            if flow::is_reset(&s.packet) && refusal::by_this_node(env, &s.key) {
                return Some(refusal::judge(env, s, refusal::ANSWERED));
            }
            return None; // no answer to anything that was judged
        }
        if original && pending::other_client(s, found) {
            s.replaces = 1;
            return None;
        }
    }
    if matches!(hook, Hook::ToPod) && found.arrives_by != env.ingress_ifindex().wrapping_add(1) {
        s.peer = judge::peer(env, &s.key.remote);
        let marked = mark::from_pod(env, env.ingress_ifindex());
        if marked && s.carried == KIND_NONE {
            return Some(lost(env, hook, s));
        }
        if spoofed(env, s) {
            return Some(refuse(env, hook, s, decision::SPOOFED_SOURCE));
        }
        if found.flags & ct::FLOW_OWN_NODE != 0 && !own_node(env, s) {
            s.replaces = 1;
            return None; // what the own node may do, nobody else may in its name
        }
        found.arrives_by = env.ingress_ifindex().wrapping_add(1);
        found.flags = found.flags & !ct::FLOW_ARRIVES_MARKED | if marked { ct::FLOW_ARRIVES_MARKED } else { 0 };
    }
    let fixed = found.flags & ct::FLOW_OWN_NODE != 0;
    let stale_address = found.flags & ct::FLOW_PEER_UNKNOWN != 0 && found.address_epoch != s.address_epoch;
    if (found.revision != s.endpoint.head_revision || stale_address) && !fixed {
        rejudge(env, hook, s, found);
    }
    let way = usize::from(!original);
    let packets = u64::from(env.segments());
    if original || found.verdict == VERDICT_ALLOW || s.packet.protocol == parse::protocol::TCP {
        // What comes back on a cut flow does not keep it alive, or a peer's own datagrams would never be judged.
        found.last_ns = s.now_ns.max(found.last_ns); // a tick may be earlier than the moment of the packet before
    }
    found.flags |= flow::seen(&s.packet, original);
    if way == 0 {
        env.add(&raw mut found.packets[0], packets);
        env.add(&raw mut found.bytes[0], u64::from(s.packet.bytes));
    } else {
        env.add(&raw mut found.packets[1], packets);
        env.add(&raw mut found.bytes[1], u64::from(s.packet.bytes));
    }
    if found.verdict != VERDICT_ALLOW {
        env.count(stats::DENIED_REPEATED);
        if s.now_ns.saturating_sub(found.flushed_ns) >= env.config().deny_report_ns {
            settle(env, s, found);
            report_cut(env, hook, s);
        }
        return Some(Action::Drop);
    }
    if s.now_ns.saturating_sub(found.flushed_ns) >= env.config().flush_ns {
        settle(env, s, found);
        tell::edge(env, s, 0);
    }
    env.count(stats::ALLOWED_ESTABLISHED);
    Some(Action::Continue)
}

/// Copies a flow into `s.flow` with the part of its counters that nobody has flushed, which this CPU flushes next.
///
/// Two CPUs may do so at once: each takes the step from what the other left, be it backwards, so the sum is exact.
#[inline(always)]
fn settle<E: Env>(env: &E, s: &mut Scratch, found: &mut FlowValue) {
    copy(found, &mut s.flow);
    flush(env, s, found);
}

/// The same for a flow that has just been copied.
#[inline(always)]
fn flush<E: Env>(env: &E, s: &mut Scratch, found: &mut FlowValue) {
    found.flushed_ns = s.now_ns;
    s.flow.flushed_packets[0] = env.swap(&raw mut found.flushed_packets[0], s.flow.packets[0]);
    s.flow.flushed_packets[1] = env.swap(&raw mut found.flushed_packets[1], s.flow.packets[1]);
    s.flow.flushed_bytes[0] = env.swap(&raw mut found.flushed_bytes[0], s.flow.bytes[0]);
    s.flow.flushed_bytes[1] = env.swap(&raw mut found.flushed_bytes[1], s.flow.bytes[1]);
}

/// Tells of further packets of a flow that was cut.
#[inline(never)]
fn report_cut<E: Env>(env: &E, hook: Hook, s: &mut Scratch) {
    tell::edge(env, s, 0);
    s.flow.packets = [s.edge.packets[0].wrapping_add(s.edge.packets[1]), 0];
    s.flow.bytes = [s.edge.bytes[0].wrapping_add(s.edge.bytes[1]), 0];
    if s.flow.packets[0] >> 63 != 0 {
        return; // another CPU has told more than this one knows of
    }
    tell::event(env, hook, s, event::EVENT_DENIED, DecisionId(0), event::EVENT_FLAG_CUT);
}

/// Tells, once, that a flow has ended, and counts what is left of it.
#[inline(always)]
fn ended<E: Env>(env: &E, hook: Hook, s: &mut Scratch, found: &mut FlowValue) {
    settle(env, s, found);
    found.verdict = flow::VERDICT_ENDED;
    if s.flow.verdict == flow::VERDICT_PENDING {
        return; // nobody has judged it, so nobody has decided anything that could be told
    }
    tell_ended(env, hook, s);
}

#[inline(never)]
fn tell_ended<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    tell::edge(env, s, 0);
    if s.flow.verdict == VERDICT_ALLOW {
        tell::event(env, hook, s, event::EVENT_CLOSED, DecisionId(0), 0);
    }
    0
}

/// Ends the flow that a new one on the same key takes the place of.
#[inline(always)]
fn replace<E: Env>(env: &E, hook: Hook, s: &mut Scratch) {
    if s.replaces == 0 {
        return;
    }
    if let Some(found) = env.flow(&s.key) {
        // SAFETY: valid for the run of the program (`Env`).
        let found = unsafe { &mut *found.as_ptr() };
        if found.verdict != flow::VERDICT_ENDED {
            recent::look_and_add_up(env, s, found);
            ended(env, hook, s, found);
        }
    }
}

/// Whether a packet to the pod shows the address of a local pod that cannot have sent it this way.
#[inline(always)]
pub(crate) fn spoofed<E: Env>(env: &E, s: &Scratch) -> bool {
    let by = env.ingress_ifindex();
    if s.peer.owner == OWNER_LOCAL_POD {
        return by == 0 || (by != s.peer.device && by != s.peer.bridge);
    }
    by == 0 && judge::is_pod(&s.peer)
}

/// Whether a packet to the pod was made by a process of this node.
#[inline(always)]
pub(crate) fn own_node<E: Env>(env: &E, s: &Scratch) -> bool {
    env.ingress_ifindex() == 0 && s.peer.owner == OWNER_HOST
}

/// The other side of `s.flow` as it is known now.
#[inline(always)]
fn peer_of_flow<E: Env>(env: &E, s: &Scratch) -> Peer {
    let known = s.flow.real != Address::default();
    let address = if known { s.flow.real } else { s.key.remote };
    if s.flow.flags & ct::FLOW_TO_HOST != 0 {
        judge::host(env, &address)
    } else if s.flow.flags & ct::FLOW_MASQUERADED != 0 && !known {
        judge::masqueraded(env, &address)
    } else {
        judge::peer(env, &address)
    }
}

/// Judges a flow again in its original direction, and lets its entry say so; one that cannot be judged now stays what it
/// is. A call of its own, copies and all: its stack is not there while a packet is let through.
#[inline(never)]
fn rejudge<E: Env>(env: &E, hook: Hook, s: &mut Scratch, found: &mut FlowValue) {
    copy(found, &mut s.flow);
    s.peer = peer_of_flow(env, s);
    let mut ruling = judge::rule(
        env,
        &s.endpoint,
        s.flow.direction,
        s.packet.v6,
        &s.peer,
        s.packet.protocol,
        (s.flow.port & 0xffff) as u16,
    );
    if ruling.decision == decision::NOT_READY {
        return; // an endpoint that is being replaced keeps its established flows
    }
    if s.flow.flags & ct::FLOW_SELF != 0 {
        ruling = ruling.between_itself();
    }
    env.count(stats::REJUDGED);
    s.now_ns = env.now_ns();
    let previous = s.flow.decision;
    let was_allowed = s.flow.verdict == VERDICT_ALLOW;
    let changed = previous != ruling.decision;
    if changed {
        // What passed so far belongs to the old decision.
        flush(env, s, found);
        tell::edge(env, s, 0);
    }
    s.flow.decision = ruling.decision;
    s.flow.verdict = ruling.verdict;
    s.flow.revision = s.endpoint.head_revision;
    s.flow.peer_workload = s.peer.workload;
    s.flow.peer_identity = s.peer.identity;
    s.flow.own_identity = s.endpoint.identity;
    s.flow.address_epoch = s.address_epoch;
    s.flow.flags &= !ct::FLOW_PEER_UNKNOWN;
    if s.peer.unknown != 0 {
        s.flow.flags |= ct::FLOW_PEER_UNKNOWN;
    }
    if changed {
        let cut = was_allowed && ruling.verdict != VERDICT_ALLOW;
        let flags = if cut { event::EVENT_FLAG_CUT } else { 0 };
        s.flow.last_ns = s.now_ns;
        tell::event(env, hook, s, event::EVENT_REJUDGED, previous, flags);
    }
    // Not the counters: other CPUs add to them meanwhile.
    found.decision = s.flow.decision;
    found.verdict = s.flow.verdict;
    found.revision = s.flow.revision;
    found.peer_workload = s.flow.peer_workload;
    found.peer_identity = s.flow.peer_identity;
    found.own_identity = s.flow.own_identity;
    found.address_epoch = s.flow.address_epoch;
    found.flags = s.flow.flags;
}

/// Drops what comes from a pod's device and has lost its mark.
#[inline(never)]
fn lost<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> Action {
    env.count(stats::MARK_LOST);
    s.peer = judge::peer(env, &s.key.remote);
    refuse(env, hook, s, decision::MARK_LOST)
}

/// Drops a packet for a reason of the datapath's own, counted and told like any denial.
#[inline(always)]
pub(crate) fn refuse<E: Env>(env: &E, hook: Hook, s: &mut Scratch, by: DecisionId) -> Action {
    s.now_ns = env.now_ns();
    s.ruling = Ruling::deny(by);
    deny(env, hook, s);
    Action::Drop
}

/// Judges a packet without flow; 1: let through, 0: denied and told.
#[inline(always)]
pub(crate) fn miss<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    let let_in = admit(env, hook, s);
    if let_in == 0 {
        deny(env, hook, s);
    }
    let_in
}

/// The same, but for what a denial has to tell: a call of its own, whose stack is not there while that is told.
#[inline(never)]
fn admit<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    s.now_ns = env.now_ns();
    if decide::decide(env, hook, s) == 1 {
        replace(env, hook, s);
        if pending::open(env, s) == 1 {
            return 1;
        }
        return 0;
    }
    let direction = s.flow.direction;
    let judged = s.flow.port;
    let mut flags = s.flow.flags;
    let rewritten = s.seen.service != Address::default();
    if hook.settles() {
        // What nobody received leaves no trace in connection tracking: the next packet may be led elsewhere.
        let led = rewritten || pending::to_group(&s.packet) || matches!(hook, Hook::Refused);
        if direction == DIRECTION_EGRESS && led {
            flags |= ct::FLOW_PENDING;
        } else if rewritten {
            // The pod answers a client whom it knows by another address.
            flags |= ct::FLOW_MASQUERADED;
        }
    }
    if !s.ruling.allows() && hook.settles() {
        // An entry that was never allowed does not stand in the way of what the other side may begin.
        if let Some(found) = env.flow(&s.key) {
            // SAFETY: valid for the run of the program (`Env`).
            let found = unsafe { &mut *found.as_ptr() };
            if found.verdict == flow::VERDICT_PENDING {
                found.verdict = flow::VERDICT_ENDED;
            }
        }
    }
    if !s.ruling.allows() {
        return 0;
    }
    replace(env, hook, s);
    let original = direction == hook.direction();
    let [counted, bytes] = amount(env, hook, s);
    note_ruling(s);
    s.flow.flushed_ns = s.now_ns;
    if original {
        s.flow.packets[0] = counted;
        s.flow.bytes[0] = bytes;
        s.flow.flushed_packets[0] = counted;
        s.flow.flushed_bytes[0] = bytes;
    } else {
        s.flow.packets[1] = counted;
        s.flow.bytes[1] = bytes;
        s.flow.flushed_packets[1] = counted;
        s.flow.flushed_bytes[1] = bytes;
    }
    s.flow.address_epoch = s.address_epoch;
    s.flow.direction = direction;
    s.flow.verdict = VERDICT_ALLOW;
    s.flow.flags = flags | flow::seen(&s.packet, original);
    if s.peer.unknown != 0 {
        s.flow.flags |= ct::FLOW_PEER_UNKNOWN;
    }
    s.flow.port = judged;
    if direction == DIRECTION_INGRESS && original {
        s.flow.arrives_by = env.ingress_ifindex().wrapping_add(1);
    }
    if matches!(hook, Hook::ToPod) && original && mark::from_pod(env, env.ingress_ifindex()) {
        s.flow.flags |= ct::FLOW_ARRIVES_MARKED;
    }
    // One that was sent on to be judged took its room where it was sent.
    let room = hook.settles() || budget::take(env, s.endpoint.workload);
    if !room || !env.put_flow(&s.key, &s.flow) {
        // Without the entry nobody could tell its replies from new flows.
        env.count(stats::FLOWS_LOST);
        s.ruling = Ruling::deny(decision::FLOW_TABLE_FULL);
        return 0;
    }
    // The first packet is told with the flow: `EDGES` has it from here on.
    zero(&mut s.flow.flushed_packets);
    zero(&mut s.flow.flushed_bytes);
    tell::edge(env, s, 1);
    tell::event(env, hook, s, event::EVENT_OPENED, DecisionId(0), flow::began_unseen(&s.packet, hook));
    env.count(stats::ALLOWED_JUDGED);
    1
}

/// Makes `s.flow` tell who was judged, by whom and when. Field by field: a value made whole would lie on the stack first.
#[inline(always)]
fn note_ruling(s: &mut Scratch) {
    zero(&mut s.flow);
    s.flow.decision = s.ruling.decision;
    s.flow.revision = s.endpoint.head_revision;
    s.flow.peer_workload = s.peer.workload;
    s.flow.peer_identity = s.peer.identity;
    s.flow.own_identity = s.endpoint.identity;
    s.flow.first_ns = s.now_ns;
    s.flow.last_ns = s.now_ns;
    s.flow.real = s.seen.real;
    s.flow.service = s.seen.service;
    s.flow.rewritten_ports = s.seen.ports;
}

/// Packets and bytes that a judgement is about.
#[inline(always)]
fn amount<E: Env>(env: &E, hook: Hook, s: &Scratch) -> [u64; 2] {
    if matches!(hook, Hook::Refused) {
        return s.unjudged; // the packet at hand only says that they were turned away
    }
    [u64::from(env.segments()), u64::from(s.packet.bytes)]
}

/// Counts and tells a denial. The tuple is told at most once a second; what was not told is in the next record's count.
#[inline(never)]
pub(crate) fn deny<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    let key = flow::denied_key(&s.key, hook);
    let [counted, bytes] = amount(env, hook, s);
    let mut fresh = 1;
    let mut told_packets = counted;
    let mut told_bytes = bytes;
    let mut tell_now = true;
    note_ruling(s);
    s.flow.direction = hook.direction();
    s.flow.verdict = VERDICT_DENY;
    s.flow.port = u32::from(flow::judged_port(&s.packet));
    if let Some(found) = env.denied(&key) {
        let found = found.as_ptr();
        // SAFETY: valid for the run of the program (`Env`); counters are added to atomically.
        unsafe {
            if (*found).decision == s.ruling.decision && (*found).revision == s.endpoint.head_revision {
                fresh = 0;
                env.add(&raw mut (*found).count, counted);
                env.add(&raw mut (*found).bytes, bytes);
                (*found).last_ns = s.now_ns;
                s.flow.first_ns = (*found).first_ns;
                tell_now = s.now_ns.saturating_sub((*found).reported_ns) >= env.config().deny_report_ns;
                if tell_now {
                    told_packets = (*found).count.wrapping_sub((*found).reported);
                    (*found).reported = (*found).count;
                    (*found).reported_ns = s.now_ns;
                }
            }
        }
    }
    if fresh == 1 {
        s.denied = DeniedValue {
            decision: s.ruling.decision,
            revision: s.endpoint.head_revision,
            peer_workload: s.peer.workload,
            peer_identity: s.peer.identity,
            address_epoch: s.address_epoch,
            count: counted,
            bytes,
            reported: counted,
            first_ns: s.now_ns,
            last_ns: s.now_ns,
            reported_ns: s.now_ns,
        };
        if !env.put_denied(&key, &s.denied) {
            env.count(stats::DENIED_LOST);
        }
        env.count(stats::DENIED_JUDGED);
    } else {
        env.count(stats::DENIED_REPEATED);
    }
    s.flow.packets = [counted, 0];
    s.flow.bytes = [bytes, 0];
    tell::edge(env, s, fresh);
    if tell_now {
        if fresh == 0 {
            told_bytes = 0; // packets tell how many; bytes stand in the edge row
        }
        s.flow.packets = [told_packets, 0];
        s.flow.bytes = [told_bytes, 0];
        let flags = if fresh == 1 { flow::began_unseen(&s.packet, hook) } else { 0 };
        tell::event(env, hook, s, event::EVENT_DENIED, DecisionId(0), flags);
    }
    0
}

const _: () = assert!(DIRECTION_INGRESS == 0 && DIRECTION_EGRESS == 1);

#[cfg(test)]
mod tests;
