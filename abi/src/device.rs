//! Interfaces of the node that are no pod's.

use bytemuck::{Pod, Zeroable};

/// Map `DEVICES`: value (the key is the interface index). Written by the agent's reconciler.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DeviceValue {
    /// One of `DEVICE_*`.
    pub kind: u32,
    /// Bytes before the IP header: 14, or 0 for tunnels without a link layer.
    pub header_bytes: u32,
}

/// A device with the programs for what leaves and enters the node.
pub const DEVICE_UPLINK: u32 = 1;
/// A bridge with ports of pods; what comes from it carries a mark.
pub const DEVICE_POD_BRIDGE: u32 = 2;

crate::pin_size!(DeviceValue = 8);
