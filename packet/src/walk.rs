//! The walk of one packet through the pod's interface: endpoint, headers, flow, verdict.
//!
//! Invariant: a packet that the walk does not understand, or whose state it cannot read whole, is dropped; a frame of
//! an interface without endpoint is not ours and goes on.

use crate::budget;
use crate::env::{Action, Env, Hook};
use crate::flow;
use crate::judge::{self, Peer, Ruling};
use crate::neighbour::{self, Finding};
use crate::parse::{self, FRAGMENT_FIRST, FRAGMENT_LATER, Kind, Packet};
use crate::tell;
use reeve_abi::address::{Address, OWNER_HOST, OWNER_LOCAL_POD};
use reeve_abi::config::Config;
use reeve_abi::conntrack::{self as ct, DeniedValue, FlowKey, FlowValue, FragmentKey, FragmentValue};
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::{
    DIRECTION_EGRESS, DIRECTION_INGRESS, ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6, EndpointValue,
};
use reeve_abi::ids::DecisionId;
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};
use reeve_abi::{decision, event, stats};

/// Working memory of one walk: too large for a BPF stack, so the kernel keeps one per CPU.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Scratch {
    /// The frame.
    pub packet: Packet,
    /// The packet that an ICMP error quotes.
    pub quoted: Packet,
    /// The endpoint, copied whole.
    pub endpoint: EndpointValue,
    /// Settings.
    pub config: Config,
    /// Key of the flow.
    pub key: FlowKey,
    /// A flow being made or told.
    pub flow: FlowValue,
    /// A denied tuple being made.
    pub denied: DeniedValue,
    /// The other side.
    pub peer: Peer,
    /// Time of the packet, ns.
    pub now_ns: u64,
    /// What was decided.
    pub ruling: Ruling,
    /// Key of an edge row.
    pub edge_key: EdgeKey,
    /// What is added to an edge row.
    pub edge: EdgeValue,
    /// An event.
    pub event: event::Event,
    /// 1: a flow that is allowed now takes the place of a live one.
    pub replaces: u32,
    /// Unused.
    pub reserved: u32,
}

/// How often a torn endpoint is read again before the packet is dropped.
const ENDPOINT_RETRIES: u32 = 2;

/// Judges one frame at a pod's interface.
#[inline(always)]
pub fn run<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> Action {
    match read_endpoint(env, s) {
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
    let Some(config) = env.config() else {
        env.count(stats::INCONSISTENT);
        return Action::Drop;
    };
    s.config = *config;
    s.now_ns = env.now_ns();
    s.peer = Peer::default();
    s.replaces = 0;
    match parse::frame(env, &mut s.packet) {
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
    // What a later fragment carries is payload, also where a quoted packet would stand.
    let quotes = s.packet.fragment != FRAGMENT_LATER && s.packet.is_icmp() && flow::icmp_error(&s.packet);
    if quotes && related(env, hook, s) {
        env.count(stats::RELATED_ICMP);
        return Action::Continue;
    }
    if let Some(found) = env.flow(&s.key) {
        // SAFETY: valid for the run of the program (`Env`).
        let found = unsafe { &mut *found.as_ptr() };
        if let Some(action) = known(env, hook, s, found) {
            return action;
        }
    }
    if miss(env, hook, s) == 1 { Action::Continue } else { Action::Drop }
}

/// `Some(true)`: read whole; `Some(false)`: there is none; `None`: stays torn.
#[inline(always)]
fn read_endpoint<E: Env>(env: &E, s: &mut Scratch) -> Option<bool> {
    let ifindex = env.ifindex();
    let mut tries = 0;
    while tries <= ENDPOINT_RETRIES {
        if !env.endpoint(ifindex, &mut s.endpoint) {
            return Some(false);
        }
        let e = &s.endpoint;
        if e.head_ifindex == ifindex && e.tail_ifindex == ifindex && e.head_revision == e.tail_revision {
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

/// Fills in the ports of a later fragment, or remembers those of a first one; else why it is to be denied.
#[inline(always)]
fn ports_of_fragment<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> Option<DecisionId> {
    let p = &mut s.packet;
    let side = if matches!(hook, Hook::FromPod) { ct::KEY_FROM_POD } else { ct::KEY_TO_POD };
    let key = FragmentKey {
        source: p.source,
        destination: p.destination,
        identification: p.identification,
        protocol: side | if p.v6 == 1 { 0 } else { u32::from(p.protocol) },
    };
    if p.fragment == FRAGMENT_FIRST {
        let value = FragmentValue {
            // An ICMP query's identifier stands where the ports would.
            ports: u32::from(p.source_port) << 16 | u32::from(p.destination_port | p.icmp_id),
            kind: u32::from(p.protocol) << 16 | u32::from(p.icmp_type) << 8 | u32::from(p.icmp_code),
            seen_ns: s.now_ns,
            first_end: p.fragment_edge,
            reserved: 0,
        };
        if !env.put_fragment(&key, &value) {
            env.count(stats::FRAGMENTS_LOST);
        }
        return None;
    }
    debug_assert!(p.fragment == FRAGMENT_LATER);
    let Some(found) = env.fragment(&key) else { return Some(decision::UNKNOWN_FRAGMENT) };
    // The kernel itself gives up reassembly after 30 s (IPv4) or 60 s (IPv6).
    if s.now_ns.saturating_sub(found.seen_ns) > 60 * reeve_abi::config::SECOND_NS {
        return Some(decision::UNKNOWN_FRAGMENT);
    }
    if p.fragment_edge < found.first_end {
        env.count(stats::MALFORMED);
        return Some(decision::MALFORMED_PACKET); // it would write over the header that was judged
    }
    p.protocol = (found.kind >> 16 & 0xff) as u8;
    if p.is_icmp() {
        p.icmp_id = (found.ports & 0xffff) as u16;
    } else {
        p.source_port = (found.ports >> 16) as u16;
        p.destination_port = (found.ports & 0xffff) as u16;
    }
    p.icmp_type = (found.kind >> 8 & 0xff) as u8;
    p.icmp_code = (found.kind & 0xff) as u8;
    None
}

/// Whether an ICMP error quotes a live, allowed flow of this pod.
#[inline(always)]
fn related<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> bool {
    let at = s.packet.l4_offset + 8;
    let kind = if s.packet.v6 == 1 {
        parse::ipv6(env, at, true, &mut s.quoted)
    } else {
        parse::ipv4(env, at, true, &mut s.quoted)
    };
    if kind != Kind::Ip || s.quoted.fragment == FRAGMENT_LATER {
        return false;
    }
    // The quoted packet went the other way through this interface.
    let (other_way, local) = match hook {
        Hook::FromPod => (Hook::ToPod, s.quoted.destination),
        Hook::ToPod => (Hook::FromPod, s.quoted.source),
    };
    let own = if s.packet.v6 == 1 { s.endpoint.address_v6 } else { s.endpoint.address_v4 };
    if local != own {
        return false;
    }
    let key = flow::key(s.endpoint.workload, other_way, &s.quoted);
    let Some(found) = env.flow(&key) else { return false };
    // SAFETY: valid for the run of the program (`Env`); read only.
    let found = unsafe { &*found.as_ptr() };
    found.verdict == VERDICT_ALLOW
        && found.revision == s.endpoint.head_revision
        && s.now_ns.saturating_sub(found.last_ns) <= flow::timeout_ns(&s.config, s.quoted.protocol, found)
}

/// A packet with a flow entry. `None`: the entry does not speak for this packet, judge anew.
#[inline(always)]
fn known<E: Env>(env: &E, hook: Hook, s: &mut Scratch, found: &mut FlowValue) -> Option<Action> {
    let original = found.direction == hook.direction();
    if found.verdict == flow::VERDICT_ENDED {
        return None;
    }
    if s.now_ns.saturating_sub(found.last_ns) > flow::timeout_ns(&s.config, s.packet.protocol, found) {
        ended(env, hook, s, found);
        return None;
    }
    // A SYN from the other side, or on a flow that is over, opens a flow of its own; this one ends if that is allowed.
    if flow::is_bare_syn(&s.packet) && (!original || flow::closing(found.flags) || found.verdict != VERDICT_ALLOW) {
        s.replaces = 1;
        return None;
    }
    if matches!(hook, Hook::ToPod) && found.arrives_by != env.ingress_ifindex().wrapping_add(1) {
        s.peer = judge::peer(env, &s.key.remote);
        if spoofed(env, s) {
            return Some(refuse(env, hook, s, decision::SPOOFED_SOURCE));
        }
        if found.flags & ct::FLOW_OWN_NODE != 0 && !own_node(env, s) {
            s.replaces = 1;
            return None; // what the own node may do, nobody else may in its name
        }
        found.arrives_by = env.ingress_ifindex().wrapping_add(1);
    }
    let stale_address = found.flags & ct::FLOW_PEER_UNKNOWN != 0 && found.address_epoch != s.config.address_epoch;
    if (found.revision != s.endpoint.head_revision || stale_address) && found.flags & ct::FLOW_OWN_NODE == 0 {
        s.flow = *found;
        if rejudge(env, hook, s, found) == 1 {
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
    }
    let way = usize::from(!original);
    let packets = u64::from(env.segments());
    if original || found.verdict == VERDICT_ALLOW || s.packet.protocol == parse::protocol::TCP {
        // What comes back on a cut flow does not keep it alive, or a peer's own datagrams would never be judged.
        found.last_ns = s.now_ns;
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
        if s.now_ns.saturating_sub(found.flushed_ns) >= s.config.deny_report_ns {
            settle(env, s, found);
            report_cut(env, hook, s);
        }
        return Some(Action::Drop);
    }
    if s.now_ns.saturating_sub(found.flushed_ns) >= s.config.flush_ns {
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
    s.flow = *found;
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
    tell_ended(env, hook, s);
}

#[inline(never)]
fn tell_ended<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    if s.flow.packets[0] != s.flow.flushed_packets[0] || s.flow.packets[1] != s.flow.flushed_packets[1] {
        tell::edge(env, s, 0);
    }
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
            ended(env, hook, s, found);
        }
    }
}

/// Whether a packet to the pod shows the address of a local pod that cannot have sent it this way.
#[inline(always)]
fn spoofed<E: Env>(env: &E, s: &Scratch) -> bool {
    let by = env.ingress_ifindex();
    if s.peer.owner == OWNER_LOCAL_POD {
        return by == 0 || (by != s.peer.device && by != s.peer.bridge);
    }
    by == 0 && judge::is_pod(&s.peer)
}

/// Whether a packet to the pod was made by a process of this node.
#[inline(always)]
fn own_node<E: Env>(env: &E, s: &Scratch) -> bool {
    env.ingress_ifindex() == 0 && s.peer.owner == OWNER_HOST
}

/// Judges `s.flow` again in its original direction; 0: it cannot be judged now and stays what it is.
#[inline(never)]
fn rejudge<E: Env>(env: &E, hook: Hook, s: &mut Scratch, found: &mut FlowValue) -> u32 {
    s.peer = judge::peer(env, &s.key.remote);
    let ruling = judge::rule(
        env,
        &s.endpoint,
        s.flow.direction,
        s.packet.v6,
        &s.peer,
        s.packet.protocol,
        (s.flow.port & 0xffff) as u16,
    );
    if ruling.decision == decision::NOT_READY {
        return 0; // an endpoint that is being replaced keeps its established flows
    }
    env.count(stats::REJUDGED);
    let previous = s.flow.decision;
    let was_allowed = s.flow.verdict == VERDICT_ALLOW;
    let changed = previous != ruling.decision;
    if changed {
        // What passed so far belongs to the old decision.
        settle(env, s, found);
        tell::edge(env, s, 0);
    }
    s.flow.decision = ruling.decision;
    s.flow.verdict = ruling.verdict;
    s.flow.revision = s.endpoint.head_revision;
    s.flow.peer_workload = s.peer.workload;
    s.flow.peer_identity = s.peer.identity;
    s.flow.own_identity = s.endpoint.identity;
    s.flow.address_epoch = s.config.address_epoch;
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
    1
}

/// Drops a packet for a reason of the datapath's own, counted and told like any denial.
#[inline(always)]
fn refuse<E: Env>(env: &E, hook: Hook, s: &mut Scratch, by: DecisionId) -> Action {
    s.ruling = Ruling::deny(by);
    deny(env, hook, s);
    Action::Drop
}

/// Judges a packet without flow; 1: let through.
#[inline(never)]
fn miss<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    s.peer = judge::peer(env, &s.key.remote);
    let port = flow::judged_port(&s.packet);
    let mut direction = hook.direction();
    let mut flags = 0;
    let mut judged = port;
    if matches!(hook, Hook::ToPod) && spoofed(env, s) {
        s.ruling = Ruling::deny(decision::SPOOFED_SOURCE);
    } else if matches!(hook, Hook::ToPod) && own_node(env, s) {
        s.ruling = Ruling { decision: decision::OWN_NODE, verdict: VERDICT_ALLOW };
        flags = ct::FLOW_OWN_NODE;
    } else {
        s.ruling = judge::rule(env, &s.endpoint, direction, s.packet.v6, &s.peer, s.packet.protocol, port);
        // A later fragment has no flags to show; alone it is nobody's answer.
        let segment = s.packet.protocol == parse::protocol::TCP && s.packet.fragment != FRAGMENT_LATER;
        let answer = segment && !flow::is_bare_syn(&s.packet)
            || s.packet.is_icmp() && flow::icmp_query(&s.packet) == Some(false);
        if s.packet.protocol == parse::protocol::TCP && answer {
            flags = ct::FLOW_PICKED_UP;
        }
        let middle = flags == ct::FLOW_PICKED_UP && s.packet.tcp_flags & parse::tcp::SYN == 0;
        let mixed = s.config.mixed_generations != 0 && !flow::is_bare_syn(&s.packet);
        if !s.ruling.allows()
            && (middle || mixed)
            && let Some(opened) = flow::opposite_port(&s.packet)
        {
            // Perhaps the middle of a connection that the other side opened.
            let other = judge::rule(
                env,
                &s.endpoint,
                flow::opposite(direction),
                s.packet.v6,
                &s.peer,
                s.packet.protocol,
                opened,
            );
            if other.allows() {
                s.ruling = other;
                direction = flow::opposite(direction);
                judged = opened;
                if !middle {
                    env.count(stats::EITHER_ORIENTATION);
                }
            }
        }
    }
    if !s.ruling.allows() {
        deny(env, hook, s);
        return 0;
    }
    replace(env, hook, s);
    let original = direction == hook.direction();
    let counted = u64::from(env.segments());
    let bytes = u64::from(s.packet.bytes);
    s.flow = FlowValue {
        decision: s.ruling.decision,
        revision: s.endpoint.head_revision,
        peer_workload: s.peer.workload,
        peer_identity: s.peer.identity,
        own_identity: s.endpoint.identity,
        first_ns: s.now_ns,
        last_ns: s.now_ns,
        flushed_ns: s.now_ns,
        packets: if original { [counted, 0] } else { [0, counted] },
        bytes: if original { [bytes, 0] } else { [0, bytes] },
        flushed_packets: if original { [counted, 0] } else { [0, counted] },
        flushed_bytes: if original { [bytes, 0] } else { [0, bytes] },
        address_epoch: s.config.address_epoch,
        direction,
        verdict: VERDICT_ALLOW,
        flags: flags | flow::seen(&s.packet, original) | if s.peer.unknown != 0 { ct::FLOW_PEER_UNKNOWN } else { 0 },
        port: u32::from(judged),
        arrives_by: if direction == DIRECTION_INGRESS && original { env.ingress_ifindex().wrapping_add(1) } else { 0 },
        reserved: 0,
    };
    if !budget::take(env, s.endpoint.workload) || !env.put_flow(&s.key, &s.flow) {
        // Without the entry nobody could tell its replies from new flows.
        env.count(stats::FLOWS_LOST);
        s.ruling = Ruling::deny(decision::FLOW_TABLE_FULL);
        deny(env, hook, s);
        return 0;
    }
    // The first packet is told with the flow: `EDGES` has it from here on.
    s.flow.flushed_packets = [0; 2];
    s.flow.flushed_bytes = [0; 2];
    tell::edge(env, s, 1);
    tell::event(env, hook, s, event::EVENT_OPENED, DecisionId(0), 0);
    env.count(stats::ALLOWED_JUDGED);
    1
}

/// Counts and tells a denial. The tuple is told at most once a second; what was not told is in the next record's count.
#[inline(never)]
fn deny<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    let key = flow::denied_key(&s.key, hook);
    let counted = u64::from(env.segments());
    let bytes = u64::from(s.packet.bytes);
    let mut fresh = 1;
    let mut told_packets = counted;
    let mut told_bytes = bytes;
    let mut tell_now = true;
    s.flow = FlowValue {
        decision: s.ruling.decision,
        revision: s.endpoint.head_revision,
        peer_workload: s.peer.workload,
        peer_identity: s.peer.identity,
        own_identity: s.endpoint.identity,
        first_ns: s.now_ns,
        last_ns: s.now_ns,
        direction: hook.direction(),
        verdict: VERDICT_DENY,
        port: u32::from(flow::judged_port(&s.packet)),
        ..FlowValue::default()
    };
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
                tell_now = s.now_ns.saturating_sub((*found).reported_ns) >= s.config.deny_report_ns;
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
            address_epoch: s.config.address_epoch,
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
        tell::event(env, hook, s, event::EVENT_DENIED, DecisionId(0), 0);
    }
    0
}

const _: () = assert!(DIRECTION_INGRESS == 0 && DIRECTION_EGRESS == 1);

#[cfg(test)]
mod tests;
