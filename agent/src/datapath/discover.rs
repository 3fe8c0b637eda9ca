//! Finds the device behind which a pod's address lives: by route (routed pods), or by neighbour and forwarding table
//! when the route leads to a bridge.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};

/// A device on which one pod's traffic passes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Device {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Index of the bridge that it is a port of, 0 if routed.
    pub bridge: u32,
}

/// A device by which packets leave and enter the node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Uplink {
    /// Interface name.
    pub name: String,
    /// Bytes before the IP header.
    pub header_bytes: u32,
}

/// Bytes that stand before the IP header on a device of this type; tunnels have none.
fn header_bytes(kind: LinkLayerType) -> u32 {
    use LinkLayerType::{Ip6gre, Ipgre, None, Rawip, Sit, Tunnel, Tunnel6};
    if matches!(kind, None | Tunnel | Tunnel6 | Sit | Ipgre | Ip6gre | Rawip) { 0 } else { 14 }
}

/// Where an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind this device.
    Device(Device),
    /// Behind a bridge that does not know the port yet; resolution has been asked for, try again.
    Resolving {
        /// Index of the bridge.
        bridge: u32,
    },
    /// No route leads to a device that belongs to one pod.
    Nowhere,
}

/// The links of this network namespace at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links(BTreeMap<u32, Link>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Link {
    name: String,
    kind: Option<InfoKind>,
    master: u32,
    header_bytes: u32,
    loopback: bool,
}

impl Links {
    /// Lists them.
    pub async fn read(handle: &Handle) -> Result<Self, rtnetlink::Error> {
        let mut links = BTreeMap::new();
        let mut dump = handle.link().get().execute();
        while let Some(message) = dump.try_next().await? {
            let mut link = Link {
                header_bytes: header_bytes(message.header.link_layer_type),
                loopback: message.header.link_layer_type == LinkLayerType::Loopback,
                ..Link::default()
            };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Controller(master) => link.master = master,
                    LinkAttribute::LinkInfo(infos) => {
                        link.kind = infos
                            .into_iter()
                            .find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
                    }
                    _ => {}
                }
            }
            links.insert(message.header.index, link);
        }
        Ok(Self(links))
    }

    /// The interface as an endpoint's device.
    pub fn device(&self, ifindex: u32) -> Option<Device> {
        let link = self.0.get(&ifindex)?;
        let behind_bridge = self.0.get(&link.master).is_some_and(|master| master.kind == Some(InfoKind::Bridge));
        Some(Device { name: link.name.clone(), ifindex, bridge: if behind_bridge { link.master } else { 0 } })
    }

    /// The interface as an endpoint's device, if it is one end of a pair.
    pub fn veth(&self, ifindex: u32) -> Option<Device> {
        self.device(ifindex).filter(|_| self.0.get(&ifindex).is_some_and(|link| link.kind == Some(InfoKind::Veth)))
    }

    /// Every device that is neither a pod's nor a bridge with ports of pods nor the loopback.
    pub fn uplinks(&self, pods: &BTreeSet<u32>, bridges: &BTreeSet<u32>) -> BTreeMap<u32, Uplink> {
        self.0
            .iter()
            .filter(|(ifindex, link)| !link.loopback && !pods.contains(ifindex) && !bridges.contains(ifindex))
            .map(|(ifindex, link)| (*ifindex, Uplink { name: link.name.clone(), header_bytes: link.header_bytes }))
            .collect()
    }

    /// The indexes of all.
    pub fn indexes(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }

    /// Whether the interface is there.
    pub fn contains(&self, ifindex: u32) -> bool {
        self.0.contains_key(&ifindex)
    }
}

/// Addresses of this namespace's own interfaces.
pub async fn local_addresses(handle: &Handle) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
    let mut found = BTreeSet::new();
    let mut dump = handle.address().get().execute();
    while let Some(message) = dump.try_next().await? {
        for attribute in message.attributes {
            if let AddressAttribute::Address(address) | AddressAttribute::Local(address) = attribute {
                found.insert(address);
            }
        }
    }
    Ok(found)
}

/// Who is behind which port of the node's bridges: the neighbour and forwarding tables, read when they are first asked
/// for.
#[derive(Clone, Debug, Default)]
pub struct Bridged(Option<Tables>);

#[derive(Clone, Debug, Default)]
struct Tables {
    /// (Bridge, address) -> hardware address.
    neighbours: BTreeMap<(u32, IpAddr), Vec<u8>>,
    /// (Bridge, hardware address) -> port.
    ports: BTreeMap<(u32, Vec<u8>), u32>,
}

impl Bridged {
    async fn port(&mut self, handle: &Handle, bridge: u32, address: IpAddr) -> Result<Option<u32>, rtnetlink::Error> {
        if self.0.is_none() {
            self.0 = Some(Tables { neighbours: neighbours(handle).await?, ports: forwarding_ports(handle).await? });
        }
        let found = self.0.as_ref().and_then(|tables| {
            let mac = tables.neighbours.get(&(bridge, address))?;
            tables.ports.get(&(bridge, mac.clone())).copied()
        });
        Ok(found)
    }
}

/// Finds one pod's device.
pub async fn find(
    handle: &Handle,
    links: &Links,
    bridged: &mut Bridged,
    address: IpAddr,
) -> Result<Place, rtnetlink::Error> {
    let Some(ifindex) = route_device(handle, address).await? else { return Ok(Place::Nowhere) };
    let Some(link) = links.0.get(&ifindex) else { return Ok(Place::Nowhere) };
    match link.kind {
        Some(InfoKind::Bridge) => {
            let port = bridged.port(handle, ifindex, address).await?;
            Ok(match port.and_then(|port| Some((port, links.0.get(&port)?))) {
                // A VXLAN or a NIC in the bridge leads to other nodes, not to one pod.
                Some((port, link)) if link.kind == Some(InfoKind::Veth) && link.master == ifindex => {
                    Place::Device(Device { name: link.name.clone(), ifindex: port, bridge: ifindex })
                }
                Some(_) => Place::Nowhere,
                None => {
                    resolve(address);
                    Place::Resolving { bridge: ifindex }
                }
            })
        }
        Some(InfoKind::Veth) => Ok(Place::Device(Device { name: link.name.clone(), ifindex, bridge: 0 })),
        _ => Ok(Place::Nowhere),
    }
}

/// The device of the route to an address, if it goes there without a gateway.
async fn route_device(handle: &Handle, address: IpAddr) -> Result<Option<u32>, rtnetlink::Error> {
    let message = match address {
        IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(v4, 32).build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(v6, 128).build(),
    };
    let mut answer = handle.route().get(message).execute();
    let route = match answer.try_next().await {
        Ok(Some(route)) => route,
        // No route is an answer, not a fault.
        Ok(None) | Err(rtnetlink::Error::NetlinkError(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    if route.header.kind != RouteType::Unicast {
        return Ok(None);
    }
    let mut device = None;
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => device = Some(ifindex),
            // A gateway that is the pod itself is still the pod.
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) if IpAddr::V4(v4) != address => return Ok(None),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) if IpAddr::V6(v6) != address => return Ok(None),
            _ => {}
        }
    }
    Ok(device)
}

async fn neighbours(handle: &Handle) -> Result<BTreeMap<(u32, IpAddr), Vec<u8>>, rtnetlink::Error> {
    let mut dump = handle.neighbours().get().execute();
    let mut found = BTreeMap::new();
    while let Some(message) = dump.try_next().await? {
        let (mut address, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(v6)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes),
                _ => {}
            }
        }
        if let (Some(address), Some(mac)) = (address, mac) {
            found.insert((message.header.ifindex, address), mac);
        }
    }
    Ok(found)
}

async fn forwarding_ports(handle: &Handle) -> Result<BTreeMap<(u32, Vec<u8>), u32>, rtnetlink::Error> {
    let mut request = handle.neighbours().get();
    request.message_mut().header.family = AddressFamily::Bridge;
    let mut dump = request.execute();
    let mut found = BTreeMap::new();
    while let Some(message) = dump.try_next().await? {
        let (mut mac, mut master) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes),
                NeighbourAttribute::Controller(index) => master = Some(index),
                _ => {}
            }
        }
        if let (Some(mac), Some(master)) = (mac, master) {
            found.insert((master, mac), message.header.ifindex);
        }
    }
    Ok(found)
}

/// Makes the kernel ask who has the address, by one empty datagram to the discard port.
fn resolve(address: IpAddr) {
    let any: IpAddr =
        if address.is_ipv4() { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    if let Err(error) = UdpSocket::bind((any, 0)).and_then(|socket| socket.send_to(&[], (address, 9))) {
        tracing::debug!(%address, %error, "asking for the pod's neighbour entry failed");
    }
}
