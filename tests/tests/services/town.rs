//! Two nodes with agents, Services on both, and a machine outside.

use std::net::{IpAddr, SocketAddr};

use reeve_tests::lab::Transport::{Tcp, Udp};
use reeve_tests::lab::{Backend, ExternalPolicy, Flavour, Mode, Netns, Network, Pod, Service, ServiceSpec, Services};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::stage::Cluster;
use reeve_tests::traffic::{self, Answer, PATIENCE};
use serde_json::{Value, json};

/// Under what a claim must hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    name: &'static str,
    pub(crate) network: Network,
    pub(crate) mode: Mode,
    pub(crate) flavour: Flavour,
    pub(crate) v6: bool,
}

/// Each kind of network with each way of wiring; flavours and families take turns.
pub(crate) const SETTINGS: [Setting; 4] = [
    Setting { name: "frn4", network: Network::Flat, mode: Mode::Routed, flavour: Flavour::Nftables, v6: false },
    Setting { name: "fbi6", network: Network::Flat, mode: Mode::Bridged, flavour: Flavour::Iptables, v6: true },
    Setting { name: "obi4", network: Network::Overlay, mode: Mode::Bridged, flavour: Flavour::Iptables, v6: false },
    Setting { name: "orn6", network: Network::Overlay, mode: Mode::Routed, flavour: Flavour::Nftables, v6: true },
];

/// `client` (`role=client`), `guest`, `web` (`app=web`) and `near` (`app=near`) on the first node, `far` (`app=far`) on
/// the second. All serve 8080/TCP and 53/UDP, and so do processes of both nodes.
pub(crate) struct Town {
    pub(crate) cluster: Cluster,
    pub(crate) services: Services,
    pub(crate) client: Pod,
    pub(crate) guest: Pod,
    pub(crate) web: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) outside: Netns,
    pub(crate) setting: Setting,
}

/// Runs a claim under every setting; says which one it was under when it fails.
#[track_caller]
pub(crate) fn everywhere(name: &str, claim: impl Fn(&mut Town)) {
    use Capability::{Agent, Bpf, Cgroup, Nat, Netns, Root};
    if skip_unless(&[Root, Bpf, Netns, Cgroup, Agent, Nat]) {
        return;
    }
    for setting in SETTINGS {
        eprintln!("{name} under {setting:?}");
        claim(&mut Town::new(&format!("{name}-{}", setting.name), setting));
    }
}

impl Town {
    fn new(name: &str, setting: Setting) -> Self {
        let mut cluster = Cluster::new(name, setting.network, &[setting.mode, setting.mode]);
        let client = cluster.pod(0, "client", &[("role", "client")]);
        let guest = cluster.pod(0, "guest", &[("role", "guest")]);
        let web = cluster.pod(0, "web", &[("app", "web")]);
        let near = cluster.pod(0, "near", &[("app", "near")]);
        let far = cluster.pod(1, "far", &[("app", "far")]);
        cluster.serve_on_node(0);
        cluster.serve_on_node(1);
        let outside = cluster.lab.outside("world").expect("a machine outside");
        let services =
            Services::new(&cluster.lab, setting.flavour, &[&cluster.nodes[0], &cluster.nodes[1]]).expect("rules");
        cluster.start();
        Self { cluster, services, client, guest, web, near, far, outside, setting }
    }

    /// A Service with 80/TCP and 5353/UDP that leads to these.
    pub(crate) fn service(&mut self, name: &str, backends: &[Backend]) -> Service {
        self.add(ServiceSpec::new("shop", name).port(Tcp, 80, 8080).port(Udp, 5353, 53), backends)
    }

    /// A Service with 80/TCP that nodes have too.
    pub(crate) fn at_nodes(&mut self, name: &str, port: u16, policy: ExternalPolicy, backend: &Pod) {
        let spec = ServiceSpec::new("shop", name).node_port(Tcp, 80, 8080, port).external_policy(policy);
        self.add(spec, &[Backend::pod(backend)]);
    }

    /// A Service that every agent knows.
    pub(crate) fn add(&mut self, spec: ServiceSpec, backends: &[Backend]) -> Service {
        let service = self.services.add(spec, backends).expect("a Service");
        self.cluster.settled();
        service
    }

    /// Where a Service's 80/TCP is.
    pub(crate) fn tcp(&self, service: &Service) -> SocketAddr {
        SocketAddr::new(if self.setting.v6 { service.v6() } else { service.v4() }, 80)
    }

    /// Where a Service's 5353/UDP is.
    pub(crate) fn udp(&self, service: &Service) -> SocketAddr {
        SocketAddr::new(self.tcp(service).ip(), 5353)
    }

    /// A pod's address.
    pub(crate) fn of(&self, pod: &Pod) -> IpAddr {
        if self.setting.v6 { pod.v6() } else { pod.v4() }
    }

    /// A node's address; nodes are counted from 0.
    pub(crate) fn node(&self, node: usize) -> IpAddr {
        let node = &self.cluster.nodes[node];
        if self.setting.v6 { node.v6() } else { node.v4() }
    }

    /// The address of the machine outside.
    pub(crate) fn outside_address(&self) -> IpAddr {
        (if self.setting.v6 { "fd00:18::3" } else { "172.18.0.3" }).parse().expect("an address")
    }

    /// A peer of a NetworkPolicy that is this address and no other.
    pub(crate) fn block(address: IpAddr) -> Value {
        let length = if address.is_ipv6() { 128 } else { 32 };
        json!({ "ipBlock": { "cidr": format!("{address}/{length}") } })
    }

    /// Lets only these peers reach pods with that `app`; every agent knows.
    pub(crate) fn let_in(&mut self, app: &str, peers: &[Value]) {
        let spec = json!({ "podSelector": { "matchLabels": { "app": app } }, "ingress": [{ "from": peers }] });
        self.cluster.policy(&format!("into-{app}"), &spec);
        self.cluster.settled();
    }

    /// The record in which a node's agent tells of packets that reach a pod there; it has this verdict and names this
    /// decider.
    #[track_caller]
    pub(crate) fn told_at_receiver(
        &mut self,
        node: usize,
        source: IpAddr,
        destination: IpAddr,
        verdict: &str,
        said: &str,
    ) -> Value {
        let (source, destination) = (source.to_string(), destination.to_string());
        let line = self.cluster.record(node, |line| {
            line["direction"] == "ingress"
                && line["source"]["ip"] == source.as_str()
                && line["destination"]["ip"] == destination.as_str()
        });
        assert_eq!(line["verdict"], verdict, "{line}");
        assert!(line["decision"].to_string().contains(said), "{said} is not in {line}");
        line
    }
}

/// A TCP connection and one exchange.
pub(crate) fn ask(from: &Netns, to: SocketAddr) -> Answer {
    traffic::tcp_exchange(from, to, PATIENCE)
}

/// One UDP exchange.
pub(crate) fn ask_udp(from: &Netns, to: SocketAddr) -> Answer {
    traffic::udp_exchange(from, to, PATIENCE)
}

/// A peer of a NetworkPolicy: pods with this label.
pub(crate) fn pods(key: &str, value: &str) -> Value {
    json!({ "podSelector": { "matchLabels": { key: value } } })
}
