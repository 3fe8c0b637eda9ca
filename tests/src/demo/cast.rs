//! Who takes part: five pods on one node, their servers and two policies.

use std::net::IpAddr;

use anyhow::Context;
use serde_json::{Value, json};

use crate::lab::{Lab, Mode, Node, Pod, PodSpec};
use crate::traffic::Server;

/// The pods, with what they serve.
pub struct Cast {
    /// Takes card payments; `PCI=true`.
    pub card_api: Pod,
    /// Their database; `PCI=true`; TCP 5432.
    pub card_db: Pod,
    /// The shop; TCP 8080.
    pub web: Pod,
    /// Makes reports.
    pub report_gen: Pod,
    /// Name server; UDP 53.
    pub dns: Pod,
    _servers: Vec<Server>,
}

/// Workloads labelled `PCI=true` talk to each other and to nobody else.
fn pci_isolation() -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": { "name": "pci-isolation" },
        "spec": {
            "selector": "PCI == \"true\"", "types": ["Ingress", "Egress"],
            "ingress": [{ "action": "Allow", "source": { "selector": "PCI == \"true\"" } }],
            "egress": [{ "action": "Allow", "destination": { "selector": "PCI == \"true\"" } }]
        }
    })
}

/// Only reports may read from the shop.
fn web_readers() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "web-readers", "namespace": "shop" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{
                "from": [{
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "reports" } },
                    "podSelector": { "matchLabels": { "app": "report-gen" } }
                }],
                "ports": [{ "protocol": "TCP", "port": 8080 }]
            }]
        }
    })
}

impl Cast {
    /// Makes the pods, starts their servers and writes all manifests.
    pub fn new(lab: &Lab, mode: Mode) -> anyhow::Result<(Node, Self)> {
        let node = lab.node("node-1", mode)?;
        for namespace in ["payments", "shop", "reports", "kube-system"] {
            lab.manifests().namespace(namespace, &[])?;
        }
        let pod = |namespace: &str, name: &str, labels: &[(&str, &str)]| {
            let spec = labels.iter().fold(PodSpec::new(namespace, name), |spec, (key, value)| spec.label(key, value));
            node.pod(spec).with_context(|| format!("cannot make pod {namespace}/{name}"))
        };
        let card_api = pod("payments", "card-api", &[("app", "card-api"), ("PCI", "true")])?;
        let card_db = pod("payments", "card-db", &[("app", "card-db"), ("PCI", "true")])?;
        let web = pod("shop", "web", &[("app", "web")])?;
        let report_gen = pod("reports", "report-gen", &[("app", "report-gen")])?;
        let dns = pod("kube-system", "dns", &[("app", "dns")])?;
        lab.manifests().write("pci-isolation", &pci_isolation())?;
        lab.manifests().write("web-readers", &web_readers())?;
        let mut servers = Vec::new();
        for (pod, port) in [(&card_db, 5432), (&web, 8080)] {
            for address in pod.addresses() {
                servers.push(Server::tcp(pod.netns(), *address, port)?);
            }
        }
        for address in dns.addresses() {
            servers.push(Server::udp(dns.netns(), *address, 53)?);
        }
        Ok((node.clone(), Self { card_api, card_db, web, report_gen, dns, _servers: servers }))
    }
}

/// The pod's address of a family.
pub fn address(pod: &Pod, v6: bool) -> IpAddr {
    if v6 { pod.v6() } else { pod.v4() }
}
