//! Histories in the kernel: while a plan is carried out, each packet is answered as before it or as after it, and the maps
//! end as those of a node that has just started.
//!
//! `REEVE_SEQUENCES` is the number of histories (default 20), `REEVE_SEED` the seed of the first (default: random); both are
//! printed.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use fastrand::Rng;
use reeve_abi::address::{Address, OWNER_HOST, OWNER_LOCAL_POD};
use reeve_abi::endpoint::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use reeve_abi::event::{EVENT_DENIED, EVENT_OPENED, Event};
use reeve_abi::ids::{DecisionId, Revision, WorkloadId};
use reeve_policy::engine::Engine;
use reeve_policy::image::{Image, mapped};
use reeve_policy::model::{Direction, Family, Verdict};
use reeve_policy::plan::Op;
use reeve_tests::judge::first_packet;
use reeve_tests::kernel::{Action, Kernel, Program, Sent};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::sequence::Sequence;
use reeve_tests::worlds::{Flow, NODE, NODES, OUTSIDE};

const STEPS: usize = 25;
/// Where packets of everybody who is no pod of this node come in and go out.
const UPLINK: u32 = 90;
/// Pods' interfaces are counted from here.
const FIRST_DEVICE: u32 = 100;
/// New flows between two operations.
const BETWEEN: usize = 4;
/// Flows that live while plans are carried out.
const LIVE: usize = 16;
/// Ports of flows that live; those of others are counted from [`FIRST_PORT`].
const LIVE_PORT: u16 = 2_000;
const FIRST_PORT: u16 = 10_000;

fn number(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name)
        .map_or_else(|_| otherwise(), |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// A flow about which the image before a plan and the one after it can be asked, at the same places.
#[derive(Clone, Debug)]
struct Asked {
    flow: Flow,
    subject: WorkloadId,
    direction: Direction,
    first: (Program, u32, u32),
    then: Option<(Program, u32, u32)>,
}

impl Asked {
    fn pick(old: &Image, new: &Image, devices: &HashMap<WorkloadId, u32>, rng: &mut Rng) -> Option<Self> {
        let subject = *rng.choice(&new.endpoints.keys().copied().collect::<Vec<_>>())?;
        let others = OUTSIDE.iter().chain(&NODES).map(|text| mapped(text.parse().expect("an address")));
        let peers: Vec<Address> = old.addresses.keys().chain(new.addresses.keys()).copied().chain(others).collect();
        let peer = *rng.choice(&peers)?;
        let own = if peer.is_v4() { new.endpoints[&subject].address_v4 } else { new.endpoints[&subject].address_v6 };
        let (protocol, port) = *rng.choice(&[(6, 80), (6, 8080), (6, 8050), (6, 443), (17, 53), (132, 80)])?;
        let direction = *rng.choice(&[Direction::Ingress, Direction::Egress])?;
        let (from, to) = if direction == Direction::Ingress { (peer, own) } else { (own, peer) };
        let flow = Flow { source: plain(from), destination: plain(to), protocol, port };
        Self::of(flow, subject, direction, new, devices).filter(|asked| asked.holds(old, devices))
    }

    /// The same flow where this image has its ends.
    fn of(
        flow: Flow,
        subject: WorkloadId,
        direction: Direction,
        image: &Image,
        devices: &HashMap<WorkloadId, u32>,
    ) -> Option<Self> {
        let endpoint = image.endpoints.get(&subject)?;
        let device = *devices.get(&subject)?;
        let (own, peer) = if direction == Direction::Ingress {
            (mapped(flow.destination), mapped(flow.source))
        } else {
            (mapped(flow.source), mapped(flow.destination))
        };
        if own == peer || ![endpoint.address_v4, endpoint.address_v6].contains(&own) || own == Address::default() {
            return None;
        }
        let owner = image.addresses.get(&peer);
        let there = owner.filter(|value| value.owner == OWNER_LOCAL_POD).and_then(|value| devices.get(&value.workload));
        let is_host = owner.is_some_and(|value| value.owner == OWNER_HOST);
        if is_host && direction == Direction::Ingress {
            // From this node's own address, but from elsewhere: somebody behind it, whom images do not look up.
            return None;
        }
        let end = if is_host { Program::HostIn } else { Program::Uplink };
        let (first, then) = match direction {
            Direction::Ingress => ((Program::ToPod, device, there.copied().unwrap_or(UPLINK)), None),
            Direction::Egress => ((Program::FromPod, device, device), Some((end, UPLINK, device))),
        };
        Some(Self { flow, subject, direction, first, then })
    }

    /// Whether an image has both ends where the packets of this flow come by.
    fn holds(&self, image: &Image, devices: &HashMap<WorkloadId, u32>) -> bool {
        let there = Self::of(self.flow, self.subject, self.direction, image, devices);
        there.is_some_and(|there| (there.first, there.then) == (self.first, self.then))
    }

    fn answer(&self, image: &Image) -> DecisionId {
        let peer = if self.direction == Direction::Ingress { self.flow.source } else { self.flow.destination };
        let family = if peer.is_ipv4() { Family::V4 } else { Family::V6 };
        let (protocol, port) = (self.flow.protocol, self.flow.port);
        let found = image.lookup(self.subject, self.direction, family, mapped(peer), protocol, port);
        found.expect("the image has the subject")
    }

    fn sent(&self, source_port: u16) -> Sent {
        Sent { frame: first_packet(&self.flow, source_port), first: self.first, then: self.then }
    }

    /// What was told of the flow's first packet from this port.
    fn told(&self, events: &[Event], source_port: u16) -> Option<Event> {
        let direction = if self.direction == Direction::Egress { DIRECTION_EGRESS } else { DIRECTION_INGRESS };
        let port = |event: &Event| match self.direction {
            Direction::Egress => event.ports >> 16,
            Direction::Ingress => event.ports & 0xffff,
        };
        let mine = |event: &&Event| {
            event.workload == self.subject
                && u32::from(event.direction) == direction
                && port(event) == u32::from(source_port)
                && matches!(event.kind, EVENT_OPENED | EVENT_DENIED)
        };
        events.iter().find(mine).copied()
    }
}

/// The address as sockets write it.
fn plain(address: Address) -> IpAddr {
    Ipv6Addr::from(address.0).to_canonical()
}

/// How often what was seen.
#[derive(Debug, Default)]
struct Seen {
    plans: usize,
    operations: usize,
    between: usize,
    meanwhile: usize,
    as_before: usize,
    as_after: usize,
    lived_on: usize,
    judged_otherwise: usize,
}

/// An engine, and the kernel that its plans are carried out in.
struct Node {
    engine: Engine,
    kernel: Kernel,
    devices: HashMap<WorkloadId, u32>,
    live: Vec<(u16, Asked)>,
    port: u16,
    seen: Seen,
}

impl Node {
    fn new() -> Self {
        let kernel = Kernel::load().expect("the programs load");
        let (devices, live) = (HashMap::new(), Vec::new());
        Self { engine: Engine::new(NODE, 0), kernel, devices, live, port: FIRST_PORT, seen: Seen::default() }
    }

    /// Forgets everything, as before a first start.
    fn begin(&mut self) {
        self.kernel.clear().expect("cleared");
        (self.engine, self.port) = (Engine::new(NODE, 0), FIRST_PORT);
        self.live.clear();
    }

    fn next_port(&mut self) -> u16 {
        self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
        self.port
    }

    /// Takes in changes and carries the plan out while packets run; fails with what was answered otherwise.
    fn tell(&mut self, changes: Vec<reeve_policy::store::Change>, rng: &mut Rng) -> Result<(), String> {
        let old = self.engine.image().clone();
        let update = self.engine.apply(changes);
        let new = self.engine.image().clone();
        for workload in new.endpoints.keys() {
            let next = FIRST_DEVICE + u32::try_from(self.devices.len()).expect("few");
            self.devices.entry(*workload).or_insert(next);
        }
        (self.seen.plans, self.seen.operations) = (self.seen.plans + 1, self.seen.operations + update.plan.len());
        self.live.retain(|(_, asked)| asked.holds(&old, &self.devices) && asked.holds(&new, &self.devices));
        let shown = |nth: usize| format!("after op {nth} of {:#?}", &update.plan[..=nth.min(update.plan.len() - 1)]);
        if rng.bool() {
            for (nth, op) in update.plan.iter().enumerate() {
                self.kernel.execute(op, &self.devices).map_err(|error| format!("{error:#}"))?;
                self.between(&old, &new, rng).map_err(|why| format!("{why}, {}", shown(nth)))?;
            }
        } else if !update.plan.is_empty() {
            self.meanwhile(&old, &new, &update.plan, rng).map_err(|why| format!("{why}, {}", shown(usize::MAX)))?;
        }
        self.lived(&old, &new)?;
        for nth in 0..LIVE {
            let port = LIVE_PORT + u16::try_from(nth).expect("few");
            if self.live.iter().all(|(other, _)| *other != port)
                && let Some(asked) = Asked::pick(&new, &new, &self.devices, rng)
            {
                self.kernel.send(&asked.sent(port)).map_err(|error| format!("{error:#}"))?;
                self.live.push((port, asked));
            }
        }
        Ok(())
    }

    /// New flows, and one that lives, between two operations.
    fn between(&mut self, old: &Image, new: &Image, rng: &mut Rng) -> Result<(), String> {
        for _ in 0..BETWEEN {
            let Some(asked) = Asked::pick(old, new, &self.devices, rng) else { continue };
            let port = self.next_port();
            let (action, events) = self.kernel.send(&asked.sent(port)).map_err(|error| format!("{error:#}"))?;
            let event = asked.told(&events, port).ok_or_else(|| format!("{asked:?}: nothing of it in {events:?}"))?;
            self.check(&asked, old, new, action, &event)?;
            self.seen.between += 1;
        }
        if let Some((port, asked)) = rng.choice(&self.live).cloned() {
            let (action, _) = self.kernel.send(&asked.sent(port)).map_err(|error| format!("{error:#}"))?;
            self.check_live(&asked, old, new, action)?;
        }
        Ok(())
    }

    /// The same from another thread, while the plan is carried out.
    fn meanwhile(&mut self, old: &Image, new: &Image, plan: &[Op], rng: &mut Rng) -> Result<(), String> {
        let picked = (0..60).filter_map(|_| Asked::pick(old, new, &self.devices, rng));
        let asked: Vec<(Option<u16>, Asked)> = picked
            .map(|one| (None, one))
            .chain(self.live.iter().map(|(port, one)| (Some(*port), one.clone())))
            .collect();
        if asked.is_empty() {
            return plan
                .iter()
                .try_for_each(|op| self.kernel.execute(op, &self.devices).map_err(|error| format!("{error:#}")));
        }
        self.port = FIRST_PORT.max(self.port);
        let begin = if self.port > 60_000 { FIRST_PORT } else { self.port };
        let of = |nth: u64| {
            let nth = usize::try_from(nth).expect("few");
            let (live, one) = &asked[nth * 7 % asked.len()];
            (live.unwrap_or_else(|| begin + 1 + u16::try_from(nth).expect("few")), live.is_some(), one)
        };
        let packet = |nth: u64| {
            let (port, _, one) = of(nth);
            one.sent(port)
        };
        let (ran, events) =
            self.kernel.execute_under_traffic(plan, &self.devices, packet).map_err(|error| format!("{error:#}"))?;
        self.port = begin + 1 + u16::try_from(ran.len()).expect("few");
        for one in ran {
            let (port, is_live, asked) = of(one.nth);
            if is_live {
                self.check_live(asked, old, new, one.action)?;
                continue;
            }
            let event =
                asked.told(&events, port).ok_or_else(|| format!("{asked:?}: nothing of port {port} was told"))?;
            self.check(asked, old, new, one.action, &event)?;
            self.seen.meanwhile += 1;
        }
        Ok(())
    }

    /// A new flow is answered as before or as after, and told as it is done; under its new revision as after.
    fn check(&mut self, asked: &Asked, old: &Image, new: &Image, action: Action, event: &Event) -> Result<(), String> {
        let (before, after) = (asked.answer(old), asked.answer(new));
        let revision = |image: &Image| image.endpoints.get(&asked.subject).map_or(Revision(0), |one| one.revision);
        let renewed = event.revision == revision(new) && revision(new) != revision(old);
        if event.decision != after && (renewed || event.decision != before) {
            let [before, got, after] = [before, event.decision, after].map(|id| self.named(id));
            return Err(format!("{asked:?} is answered by {got}, neither by {before} nor by {after}; {event:?}"));
        }
        if before != after {
            let seen = if event.decision == before { &mut self.seen.as_before } else { &mut self.seen.as_after };
            *seen += 1;
        }
        let allowed = self.allows(event.decision);
        if (action == Action::Continue, event.kind == EVENT_OPENED) != (allowed, allowed) {
            return Err(format!("{asked:?}: {action:?} under {}, told as {event:?}", self.named(event.decision)));
        }
        Ok(())
    }

    /// A flow that lives passes if it did before or does after.
    fn check_live(&self, asked: &Asked, old: &Image, new: &Image, action: Action) -> Result<(), String> {
        let (before, after) = (asked.answer(old), asked.answer(new));
        let passed = action == Action::Continue;
        if passed != self.allows(before) && passed != self.allows(after) {
            let [before, after] = [before, after].map(|id| self.named(id));
            return Err(format!("{asked:?}, live: {action:?}, under {before} before and {after} after"));
        }
        Ok(())
    }

    /// When the plan is done, whatever lives is answered as after, and its entry says so.
    fn lived(&mut self, old: &Image, new: &Image) -> Result<(), String> {
        for (port, asked) in self.live.clone() {
            let after = asked.answer(new);
            let (action, _) = self.kernel.send(&asked.sent(port)).map_err(|error| format!("{error:#}"))?;
            let entry = self.entry(&asked, port)?;
            // A SYN on a flow that was cut is judged by itself, and leaves the flow as it was cut.
            let wrong = (self.allows(after) || asked.flow.protocol != 6) && entry.is_some_and(|by| by != after);
            if (action == Action::Continue) != self.allows(after) || wrong {
                let (before, after) = (self.named(asked.answer(old)), self.named(after));
                let entry = entry.map(|id| self.named(id));
                return Err(format!(
                    "{asked:?} lives on after the plan: {action:?} by {entry:?}, {after} now holds, {before} before",
                ));
            }
            self.seen.lived_on += 1;
            self.seen.judged_otherwise += usize::from(asked.answer(old) != after);
        }
        Ok(())
    }

    /// The decision in a live flow's entry; `None`: it has none (what is denied is no flow, and what is pending again after
    /// a denial has no decision yet).
    fn entry(&self, asked: &Asked, source_port: u16) -> Result<Option<DecisionId>, String> {
        let (remote, ports) = match asked.direction {
            Direction::Egress => (asked.flow.destination, (source_port, asked.flow.port)),
            Direction::Ingress => (asked.flow.source, (asked.flow.port, source_port)),
        };
        let key = reeve_abi::conntrack::FlowKey {
            workload: asked.subject,
            remote: mapped(remote),
            ports: u32::from(ports.0) << 16 | u32::from(ports.1),
            protocol: u32::from(asked.flow.protocol),
        };
        let found = self.kernel.flows().get(&key).map_err(|error| format!("{error:#}"))?;
        Ok(found.map(|value| value.decision).filter(|decision| *decision != DecisionId(0)))
    }

    fn allows(&self, decision: DecisionId) -> bool {
        self.engine.dictionary().get_decision(decision).is_some_and(|found| found.verdict == Verdict::Allow)
    }

    fn named(&self, decision: DecisionId) -> String {
        let found = self.engine.dictionary().get_decision(decision);
        found.map_or_else(|| decision.to_string(), |found| serde_json::to_string(&found).expect("plain data"))
    }

    /// What the kernel holds, and how it answers, is what it would be if the node had just started with these facts.
    fn check_fresh(&mut self, facts: Vec<reeve_policy::store::Change>, rng: &mut Rng) -> Result<(), String> {
        let mut fresh = Engine::new(NODE, 0);
        fresh.apply(facts);
        let told = self.kernel.dump().map_err(|error| format!("{error:#}"))?;
        let image = self.engine.image().clone();
        let asked: Vec<Asked> = (0..40).filter_map(|_| Asked::pick(&image, &image, &self.devices, rng)).collect();
        let answers = self.answers(&asked)?;
        let devices: Vec<_> = self.devices.iter().map(|(workload, device)| (*workload, *device)).collect();
        self.kernel.forget().map_err(|error| format!("{error:#}"))?;
        self.kernel.apply_image(fresh.image(), &devices).map_err(|error| format!("{error:#}"))?;
        let loaded = self.kernel.dump().map_err(|error| format!("{error:#}"))?;
        for (map, rows) in &told {
            if rows != &loaded[map] {
                return Err(format!("{map} holds {rows:02x?}\nand freshly loaded {:02x?}", loaded[map]));
            }
        }
        let again = self.answers(&asked)?;
        if again != answers {
            return Err(format!("{asked:?} are answered by {answers:?}, and by {again:?} of a fresh load"));
        }
        Ok(())
    }

    fn answers(&mut self, asked: &[Asked]) -> Result<Vec<DecisionId>, String> {
        let mut answers = Vec::with_capacity(asked.len());
        for one in asked {
            let port = self.next_port();
            let (_, events) = self.kernel.send(&one.sent(port)).map_err(|error| format!("{error:#}"))?;
            answers.push(one.told(&events, port).ok_or_else(|| format!("{one:?}: nothing in {events:?}"))?.decision);
        }
        Ok(answers)
    }
}

#[test]
fn each_packet_under_a_plan_is_judged_as_before_or_as_after_and_the_maps_end_as_fresh_ones() {
    if skip_unless(&[Capability::Root, Capability::Bpf, Capability::Netns]) {
        return;
    }
    let count = number("REEVE_SEQUENCES", || 20);
    let seed = number("REEVE_SEED", || fastrand::u64(..));
    println!("{count} histories of {STEPS} changes, REEVE_SEED={seed}");
    let mut node = Node::new();
    for seed in (0..count).map(|nth| seed.wrapping_add(nth)) {
        let (history, mut rng) = (Sequence::new(seed, STEPS), Rng::with_seed(!seed));
        node.begin();
        let mut rest = history.changes.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.usize(1..=rest.len().min(12)));
            rest = later;
            let told = node.tell(now.to_vec(), &mut rng);
            told.unwrap_or_else(|why| panic!("REEVE_SEED={seed} REEVE_SEQUENCES=1: {why}"));
        }
        let fresh = node.check_fresh(history.last_words(), &mut rng);
        fresh.unwrap_or_else(|why| panic!("REEVE_SEED={seed} REEVE_SEQUENCES=1: {why}"));
    }
    let seen = &node.seen;
    println!("{seen:?}");
    if count >= 20 {
        assert!(seen.between > 1_000 && seen.meanwhile > 1_000, "hardly any traffic: {seen:?}");
        assert!(seen.as_before > 10 && seen.as_after > 10, "no plan was seen half way: {seen:?}");
        assert!(seen.judged_otherwise > 10 && seen.lived_on > 100, "no flow lived through a change: {seen:?}");
    }
}
