//! Services as a cluster has them: manifests for the agents, and on every node the rules that kube-proxy would make.
//!
//! The kernel of each node rewrites addresses by rules of one [`Flavour`]. A port of a pod on its node (`hostPort`) and
//! the masquerade of pods that leave an overlay are CNI plugins' work; they are here because they are rules of the same
//! kind.

mod conntrack;
mod iptables;
mod nftables;
mod slices;
mod spec;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, bail};

use super::addressing::POD_NETWORKS;
use super::{Lab, Mode, Network, Node, Pod};

pub use spec::{Affinity, Backend, ExternalPolicy, Masquerade, ServicePort, ServiceSpec, Transport};

/// All Services, for each family.
pub(crate) const SERVICE_NETWORKS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// How the rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Verdict maps in tables of nftables.
    Nftables,
    /// Chains of iptables, which the kernel keeps in nftables too.
    Iptables,
}

/// The Services of a lab.
#[derive(Clone)]
pub struct Services {
    inner: Arc<Inner>,
}

struct Inner {
    lab: Lab,
    flavour: Flavour,
    state: Mutex<State>,
}

struct State {
    nodes: Vec<Proxy>,
    services: BTreeMap<String, Entry>,
    host_ports: Vec<HostPort>,
    next: u8,
}

/// One node's rules.
struct Proxy {
    node: Node,
    /// What was declared in the kernel for Services; what is not needed any more is to be taken away.
    declared: Vec<String>,
}

/// A Service with its addresses and backends.
#[derive(Clone, Debug)]
struct Entry {
    spec: ServiceSpec,
    addresses: [IpAddr; 2],
    backends: Vec<Backend>,
}

/// A port of a node that leads to a pod.
#[derive(Clone, Debug)]
struct HostPort {
    node: String,
    transport: Transport,
    number: u16,
    target: u16,
    addresses: Vec<IpAddr>,
    /// The network of the pod's interface.
    neighbours: Vec<String>,
    masquerade: Masquerade,
}

/// What the rules of one node in one family are made of.
struct View<'a> {
    node: &'a str,
    v6: bool,
    services: Vec<&'a Entry>,
    host_ports: Vec<&'a HostPort>,
    /// Whether pods that leave the cluster take the node's address.
    hides_pods: bool,
}

/// A handle to a Service.
pub struct Service {
    services: Services,
    key: String,
    addresses: [IpAddr; 2],
}

/// Whether the programs that load rules are installed; else the first that is missing.
pub fn rules_programs() -> Result<(), &'static str> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &&str| std::env::split_paths(&paths).any(|path| path.join(program).is_file());
    match ["nft", "iptables-nft-restore", "ip6tables-nft-restore", "ipset"].iter().find(|program| !there(program)) {
        Some(missing) => Err(missing),
        None => Ok(()),
    }
}

impl Services {
    /// Rules of a flavour on all nodes that the lab has now.
    pub fn new(lab: &Lab, flavour: Flavour, nodes: &[&Node]) -> anyhow::Result<Self> {
        let mut proxies = Vec::new();
        for node in nodes {
            // A Service's address leads nowhere; a node has some way to it nevertheless, most often its default route.
            node.netns().ip(&SERVICE_NETWORKS.map(|network| format!("route add {network} dev eth0")))?;
            if flavour == Flavour::Iptables {
                iptables::prepare(node)?;
            }
            proxies.push(Proxy { node: (*node).clone(), declared: Vec::new() });
        }
        let state = State { nodes: proxies, services: BTreeMap::new(), host_ports: Vec::new(), next: 10 };
        let services = Self { inner: Arc::new(Inner { lab: lab.clone(), flavour, state: Mutex::new(state) }) };
        services.apply(&mut services.lock())?;
        Ok(services)
    }

    /// A Service; every node knows it when this returns.
    pub fn add(&self, spec: ServiceSpec, backends: &[Backend]) -> anyhow::Result<Service> {
        let mut state = self.lock();
        let key = format!("{}/{}", spec.namespace, spec.name);
        if state.services.contains_key(&key) {
            bail!("there is a Service {key} already");
        }
        let number = state.next;
        state.next = number.checked_add(1).context("a lab has at most 245 Services")?;
        let addresses: [IpAddr; 2] =
            [Ipv4Addr::new(10, 96, 0, number).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into()];
        let entry = Entry { spec, addresses, backends: backends.to_vec() };
        slices::write(self.inner.lab.manifests(), &entry)?;
        state.services.insert(key.clone(), entry);
        self.apply(&mut state)?;
        Ok(Service { services: self.clone(), key, addresses })
    }

    /// A pod's `hostPort`: its manifest says so, and this port of its node leads to it.
    pub fn host_port(
        &self,
        pod: &Pod,
        transport: Transport,
        host_port: u16,
        target: u16,
        masquerade: Masquerade,
    ) -> anyhow::Result<()> {
        pod.publish(transport.name(), host_port, target)?;
        let neighbours = pod.addresses().iter().map(|address| match (pod.node().mode(), address.is_ipv6()) {
            (Mode::Routed, _) => address.to_string(),
            (Mode::Bridged, false) => format!("{address}/24"),
            (Mode::Bridged, true) => format!("{address}/64"),
        });
        let mut state = self.lock();
        state.host_ports.push(HostPort {
            node: pod.node().name().to_owned(),
            transport,
            number: host_port,
            target,
            addresses: pod.addresses().to_vec(),
            neighbours: neighbours.collect(),
            masquerade,
        });
        self.apply(&mut state)
    }

    /// Gives a Service's addresses to a node and takes them out of the rules there, as a name server on each node does
    /// that answers under the cluster's own address for names.
    pub fn serve_on_node(&self, node: &Node, service: &Service) -> anyhow::Result<()> {
        node.netns().ip(&service.addresses.map(|address| {
            let (length, detection) = if address.is_ipv6() { (128, " nodad") } else { (32, "") };
            format!("addr add {address}/{length} dev lo{detection}")
        }))?;
        match self.inner.flavour {
            Flavour::Nftables => nftables::bypass(node, service.addresses),
            Flavour::Iptables => iptables::bypass(node, service.addresses),
        }
    }

    fn apply(&self, state: &mut State) -> anyhow::Result<()> {
        let hides_pods = self.inner.lab.network() == Network::Overlay;
        for proxy in &mut state.nodes {
            let views = [false, true].map(|v6| View {
                node: proxy.node.name(),
                v6,
                services: state.services.values().collect(),
                host_ports: state.host_ports.iter().filter(|port| port.node == proxy.node.name()).collect(),
                hides_pods,
            });
            let declared = match self.inner.flavour {
                Flavour::Nftables => nftables::load(&proxy.node, &views, &proxy.declared),
                Flavour::Iptables => iptables::load(&proxy.node, &views, &proxy.declared),
            };
            proxy.declared = declared.with_context(|| format!("the rules of {}", proxy.node.name()))?;
        }
        Ok(())
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut state = self.lock();
        let result = change(&mut state)?;
        self.apply(&mut state)?;
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().expect("no thread panics while it holds the Services")
    }
}

impl Service {
    /// Its IPv4 address.
    pub fn v4(&self) -> IpAddr {
        self.addresses[0]
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> IpAddr {
        self.addresses[1]
    }

    /// Leads new connections to these; TCP that is established stays where it is, datagrams go where the next would.
    pub fn set_backends(&self, backends: &[Backend]) -> anyhow::Result<()> {
        let manifests = self.services.inner.lab.manifests();
        let (entry, left) = self.services.change(|state| {
            let entry = state.services.get_mut(&self.key).with_context(|| format!("{} is gone", self.key))?;
            let left = std::mem::replace(&mut entry.backends, backends.to_vec());
            slices::write(manifests, entry)?;
            Ok((entry.clone(), left))
        })?;
        let stays = |address: &IpAddr| backends.iter().any(|backend| backend.addresses.contains(address));
        let left: Vec<IpAddr> =
            left.into_iter().flat_map(|backend| backend.addresses).filter(|old| !stays(old)).collect();
        for proxy in &self.services.lock().nodes {
            for old in &left {
                let asked = entry.addresses[usize::from(old.is_ipv6())];
                for port in entry.spec.ports.iter().filter(|port| port.transport == Transport::Udp) {
                    conntrack::forget(&proxy.node, SocketAddr::new(asked, port.port), *old)?;
                }
            }
        }
        Ok(())
    }

    /// Takes it away, rules and manifests.
    pub fn remove(self) -> anyhow::Result<()> {
        let manifests = self.services.inner.lab.manifests();
        self.services.change(|state| {
            let entry = state.services.remove(&self.key).with_context(|| format!("{} is gone", self.key))?;
            slices::remove(manifests, &entry)
        })
    }
}

impl View<'_> {
    fn family(&self) -> usize {
        usize::from(self.v6)
    }

    /// All pods of the cluster.
    fn pods(&self) -> &'static str {
        POD_NETWORKS[self.family()]
    }

    /// A Service's address.
    fn address(&self, entry: &Entry) -> IpAddr {
        entry.addresses[self.family()]
    }

    /// Where a Service leads: an address of each backend and whether it is on this node.
    fn backends(&self, entry: &Entry) -> Vec<(IpAddr, bool)> {
        let of_family =
            |backend: &Backend| backend.addresses.iter().copied().find(|address| address.is_ipv6() == self.v6);
        entry.backends.iter().filter_map(|backend| Some((of_family(backend)?, backend.node == self.node))).collect()
    }
}
