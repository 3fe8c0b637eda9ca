//! The addresses of a node and of its pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All pods of the cluster, for each family.
pub(crate) const POD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];

/// What follows from a node's number.
#[derive(Clone, Debug)]
pub(super) struct Addressing {
    pub(super) node_v4: Ipv4Addr,
    pub(super) node_v6: Ipv6Addr,
    number: u8,
}

impl Addressing {
    pub(super) fn of(number: u8) -> Self {
        Self {
            node_v4: Ipv4Addr::new(172, 18, 0, number),
            node_v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, number.into()),
            number,
        }
    }

    pub(super) fn pod_v4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, host)
    }

    pub(super) fn pod_v6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x244, self.number.into(), 0, 0, 0, 0, host.into())
    }

    /// The node's own pods, for each family.
    pub(super) fn pod_networks(&self) -> [String; 2] {
        [format!("{}/24", self.pod_v4(0)), format!("{}/64", self.pod_v6(0))]
    }

    /// The node's addresses, IPv4 first.
    pub(super) fn nodes(&self) -> [IpAddr; 2] {
        [self.node_v4.into(), self.node_v6.into()]
    }

    /// Where the node's tunnels end, IPv4 first: the first address of its pods, as flannel has it.
    pub(super) fn tunnels(&self) -> [IpAddr; 2] {
        [self.pod_v4(0).into(), self.pod_v6(0).into()]
    }

    /// Hardware addresses of the tunnels' ends.
    pub(super) fn tunnel_macs(&self) -> [String; 2] {
        [4, 6].map(|family| format!("0e:18:f4:00:{family:02x}:{:02x}", self.number))
    }
}
