//! A pod: a namespace on a node, and the manifest that says so.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use rustix::net::{AddressFamily, SocketType};
use serde_json::{Value, json};

use super::manifests::Labels;
use super::{Mode, Netns, Node};

/// The host side of every routed pod has this hardware address, as Calico's do.
const ROUTED_GATEWAY: [u8; 6] = [0xee; 6];

/// Which addresses a pod gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// One of each.
    #[default]
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// What a pod should be like.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique in the namespace.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Which addresses it gets.
    pub families: Families,
    /// `spec.serviceAccountName`; `default` if none.
    pub service_account: Option<String>,
    /// Named container ports: name, number, `TCP`, `UDP` or `SCTP`.
    pub ports: Vec<(String, u16, &'static str)>,
    /// `metadata.uid`, where an API server has given it one; else the lab does.
    pub uid: Option<String>,
}

impl PodSpec {
    /// A dual-stack pod without labels or ports.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), ..Self::default() }
    }

    /// With one more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With addresses of these families.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// Under this service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        self.service_account = Some(name.to_owned());
        self
    }

    /// The pod as it is created, to be run on this node: without what an API server or the node adds.
    pub fn object(&self, node: &str) -> Value {
        let ports = self.ports.iter();
        let ports: Vec<Value> = ports
            .map(|(name, number, protocol)| json!({ "name": name, "containerPort": number, "protocol": protocol }))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": self.namespace, "name": self.name, "labels": self.labels },
            "spec": {
                "nodeName": node,
                "serviceAccountName": self.service_account.as_deref().unwrap_or("default"),
                "containers": [{ "name": "main", "image": "none", "ports": ports }],
            },
        })
    }

    /// With a named port; the protocol is `TCP`, `UDP` or `SCTP`.
    #[must_use]
    pub fn port(mut self, name: &str, number: u16, protocol: &'static str) -> Self {
        self.ports.push((name.to_owned(), number, protocol));
        self
    }
}

/// A handle to a pod; the pod goes with [`Pod::remove`] or with the lab.
#[derive(Clone)]
pub struct Pod {
    inner: Arc<Inner>,
}

struct Inner {
    spec: PodSpec,
    labels: Mutex<Labels>,
    /// As in its manifest: ports of the container that its node has too.
    host_ports: Mutex<Vec<Value>>,
    uid: String,
    addresses: Vec<IpAddr>,
    host_side: String,
    netns: Netns,
    node: Node,
}

/// Numbers for UIDs: a pod made again under its old name is another pod.
static PODS: AtomicU64 = AtomicU64::new(1);

impl Pod {
    pub(super) fn create(node: &Node, spec: PodSpec, number: u8) -> anyhow::Result<Self> {
        let name = format!("{}-{}-{}-{number}", node.name(), spec.namespace, spec.name);
        let netns = Netns::create(node.lab().register(), &name, Some(node.cgroup()))?;
        let host_side = format!("veth{number}");
        let addresses = node.pod_addresses(number, spec.families);
        wire(node, &netns, &host_side, &addresses)?;
        let own_uid = || format!("00000000-0000-4000-8000-{:012x}", PODS.fetch_add(1, Ordering::Relaxed));
        let uid = spec.uid.clone().unwrap_or_else(own_uid);
        let labels = Mutex::new(spec.labels.clone());
        let (host_ports, node) = (Mutex::default(), node.clone());
        let inner = Inner { spec, labels, host_ports, uid, addresses, host_side, netns, node };
        let pod = Self { inner: Arc::new(inner) };
        pod.write_manifest()?;
        Ok(pod)
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.inner.spec.namespace, self.inner.spec.name)
    }

    /// Its namespace and its name there.
    pub fn name(&self) -> (&str, &str) {
        (&self.inner.spec.namespace, &self.inner.spec.name)
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.inner.uid
    }

    /// The pod's namespace; its interface is `eth0`.
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// The node it runs on.
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// The name of its interface in the node's namespace.
    pub fn host_side(&self) -> &str {
        &self.inner.host_side
    }

    /// The number of that interface.
    pub fn host_index(&self) -> anyhow::Result<u32> {
        let of = || -> anyhow::Result<u32> {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            Ok(rustix::net::netdevice::name_to_index(socket, self.host_side())?)
        };
        self.node().netns().run(of)?.with_context(|| format!("{} is no interface of the node", self.host_side()))
    }

    /// Its addresses, as in `status.podIPs`.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.inner.addresses
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> IpAddr {
        self.address(IpAddr::is_ipv4)
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> IpAddr {
        self.address(IpAddr::is_ipv6)
    }

    fn address(&self, wanted: impl Fn(&IpAddr) -> bool) -> IpAddr {
        *self.inner.addresses.iter().find(|address| wanted(address)).expect("the pod has an address of that family")
    }

    /// The hardware address of its `eth0`.
    pub fn mac(&self) -> anyhow::Result<[u8; 6]> {
        self.inner.netns.mac("eth0")
    }

    /// The hardware address that it sends to when it sends to anything beyond its own link.
    pub fn gateway_mac(&self) -> anyhow::Result<[u8; 6]> {
        match self.inner.node.mode() {
            Mode::Routed => Ok(ROUTED_GATEWAY),
            Mode::Bridged => self.inner.node.netns().mac("cni0"),
        }
    }

    /// Changes its labels, in the manifest that every node's agent reads.
    pub fn set_labels(&self, labels: &[(&str, &str)]) -> anyhow::Result<()> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        *self.inner.labels.lock().expect("no thread panics while it holds the labels") = labels;
        self.write_manifest()
    }

    /// Says in the manifest that a port of its node leads to one of it; the rules for that are `Services`'.
    pub(super) fn publish(&self, protocol: &str, host_port: u16, target: u16) -> anyhow::Result<()> {
        let port = json!({ "containerPort": target, "hostPort": host_port, "protocol": protocol });
        self.inner.host_ports.lock().expect("no thread panics while it holds the ports").push(port);
        self.write_manifest()
    }

    /// Leaves ports of its node out of the manifest; the rules for them stay.
    pub fn remove_host_ports(&self) -> anyhow::Result<()> {
        self.inner.host_ports.lock().expect("no thread panics while it holds the ports").clear();
        self.write_manifest()
    }

    /// Takes the manifest away and leaves the wire: what an agent sees before the runtime has cleaned up.
    pub fn remove_manifest(&self) -> anyhow::Result<()> {
        self.inner.node.lab().manifests().remove(&self.manifest_name())
    }

    /// Takes the manifest and the wire away; sockets in the namespace stay but reach nobody.
    pub fn remove(&self) -> anyhow::Result<()> {
        self.remove_manifest()?;
        self.inner.node.netns().ip(&[format!("link del {}", self.inner.host_side)])
    }

    /// Loses every packet to the pod without a word, as a broken cable does; the agent is told nothing.
    pub fn unplug(&self) -> anyhow::Result<()> {
        self.cable("nomaster", |address| format!("route replace blackhole {address}"))
    }

    /// The opposite of [`Pod::unplug`].
    pub fn plug(&self) -> anyhow::Result<()> {
        self.cable("master cni0", |address| format!("route replace {address} dev {}", self.inner.host_side))
    }

    fn cable(&self, master: &str, route: impl Fn(&IpAddr) -> String) -> anyhow::Result<()> {
        let node = &self.inner.node;
        let commands = match node.mode() {
            Mode::Bridged => vec![format!("link set {} {master}", self.inner.host_side)],
            Mode::Routed => self.inner.addresses.iter().map(route).collect(),
        };
        node.netns().ip(&commands)
    }

    /// The manifest as it would be written now.
    pub fn manifest(&self) -> Value {
        let mut object = self.inner.spec.object(self.inner.node.name());
        object["metadata"]["uid"] = json!(self.inner.uid);
        object["metadata"]["labels"] =
            json!(*self.inner.labels.lock().expect("no thread panics while it holds the labels"));
        let host_ports = self.inner.host_ports.lock().expect("no thread panics while it holds the ports").clone();
        if let Some(ports) = object["spec"]["containers"][0]["ports"].as_array_mut() {
            ports.extend(host_ports);
        }
        let ips: Vec<Value> = self.inner.addresses.iter().map(|address| json!({ "ip": address })).collect();
        object["status"] = json!({ "phase": "Running", "podIP": self.inner.addresses[0], "podIPs": ips });
        object
    }

    fn write_manifest(&self) -> anyhow::Result<()> {
        self.inner.node.lab().manifests().write(&self.manifest_name(), &self.manifest())
    }

    fn manifest_name(&self) -> String {
        format!("pod-{}-{}", self.inner.spec.namespace, self.inner.spec.name)
    }
}

/// Lays the cable between a pod and its node.
fn wire(node: &Node, pod: &Netns, host_side: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let mtu_bytes = node.lab().network().pod_mtu_bytes();
    let mut on_node = vec![
        format!("link add {host_side} type veth peer name eth0 netns {}", pod.name()),
        format!("link set {host_side} mtu {mtu_bytes}"),
    ];
    let mut in_pod = vec![format!("link set eth0 mtu {mtu_bytes}")];
    match node.mode() {
        Mode::Routed => {
            let mac = ROUTED_GATEWAY.map(|byte| format!("{byte:02x}")).join(":");
            on_node.push(format!("link set {host_side} address {mac} up"));
            in_pod.push("link set eth0 up".to_owned());
            for address in addresses {
                on_node.push(format!("route add {address} dev {host_side}"));
                let (gateway, all) = match address {
                    IpAddr::V4(_) => ("169.254.1.1", "0.0.0.0/0"),
                    IpAddr::V6(_) => ("fe80::1", "::/0"),
                };
                in_pod.push(format!("addr add {address} dev eth0{}", without_detection(*address)));
                in_pod.push(format!("neigh add {gateway} lladdr {mac} dev eth0 nud permanent"));
                in_pod.push(format!("route add {all} via {gateway} dev eth0 onlink"));
            }
        }
        Mode::Bridged => {
            on_node.push(format!("link set {host_side} master cni0 up"));
            // A pod that reaches itself by way of a Service comes back through its own port.
            on_node.push(format!("link set {host_side} type bridge_slave hairpin on"));
            in_pod.push("link set eth0 up".to_owned());
            for address in addresses {
                let (length, gateway): (u8, IpAddr) = match address {
                    IpAddr::V4(_) => (24, node.addressing().pod_v4(1).into()),
                    IpAddr::V6(_) => (64, node.addressing().pod_v6(1).into()),
                };
                in_pod.push(format!("addr add {address}/{length} dev eth0{}", without_detection(*address)));
                in_pod.push(format!("route add default via {gateway}"));
            }
        }
    }
    node.netns().ip(&on_node).context("the node's end of the cable")?;
    pod.ip(&in_pod).context("the pod's end of the cable")
}

fn without_detection(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}
