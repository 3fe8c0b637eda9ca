//! Which interface of the node is the other end of a container's.

use super::failure::{self, Failure};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rustix::net::netdevice;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io;
use std::os::fd::AsFd;

/// An interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
}

/// Finds the node's end among those that the plugins before have made.
pub fn find(netns: &str, interface: &str, made: &[String]) -> Result<HostInterface, Failure> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))
        .map_err(|error| Failure::new(failure::IO, "no socket to ask for interfaces", error.to_string()))?;
    // Where the namespace cannot be entered, the order in which interfaces were made has to do.
    let other_end = other_end(netns, interface).unwrap_or_default();
    let index = |name: &str| netdevice::name_to_index(&socket, name).ok();
    let name = |index: u32| netdevice::index_to_name(&socket, index).ok();
    choose(made, other_end, index, name).ok_or_else(|| {
        Failure::new(
            failure::CONFIGURATION,
            format!("no interface of the node leads to {interface} of the container"),
            format!("prevResult names {made:?} on the node's side; reeve enforces pods behind veth devices"),
        )
    })
}

/// The one whose index the container's interface tells, else the last that there is. If none is named at all, the index
/// has to do; the agent looks what kind of device it is.
fn choose(
    made: &[String],
    other_end: Option<u32>,
    index: impl Fn(&str) -> Option<u32>,
    name: impl Fn(u32) -> Option<String>,
) -> Option<HostInterface> {
    let here: Vec<HostInterface> =
        made.iter().filter_map(|name| Some(HostInterface { name: name.clone(), ifindex: index(name)? })).collect();
    let told = other_end.and_then(|other_end| here.iter().find(|one| one.ifindex == other_end));
    if let Some(found) = told.or(here.last()) {
        return Some(found.clone());
    }
    other_end.and_then(|ifindex| Some(HostInterface { name: name(ifindex)?, ifindex }))
}

/// What the interface is linked to, asked inside the namespace by a thread of its own.
fn other_end(netns: &str, interface: &str) -> io::Result<Option<u32>> {
    let namespace = std::fs::File::open(netns)?;
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            linked(interface)
        });
        asking.join().unwrap_or_else(|_| Err(io::Error::other("asking for the interface panicked")))
    })
}

fn linked(interface: &str) -> io::Result<Option<u32>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(interface.to_owned()));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer.payload else { return Ok(None) };
    Ok(link
        .attributes
        .into_iter()
        .find_map(|one| if let LinkAttribute::Link(index) = one { Some(index) } else { None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(made: &[&str], other_end: Option<u32>, want: Option<(&str, u32)>) {
        let links = [("cni0", 4), ("veth7", 7), ("dummy9", 9), ("veth8", 8)];
        let made: Vec<String> = made.iter().map(|name| (*name).to_owned()).collect();
        let index = |name: &str| links.iter().find(|(other, _)| *other == name).map(|(_, index)| *index);
        let name = |index: u32| links.iter().find(|(_, other)| *other == index).map(|(name, _)| (*name).to_owned());
        let want = want.map(|(name, ifindex)| HostInterface { name: name.to_owned(), ifindex });
        assert_eq!(choose(&made, other_end, index, name), want, "{made:?} {other_end:?}");
    }

    #[test]
    fn the_other_end_is_chosen_else_the_last_that_there_is() {
        check(&["cni0", "veth7"], Some(7), Some(("veth7", 7)));
        check(&["veth7", "dummy9"], Some(7), Some(("veth7", 7)));
        check(&["cni0", "veth7"], None, Some(("veth7", 7)));
        check(&["cni0", "veth7", "gone"], Some(99), Some(("veth7", 7)));
        check(&[], Some(8), Some(("veth8", 8)));
        check(&[], None, None);
        check(&["gone"], None, None);
    }
}
