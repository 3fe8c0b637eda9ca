//! Writing a compiled image into the kernel, as the agent would.

use super::Kernel;
use anyhow::Context;
use reeve_abi::address::{AddressValue, OWNER_LOCAL_POD};
use reeve_abi::endpoint::{
    ENDPOINT_ADDRESSES_INCOMPLETE, ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6, ENDPOINT_READY, EndpointValue,
};
use reeve_abi::ids::WorkloadId;
use reeve_policy::image::{EndpointImage, Image};
use std::collections::HashMap;

impl Kernel {
    /// Replaces whatever the agent writes by an image; `devices` says at which interface each workload of this node is.
    /// Flows stay, as they would.
    pub fn apply_image(&mut self, image: &Image, devices: &[(WorkloadId, u32)]) -> anyhow::Result<()> {
        let device: HashMap<WorkloadId, u32> = devices.iter().copied().collect();
        self.endpoints().clear()?;
        self.devices().clear()?;
        self.services().clear()?;
        self.addresses().clear()?;
        self.networks().clear()?;
        self.classes().clear()?;
        self.peers().clear()?;
        self.ports().clear()?;
        self.ranges().clear()?;
        for (key, value) in &image.addresses {
            self.addresses().put(key, &placed(value, &device))?;
        }
        for (key, value) in &image.networks {
            self.networks().put(key, value)?;
        }
        for (key, value) in &image.classes {
            self.classes().put(key, value)?;
        }
        for (key, value) in &image.ports {
            self.ports().put(key, value)?;
        }
        for (key, value) in &image.ranges {
            self.ranges().put(key, value)?;
        }
        for (key, value) in &image.peers {
            self.peers().put(key, value)?;
        }
        for (workload, endpoint) in &image.endpoints {
            let ifindex = device.get(workload).with_context(|| format!("workload {workload} has no interface"))?;
            self.set_endpoint(*ifindex, endpoint_row(*workload, endpoint))?;
        }
        Ok(())
    }
}

/// The row of an endpoint, but for the interface, which [`Kernel::set_endpoint`] fills in.
pub(super) fn endpoint_row(workload: WorkloadId, endpoint: &EndpointImage) -> EndpointValue {
    let [v4, v6] = endpoint.contested;
    let flags = [
        (endpoint.ready, ENDPOINT_READY),
        (endpoint.incomplete, ENDPOINT_ADDRESSES_INCOMPLETE),
        (v4, ENDPOINT_CONTESTED_V4),
        (v6, ENDPOINT_CONTESTED_V6),
    ];
    EndpointValue {
        flags: flags.into_iter().filter(|(holds, _)| *holds).map(|(_, flag)| flag).sum(),
        head_revision: endpoint.revision,
        workload,
        identity: endpoint.identity,
        policies: endpoint.policies,
        address_v6: endpoint.address_v6,
        address_v4: endpoint.address_v4,
        ..EndpointValue::default()
    }
}

/// A row at an interface, in both copies of it.
pub(super) fn at(value: EndpointValue, ifindex: u32) -> EndpointValue {
    EndpointValue { head_ifindex: ifindex, tail_ifindex: ifindex, tail_revision: value.head_revision, ..value }
}

/// An address with the interface of its pod.
pub(super) fn placed(value: &AddressValue, device: &HashMap<WorkloadId, u32>) -> AddressValue {
    let local = if value.owner == OWNER_LOCAL_POD { device.get(&value.workload).copied() } else { None };
    AddressValue { device: local.unwrap_or_default(), ..*value }
}
