//! The third judge: the programs themselves, over the first frame of a flow.

use super::{Action, Kernel};
use crate::frames::Ends;
use crate::judge::{Case, Judge};
use reeve_abi::address::OWNER_LOCAL_POD;
use reeve_abi::ids::WorkloadId;
use reeve_abi::policy::VERDICT_ALLOW;
use reeve_packet::env::Hook;
use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::model::{Decision, Direction};
use reeve_policy::provenance::workload_id;
use std::collections::BTreeMap;

/// Where everything comes in that is not of a pod of this node.
const UPLINK: u32 = 2;
/// Interface of the first pod.
const FIRST_DEVICE: u32 = 100;

/// The kernel with a world's image in its maps.
pub struct InKernel {
    kernel: Kernel,
    devices: BTreeMap<WorkloadId, u32>,
}

impl InKernel {
    /// Loads the programs; see [`Kernel::load`].
    pub fn load() -> anyhow::Result<Self> {
        Ok(Self { kernel: Kernel::load()?, devices: BTreeMap::new() })
    }
}

impl Judge for InKernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn prepare(&mut self, engine: &Engine) {
        let image = engine.image();
        self.devices = image.endpoints.keys().copied().zip(FIRST_DEVICE..).collect();
        let devices: Vec<_> = self.devices.iter().map(|(workload, device)| (*workload, *device)).collect();
        self.kernel.apply_image(image, &devices).expect("the maps take a small world's image");
    }

    fn decide(&mut self, engine: &Engine, case: &Case) -> Result<Decision, String> {
        let subject = workload_id(&case.subject.uid);
        let device = self.devices.get(&subject).ok_or_else(|| format!("no interface for {}", case.subject.uid))?;
        let peer = engine.image().addresses.get(&mapped(case.peer()));
        let (hook, by) = match case.direction {
            Direction::Egress => (Hook::FromPod, *device),
            Direction::Ingress => {
                let local = peer.filter(|peer| peer.owner == OWNER_LOCAL_POD);
                (Hook::ToPod, local.and_then(|peer| self.devices.get(&peer.workload)).copied().unwrap_or(UPLINK))
            }
        };
        let run = |kernel: &mut Kernel| {
            kernel.forget()?;
            kernel.run(hook, &first_frame(case), *device, by)
        };
        let outcome = run(&mut self.kernel).map_err(|error| format!("{error:#}"))?;
        let [event] = outcome.events[..] else { return Err(format!("not one event: {outcome:?}")) };
        let allows = u32::from(event.verdict) == VERDICT_ALLOW;
        if allows != (outcome.action == Action::Continue) {
            return Err(format!("the frame's fate is not what was told: {outcome:?}"));
        }
        engine
            .dictionary()
            .get_decision(event.decision)
            .ok_or_else(|| format!("decision {} is not in the dictionary", event.decision))
    }
}

/// What the flow begins with.
fn first_frame(case: &Case) -> Vec<u8> {
    let flow = &case.flow;
    let ends = Ends {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: flow.source,
        destination: flow.destination,
    };
    match flow.protocol {
        6 => ends.tcp(40_000, flow.port, "S", 1, 0),
        17 => ends.udp(40_000, flow.port, b"reeve"),
        1 | 58 => ends.other(flow.protocol, &[&flow.port.to_be_bytes()[..], &[0; 14]].concat()),
        // SCTP has ports where TCP has them; for others it is payload.
        other => ends.other(other, &[&40_000_u16.to_be_bytes()[..], &flow.port.to_be_bytes(), &[0; 12]].concat()),
    }
}
