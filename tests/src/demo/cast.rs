//! Who takes part: five pods, their servers and two policies.

use std::net::IpAddr;

use anyhow::Context;
use serde_json::{Value, json};

use crate::lab::{Pod, PodSpec};
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

/// The namespaces of those who take part.
pub(super) const NAMESPACES: [&str; 4] = ["payments", "shop", "reports", "kube-system"];

/// Only reports may read from the shop.
pub(super) fn web_readers() -> Value {
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
    /// Has the pods made and starts their servers.
    pub(super) fn new(make: impl Fn(PodSpec) -> anyhow::Result<Pod>) -> anyhow::Result<Self> {
        let pod = |namespace: &str, name: &str, labels: &[(&str, &str)]| {
            let spec = labels.iter().fold(PodSpec::new(namespace, name), |spec, (key, value)| spec.label(key, value));
            make(spec).with_context(|| format!("cannot make pod {namespace}/{name}"))
        };
        let card_api = pod("payments", "card-api", &[("app", "card-api"), ("PCI", "true")])?;
        let card_db = pod("payments", "card-db", &[("app", "card-db"), ("PCI", "true")])?;
        let web = pod("shop", "web", &[("app", "web")])?;
        let report_gen = pod("reports", "report-gen", &[("app", "report-gen")])?;
        let dns = pod("kube-system", "dns", &[("app", "dns")])?;
        let mut servers = Vec::new();
        for (pod, port) in [(&card_db, 5432), (&web, 8080)] {
            for address in pod.addresses() {
                servers.push(Server::tcp(pod.netns(), *address, port)?);
            }
        }
        for address in dns.addresses() {
            servers.push(Server::udp(dns.netns(), *address, 53)?);
        }
        Ok(Self { card_api, card_db, web, report_gen, dns, _servers: servers })
    }
}

/// The pod's address of a family.
pub fn address(pod: &Pod, v6: bool) -> IpAddr {
    if v6 { pod.v6() } else { pod.v4() }
}
