//! `v1` Service and `discovery.k8s.io/v1` EndpointSlice: who answers behind which address and port.
//!
//! A Service that cannot be read keeps what was known of it; of a slice, the rest holds.

use super::reader::{Field, Unreadable};
use super::{Lowered, labels, uid};
use crate::model::{
    Affinity, BackendScope, Endpoint, EndpointPort, EndpointSlice, Level, Reading, Service, ServiceKind, ServiceName,
    ServicePort, TargetPod, TargetPort,
};
use crate::store::ObjectKey;
use std::collections::BTreeSet;
use std::net::IpAddr;

const SERVICE_KEPT: &str = "what was known of the service goes on to hold";
const PARTIAL: &str =
    "rules that allow the service's backends allow the rest; all other rules about them deny everyone";
const LABEL: &str = "kubernetes.io/service-name";

/// Fields of a Service that make no difference to who may reach whom: they direct others.
const NOT_ROUTING: [&str; 8] = [
    "selector",
    "ipFamilies",
    "ipFamilyPolicy",
    "allocateLoadBalancerNodePorts",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "trafficDistribution",
];

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let name = ServiceName { namespace: key.namespace.clone().unwrap_or_default(), name: key.name.clone() };
    service(name, uid(key, root), &root.with(SERVICE_KEPT)).map_or(Lowered::Unreadable, Lowered::Service)
}

fn service(name: ServiceName, uid: String, root: &Field<'_>) -> Result<Service, Unreadable> {
    let mut fields = root.at("spec").fields()?;
    fields.ignore(&NOT_ROUTING);
    let kind = match fields.take("type") {
        None => ServiceKind::ClusterIp,
        Some(field) => match field.text()? {
            "ClusterIP" => ServiceKind::ClusterIp,
            "NodePort" => ServiceKind::NodePort,
            "LoadBalancer" => ServiceKind::LoadBalancer,
            "ExternalName" => ServiceKind::ExternalName,
            _ => return Err(field.bad("must be ClusterIP, NodePort, LoadBalancer or ExternalName")),
        },
    };
    let single = fields.take("clusterIP").filter(|field| !field.is_empty());
    let list = fields.take("clusterIPs").filter(|field| !field.is_empty());
    let mut given = list.map(|list| list.list()).transpose()?.unwrap_or_default();
    if given.is_empty() {
        given.extend(single);
    }
    let headless = given.iter().any(|field| field.text() == Ok("None"));
    let (kind, cluster_addresses) = match kind {
        ServiceKind::ExternalName => (kind, BTreeSet::new()),
        _ if headless => (ServiceKind::Headless, BTreeSet::new()),
        _ => (kind, given.iter().map(address).collect::<Result<_, _>>()?),
    };
    let external = fields.take("externalIPs").map(|list| list.list()).transpose()?.unwrap_or_default();
    let ports = fields.take("ports").map(|list| list.list()).transpose()?.unwrap_or_default();
    let affinity = fields.take("sessionAffinity");
    let affinity_config = fields.take("sessionAffinityConfig");
    let external_scope = fields.take("externalTrafficPolicy");
    let internal_scope = fields.take("internalTrafficPolicy");
    let health_check = fields.take("healthCheckNodePort");
    let not_ready = fields.take("publishNotReadyAddresses");
    fields.take("externalName");
    fields.finish_noting();
    Ok(Service {
        name,
        uid,
        kind,
        cluster_addresses,
        external_addresses: external.iter().map(address).collect::<Result<_, _>>()?,
        balancer_addresses: balancer(root)?,
        ports: ports.iter().map(service_port).collect::<Result<_, _>>()?,
        affinity: match affinity.as_ref().filter(|field| !field.is_empty()) {
            None => Affinity::None,
            Some(field) => match field.text()? {
                "None" => Affinity::None,
                "ClientIP" => Affinity::ClientIp(timeout(affinity_config.as_ref())?),
                _ => return Err(field.bad("must be None or ClientIP")),
            },
        },
        external_scope: scope(external_scope.as_ref())?,
        internal_scope: scope(internal_scope.as_ref())?,
        health_check_port: match health_check.map(|field| field.number::<u16>(65_535)).transpose()? {
            None | Some(0) => None,
            port => port,
        },
        publishes_not_ready: not_ready.map(|field| field.boolean()).transpose()?.unwrap_or_default(),
    })
}

/// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`, three hours where nothing is said.
fn timeout(config: Option<&Field<'_>>) -> Result<u32, Unreadable> {
    let seconds = member(config, "clientIP")?;
    member(seconds.as_ref(), "timeoutSeconds")?.map_or(Ok(10_800), |field| field.number(86_400))
}

/// The only member of an object that is known.
fn member<'a>(object: Option<&Field<'a>>, name: &'static str) -> Result<Option<Field<'a>>, Unreadable> {
    let Some(object) = object else { return Ok(None) };
    let mut fields = object.fields()?;
    let member = fields.take(name);
    fields.finish_noting();
    Ok(member)
}

fn scope(field: Option<&Field<'_>>) -> Result<BackendScope, Unreadable> {
    let Some(field) = field.filter(|field| !field.is_empty()) else { return Ok(BackendScope::Cluster) };
    match field.text()? {
        "Cluster" => Ok(BackendScope::Cluster),
        "Local" => Ok(BackendScope::Local),
        _ => Err(field.bad("must be Cluster or Local")),
    }
}

/// `status.loadBalancer.ingress`; what has a name only, or is a proxy of its own, is never seen as a destination here.
fn balancer(root: &Field<'_>) -> Result<BTreeSet<IpAddr>, Unreadable> {
    let Some(mut status) = root.find("status").map(|status| status.fields()).transpose()? else {
        return Ok(BTreeSet::new());
    };
    status.ignore(&["conditions"]);
    let balancer = status.take("loadBalancer");
    status.finish_noting();
    let list = member(balancer.as_ref(), "ingress")?.map(|list| list.list()).transpose()?.unwrap_or_default();
    let mut found = BTreeSet::new();
    for item in list {
        let mut fields = item.fields()?;
        fields.ignore(&["hostname", "ports"]);
        let (ip, mode) = (fields.take("ip").filter(|ip| !ip.is_empty()), fields.take("ipMode"));
        fields.finish_noting();
        let proxied = mode.map(|mode| mode.text()).transpose()? == Some("Proxy");
        if let (Some(ip), false) = (ip, proxied) {
            found.insert(address(&ip)?);
        }
    }
    Ok(found)
}

fn service_port(field: &Field<'_>) -> Result<ServicePort, Unreadable> {
    let mut fields = field.fields()?;
    // What is spoken there is for proxies and meshes.
    fields.ignore(&["appProtocol"]);
    let name = fields.take("name");
    let protocol = fields.take("protocol");
    let port = fields.take("port").ok_or_else(|| field.at("port").bad("a service port needs a port"))?;
    let target = fields.take("targetPort").filter(|field| !field.is_empty());
    let node_port = fields.take("nodePort");
    fields.finish_noting();
    let port = number(&port)?;
    let target = match target {
        None => TargetPort::Number(port),
        Some(target) if target.is_text() => TargetPort::Named(target.text()?.to_owned()),
        Some(target) => match target.number::<u16>(65_535)? {
            0 => TargetPort::Number(port),
            target => TargetPort::Number(target),
        },
    };
    let node_port = match node_port.map(|field| field.number::<u16>(65_535)).transpose()? {
        None | Some(0) => None,
        port => port,
    };
    Ok(ServicePort {
        name: name.map(|name| name.text()).transpose()?.unwrap_or_default().to_owned(),
        protocol: transport(protocol.as_ref())?,
        port,
        target,
        node_port,
    })
}

/// A slice, if it belongs to a Service.
pub(super) fn slice(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let Ok(mut labels) = labels::of(&root.with("what was known of the slice goes on to hold")) else {
        return Lowered::Unreadable;
    };
    let Some(service) = labels.remove(LABEL).filter(|name| !name.is_empty()) else { return Lowered::Nothing };
    let mut slice = EndpointSlice {
        name: key.name.clone(),
        service: ServiceName { namespace: key.namespace.clone().unwrap_or_default(), name: service },
        ports: BTreeSet::new(),
        endpoints: Vec::new(),
        reading: Reading::Whole,
    };
    let root = root.with(PARTIAL);
    if root.at("addressType").is("FQDN") {
        let effect = "the slice is left out: names are nobody's addresses here";
        root.at("addressType").with(effect).problem(Level::Note, "its endpoints have names, not addresses");
        return Lowered::Nothing;
    }
    if read_slice(&root, &mut slice).is_err() {
        slice.reading = Reading::Partial;
    }
    Lowered::EndpointSlice(slice)
}

fn read_slice(root: &Field<'_>, slice: &mut EndpointSlice) -> Result<(), Unreadable> {
    let mut fields = root.fields()?;
    fields.ignore(&["apiVersion", "kind", "metadata"]);
    let kind = fields.take("addressType");
    let endpoints = fields.take("endpoints").map(|list| list.list());
    let ports = fields.take("ports").map(|list| list.list());
    fields.finish_noting();
    let kind = kind.ok_or_else(|| root.at("addressType").bad("a slice needs an address type"))?;
    let v4 = match kind.text()? {
        "IPv4" => true,
        "IPv6" => false,
        _ => return Err(kind.bad("must be IPv4, IPv6 or FQDN")),
    };
    let mut whole = Ok(());
    for item in ports.transpose()?.unwrap_or_default() {
        match endpoint_port(&item) {
            Ok(port) => {
                slice.ports.insert(port);
            }
            Err(Unreadable) => whole = Err(Unreadable),
        }
    }
    for item in endpoints.transpose()?.unwrap_or_default() {
        match endpoint(&item, v4) {
            Ok((endpoint, all)) => {
                slice.endpoints.push(endpoint);
                whole = whole.and(all);
            }
            Err(Unreadable) => whole = Err(Unreadable),
        }
    }
    whole
}

/// An endpoint, and whether all of its addresses could be taken.
fn endpoint(field: &Field<'_>, v4: bool) -> Result<(Endpoint, Result<(), Unreadable>), Unreadable> {
    let mut fields = field.fields()?;
    // Names and hints say which of the backends to prefer, never which there are.
    fields.ignore(&["hostname", "zone", "hints", "deprecatedTopology"]);
    let given = fields.take("addresses").map(|list| list.list()).transpose()?.unwrap_or_default();
    let conditions = fields.take("conditions");
    let node = fields.take("nodeName").filter(|field| !field.is_empty());
    let target = fields.take("targetRef");
    fields.finish_noting();
    let (mut addresses, mut all) = (BTreeSet::new(), Ok(()));
    for item in given {
        let one = address(&item)?;
        if one.is_ipv4() == v4 {
            addresses.insert(one);
        } else {
            all = Err(item.bad("the address is not of the slice's addressType"));
        }
    }
    let (mut ready, mut serving, mut terminating) = (None, None, None);
    if let Some(mut conditions) = conditions.map(|conditions| conditions.fields()).transpose()? {
        (ready, serving, terminating) =
            (conditions.take("ready"), conditions.take("serving"), conditions.take("terminating"));
        conditions.finish_noting();
    }
    let condition = |field: Option<Field<'_>>| field.map(|field| field.boolean()).transpose();
    let ready = condition(ready)?.unwrap_or(true);
    let endpoint = Endpoint {
        addresses,
        ready,
        serving: condition(serving)?.unwrap_or(ready),
        terminating: condition(terminating)?.unwrap_or(false),
        node: node.map(|field| field.text().map(str::to_owned)).transpose()?,
        pod: target.map(|field| pod(&field)).transpose()?.flatten(),
    };
    Ok((endpoint, all))
}

/// A `targetRef` that is a pod.
fn pod(field: &Field<'_>) -> Result<Option<TargetPod>, Unreadable> {
    let mut fields = field.fields()?;
    fields.ignore(&["apiVersion", "fieldPath", "resourceVersion"]);
    let mut text = |name| fields.take(name).map(|field| field.text().map(str::to_owned)).transpose();
    let (kind, namespace, name, uid) = (text("kind")?, text("namespace")?, text("name")?, text("uid")?);
    fields.finish_noting();
    if kind.as_deref() != Some("Pod") {
        return Ok(None);
    }
    let uid = uid.filter(|uid| !uid.is_empty());
    Ok(Some(TargetPod { namespace: namespace.unwrap_or_default(), name: name.unwrap_or_default(), uid }))
}

fn endpoint_port(field: &Field<'_>) -> Result<EndpointPort, Unreadable> {
    let mut fields = field.fields()?;
    fields.ignore(&["appProtocol"]);
    let (name, protocol, port) = (fields.take("name"), fields.take("protocol"), fields.take("port"));
    fields.finish_noting();
    Ok(EndpointPort {
        name: name.map(|name| name.text()).transpose()?.unwrap_or_default().to_owned(),
        protocol: transport(protocol.as_ref())?,
        port: port.map(|port| number(&port)).transpose()?,
    })
}

fn transport(field: Option<&Field<'_>>) -> Result<u8, Unreadable> {
    let Some(field) = field else { return Ok(6) };
    match field.text()? {
        "TCP" => Ok(6),
        "UDP" => Ok(17),
        "SCTP" => Ok(132),
        _ => Err(field.bad("must be TCP, UDP or SCTP")),
    }
}

fn number(field: &Field<'_>) -> Result<u16, Unreadable> {
    match field.number(65_535)? {
        0 => Err(field.bad("must be a port from 1 to 65535")),
        port => Ok(port),
    }
}

fn address(field: &Field<'_>) -> Result<IpAddr, Unreadable> {
    let address = field.text()?.parse::<IpAddr>().map_err(|_| field.bad("must be an IP address"))?;
    Ok(address.to_canonical())
}
