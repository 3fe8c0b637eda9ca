//! `v1` Pod: labels, service account, node, addresses, phase, named ports and ports of its node.
//!
//! A pod whose labels, addresses or namespace use cannot be read keeps what was known of it. Without anything known it
//! is no workload: giving it no labels, or some, would make it escape the policies that select it by the others.

use super::reader::{Field, Unreadable};
use super::{Lowered, labels, uid};
use crate::model::{HostPort, Labels, Level, NamedPort, NodeAddress, Workload};
use crate::store::ObjectKey;
use std::collections::BTreeSet;
use std::net::IpAddr;

const KEPT: &str = "what was known of the pod goes on to hold; without anything known it has no endpoint and no rule finds it by label";
const NO_ENDPOINT: &str = "the pod has no endpoint";
const ONE_OF_EACH: &str =
    "rules find the pod by all of them; what it sends from another than the lowest of each family is denied";
const NO_HOST_PORT: &str =
    "clients of this port whom the node's address stands for are not known: they are judged as masqueraded";

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    workload(key, &root.with(KEPT)).map_or(Lowered::Unreadable, Lowered::Workload)
}

fn workload(key: &ObjectKey, root: &Field<'_>) -> Result<Workload, Unreadable> {
    let spec = root.at("spec");
    let status = root.at("status");
    let text =
        |parent: &Field<'_>, name: &str| parent.find(name).map(|field| field.text().map(str::to_owned)).transpose();
    let host_network = spec.find("hostNetwork").map(|field| field.boolean()).transpose()?.unwrap_or_default();
    let phase = text(&status, "phase")?;
    let ended = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
    let node = text(&spec, "nodeName")?.unwrap_or_default();
    let service_account = text(&spec, "serviceAccountName")?.filter(|name| !name.is_empty());
    let addresses = if host_network || ended { Vec::new() } else { addresses(&status)? };
    if addresses.is_empty() && !host_network && !ended && !node.is_empty() && phase.as_deref() != Some("Pending") {
        status.at("podIPs").with(NO_ENDPOINT).problem(Level::Warning, "a pod that runs needs addresses");
    }
    if host_network {
        let effect = "not enforced: its traffic is the node's";
        spec.at("hostNetwork").with(effect).problem(Level::Note, "the pod shares its node's addresses");
    }
    Ok(Workload {
        uid: uid(key, root),
        namespace: key.namespace.clone().unwrap_or_default(),
        name: key.name.clone(),
        labels: labels::of(root)?.into(),
        service_account: service_account.unwrap_or_else(|| "default".to_owned()),
        node,
        addresses,
        named_ports: named_ports(&spec)?,
        host_ports: if host_network || ended { BTreeSet::new() } else { host_ports(&spec)? },
        host_network,
        terminating: root.find("metadata").is_some_and(|metadata| metadata.find("deletionTimestamp").is_some()),
        ended,
    })
}

/// `status.podIPs`, or `status.podIP` where only that is there.
fn addresses(status: &Field<'_>) -> Result<Vec<IpAddr>, Unreadable> {
    let fields = match status.find("podIPs") {
        Some(list) => list.list()?.iter().map(|item| item.at("ip")).collect(),
        None => Vec::new(),
    };
    let fields = if fields.is_empty() { status.find("podIP").into_iter().collect() } else { fields };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for field in fields {
        let text = field.text()?;
        if text.is_empty() {
            continue;
        }
        let address = text.parse::<IpAddr>().map_err(|_| field.bad("must be an IP address"))?.to_canonical();
        if addresses.contains(&address) {
            continue;
        }
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            field.with(ONE_OF_EACH).problem(Level::Warning, "a pod has one address of each family");
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// The containers, and the init containers that keep running (`restartPolicy: Always`).
fn containers<'a>(spec: &Field<'a>) -> Result<Vec<Field<'a>>, Unreadable> {
    let mut running = Vec::new();
    for (name, sidecars_only) in [("containers", false), ("initContainers", true)] {
        let Some(list) = spec.find(name) else { continue };
        for container in list.list()? {
            let restart = container.find("restartPolicy").map(|field| field.text()).transpose()?;
            if !sidecars_only || restart == Some("Always") {
                running.push(container);
            }
        }
    }
    Ok(running)
}

/// All ports of the containers that keep running.
fn container_ports<'a>(spec: &Field<'a>) -> Result<Vec<Field<'a>>, Unreadable> {
    let mut ports = Vec::new();
    for container in containers(spec)? {
        if let Some(list) = container.find("ports") {
            ports.extend(list.list()?);
        }
    }
    Ok(ports)
}

/// Those with names.
fn named_ports(spec: &Field<'_>) -> Result<BTreeSet<NamedPort>, Unreadable> {
    let mut ports = BTreeSet::new();
    for port in container_ports(spec)? {
        let Some(name) = port.find("name") else { continue };
        let number = port.at("containerPort").number(65_535)?;
        ports.insert(NamedPort { name: name.text()?.to_owned(), protocol: protocol(&port)?, port: number });
    }
    Ok(ports)
}

/// Those that the node has too. One that cannot be read makes no difference to the others, nor to the pod.
fn host_ports(spec: &Field<'_>) -> Result<BTreeSet<HostPort>, Unreadable> {
    let ports = container_ports(&spec.with(NO_HOST_PORT))?;
    Ok(ports.iter().filter_map(|port| host_port(port).unwrap_or_default()).collect())
}

/// The port of the node; none if there is none. Without an address, or with that of no host, it is at every one.
fn host_port(port: &Field<'_>) -> Result<Option<HostPort>, Unreadable> {
    let Some(number) = port.find("hostPort") else { return Ok(None) };
    let number = number.number(65_535)?;
    if number == 0 {
        return Ok(None);
    }
    let at = match port.find("hostIP").filter(|address| !address.is_empty()) {
        None => NodeAddress::Every,
        Some(field) => {
            let address = field.text()?.parse::<IpAddr>().map_err(|_| field.bad("must be an IP address"))?;
            if address.is_unspecified() { NodeAddress::Every } else { NodeAddress::One(address.to_canonical()) }
        }
    };
    Ok(Some(HostPort { at, protocol: protocol(port)?, port: number }))
}

fn protocol(port: &Field<'_>) -> Result<u8, Unreadable> {
    match port.find("protocol").map(|field| field.text()).transpose()?.unwrap_or("TCP") {
        "TCP" => Ok(6),
        "UDP" => Ok(17),
        "SCTP" => Ok(132),
        _ => Err(port.at("protocol").bad("must be TCP, UDP or SCTP")),
    }
}

impl Workload {
    /// The labels that selectors see: the pod's own and those that Calico gives every pod.
    pub fn selector_labels(&self) -> Labels {
        let mut labels = Labels::clone(&self.labels);
        for (key, value) in [
            ("projectcalico.org/namespace", self.namespace.as_str()),
            ("projectcalico.org/orchestrator", "k8s"),
            ("projectcalico.org/serviceaccount", self.service_account.as_str()),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }
}
