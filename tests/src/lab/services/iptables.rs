//! The rules as chains of iptables, in the shape that most clusters still have: KUBE-SERVICES leads to a chain per
//! Service (KUBE-SVC), that to a chain per backend (KUBE-SEP), and marked packets are masqueraded in KUBE-POSTROUTING.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::process::Command;

use super::spec::{Affinity, ExternalPolicy, Masquerade, ServicePort};
use super::{Entry, View};
use crate::lab::Node;

const NAT: [&str; 7] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "CNI-HOSTPORT-DNAT",
    "CNI-HOSTPORT-MASQ",
    "FLANNEL-POSTRTG",
];
const FILTER: [&str; 2] = ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"];

const HOOKS: &str = "\
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:FLANNEL-POSTRTG - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -j KUBE-SERVICES
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -j CNI-HOSTPORT-MASQ
-A POSTROUTING -j FLANNEL-POSTRTG
COMMIT
";

/// The two tables of one family as they grow.
struct Rules<'a> {
    view: &'a View<'a>,
    /// Chains of Services and backends.
    declared: Vec<String>,
    nat: String,
    filter: String,
}

/// Leads from the kernel's chains to ours; once for each node.
pub(super) fn prepare(node: &Node) -> anyhow::Result<()> {
    [false, true].into_iter().try_for_each(|v6| restore(node, v6, HOOKS))
}

/// Brings a node's rules up to date; what is then declared, in the form that the next call wants.
pub(super) fn load(node: &Node, views: &[View<'_>; 2], before: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for view in views {
        let mut rules = Rules { view, declared: Vec::new(), nat: String::new(), filter: String::new() };
        rules.fill();
        let prefix = if view.v6 { "6 " } else { "4 " };
        let old: Vec<&str> = before.iter().filter_map(|name| name.strip_prefix(prefix)).collect();
        restore(node, view.v6, &rules.transaction(&old))?;
        all.extend(rules.declared.iter().map(|name| format!("{prefix}{name}")));
    }
    Ok(all)
}

/// Takes addresses that a process of the node serves out of connection tracking, so that no rule rewrites them.
pub(super) fn bypass(node: &Node, addresses: [IpAddr; 2]) -> anyhow::Result<()> {
    addresses.into_iter().try_for_each(|address| {
        let mut text = String::from("*raw\n");
        for chain in ["PREROUTING", "OUTPUT"] {
            for end in ["-d", "-s"] {
                let _ = writeln!(text, "-A {chain} {end} {address} -j CT --notrack");
            }
        }
        text.push_str("COMMIT\n");
        restore(node, address.is_ipv6(), &text)
    })
}

/// Chains that are declared in `text` are emptied, all others kept.
fn restore(node: &Node, v6: bool, text: &str) -> anyhow::Result<()> {
    let program = if v6 { "ip6tables-nft-restore" } else { "iptables-nft-restore" };
    node.netns().feed(Command::new(program).arg("--noflush"), text)
}

impl Rules<'_> {
    fn rule(&mut self, rule: &str) {
        let _ = writeln!(self.nat, "-A {rule}");
    }

    fn fill(&mut self) {
        for rule in [
            "KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
            "KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
            "KUBE-POSTROUTING -j MASQUERADE --random-fully",
            "CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
        ] {
            self.rule(rule);
        }
        let view = self.view;
        if view.hides_pods {
            let pods = view.pods();
            self.rule(&format!("FLANNEL-POSTRTG -s {pods} ! -d {pods} -j MASQUERADE --random-fully"));
        }
        for entry in &view.services {
            for port in &entry.spec.ports {
                self.service(entry, port);
            }
        }
        // After all Services: a Service's address can be a node's own.
        self.rule("KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
        for port in &view.host_ports {
            let addresses = port.addresses.iter().zip(&port.neighbours);
            for (address, neighbours) in addresses.filter(|(address, _)| address.is_ipv6() == view.v6) {
                let word = port.transport.word();
                let matched = format!("CNI-HOSTPORT-DNAT -p {word} --dport {}", port.number);
                let masqueraded = match port.masquerade {
                    Masquerade::Neighbours => format!("{matched} -s {neighbours}"),
                    Masquerade::All => matched.clone(),
                };
                self.rule(&format!("{masqueraded} -j MARK --or-mark 0x2000"));
                self.rule(&format!("{matched} -j DNAT --to-destination {}", target(*address, port.target)));
            }
        }
    }

    fn service(&mut self, entry: &Entry, port: &ServicePort) {
        let word = port.transport.word();
        let address = self.view.address(entry);
        let backends = self.view.backends(entry);
        let id = (entry.spec.namespace.as_str(), entry.spec.name.as_str(), port.name());
        let at_service = format!("-d {address} -p {word} --dport {}", port.port);
        let at_nodes = port.node_port.map(|number| format!("-p {word} --dport {number}"));
        if backends.is_empty() {
            let _ = writeln!(self.filter, "-A KUBE-SERVICES {at_service} -j REJECT");
            if let Some(matched) = at_nodes {
                let _ =
                    writeln!(self.filter, "-A KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL {matched} -j REJECT");
            }
            return;
        }
        let chain = self.chain("KUBE-SVC", &id);
        self.rule(&format!("KUBE-SERVICES {at_service} -j {chain}"));
        self.rule(&format!("{chain} ! -s {} {at_service} -j KUBE-MARK-MASQ", self.view.pods()));
        let mut endpoints = Vec::new();
        for (backend, here) in backends {
            let endpoint = self.chain("KUBE-SEP", &(&id, backend));
            // One that reaches itself would get its own packet back and not know it.
            self.rule(&format!("{endpoint} -s {backend} -j KUBE-MARK-MASQ"));
            let remember = match entry.spec.affinity {
                Affinity::None => String::new(),
                Affinity::ClientIp => format!(" -m recent --name {endpoint} --set"),
            };
            let to = target(backend, port.target);
            self.rule(&format!("{endpoint} -p {word}{remember} -j DNAT --to-destination {to}"));
            endpoints.push((endpoint, here));
        }
        let all: Vec<&str> = endpoints.iter().map(|(name, _)| name.as_str()).collect();
        self.choose(entry, &chain, &all);
        if let Some(matched) = at_nodes {
            let local: Vec<&str> = endpoints.iter().filter(|(_, here)| *here).map(|(name, _)| name.as_str()).collect();
            self.external(entry, &id, &matched, &chain, &local);
        }
    }

    /// Leads to the backend that the client had, or to any.
    fn choose(&mut self, entry: &Entry, chain: &str, endpoints: &[&str]) {
        if entry.spec.affinity == Affinity::ClientIp {
            for endpoint in endpoints {
                self.rule(&format!(
                    "{chain} -m recent --name {endpoint} --rcheck --seconds 10800 --reap -j {endpoint}"
                ));
            }
        }
        let last = endpoints.len().saturating_sub(1);
        for (index, endpoint) in endpoints.iter().enumerate() {
            let chance = u16::try_from(endpoints.len() - index).map_or(0.0, |left| 1.0 / f64::from(left));
            let perhaps = if index == last {
                String::new()
            } else {
                format!(" -m statistic --mode random --probability {chance:.10}")
            };
            self.rule(&format!("{chain}{perhaps} -j {endpoint}"));
        }
    }

    fn external(&mut self, entry: &Entry, id: &impl Hash, matched: &str, service: &str, local: &[&str]) {
        let chain = self.chain("KUBE-EXT", id);
        self.rule(&format!("KUBE-NODEPORTS {matched} -j {chain}"));
        match entry.spec.external_policy {
            ExternalPolicy::Cluster => {
                self.rule(&format!("{chain} -j KUBE-MARK-MASQ"));
                self.rule(&format!("{chain} -j {service}"));
            }
            ExternalPolicy::Local => {
                // Only what comes from outside is kept on the node.
                self.rule(&format!("{chain} -s {} -j {service}", self.view.pods()));
                self.rule(&format!("{chain} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
                self.rule(&format!("{chain} -m addrtype --src-type LOCAL -j {service}"));
                if local.is_empty() {
                    let _ = writeln!(
                        self.filter,
                        "-A KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL {matched} -j DROP"
                    );
                } else {
                    let own = self.chain("KUBE-SVL", id);
                    self.rule(&format!("{chain} -j {own}"));
                    self.choose(entry, &own, local);
                }
            }
        }
    }

    /// Declares a chain; names have room for 28 characters.
    fn chain(&mut self, prefix: &str, of: &impl Hash) -> String {
        let mut hasher = DefaultHasher::new();
        of.hash(&mut hasher);
        let name = format!("{prefix}-{:016X}", hasher.finish());
        self.declared.push(name.clone());
        name
    }

    /// Declares everything, which empties it, fills it, and takes away what is not declared any more.
    fn transaction(&self, before: &[&str]) -> String {
        let mut text = String::from("*filter\n");
        for chain in FILTER {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        text.push_str(&self.filter);
        text.push_str("COMMIT\n*nat\n");
        let stale: Vec<&str> =
            before.iter().copied().filter(|name| !self.declared.iter().any(|declared| declared == name)).collect();
        for chain in NAT.into_iter().chain(self.declared.iter().map(String::as_str)).chain(stale.iter().copied()) {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        text.push_str(&self.nat);
        for chain in stale {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
        text
    }
}

fn target(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
