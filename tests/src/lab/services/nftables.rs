//! The rules as nftables: verdict maps from address and port to a chain per Service, a chain per backend.
//!
//! One transaction brings a node from what it has to what it should have. Sets of clients are kept through it: they
//! remember who got which backend.

use std::fmt::Write;
use std::net::IpAddr;
use std::process::Command;

use super::spec::{Affinity, ExternalPolicy, Masquerade, ServicePort};
use super::{Entry, View};
use crate::lab::Node;

/// Everything about Services is in this table, one for each family.
const TABLE: &str = "kube-proxy";

const BASE: [(&str, &str); 6] = [
    ("nat-prerouting", "type nat hook prerouting priority dstnat ;"),
    ("nat-output", "type nat hook output priority -100 ;"),
    ("nat-postrouting", "type nat hook postrouting priority srcnat ;"),
    ("filter-input", "type filter hook input priority -110 ;"),
    ("filter-forward", "type filter hook forward priority -110 ;"),
    ("filter-output", "type filter hook output priority -110 ;"),
];
const PLAIN: [&str; 5] = ["services", "masquerading", "mark-for-masquerade", "endpoints-check", "reject-chain"];
const MAPS: [&str; 4] = ["service-ips", "service-nodeports", "no-endpoint-services", "no-endpoint-nodeports"];

/// One family's rules as they grow.
struct Rules<'a> {
    view: &'a View<'a>,
    /// `ip` or `ip6`.
    family: &'static str,
    /// Chains `c NAME` and sets `s NAME` of Services and backends.
    declared: Vec<String>,
    /// Commands that fill what was declared.
    body: String,
}

/// Brings a node's rules up to date; what is then declared, in the form that the next call wants.
pub(super) fn load(node: &Node, views: &[View<'_>; 2], before: &[String]) -> anyhow::Result<Vec<String>> {
    let mut text = String::new();
    let mut all = Vec::new();
    for view in views {
        let mut rules = Rules::new(view);
        rules.fill();
        let prefix = rules.family;
        let old: Vec<&str> = before.iter().filter_map(|name| name.strip_prefix(&format!("{prefix} "))).collect();
        text.push_str(&rules.transaction(&old));
        text.push_str(&host_ports(view, prefix));
        text.push_str(&hide_pods(view, prefix));
        all.extend(rules.declared.iter().map(|name| format!("{prefix} {name}")));
    }
    feed(node, &text)?;
    Ok(all)
}

/// Takes addresses that a process of the node serves out of connection tracking, so that no rule rewrites them.
pub(super) fn bypass(node: &Node, addresses: [IpAddr; 2]) -> anyhow::Result<()> {
    let mut text = String::from("add table inet nodelocaldns\n");
    for hook in ["prerouting", "output"] {
        let _ = writeln!(text, "add chain inet nodelocaldns {hook} {{ type filter hook {hook} priority raw ; }}");
        for address in addresses {
            let family = if address.is_ipv6() { "ip6" } else { "ip" };
            for end in ["daddr", "saddr"] {
                let _ = writeln!(text, "add rule inet nodelocaldns {hook} {family} {end} {address} notrack");
            }
        }
    }
    feed(node, &text)
}

fn feed(node: &Node, text: &str) -> anyhow::Result<()> {
    node.netns().feed(Command::new("nft").args(["-f", "-"]), text)
}

impl<'a> Rules<'a> {
    fn new(view: &'a View<'a>) -> Self {
        Self { view, family: if view.v6 { "ip6" } else { "ip" }, declared: Vec::new(), body: String::new() }
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        let _ = writeln!(self.body, "add rule {} {TABLE} {chain} {rule}", self.family);
    }

    fn element(&mut self, map: &str, key: &str, verdict: &str) {
        let _ = writeln!(self.body, "add element {} {TABLE} {map} {{ {key} : {verdict} }}", self.family);
    }

    fn chain(&mut self, name: &str) {
        self.declared.push(format!("c {name}"));
    }

    fn fill(&mut self) {
        let family = self.family;
        for hook in ["nat-prerouting", "nat-output"] {
            self.rule(hook, "jump services");
        }
        self.rule("nat-postrouting", "jump masquerading");
        for hook in ["filter-input", "filter-forward", "filter-output"] {
            self.rule(hook, "ct state new jump endpoints-check");
        }
        let to_node = if self.view.v6 { "ip6 daddr != ::1" } else { "ip daddr != 127.0.0.0/8" };
        for (chain, services, ports) in [
            ("services", "service-ips", "service-nodeports"),
            ("endpoints-check", "no-endpoint-services", "no-endpoint-nodeports"),
        ] {
            self.rule(chain, &format!("{family} daddr . meta l4proto . th dport vmap @{services}"));
            self.rule(chain, &format!("fib daddr type local {to_node} meta l4proto . th dport vmap @{ports}"));
        }
        self.rule("reject-chain", "reject");
        self.rule("mark-for-masquerade", "meta mark set meta mark or 0x4000");
        self.rule("masquerading", "meta mark and 0x4000 == 0 return");
        self.rule("masquerading", "meta mark set meta mark xor 0x4000");
        self.rule("masquerading", "masquerade fully-random");
        let view = self.view;
        for entry in &view.services {
            for port in &entry.spec.ports {
                self.service(entry, port);
            }
        }
    }

    fn service(&mut self, entry: &Entry, port: &ServicePort) {
        let (family, word) = (self.family, port.transport.word());
        let address = self.view.address(entry);
        let id = format!("{}/{}/{word}/p{}", entry.spec.namespace, entry.spec.name, port.port);
        let backends = self.view.backends(entry);
        let at_service = format!("{address} . {word} . {}", port.port);
        let at_nodes = port.node_port.map(|number| format!("{word} . {number}"));
        if backends.is_empty() {
            self.element("no-endpoint-services", &at_service, "goto reject-chain");
            if let Some(key) = at_nodes {
                self.element("no-endpoint-nodeports", &key, "goto reject-chain");
            }
            return;
        }
        let chain = format!("service-{id}");
        self.chain(&chain);
        self.element("service-ips", &at_service, &format!("goto {chain}"));
        let from_elsewhere = format!("{family} saddr != {}", self.view.pods());
        self.rule(
            &chain,
            &format!("{family} daddr {address} {word} dport {} {from_elsewhere} jump mark-for-masquerade", port.port),
        );
        let endpoint =
            |address: &IpAddr| format!("endpoint-{id}__{}/{}", address.to_string().replace(':', "."), port.target);
        let all: Vec<String> = backends.iter().map(|(address, _)| endpoint(address)).collect();
        for ((backend, _), name) in backends.iter().zip(&all) {
            self.endpoint(entry, port, *backend, name);
        }
        self.choose(entry, &chain, &all);
        if let Some(key) = at_nodes {
            let local: Vec<String> =
                backends.iter().filter(|(_, here)| *here).map(|(address, _)| endpoint(address)).collect();
            self.external(entry, &id, &key, &local);
        }
    }

    fn endpoint(&mut self, entry: &Entry, port: &ServicePort, backend: IpAddr, name: &str) {
        let (family, word) = (self.family, port.transport.word());
        self.chain(name);
        // One that reaches itself would get its own packet back and not know it.
        self.rule(name, &format!("{family} saddr {backend} jump mark-for-masquerade"));
        if entry.spec.affinity == Affinity::ClientIp {
            let set = affinity(name);
            self.declared.push(format!("s {set}"));
            self.rule(name, &format!("update @{set} {{ {family} saddr }}"));
        }
        let target = if backend.is_ipv6() { format!("[{backend}]") } else { backend.to_string() };
        self.rule(name, &format!("meta l4proto {word} dnat to {target}:{}", port.target));
    }

    /// Leads to the backend that the client had, or to any.
    fn choose(&mut self, entry: &Entry, chain: &str, endpoints: &[String]) {
        if entry.spec.affinity == Affinity::ClientIp {
            for endpoint in endpoints {
                let rule = format!("{} saddr @{} goto {endpoint}", self.family, affinity(endpoint));
                self.rule(chain, &rule);
            }
        }
        let ways: Vec<String> =
            endpoints.iter().enumerate().map(|(index, name)| format!("{index} : goto {name}")).collect();
        self.rule(chain, &format!("numgen random mod {} vmap {{ {} }}", ways.len(), ways.join(", ")));
    }

    fn external(&mut self, entry: &Entry, id: &str, key: &str, local: &[String]) {
        let (chain, service) = (format!("external-{id}"), format!("service-{id}"));
        self.chain(&chain);
        self.element("service-nodeports", key, &format!("goto {chain}"));
        match entry.spec.external_policy {
            ExternalPolicy::Cluster => {
                self.rule(&chain, "jump mark-for-masquerade");
                self.rule(&chain, &format!("goto {service}"));
            }
            ExternalPolicy::Local => {
                // Only what comes from outside is kept on the node.
                let from_pods = format!("{} saddr {} goto {service}", self.family, self.view.pods());
                self.rule(&chain, &from_pods);
                self.rule(&chain, "fib saddr type local jump mark-for-masquerade");
                self.rule(&chain, &format!("fib saddr type local goto {service}"));
                if local.is_empty() {
                    self.element("no-endpoint-nodeports", key, "drop");
                } else {
                    self.choose(entry, &chain, local);
                }
            }
        }
    }

    /// Declares everything, empties it, fills it, and takes away what is not declared any more.
    fn transaction(&self, before: &[&str]) -> String {
        let (family, address) = if self.view.v6 { ("ip6", "ipv6_addr") } else { ("ip", "ipv4_addr") };
        let mut text = format!("add table {family} {TABLE}\n");
        for map in MAPS {
            let key = if map.ends_with("nodeports") { "" } else { address };
            let dot = if key.is_empty() { "" } else { " . " };
            let _ = writeln!(
                text,
                "add map {family} {TABLE} {map} {{ type {key}{dot}inet_proto . inet_service : verdict ; }}"
            );
            let _ = writeln!(text, "flush map {family} {TABLE} {map}");
        }
        for (chain, hook) in BASE {
            let _ = writeln!(text, "add chain {family} {TABLE} {chain} {{ {hook} }}");
        }
        for chain in PLAIN {
            let _ = writeln!(text, "add chain {family} {TABLE} {chain}");
        }
        for declared in &self.declared {
            let _ = match declared.split_at(2) {
                ("c ", chain) => writeln!(text, "add chain {family} {TABLE} {chain}"),
                (_, set) => writeln!(
                    text,
                    "add set {family} {TABLE} {set} {{ type {address} ; flags dynamic,timeout ; timeout 10800s ; }}"
                ),
            };
        }
        let chains = before.iter().copied().chain(self.declared.iter().map(String::as_str));
        let chains = chains.filter_map(|name| name.strip_prefix("c ")).chain(PLAIN).chain(BASE.map(|(chain, _)| chain));
        for chain in chains {
            let _ = writeln!(text, "flush chain {family} {TABLE} {chain}");
        }
        text.push_str(&self.body);
        let stale = || before.iter().filter(|name| !self.declared.iter().any(|declared| declared == *name));
        for (kind, prefix) in [("chain", "c "), ("set", "s ")] {
            for name in stale().filter_map(|name| name.strip_prefix(prefix)) {
                let _ = writeln!(text, "delete {kind} {family} {TABLE} {name}");
            }
        }
        text
    }
}

/// The set of clients that got a backend.
fn affinity(endpoint: &str) -> String {
    endpoint.replace("endpoint-", "affinity-")
}

/// Makes a table anew, whatever it held.
fn renewed(family: &str, table: &str) -> String {
    format!("add table {family} {table}\ndelete table {family} {table}\nadd table {family} {table}\n")
}

fn host_ports(view: &View<'_>, family: &str) -> String {
    const TABLE: &str = "cni_hostport";
    let mut text = renewed(family, TABLE);
    let _ = writeln!(text, "add chain {family} {TABLE} hostports");
    for (chain, hook) in [("prerouting", "dstnat"), ("output", "-100")] {
        let _ = writeln!(text, "add chain {family} {TABLE} {chain} {{ type nat hook {chain} priority {hook} ; }}");
        let _ = writeln!(text, "add rule {family} {TABLE} {chain} fib daddr type local jump hostports");
    }
    let _ = writeln!(text, "add chain {family} {TABLE} masquerading {{ type nat hook postrouting priority srcnat ; }}");
    for port in &view.host_ports {
        for address in port.addresses.iter().filter(|address| address.is_ipv6() == view.v6) {
            let target = if view.v6 { format!("[{address}]") } else { address.to_string() };
            let word = port.transport.word();
            let _ = writeln!(
                text,
                "add rule {family} {TABLE} hostports {word} dport {} dnat to {target}:{}",
                port.number, port.target
            );
            let masqueraded = match port.masquerade {
                Masquerade::Neighbours => format!("{family} saddr {address} {family} daddr {address}"),
                Masquerade::All => format!("ct status dnat {family} daddr {address} {word} dport {}", port.target),
            };
            let _ = writeln!(text, "add rule {family} {TABLE} masquerading {masqueraded} masquerade");
        }
    }
    text
}

fn hide_pods(view: &View<'_>, family: &str) -> String {
    const TABLE: &str = "flannel";
    let mut text = renewed(family, TABLE);
    if view.hides_pods {
        let pods = view.pods();
        let _ =
            writeln!(text, "add chain {family} {TABLE} postrouting {{ type nat hook postrouting priority srcnat ; }}");
        let _ = writeln!(
            text,
            "add rule {family} {TABLE} postrouting {family} saddr {pods} {family} daddr != {pods} masquerade fully-random"
        );
    }
    text
}
