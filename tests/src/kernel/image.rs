//! Writing a compiled image into the kernel, as the agent would.

use super::Kernel;
use anyhow::Context;
use reeve_abi::address::{AddressValue, OWNER_LOCAL_POD};
use reeve_abi::config::Config;
use reeve_abi::endpoint::{ENDPOINT_ADDRESSES_INCOMPLETE, ENDPOINT_READY, EndpointValue};
use reeve_abi::ids::WorkloadId;
use reeve_policy::image::{EndpointImage, Image};
use reeve_policy::plan::Op;
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
            let value = row(*workload, endpoint);
            self.set_endpoint(*ifindex, value)?;
        }
        Ok(())
    }

    /// Does to the maps what a plan says, one element at a time; endpoints are written without making interfaces.
    pub fn execute(&self, plan: &[Op], devices: &HashMap<WorkloadId, u32>) -> anyhow::Result<()> {
        let device = |workload: &WorkloadId| {
            devices.get(workload).copied().with_context(|| format!("workload {workload} has no interface"))
        };
        for op in plan {
            match op {
                Op::PutPort(key, value) => self.ports().put(key, value)?,
                Op::DeletePort(key) => self.ports().remove(key)?,
                Op::PutRange(key, value) => self.ranges().put(key, value)?,
                Op::DeleteRange(key) => self.ranges().remove(key)?,
                Op::PutPeer(key, value) => self.peers().put(key, value)?,
                Op::DeletePeer(key) => self.peers().remove(key)?,
                Op::PutClass(key, value) => self.classes().put(key, value)?,
                Op::DeleteClass(key) => self.classes().remove(key)?,
                Op::PutNetwork(key, value) => self.networks().put(key, value)?,
                Op::DeleteNetwork(key) => self.networks().remove(key)?,
                Op::PutAddress(key, value) => {
                    let device = if value.owner == OWNER_LOCAL_POD { device(&value.workload)? } else { 0 };
                    self.addresses().put(key, &AddressValue { device, ..*value })?;
                }
                Op::DeleteAddress(key) => self.addresses().remove(key)?,
                Op::PutEndpoint(workload, endpoint) => {
                    let ifindex = device(workload)?;
                    self.endpoints().put(&ifindex, &at(ifindex, row(*workload, endpoint)))?;
                }
                Op::DeleteEndpoint(workload) => self.endpoints().remove(&device(workload)?)?,
                Op::BumpAddressEpoch => {
                    let config = self.config().get(&0)?.unwrap_or(Config::DEFAULT);
                    self.config().put(&0, &Config { address_epoch: config.address_epoch + 1, ..config })?;
                }
            }
        }
        Ok(())
    }
}

fn row(workload: WorkloadId, endpoint: &EndpointImage) -> EndpointValue {
    let ready = if endpoint.ready { ENDPOINT_READY } else { 0 };
    let incomplete = if endpoint.incomplete { ENDPOINT_ADDRESSES_INCOMPLETE } else { 0 };
    EndpointValue {
        flags: ready | incomplete,
        head_revision: endpoint.revision,
        workload,
        identity: endpoint.identity,
        policies: endpoint.policies,
        address_v6: endpoint.address_v6,
        address_v4: endpoint.address_v4,
        ..EndpointValue::default()
    }
}

/// Both copies of what a program compares.
pub(super) fn at(ifindex: u32, value: EndpointValue) -> EndpointValue {
    EndpointValue { head_ifindex: ifindex, tail_ifindex: ifindex, tail_revision: value.head_revision, ..value }
}
