//! Addresses that a node has inside tunnels: what its own processes send to pods of other nodes comes from there, but
//! `status.addresses` does not list them.
//!
//! Network plugins tell them by annotations: Calico the addresses themselves, flannel only that it has tunnels, whose
//! ends then have the first address of each of the node's pod networks.

use super::reader::{Field, Unreadable};
use ipnet::IpNet;
use std::net::IpAddr;

const CALICO: [&str; 5] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
];
const FLANNEL: &str = "flannel.alpha.coreos.com/backend-type";
/// The one backend of flannel without tunnels.
const FLANNEL_WITHOUT: &str = "host-gw";

const LEFT_OUT: &str = "the tunnel's address is not known as the node's";

/// The node's addresses in tunnels; one that cannot be read is reported and left out.
pub(super) fn addresses(root: &Field<'_>) -> Result<Vec<IpAddr>, Unreadable> {
    let annotations = root.find("metadata").and_then(|metadata| metadata.find("annotations"));
    let Some(annotations) = annotations else { return Ok(Vec::new()) };
    let mut addresses = Vec::new();
    for field in CALICO.iter().filter_map(|name| annotations.find(name)) {
        let field = field.with(LEFT_OUT);
        match field.text()?.parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => {
                field.bad("must be an IP address");
            }
        }
    }
    if let Some(backend) = annotations.find(FLANNEL)
        && backend.text()? != FLANNEL_WITHOUT
        && let Some(networks) = root.find("spec").and_then(|spec| spec.find("podCIDRs"))
    {
        for field in networks.list()? {
            let field = field.with(LEFT_OUT);
            match field.text()?.parse::<IpNet>() {
                Ok(network) => addresses.push(network.network()),
                Err(_) => {
                    field.bad("must be a CIDR");
                }
            }
        }
    }
    Ok(addresses)
}
