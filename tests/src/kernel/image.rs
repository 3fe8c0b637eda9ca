//! Writing a compiled image into the kernel, as the agent would.

use super::Kernel;
use anyhow::Context;
use reeve_abi::address::{AddressValue, OWNER_LOCAL_POD};
use reeve_abi::endpoint::{ENDPOINT_ADDRESSES_INCOMPLETE, ENDPOINT_READY, EndpointValue};
use reeve_abi::ids::WorkloadId;
use reeve_policy::image::Image;
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
            let local = if value.owner == OWNER_LOCAL_POD { device.get(&value.workload).copied() } else { None };
            self.addresses().put(key, &AddressValue { device: local.unwrap_or_default(), ..*value })?;
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
            let ready = if endpoint.ready { ENDPOINT_READY } else { 0 };
            let incomplete = if endpoint.incomplete { ENDPOINT_ADDRESSES_INCOMPLETE } else { 0 };
            let value = EndpointValue {
                flags: ready | incomplete,
                head_revision: endpoint.revision,
                workload: *workload,
                identity: endpoint.identity,
                policies: endpoint.policies,
                address_v6: endpoint.address_v6,
                address_v4: endpoint.address_v4,
                ..EndpointValue::default()
            };
            self.set_endpoint(*ifindex, value)?;
        }
        Ok(())
    }
}
