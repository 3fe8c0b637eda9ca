//! How nodes reach each other's pods: by routes over the switch, or through tunnels.

use serde_json::{Value, json};

use super::Netns;
use super::addressing::Addressing;

/// The kind of a lab's network between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A route to each node's pods by way of that node; the machine outside has them too.
    Flat,
    /// VXLAN tunnels from node to node, one per family, as flannel lays them; nobody outside knows of pods.
    Overlay,
}

/// The tunnels' devices, IPv4 first.
const TUNNELS: [&str; 2] = ["flannel.1", "flannel-v6.1"];

/// What a tunnel takes for its own headers, and a little more.
const TUNNEL_MTU_BYTES: u32 = 1400;

impl Network {
    /// The devices by which nodes send to other nodes' pods, IPv4 first.
    pub fn wire(self) -> [&'static str; 2] {
        match self {
            Self::Flat => ["eth0"; 2],
            Self::Overlay => TUNNELS,
        }
    }

    /// The largest packet that fits a pod's interface.
    pub(super) fn pod_mtu_bytes(self) -> u32 {
        match self {
            Self::Flat => 1500,
            Self::Overlay => TUNNEL_MTU_BYTES,
        }
    }

    /// Makes a new node's tunnels, as commands of `ip`.
    pub(super) fn devices(self, own: &Addressing) -> Vec<String> {
        if self == Self::Flat {
            return Vec::new();
        }
        let ends = own.nodes().into_iter().zip(own.tunnels()).zip(own.tunnel_macs()).zip(TUNNELS);
        ends.flat_map(|(((local, inner), mac), device)| {
            let (length, detection) = if inner.is_ipv6() { (128, " nodad") } else { (32, "") };
            [
                // Learning would believe whoever sends; the forwarding table is given instead.
                format!("link add {device} type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning"),
                format!("link set {device} address {mac} mtu {TUNNEL_MTU_BYTES} up"),
                format!("addr add {inner}/{length} dev {device}{detection}"),
            ]
        })
        .collect()
    }

    /// Shows a namespace the way to a node's pods.
    pub(super) fn lead(self, netns: &Netns, is_node: bool, to: &Addressing) -> anyhow::Result<()> {
        match self {
            Self::Flat => netns.ip(&routes(to)),
            Self::Overlay if is_node => {
                netns.ip(&tunnel_routes(to))?;
                netns.bridge(&forwarding(to))
            }
            Self::Overlay => Ok(()),
        }
    }

    /// What a node's annotations say of its tunnels.
    pub(super) fn annotations(self, own: &Addressing) -> Value {
        if self == Self::Flat {
            return json!({});
        }
        let [v4, v6] = own.tunnel_macs().map(|mac| json!({ "VNI": 1, "VtepMAC": mac }).to_string());
        json!({
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": v4,
            "flannel.alpha.coreos.com/backend-v6-data": v6,
            "flannel.alpha.coreos.com/public-ip": own.node_v4,
            "flannel.alpha.coreos.com/public-ipv6": own.node_v6,
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        })
    }
}

fn routes(to: &Addressing) -> Vec<String> {
    let pods = to.pod_networks().into_iter().zip(to.nodes());
    pods.map(|(network, node)| format!("route add {network} via {node}")).collect()
}

fn tunnel_routes(to: &Addressing) -> Vec<String> {
    let ends = to.pod_networks().into_iter().zip(to.tunnels()).zip(to.tunnel_macs()).zip(TUNNELS);
    ends.flat_map(|(((network, inner), mac), device)| {
        [
            format!("neigh add {inner} lladdr {mac} dev {device} nud permanent"),
            format!("route add {network} via {inner} dev {device} onlink"),
        ]
    })
    .collect()
}

fn forwarding(to: &Addressing) -> Vec<String> {
    let ends = to.nodes().into_iter().zip(to.tunnel_macs()).zip(TUNNELS);
    ends.map(|((node, mac), device)| format!("fdb append {mac} dev {device} dst {node}")).collect()
}
