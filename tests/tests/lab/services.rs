//! Services deliver, without any agent, in both flavours of rules: to whom, and as whom the client then appears.

use std::net::{IpAddr, SocketAddr};

use reeve_tests::lab::Transport::{Tcp, Udp};
use reeve_tests::lab::{
    Affinity, Backend, ExternalPolicy, Flavour, Lab, Masquerade, Mode, Netns, Network, Node, Pod, ServiceSpec, Services,
};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::traffic::{Answer, NoAnswer, Server, UdpClient, connect};

use super::{GENEROUS, SHORT, pod};

/// The port of every TCP server and, at the Services, of every UDP server's Service.
const WEB: u16 = 8080;
const NAMES: u16 = 53;

/// Two nodes, a machine outside, pods that serve and a pod that asks.
struct Town {
    services: Services,
    client: Served,
    local: Served,
    remote: Served,
    n1: Served,
    n2: Served,
    outside: Netns,
    nodes: [Node; 2],
    pods: [Pod; 3],
    v6: bool,
    _lab: Lab,
}

/// A place with a server for each transport.
struct Served {
    netns: Netns,
    address: IpAddr,
    tcp: Server,
    udp: Server,
}

impl Served {
    fn new(netns: &Netns, address: IpAddr) -> Self {
        let tcp = Server::tcp(netns, address, WEB).unwrap();
        let udp = Server::udp(netns, address, NAMES).unwrap();
        Self { netns: netns.clone(), address, tcp, udp }
    }
}

/// Asks once; an answer says that some backend has it.
fn ask(from: &Netns, to: SocketAddr) -> Answer {
    connect(from, to, GENEROUS)?.exchange(GENEROUS)
}

impl Town {
    fn new(name: &str, network: Network, mode: Mode, flavour: Flavour, v6: bool) -> Self {
        let lab = Lab::joined(name, network).unwrap();
        let nodes = ["n1", "n2"].map(|name| lab.node(name, mode).unwrap());
        let outside = lab.outside("world").unwrap();
        let pods = [pod(&nodes[0], "client"), pod(&nodes[0], "local"), pod(&nodes[1], "remote")];
        let services = Services::new(&lab, flavour, &[&nodes[0], &nodes[1]]).unwrap();
        let of = |v4: IpAddr, six: IpAddr| if v6 { six } else { v4 };
        let [client, local, remote] =
            [0, 1, 2].map(|index: usize| Served::new(pods[index].netns(), of(pods[index].v4(), pods[index].v6())));
        let [n1, n2] =
            [0, 1].map(|index: usize| Served::new(nodes[index].netns(), of(nodes[index].v4(), nodes[index].v6())));
        Self { services, client, local, remote, n1, n2, outside, nodes, pods, v6, _lab: lab }
    }

    fn address(&self, service: &reeve_tests::lab::Service) -> IpAddr {
        if self.v6 { service.v6() } else { service.v4() }
    }

    /// A new Service whose only backend this is.
    fn service(&self, name: &str, backend: &Backend) -> SocketAddr {
        let spec = ServiceSpec::new("default", name).port(Tcp, 80, WEB).port(Udp, 53, NAMES);
        let service = self.services.add(spec, std::slice::from_ref(backend)).unwrap();
        SocketAddr::new(self.address(&service), 80)
    }
}

/// TCP and UDP from `from` by way of a Service end at `to`, where the client appears as `seen`, if that is given.
#[track_caller]
fn check_leads(from: &Served, service: SocketAddr, to: &Served, seen: Option<IpAddr>) {
    assert_eq!(ask(&from.netns, service), Ok(()), "TCP to {service}");
    let names = SocketAddr::new(service.ip(), 53);
    let mut udp = UdpClient::new(&from.netns, None, names).unwrap();
    assert_eq!(udp.exchange(GENEROUS), Ok(()), "UDP to {names}");
    for (server, what) in [(&to.tcp, "TCP"), (&to.udp, "UDP")] {
        let clients = server.clients();
        let client = clients.last().unwrap_or_else(|| panic!("{what} to {service} ends at {}", to.address)).ip();
        match seen {
            Some(seen) => assert_eq!(client, seen, "{what} to {service}"),
            None => assert_ne!(client, from.address, "{what} to {service} is masqueraded"),
        }
    }
}

#[track_caller]
fn check_cluster_addresses(town: &Town) {
    let [client, local, remote] = [0, 1, 2].map(|index: usize| Backend::pod(&town.pods[index]));
    let own = Some(town.client.address);
    let to_local = town.service("local", &local);
    check_leads(&town.client, to_local, &town.local, own);
    let to_remote = town.service("remote", &remote);
    check_leads(&town.client, to_remote, &town.remote, own);
    let hairpin = town.service("self", &client);
    check_leads(&town.client, hairpin, &town.client, None);
    // The node is no pod, so its own packets take the address of the device that they leave by.
    check_leads(&town.n1, to_local, &town.local, Some(seen_by_local(town)));
    assert_eq!(ask(&town.n1.netns, to_remote), Ok(()), "a process of the node to a pod of another");
    assert_eq!(town.remote.tcp.clients().len(), 1);
    let to_host = town.service("host-here", &Backend::host(&town.nodes[0]));
    check_leads(&town.client, to_host, &town.n1, own);
    let to_other_host = town.service("host-there", &Backend::host(&town.nodes[1]));
    let seen =
        if town.pods[0].node().lab().network() == Network::Overlay { town.n1.address } else { town.client.address };
    check_leads(&town.client, to_other_host, &town.n2, Some(seen));
}

/// As whom the first node's own processes appear to its pods when their packets are masqueraded.
fn seen_by_local(town: &Town) -> IpAddr {
    match (town.nodes[0].mode(), town.v6) {
        (Mode::Routed, _) => town.n1.address,
        (Mode::Bridged, false) => "10.244.1.1".parse().unwrap(),
        (Mode::Bridged, true) => "fd00:244:1::1".parse().unwrap(),
    }
}

#[track_caller]
fn check_from_outside(town: &Town) {
    let [local, remote] = [1, 2].map(|index: usize| Backend::pod(&town.pods[index]));
    let outside = town.outside_address();
    let spec = |name, port| ServiceSpec::new("default", name).node_port(Tcp, 80, WEB, port);
    town.services.add(spec("far", 30_080), &[remote]).unwrap();
    town.services.add(spec("near", 30_081), std::slice::from_ref(&local)).unwrap();
    town.services.add(spec("kept", 30_082).external_policy(ExternalPolicy::Local), &[local]).unwrap();
    town.services.host_port(&town.pods[1], Tcp, 9090, WEB, Masquerade::Neighbours).unwrap();
    let at = |node: &Served, port| SocketAddr::new(node.address, port);
    let seen_at = |server: &Served| server.tcp.clients().iter().map(SocketAddr::ip).collect::<Vec<_>>();

    assert_eq!(ask(&town.outside, at(&town.n1, 30_080)), Ok(()));
    assert!(seen_at(&town.remote).iter().all(|ip| *ip != outside), "masqueraded on the way to another node");
    assert_eq!(ask(&town.outside, at(&town.n1, 30_081)), Ok(()));
    assert_eq!(seen_at(&town.local), [seen_by_local(town)], "masqueraded although the pod is here");
    assert_eq!(ask(&town.outside, at(&town.n1, 30_082)), Ok(()));
    assert_eq!(seen_at(&town.local), [outside], "seen as itself");
    let other = connect(&town.outside, at(&town.n2, 30_082), SHORT).unwrap_err();
    assert_eq!(other, NoAnswer::TimedOut, "a node without such a pod does not answer");
    assert_eq!(ask(&town.outside, at(&town.n1, 9090)), Ok(()), "hostPort");
    assert_eq!(seen_at(&town.local), [outside], "seen as itself");
    assert_eq!(ask(&town.client.netns, at(&town.n1, 9090)), Ok(()), "hostPort from a pod of the node");
    assert_eq!(seen_at(&town.local).len(), 1);
    assert_eq!(connect(&town.outside, at(&town.n2, 9090), GENEROUS).unwrap_err(), NoAnswer::Refused);
}

impl Town {
    fn outside_address(&self) -> IpAddr {
        (if self.v6 { "fd00:18::3" } else { "172.18.0.3" }).parse().unwrap()
    }
}

#[track_caller]
fn check_choices(town: &Town) {
    let [client, local, remote] = [0, 1, 2].map(|index: usize| Backend::pod(&town.pods[index]));
    let spec = |name| ServiceSpec::new("default", name).port(Tcp, 80, WEB);
    let both = [local.clone(), remote.clone()];
    let to = |service: &reeve_tests::lab::Service| SocketAddr::new(town.address(service), 80);
    let counts = || [&town.local, &town.remote].map(|server| server.tcp.clients().len());

    let sticky = town.services.add(spec("sticky").affinity(Affinity::ClientIp), &both).unwrap();
    let any = town.services.add(spec("any"), &both).unwrap();
    for _ in 0..12 {
        assert_eq!(ask(&town.client.netns, to(&sticky)), Ok(()));
    }
    let sticky_counts = counts();
    assert!(sticky_counts.contains(&12) && sticky_counts.contains(&0), "{sticky_counts:?}");
    // 1 in 2^39 to miss either.
    for _ in 0..40 {
        assert_eq!(ask(&town.client.netns, to(&any)), Ok(()));
    }
    let any_counts = counts();
    assert!(any_counts[0] > 0 && any_counts[1] > 0, "{any_counts:?}");
    // The affinity outlives a change of something else.
    any.set_backends(&[client]).unwrap();
    assert_eq!(ask(&town.client.netns, to(&sticky)), Ok(()));
    assert_eq!(counts().map(|count| count > 0), sticky_counts.map(|count| count > 0));

    let moving = town.services.add(spec("moving").port(Udp, 53, NAMES), &[local]).unwrap();
    let address = to(&moving);
    let mut live = connect(&town.client.netns, address, GENEROUS).unwrap();
    assert_eq!(live.exchange(GENEROUS), Ok(()));
    assert_eq!(counts(), [1, 0]);
    let mut datagrams = UdpClient::new(&town.client.netns, None, SocketAddr::new(address.ip(), 53)).unwrap();
    assert_eq!(datagrams.exchange(GENEROUS), Ok(()));
    assert_eq!(town.local.udp.clients().len(), 1);
    moving.set_backends(&[remote]).unwrap();
    assert_eq!(ask(&town.client.netns, address), Ok(()));
    assert_eq!(live.exchange(GENEROUS), Ok(()), "what was open stays where it was");
    assert_eq!(counts(), [0, 1]);
    assert_eq!(datagrams.exchange(GENEROUS), Ok(()));
    let moved = [&town.local, &town.remote].map(|server| server.udp.clients().len());
    assert_eq!(moved, [0, 1], "datagrams from the same port go where new ones would");
    moving.set_backends(&[]).unwrap();
    assert_eq!(ask(&town.client.netns, address), Err(NoAnswer::Refused), "nobody serves it");
    moving.remove().unwrap();
    assert_eq!(connect(&town.client.netns, address, SHORT).unwrap_err(), NoAnswer::TimedOut, "nobody knows it");
}

#[track_caller]
fn check_node_local(town: &Town) {
    let spec = ServiceSpec::new("default", "names").port(Tcp, 80, WEB);
    let service = town.services.add(spec, &[Backend::pod(&town.pods[2])]).unwrap();
    let address = SocketAddr::new(town.address(&service), 80);
    assert_eq!(ask(&town.client.netns, address), Ok(()));
    assert_eq!(town.remote.tcp.clients().len(), 1, "the control: it leads to a pod first");
    town.services.serve_on_node(&town.nodes[0], &service).unwrap();
    let here = Server::tcp(town.nodes[0].netns(), address.ip(), 80).unwrap();
    assert_eq!(ask(&town.client.netns, address), Ok(()));
    assert_eq!(here.clients().iter().map(SocketAddr::ip).collect::<Vec<_>>(), [town.client.address]);
    assert!(town.remote.tcp.clients().is_empty());
}

#[track_caller]
fn check_services(name: &str, network: Network, mode: Mode, flavour: Flavour) {
    use Capability::{Cgroup, Nat, Netns, Root};
    if skip_unless(&[Root, Netns, Cgroup, Nat]) {
        return;
    }
    for v6 in [false, true] {
        let town = Town::new(&format!("{name}{}", if v6 { 6 } else { 4 }), network, mode, flavour, v6);
        check_cluster_addresses(&town);
        check_from_outside(&town);
        check_choices(&town);
        check_node_local(&town);
    }
}

#[test]
fn nftables_serve_routed_pods_in_a_flat_network() {
    check_services("svc-frn", Network::Flat, Mode::Routed, Flavour::Nftables);
}

#[test]
fn iptables_serve_routed_pods_in_a_flat_network() {
    check_services("svc-fri", Network::Flat, Mode::Routed, Flavour::Iptables);
}

#[test]
fn nftables_serve_bridged_pods_in_an_overlay() {
    check_services("svc-obn", Network::Overlay, Mode::Bridged, Flavour::Nftables);
}

#[test]
fn iptables_serve_bridged_pods_in_an_overlay() {
    check_services("svc-obi", Network::Overlay, Mode::Bridged, Flavour::Iptables);
}
