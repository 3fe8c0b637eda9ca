//! `networking.k8s.io/v1` NetworkPolicy, whole: an allow list for the pods that it selects in its namespace.

use super::reader::{Field, Unreadable};
use super::{everything_in, labels, reference};
use crate::model::{Action, DefaultDecider, Direction, Level, NamespaceMatch, Order, Peer, Peers, Policy, PolicyKind};
use crate::model::{PortMatch, Rule, Rules, Selector, ServiceAccountMatch, Traffic, TrafficMatch, WorkloadSelector};
use crate::store::ObjectKey;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// Calico's order for Kubernetes policies, in its tier `default`.
const ORDER: f64 = 1_000.0;

const CLOSES: &str = "denies everything for the pods it selects, in its directions";
const CLOSES_BOTH: &str = "denies everything for the pods it selects, both ways";
const CLOSES_NAMESPACE: &str = "denies everything for every pod of the namespace, in its directions";
const RULE: &str = "this rule allows nobody";
const PEER: &str = "this peer matches nobody";
const PORT: &str = "this port matches nothing";

pub(super) fn policy(key: &ObjectKey, root: &Field<'_>) -> Policy {
    let mut policy = Policy {
        reference: reference(key, root),
        tier: "default".to_owned(),
        order: Some(Order(ORDER)),
        subject: everything_in(key.namespace.as_deref()),
        ingress: Rules::Closed(DefaultDecider::UnreadablePolicy),
        egress: Rules::Closed(DefaultDecider::UnreadablePolicy),
        written: None,
    };
    let Some(spec) = root.find("spec") else {
        // As the API server would: an empty spec selects every pod and lets nothing in.
        policy.ingress = Rules::List(Vec::new());
        policy.egress = Rules::NotApplied;
        return policy;
    };
    let Ok(mut fields) = spec.with(CLOSES_BOTH).fields() else { return policy };
    if policy.reference.kind == PolicyKind::StagedKubernetesNetworkPolicy {
        fields.ignore(&["stagedAction"]);
    }
    let pods = fields.take("podSelector").map(|field| labels::selector(&field.with(CLOSES_NAMESPACE))).transpose();
    let ingress = fields.take("ingress").map(|field| rules(&field.with(CLOSES), Direction::Ingress, key));
    let egress = fields.take("egress").map(|field| rules(&field.with(CLOSES), Direction::Egress, key));
    let types = fields.take("policyTypes").map(|field| types(&field.with(CLOSES_BOTH))).transpose();
    let known = fields.finish();

    let Ok(types) = types else {
        policy.subject.pod = pods.unwrap_or_default().unwrap_or(Selector::Everything);
        return policy;
    };
    let types = types.filter(|types| !types.is_empty());
    // Without types: ingress always, egress if there are egress rules.
    let some_egress = !matches!(&egress, None | Some(Ok(Rules::NotApplied)));
    let applies = |direction, by_default| types.as_ref().map_or(by_default, |types| types.contains(&direction));
    let closed = pods.is_err() || known.is_err();
    let settle = |rules: Option<Result<Rules, Unreadable>>, applies: bool| match rules {
        _ if !applies => Rules::NotApplied,
        _ if closed => Rules::Closed(DefaultDecider::UnreadablePolicy),
        Some(Err(Unreadable)) => Rules::Closed(DefaultDecider::UnreadablePolicy),
        Some(Ok(Rules::List(list))) => Rules::List(list),
        _ => Rules::List(Vec::new()),
    };
    for (name, direction, given) in
        [("ingress", Direction::Ingress, ingress.is_some()), ("egress", Direction::Egress, some_egress)]
    {
        if given && !applies(direction, true) {
            let effect = "the rules of this direction are not applied, as the API says";
            spec.at(name).with(effect).problem(Level::Note, "policyTypes leaves this direction out");
        }
    }
    // reported; `settle` has closed the directions
    policy.subject.pod = pods.ok().flatten().unwrap_or(Selector::Everything);
    policy.ingress = settle(ingress, applies(Direction::Ingress, true));
    policy.egress = settle(egress, applies(Direction::Egress, some_egress));
    policy
}

fn types(field: &Field<'_>) -> Result<Vec<Direction>, Unreadable> {
    let read: Vec<_> = field
        .list()?
        .iter()
        .map(|item| match item.text()? {
            "Ingress" => Ok(Direction::Ingress),
            "Egress" => Ok(Direction::Egress),
            _ => Err(item.bad("must be Ingress or Egress")),
        })
        .collect();
    read.into_iter().collect()
}

/// The rules of a direction; `NotApplied` stands for an empty list.
fn rules(field: &Field<'_>, direction: Direction, key: &ObjectKey) -> Result<Rules, Unreadable> {
    let list = field.list()?;
    if list.is_empty() {
        return Ok(Rules::NotApplied);
    }
    Ok(Rules::List((0_u32..).zip(&list).map(|(index, item)| rule(&item.with(RULE), index, direction, key)).collect()))
}

fn rule(field: &Field<'_>, index: u32, direction: Direction, key: &ObjectKey) -> Rule {
    let read = || {
        let mut fields = field.fields()?;
        let peers =
            fields.take(if direction == Direction::Ingress { "from" } else { "to" }).map(|list| peers(&list, key));
        let ports = fields.take("ports").map(|list| ports(&list));
        fields.finish()?;
        Ok((
            peers.transpose()?.unwrap_or(Peers::Anyone),
            ports.transpose()?.unwrap_or(Traffic { any_of: None, none_of: Vec::new() }),
        ))
    };
    let (peer, traffic) =
        read().unwrap_or_else(|Unreadable| (Peers::Nobody, Traffic { any_of: Some(Vec::new()), none_of: Vec::new() }));
    Rule { index, action: Action::Allow, name: None, family: None, peer, own: Peers::Anyone, traffic }
}

fn peers(field: &Field<'_>, key: &ObjectKey) -> Result<Peers, Unreadable> {
    let list = field.list()?;
    if list.is_empty() {
        return Ok(Peers::Anyone);
    }
    // An unreadable peer is left out: the others are alternatives to it.
    let readable: Vec<Peer> = list.iter().map(|item| peer(&item.with(PEER), key)).flat_map(Result::into_iter).collect();
    Ok(if readable.is_empty() { Peers::Nobody } else { Peers::OneOf(readable) })
}

fn peer(field: &Field<'_>, key: &ObjectKey) -> Result<Peer, Unreadable> {
    let mut fields = field.fields()?;
    let pods = fields.take("podSelector");
    let namespaces = fields.take("namespaceSelector");
    let block = fields.take("ipBlock");
    fields.finish()?;
    let mut peer = Peer::default();
    match (&pods, &namespaces, &block) {
        (None, None, Some(block)) => {
            let mut fields = block.fields()?;
            let cidr = fields.take("cidr");
            let except = fields.take("except");
            fields.finish()?;
            let cidr = net(&cidr.ok_or_else(|| block.at("cidr").bad("an ipBlock needs a cidr"))?)?;
            for item in except.map(|list| list.list()).transpose()?.unwrap_or_default() {
                let inner = net(&item)?;
                if !cidr.contains(&inner) || inner == cidr {
                    return Err(item.bad(format!("must lie inside {cidr}")));
                }
                peer.not_nets.insert(inner);
            }
            peer.nets = Some(BTreeSet::from([cidr]));
        }
        (None, None, None) => return Err(field.bad("a peer needs a podSelector, a namespaceSelector or an ipBlock")),
        (_, _, Some(_)) => return Err(field.at("ipBlock").bad("an ipBlock stands alone, without selectors")),
        (pods, namespaces, None) => {
            let namespace = match namespaces {
                Some(namespaces) => match labels::selector(namespaces)? {
                    Selector::Everything => NamespaceMatch::Any,
                    labels => NamespaceMatch::Labels(labels),
                },
                None => NamespaceMatch::Named(key.namespace.clone().unwrap_or_default()),
            };
            let pod = pods.as_ref().map(labels::selector).transpose()?.unwrap_or(Selector::Everything);
            peer.workload = Some(WorkloadSelector { namespace, pod, service_account: ServiceAccountMatch::Any });
        }
    }
    Ok(peer)
}

/// A network in CIDR form; bits behind the prefix are cut.
pub(super) fn net(field: &Field<'_>) -> Result<IpNet, Unreadable> {
    let net =
        field.text()?.parse::<IpNet>().map_err(|_| field.bad("must be a network such as 10.0.0.0/8 or fd00::/8"))?;
    match net {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(field.bad("write IPv4 networks in IPv4 form")),
        net => Ok(net.trunc()),
    }
}

fn ports(field: &Field<'_>) -> Result<Traffic, Unreadable> {
    let list = field.list()?;
    if list.is_empty() {
        return Ok(Traffic { any_of: None, none_of: Vec::new() });
    }
    let readable = list.iter().map(|item| port(&item.with(PORT))).flat_map(Result::into_iter).collect();
    Ok(Traffic { any_of: Some(readable), none_of: Vec::new() })
}

fn port(field: &Field<'_>) -> Result<TrafficMatch, Unreadable> {
    let mut fields = field.fields()?;
    let protocol = fields.take("protocol");
    let port = fields.take("port");
    let end = fields.take("endPort");
    fields.finish()?;
    let protocol = match &protocol {
        None => 6,
        Some(field) => match field.text()? {
            "TCP" => 6,
            "UDP" => 17,
            "SCTP" => 132,
            _ => return Err(field.bad("must be TCP, UDP or SCTP")),
        },
    };
    let whole = |field: &Field<'_>| match field.number::<u16>(65_535)? {
        0 => Err(field.bad("must be a port from 1 to 65535")),
        port => Ok(port),
    };
    let ports = match (&port, &end) {
        (None, None) => PortMatch::Any,
        (None, Some(end)) => return Err(end.bad("endPort needs a port")),
        (Some(port), Some(end)) if port.is_text() => return Err(end.bad("endPort needs a port that is a number")),
        (Some(port), None) if port.is_text() => match port.text()? {
            "" => return Err(port.bad("must be a number or a name")),
            name => PortMatch::Named(name.to_owned()),
        },
        (Some(port), None) => whole(port).map(|port| PortMatch::Range(port, port))?,
        (Some(port), Some(end)) => match (whole(port)?, whole(end)?) {
            (first, last) if first <= last => PortMatch::Range(first, last),
            _ => return Err(end.bad("endPort must not be below port")),
        },
    };
    Ok(TrafficMatch { protocol: Some(protocol), ports })
}
