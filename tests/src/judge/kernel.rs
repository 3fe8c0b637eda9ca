//! The programs in the kernel as a judge: the first packet of each flow, and what is told of it.
//!
//! A flow that is translated runs as the chain of programs that its packets pass, and its first answer likewise.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use reeve_abi::address::{Address, OWNER_HOST};
use reeve_abi::endpoint::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use reeve_abi::event::{EVENT_DENIED, EVENT_OPENED, Event};
use reeve_abi::ids::WorkloadId;
use reeve_abi::service::{SERVICE_ADDRESS, ServiceKey, ServiceValue};
use reeve_packet::env::Hook;
use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::model::{Decision, Direction, Verdict};
use reeve_policy::provenance::workload_id;

use super::{Case, Judge};
use crate::frames::{Ends, SCTP};
use crate::kernel::{Action, Kernel, Program};
use crate::nat::{self, Way};
use crate::worlds::Flow;

/// Where packets of everybody who is no pod of this node come in.
const UPLINK: u32 = 90;
/// Pods' interfaces are counted from here.
const FIRST_DEVICE: u32 = 100;
const SOURCE_PORT: u16 = 40_000;

/// The compiled programs over maps that hold the image.
pub struct InKernel {
    kernel: Kernel,
    devices: BTreeMap<WorkloadId, u32>,
}

impl InKernel {
    /// Loads the programs; the calling thread moves into a network namespace of its own.
    pub fn load() -> anyhow::Result<Self> {
        Ok(Self { kernel: Kernel::for_worlds()?, devices: BTreeMap::new() })
    }

    fn device(&self, engine: &Engine, address: IpAddr) -> u32 {
        let owner = engine.image().addresses.get(&mapped(address)).map(|value| value.workload);
        owner.and_then(|workload| self.devices.get(&workload)).copied().unwrap_or(UPLINK)
    }

    fn run(&mut self, engine: &Engine, case: &Case) -> anyhow::Result<Decision> {
        self.kernel.forget()?;
        if let Way::Translated { address, port, shown } = case.way {
            return self.chain(engine, case, (address, port), shown);
        }
        let workload = workload_id(&case.subject.uid);
        let device = self.devices[&workload];
        let (hook, enters) = match case.direction {
            Direction::Egress => (Hook::FromPod, device),
            Direction::Ingress if case.way == Way::OwnProcess => (Hook::ToPod, 0),
            Direction::Ingress => (Hook::ToPod, self.device(engine, case.flow.source)),
        };
        let frame = first_packet(&case.flow, SOURCE_PORT);
        let mut outcome = self.kernel.run(hook, &frame, device, enters)?;
        if outcome.events.is_empty() && case.direction == Direction::Egress {
            // Judged where it leaves the node, or reaches a process of it.
            let owner = engine.image().addresses.get(&mapped(case.flow.destination)).map(|value| value.owner);
            let end = if owner == Some(OWNER_HOST) { Program::HostIn } else { Program::Uplink };
            outcome = self.kernel.run_marked(end, &frame, UPLINK, device, outcome.mark)?;
        }
        let [event] = outcome.events.as_slice() else {
            anyhow::bail!("one event was expected: {outcome:?}");
        };
        anyhow::ensure!(matches!(event.kind, EVENT_OPENED | EVENT_DENIED), "neither opened nor denied: {event:?}");
        anyhow::ensure!(event.workload == workload, "another workload is named: {event:?}");
        let decision = engine.dictionary().get_decision(event.decision);
        let decision =
            decision.ok_or_else(|| anyhow::anyhow!("decision {} is not in the dictionary", event.decision))?;
        let passed = outcome.action == Action::Continue;
        anyhow::ensure!(
            passed == (decision.verdict == Verdict::Allow) && passed == (event.kind == EVENT_OPENED),
            "{:?} under {decision:?}, told as {event:?}",
            outcome.action,
        );
        Ok(Arc::unwrap_or_clone(decision))
    }

    /// Sends the first packet to `front`, then what translation makes of it to whom it is for, then the answer.
    fn chain(
        &mut self,
        engine: &Engine,
        case: &Case,
        front: (IpAddr, u16),
        shown: Option<(IpAddr, u16)>,
    ) -> anyhow::Result<Decision> {
        let flow = &case.flow;
        let (client, backend) = (self.device(engine, flow.source), self.device(engine, flow.destination));
        let asked = first_packet(&Flow { destination: front.0, port: front.1, ..*flow }, SOURCE_PORT);
        let (address, port) = shown.unwrap_or((flow.source, SOURCE_PORT));
        let reached = packet(&Flow { source: address, ..*flow }, port, "S");
        let first = if client == UPLINK { Program::UplinkIn } else { Program::FromPod };
        let sent = self.kernel.run_marked(first, &asked, client, client, 0)?;
        anyhow::ensure!(
            sent.action == Action::Continue && sent.events.is_empty(),
            "judged before its destination is known: {sent:?}",
        );
        let program = if backend != UPLINK {
            Program::ToPod
        } else if owner(engine, flow.destination) == Some(OWNER_HOST) {
            Program::HostIn
        } else {
            Program::Uplink
        };
        let outcome = self.kernel.run_marked(program, &reached, backend, client, sent.mark)?;
        if program == Program::Uplink && outcome.action == Action::Continue {
            anyhow::ensure!(outcome.mark == 0, "a mark leaves the node: {outcome:?}");
        }
        let workload = workload_id(&case.subject.uid);
        let direction = if case.direction == Direction::Egress { DIRECTION_EGRESS } else { DIRECTION_INGRESS };
        let told: Vec<_> = outcome
            .events
            .iter()
            .filter(|one| one.workload == workload && u32::from(one.direction) == direction)
            .collect();
        let [event] = told.as_slice() else {
            anyhow::bail!("one event of {} was expected: {outcome:?}", case.subject.name);
        };
        let decision = engine.dictionary().get_decision(event.decision);
        let decision =
            decision.ok_or_else(|| anyhow::anyhow!("decision {} is not in the dictionary", event.decision))?;
        let allowed = decision.verdict == Verdict::Allow;
        anyhow::ensure!(allowed == (event.kind == EVENT_OPENED), "{decision:?} is told as {event:?}");
        let denied = outcome.events.iter().any(|one| one.kind == EVENT_DENIED);
        anyhow::ensure!((outcome.action == Action::Drop) == denied, "told otherwise than done: {outcome:?}");
        anyhow::ensure!(event.remote == mapped(case.peer()), "another peer is named: {event:?}");
        // What enters is noted only on its way to a Service; a host port is none.
        let noted = client != UPLINK || sent.mark != 0;
        let service = if noted { (mapped(front.0), front.1.into()) } else { (Address::default(), 0) };
        let known = nat::fronts(engine.world()).contains(&(front.0, front.1, flow.protocol));
        anyhow::ensure!(noted == (client != UPLINK || known), "noted at its entry: {noted}, a Service: {known}");
        anyhow::ensure!(
            (event.service, u32::from(event.service_port)) == service,
            "another Service than {front:?} is named: {event:?}",
        );
        // As the flow's entry and the edge have it.
        if allowed {
            let entries = self.kernel.flows().all()?;
            let ours = entries.iter().any(|(key, value)| key.workload == workload && value.decision == event.decision);
            anyhow::ensure!(ours, "no flow of {workload} has {decision:?}: {entries:?}");
        }
        let edges = self.kernel.edges().all()?;
        let counted = edges.iter().any(|(key, _)| key.decision == event.decision && key.subject == workload);
        anyhow::ensure!(counted, "no edge has {decision:?}: {edges:?}");
        self.answer(flow, front, (address, port), (client, backend), &outcome.events)?;
        Ok(Arc::unwrap_or_clone(decision))
    }

    /// The first answer goes back exactly if what it answers was allowed; otherwise it is judged for itself, and told.
    fn answer(
        &mut self,
        flow: &Flow,
        front: (IpAddr, u16),
        shown: (IpAddr, u16),
        (client, backend): (u32, u32),
        told: &[Event],
    ) -> anyhow::Result<()> {
        let denied: Vec<_> = told.iter().filter(|one| one.kind == EVENT_DENIED).collect();
        let mut mark = 0;
        if backend != UPLINK && denied.is_empty() {
            let frame = packet_from(
                &Flow { source: flow.destination, destination: shown.0, port: shown.1, ..*flow },
                flow.port,
            );
            let sent = self.kernel.run_marked(Program::FromPod, &frame, backend, backend, 0)?;
            anyhow::ensure!(
                sent.action == Action::Continue && sent.events.is_empty(),
                "the answer of an allowed flow is judged: {sent:?}",
            );
            mark = sent.mark;
        }
        if client != UPLINK {
            let frame =
                packet_from(&Flow { source: front.0, destination: flow.source, port: SOURCE_PORT, ..*flow }, front.1);
            let back = self.kernel.run_marked(Program::ToPod, &frame, client, backend, mark)?;
            // What the receiver's policies drop is allowed to the sender all the same.
            if denied.iter().all(|one| u32::from(one.direction) == DIRECTION_INGRESS) {
                anyhow::ensure!(
                    back.action == Action::Continue && back.events.is_empty(),
                    "the answer of an allowed flow is judged: {back:?}",
                );
            } else {
                anyhow::ensure!(
                    back.action == Action::Drop || !back.events.is_empty(),
                    "the answer of a denied flow is let in: {back:?}",
                );
            }
        }
        Ok(())
    }
}

/// What owns an address in the image.
fn owner(engine: &Engine, address: IpAddr) -> Option<u32> {
    engine.image().addresses.get(&mapped(address)).map(|value| value.owner)
}

/// What a server answers first.
fn packet_from(flow: &Flow, source_port: u16) -> Vec<u8> {
    packet(flow, source_port, "S.")
}

impl Judge for InKernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn prepare(&mut self, engine: &Engine) {
        self.devices = engine.image().endpoints.keys().copied().zip(FIRST_DEVICE..).collect();
        let devices: Vec<_> = self.devices.iter().map(|(workload, device)| (*workload, *device)).collect();
        self.kernel.apply_image(engine.image(), &devices).expect("the image fits the maps");
        for (address, port, protocol) in nat::fronts(engine.world()) {
            let key = ServiceKey { address: mapped(address), port: port.into(), protocol: protocol.into() };
            let value = ServiceValue { flags: SERVICE_ADDRESS, reserved: 0 };
            self.kernel.services().put(&key, &value).expect("the Services fit the map");
        }
    }

    fn decide(&mut self, engine: &Engine, case: &Case) -> Result<Decision, String> {
        self.run(engine, case).map_err(|error| format!("{error:#}"))
    }
}

/// What a client sends first, from this port.
pub fn first_packet(flow: &Flow, source_port: u16) -> Vec<u8> {
    packet(flow, source_port, "S")
}

/// A packet of a flow; of TCP with these flags.
fn packet(flow: &Flow, source_port: u16, flags: &str) -> Vec<u8> {
    let ends = Ends {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: flow.source,
        destination: flow.destination,
    };
    let port = flow.port.to_be_bytes();
    match flow.protocol {
        6 => ends.tcp(source_port, flow.port, flags, 1, 0),
        17 => ends.udp(source_port, flow.port, b"question"),
        SCTP => {
            // An INIT chunk behind the common header.
            let mut packet = vec![0; 32];
            packet[..2].copy_from_slice(&source_port.to_be_bytes());
            packet[2..4].copy_from_slice(&port);
            packet[12..16].copy_from_slice(&[1, 0, 0, 20]);
            ends.other(SCTP, &packet)
        }
        protocol @ (1 | 58) => ends.other(protocol, &[port[0], port[1], 0, 0, 0, 7, 0, 1, 0, 0, 0, 0]),
        protocol => ends.other(protocol, &[0; 8]),
    }
}
