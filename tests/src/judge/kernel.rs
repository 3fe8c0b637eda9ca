//! The programs in the kernel as a judge: the first packet of each flow, and what is told of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use reeve_abi::address::OWNER_HOST;
use reeve_abi::event::{EVENT_DENIED, EVENT_OPENED};
use reeve_abi::ids::WorkloadId;
use reeve_packet::env::Hook;
use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::model::{Decision, Direction, Verdict};
use reeve_policy::provenance::workload_id;

use super::{Case, Judge};
use crate::frames::{Ends, SCTP};
use crate::kernel::{Action, Kernel, Program};
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
        Ok(Self { kernel: Kernel::load()?, devices: BTreeMap::new() })
    }

    fn device(&self, engine: &Engine, address: IpAddr) -> u32 {
        let owner = engine.image().addresses.get(&mapped(address)).map(|value| value.workload);
        owner.and_then(|workload| self.devices.get(&workload)).copied().unwrap_or(UPLINK)
    }

    fn run(&mut self, engine: &Engine, case: &Case) -> anyhow::Result<Decision> {
        self.kernel.forget()?;
        let workload = workload_id(&case.subject.uid);
        let device = self.devices[&workload];
        let (hook, enters) = match case.direction {
            Direction::Egress => (Hook::FromPod, device),
            Direction::Ingress => (Hook::ToPod, self.device(engine, case.flow.source)),
        };
        let frame = first_packet(&case.flow);
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
        Ok(decision)
    }
}

impl Judge for InKernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn prepare(&mut self, engine: &Engine) {
        self.devices = engine.image().endpoints.keys().copied().zip(FIRST_DEVICE..).collect();
        let devices: Vec<_> = self.devices.iter().map(|(workload, device)| (*workload, *device)).collect();
        self.kernel.apply_image(engine.image(), &devices).expect("the image fits the maps");
    }

    fn decide(&mut self, engine: &Engine, case: &Case) -> Result<Decision, String> {
        self.run(engine, case).map_err(|error| format!("{error:#}"))
    }
}

/// What a client sends first.
fn first_packet(flow: &Flow) -> Vec<u8> {
    let ends = Ends {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: flow.source,
        destination: flow.destination,
    };
    let port = flow.port.to_be_bytes();
    match flow.protocol {
        6 => ends.tcp(SOURCE_PORT, flow.port, "S", 1, 0),
        17 => ends.udp(SOURCE_PORT, flow.port, b"question"),
        SCTP => {
            // An INIT chunk behind the common header.
            let mut packet = vec![0; 32];
            packet[..2].copy_from_slice(&SOURCE_PORT.to_be_bytes());
            packet[2..4].copy_from_slice(&port);
            packet[12..16].copy_from_slice(&[1, 0, 0, 20]);
            ends.other(SCTP, &packet)
        }
        protocol @ (1 | 58) => ends.other(protocol, &[port[0], port[1], 0, 0, 0, 7, 0, 1, 0, 0, 0, 0]),
        protocol => ends.other(protocol, &[0; 8]),
    }
}
