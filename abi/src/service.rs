//! Addresses that stand for others.

use crate::address::Address;
use bytemuck::{Pod, Zeroable};

/// Map `SERVICES`: key. Written by the agent's reconciler.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct ServiceKey {
    /// A Service's address, or one of this node's own with a node port or a pod's host port.
    pub address: Address,
    /// Port, host byte order.
    pub port: u32,
    /// IP protocol number.
    pub protocol: u32,
}

/// Map `SERVICES`: value.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ServiceValue {
    /// `SERVICE_*` bits.
    pub flags: u32,
    /// Unused, zero.
    pub reserved: u32,
}

/// An address of the Service itself: cluster, external or load balancer address.
pub const SERVICE_ADDRESS: u32 = 1;
/// A port of this node that leads to a Service.
pub const SERVICE_NODE_PORT: u32 = 2;
/// A port of this node that leads to one of its pods (`hostPort`).
pub const SERVICE_HOST_PORT: u32 = 4;

crate::pin_size!(ServiceKey = 24, ServiceValue = 8);
