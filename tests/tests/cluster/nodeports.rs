//! Who is judged, and recorded, behind the rules that the real kube-proxy writes: clients of ports of nodes, and processes
//! of nodes that stand behind a Service.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use reeve_tests::cluster::{Proxy, ProxyMode};
use reeve_tests::lab::{Agent, Netns, Node, Pod, PodSpec, Records, until};
use reeve_tests::stage::RECORD_PATIENCE;
use reeve_tests::traffic::{Answer, NoAnswer, PATIENCE, Server, tcp_exchange};
use serde_json::{Value, json};

use crate::town::{Company, LONG, Town, is_judged, skipped};

/// Two nodes with agents and kube-proxy, a machine outside, and on the first node `web`, which serves.
struct Ports {
    town: Town,
    far: Node,
    away: Agent,
    records: [Records; 2],
    _proxies: [Proxy; 2],
    servers: Vec<Server>,
    web: Pod,
    outside: Netns,
    outside_v4: IpAddr,
    outside_v6: IpAddr,
}

/// Which end of the wire is asked, counted from 0: `web` is on the first.
const NODES: [usize; 2] = [0, 1];

fn ask(from: &Netns, to: SocketAddr) -> Answer {
    tcp_exchange(from, to, PATIENCE)
}

/// The address that a machine shows to another.
fn shown(machine: &Netns, to: IpAddr) -> IpAddr {
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = machine.run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        socket.connect((to, 9))?;
        Ok(socket)
    });
    socket.expect("entered").and_then(|socket| socket.local_addr()).expect("a route").ip()
}

/// A peer that is one address.
fn block(address: IpAddr) -> Value {
    json!({ "ipBlock": { "cidr": format!("{address}/{}", if address.is_ipv6() { 128 } else { 32 }) } })
}

fn labelled(app: &str) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": app } } })
}

impl Ports {
    #[track_caller]
    fn new(name: &str, mode: ProxyMode) -> Self {
        let mut town = Town::new(name, Company::Shared);
        let far = town.another_node("far");
        let web = town.pod("web");
        let servers = vec![Server::tcp(web.netns(), web.v6(), 8080).expect("a TCP server")];
        let outside = town.cluster.lab.outside(&format!("{name}-world")).expect("a machine outside");
        town.start();
        let away = town.agent_of(&far);
        let proxies = [&town.node, &far].map(|node| town.cluster.start_proxy(node, mode).expect("kube-proxy"));
        let records = [town.own().records(), away.records()];
        let (outside_v4, outside_v6) = (shown(&outside, town.node.v4()), shown(&outside, town.node.v6()));
        Self { far, away, records, _proxies: proxies, servers, web, outside, outside_v4, outside_v6, town }
    }

    fn node(&self, node: usize, v6: bool) -> IpAddr {
        let node = [&self.town.node, &self.far][node];
        if v6 { node.v6() } else { node.v4() }
    }

    fn web_at(&self, v6: bool) -> IpAddr {
        if v6 { self.web.v6() } else { self.web.v4() }
    }

    fn outside_at(&self, v6: bool) -> IpAddr {
        if v6 { self.outside_v6 } else { self.outside_v4 }
    }

    /// A Service of `web` that nodes have a port for; that port, where it leads somewhere.
    #[track_caller]
    fn service(&self, name: &str, policy: &str) -> u16 {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": self.town.name, "name": name },
            "spec": {
                "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": policy,
                "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }],
            },
        });
        self.town.cluster.apply(&[service]).expect("a Service");
        let told = self.town.cluster.get(&["service", name, "-n", &self.town.name]).expect("a Service");
        let port = told["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
        let port = port.expect("a port of nodes");
        let nodes: &[usize] = if policy == "Local" { &[0] } else { &NODES };
        for node in nodes {
            for v6 in [false, true] {
                leads(&self.outside, SocketAddr::new(self.node(*node, v6), port));
            }
        }
        port
    }

    /// Lets only this peer reach `web`; both agents' kernels have it.
    #[track_caller]
    fn let_in(&self, peer: Value) {
        self.town.let_in("web", &[peer], &[self.town.own(), &self.away]);
    }

    /// Tries a port of a node, and what the agent of `web`'s node says of it: the source that was judged.
    #[track_caller]
    fn judged(&mut self, what: &str, from: &Netns, asked: SocketAddr, source: IpAddr, allowed: bool) -> Value {
        self.records[0].rest().expect("records");
        let wanted = if allowed { Ok(()) } else { Err(NoAnswer::TimedOut) };
        assert_eq!(ask(from, asked), wanted, "{what}: {asked}");
        let destination = self.web_at(asked.is_ipv6()).to_string();
        let of_it = |line: &Value| is_judged(line, "ingress") && line["destination"]["ip"] == destination;
        let line = self.records[0].wait_for(RECORD_PATIENCE, of_it);
        let line = line.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_eq!(line["source"]["ip"], source.to_string(), "{what}: {line}");
        assert_eq!(line["verdict"], if allowed { "allow" } else { "deny" }, "{what}: {line}");
        assert!(line["decision"].to_string().contains("into-web"), "{what}: {line}");
        line
    }
}

/// Waits until an address leads to a server.
#[track_caller]
fn leads(from: &Netns, to: SocketAddr) {
    let mut last = None;
    let reached = until("a Service", LONG, || {
        last = Some(ask(from, to));
        Ok((last == Some(Ok(()))).then_some(()))
    });
    assert!(reached.is_ok(), "{to}: {last:?}");
}

#[track_caller]
fn check_clients(name: &str, mode: ProxyMode) {
    let mut ports = Ports::new(name, mode);
    let (client, guest) = (ports.town.pod("client"), ports.town.pod("guest"));
    let spec = PodSpec::new(&ports.town.name, "remote").label("app", "client");
    let remote = ports.town.cluster.pod(&ports.far, spec).expect("a pod");
    // As they are told together, whoever knows one address of it knows both.
    ports.town.own().heard_of(&remote.v6().to_string()).expect("it is known");
    let (anywhere, local) = (ports.service("web", "Cluster"), ports.service("web-local", "Local"));
    let machine = ports.outside.clone();
    for v6 in [false, true] {
        let (outside, near, far) = (ports.outside_at(v6), ports.node(0, v6), ports.node(1, v6));
        let at = SocketAddr::new;
        // Behind the address of the pod's own node, and behind none: the client itself.
        for (what, asked) in [("masked by the own node", at(near, anywhere)), ("not masked", at(near, local))] {
            for (peer, allowed) in [(outside, true), (near, false), (far, false)] {
                ports.let_in(block(peer));
                let line = ports.judged(&format!("{what}, {peer} let in"), &machine, asked, outside, allowed);
                // Where a policy names a network that it is in, another test's included, it is that network's.
                assert!(line["source"]["owner"] == "network" || line["source"]["owner"] == "world", "{what}: {line}");
                assert_eq!(line["service"], json!({ "address": near, "port": asked.port() }), "{what}: {line}");
            }
        }
        // Another node masks it before it comes: that node, and it is told that it may stand for others.
        for (peer, allowed) in [(far, true), (outside, false)] {
            ports.let_in(block(peer));
            let what = format!("masked by the other node, {peer} let in");
            let line = ports.judged(&what, &machine, at(far, anywhere), far, allowed);
            assert_eq!(line["source"]["owner"], "node", "{what}: {line}");
            assert!(line["flags"].to_string().contains("mayBeMasqueraded"), "{what}: {line}");
        }
        // A node without a backend of its own has nobody to lead to; its other port leads on.
        ports.let_in(block(far));
        assert_ne!(ask(&machine, at(far, local)), Ok(()), "{far} has no backend");
        assert_eq!(ask(&machine, at(far, anywhere)), Ok(()));
        // Pods of the node are pods, whichever port of it they take.
        ports.let_in(labelled("client"));
        let of = |pod: &Pod| if v6 { pod.v6() } else { pod.v4() };
        for asked in [at(near, anywhere), at(near, local)] {
            for (pod, allowed) in [(&client, true), (&guest, false)] {
                let line = ports.judged("a pod of the node", pod.netns(), asked, of(pod), allowed);
                assert_eq!(line["source"]["uid"], pod.uid(), "{line}");
            }
            ports.judged("a machine outside is no pod", &machine, asked, outside, false);
            let line = ports.judged("a pod of the other node", remote.netns(), asked, of(&remote), true);
            assert_eq!(line["source"]["uid"], remote.uid(), "{line}");
        }
        // Its own node masks it, so it cannot be told from others that this node masks.
        let line = ports.judged("masked by its own node", remote.netns(), at(far, anywhere), far, false);
        assert!(line["flags"].to_string().contains("mayBeMasqueraded"), "{line}");
    }
}

#[test]
fn clients_of_ports_of_nodes_behind_iptables_are_judged_as_themselves_where_anybody_can_know_them() {
    if !skipped() {
        check_clients("ports-iptables", ProxyMode::Iptables);
    }
}

#[test]
fn clients_of_ports_of_nodes_behind_nftables_are_judged_as_themselves_where_anybody_can_know_them() {
    if !skipped() {
        check_clients("ports-nftables", ProxyMode::Nftables);
    }
}

impl Ports {
    /// A pod of the node's network that serves there, and a Service in front of it: the Service's addresses.
    #[track_caller]
    fn host_service(&mut self, node: usize) -> [IpAddr; 2] {
        let (place, name) = ([&self.town.node, &self.far][node].clone(), format!("host-{node}"));
        let mut object = PodSpec::new(&self.town.name, &name).label("app", &name).object(place.name());
        object["spec"]["hostNetwork"] = json!(true);
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": self.town.name, "name": name },
            "spec": {
                "ipFamilyPolicy": "RequireDualStack", "selector": { "app": name },
                "ports": [{ "port": 80, "targetPort": 8080 }],
            },
        });
        self.town.cluster.apply(&[object, service]).expect("a pod and its Service");
        let addresses = [place.v4(), place.v6()];
        self.town.cluster.tell_running(&place, &self.town.name, &name, &addresses).expect("a status");
        for address in addresses {
            self.servers.push(Server::tcp(place.netns(), address, 8080).expect("a server of the node"));
        }
        let told = self.town.cluster.get(&["service", &name, "-n", &self.town.name]).expect("a Service");
        [0, 1].map(|nth| {
            let address = told["spec"]["clusterIPs"][nth].as_str().and_then(|text| text.parse().ok());
            address.unwrap_or_else(|| panic!("two addresses: {told}"))
        })
    }
}

#[track_caller]
fn check_host_backends(name: &str, mode: ProxyMode) {
    let mut ports = Ports::new(name, mode);
    let client = ports.town.pod("client");
    let services = NODES.map(|node| ports.host_service(node));
    for (addresses, owner) in services.iter().zip(["host", "node"]) {
        for address in addresses {
            leads(client.netns(), SocketAddr::new(*address, 80));
        }
        for (v6, asked) in [(false, addresses[0]), (true, addresses[1])] {
            let node = usize::from(owner == "node");
            let reached = ports.node(node, v6);
            let other = ports.node(1 - node, v6);
            // A pod of the node's network is the node: its labels let nobody in or out, and neither does the Service's
            // own address.
            let peers = [
                (block(reached), true),
                (block(other), false),
                (labelled(&format!("host-{node}")), false),
                (block(asked), false),
            ];
            for (peer, allowed) in peers {
                let what = format!("{peer} of node {node}");
                let spec = json!({
                    "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"],
                    "egress": [{ "to": [peer] }],
                });
                ports.town.enforce("out-of-client", &spec, &[ports.town.own()]);
                ports.records[0].rest().expect("records");
                let wanted = if allowed { Ok(()) } else { Err(NoAnswer::TimedOut) };
                assert_eq!(ask(client.netns(), SocketAddr::new(asked, 80)), wanted, "{what}");
                let of_it = |line: &Value| is_judged(line, "egress") && line["source"]["uid"] == client.uid();
                let line = ports.records[0].wait_for(RECORD_PATIENCE, of_it).expect("a record");
                assert_eq!(line["verdict"], if allowed { "allow" } else { "deny" }, "{what}: {line}");
                assert!(line["decision"].to_string().contains("out-of-client"), "{what}: {line}");
                assert_eq!(line["destination"]["ip"], reached.to_string(), "{what}: {line}");
                assert_eq!(line["destination"]["owner"], owner, "{what}: {line}");
                assert_eq!(line["service"], json!({ "address": asked, "port": 80 }), "{what}: {line}");
            }
            ports.town.cluster.delete(&["networkpolicy", "out-of-client", "-n", &ports.town.name]).expect("deleted");
            leads(client.netns(), SocketAddr::new(asked, 80));
        }
    }
}

#[test]
fn process_of_a_node_behind_a_service_of_iptables_is_judged_as_its_node() {
    if !skipped() {
        check_host_backends("hosted-iptables", ProxyMode::Iptables);
    }
}

#[test]
fn process_of_a_node_behind_a_service_of_nftables_is_judged_as_its_node() {
    if !skipped() {
        check_host_backends("hosted-nftables", ProxyMode::Nftables);
    }
}
