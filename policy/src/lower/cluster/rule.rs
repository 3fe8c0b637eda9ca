//! One rule of a ClusterNetworkPolicy.
//!
//! A rule that cannot be read whole fails closed as the API asks: one that accepts matches nothing, any other denies
//! everything. That holds for a peer without a known field too, which comes from a later version of the API.

use super::super::network_policy::net;
use super::super::reader::{Field, Unreadable};
use super::{HONOURED, at_most, in_namespaces, namespaced_pods};
use crate::lower::labels;
use crate::model::{Action, Direction, Level, Peer, Peers, PortMatch, Rule, Traffic, TrafficMatch};
use std::collections::BTreeSet;

const MATCHES_NOBODY: &str = "this rule matches nobody";
const DENIES_ALL: &str = "this rule denies everything for the policy's subjects";
const LONGEST_NAME: usize = 100;
const LONGEST_NETWORK: usize = 43;
const TRANSPORTS: [(&str, u8); 3] = [("tcp", 6), ("udp", 17), ("sctp", 132)];

pub(super) fn lower(field: &Field<'_>, index: u32, direction: Direction) -> Rule {
    let action = match field.find("action").map(|action| action.with(DENIES_ALL)) {
        Some(text) => match text.text() {
            Ok("Accept") => Some(Action::Allow),
            Ok("Deny") => Some(Action::Deny),
            Ok("Pass") => Some(Action::Pass),
            Ok(_) => {
                text.bad("must be Accept, Deny or Pass");
                None
            }
            Err(Unreadable) => None,
        },
        None => {
            field.at("action").with(DENIES_ALL).bad("a rule needs an action");
            None
        }
    };
    let effect = if action == Some(Action::Allow) { MATCHES_NOBODY } else { DENIES_ALL };
    let name = name(&field.with(HONOURED));
    let closed = |action, peer| Rule {
        index,
        action,
        name: name.clone(),
        family: None,
        peer,
        own: Peers::Anyone,
        traffic: Traffic { any_of: None, none_of: Vec::new() },
    };
    match (action, read(&field.with(effect), direction)) {
        (Some(action), Ok((peer, traffic))) => Rule { traffic, ..closed(action, peer) },
        (Some(Action::Allow), Err(Unreadable)) => closed(Action::Allow, Peers::Nobody),
        _ => closed(Action::DenyUnreadable, Peers::Anyone),
    }
}

/// A name that is no text is told of, and makes no difference.
fn name(field: &Field<'_>) -> Option<String> {
    let field = field.find("name")?;
    // reported by `text`
    let name = field.text().ok().filter(|name| !name.is_empty())?;
    if name.chars().count() > LONGEST_NAME {
        field.problem(Level::Note, format!("the API allows {LONGEST_NAME} characters"));
    }
    Some(name.to_owned())
}

fn read(field: &Field<'_>, direction: Direction) -> Result<(Peers, Traffic), Unreadable> {
    let side = if direction == Direction::Ingress { "from" } else { "to" };
    let mut fields = field.fields()?;
    fields.ignore(&["name", "action"]);
    let (given, protocols) = (fields.take(side), fields.take("protocols"));
    let known = fields.finish();
    let peers_read = given
        .ok_or_else(|| field.at(side).bad("a rule needs peers"))
        .and_then(|list| items(&list)?.iter().map(|item| peer(item, direction)).collect::<Result<Vec<_>, _>>());
    let traffic = protocols.as_ref().map(traffic).transpose();
    known?;
    let (peers, traffic) = (peers_read?, traffic?);
    let by_name = traffic.iter().flatten().any(|one| matches!(one.ports, PortMatch::Named(_)));
    if let (true, Some(protocols)) = (by_name && peers.iter().any(|peer| peer.workload.is_none()), &protocols) {
        return Err(protocols.bad("networks and nodes have no named ports"));
    }
    Ok((Peers::OneOf(peers), Traffic { any_of: traffic, none_of: Vec::new() }))
}

/// The items of a list that must have some.
fn items<'a>(field: &Field<'a>) -> Result<Vec<Field<'a>>, Unreadable> {
    let list = field.list()?;
    at_most(field, list.len());
    if list.is_empty() { Err(field.bad("needs at least one item")) } else { Ok(list) }
}

fn peer(field: &Field<'_>, direction: Direction) -> Result<Peer, Unreadable> {
    let mut fields = field.fields()?;
    let (namespaces, pods) = (fields.take("namespaces"), fields.take("pods"));
    let (mut nodes, mut networks, mut names) = (None, None, None);
    if direction == Direction::Egress {
        (nodes, networks, names) = (fields.take("nodes"), fields.take("networks"), fields.take("domainNames"));
    }
    fields.finish()?;
    let given = [&namespaces, &pods, &nodes, &networks, &names].into_iter().flatten().count();
    if given != 1 {
        return Err(field.bad(if given == 0 {
            "has none of the fields that are known here: it comes from a later version of the API"
        } else {
            "must have exactly one field"
        }));
    }
    if let Some(names) = names {
        return Err(names.bad("names of domains are not supported in this version"));
    }
    let mut peer = Peer::default();
    if let Some(field) = namespaces {
        peer.workload = Some(in_namespaces(&field)?);
    }
    if let Some(field) = pods {
        peer.workload = Some(namespaced_pods(&field)?);
    }
    if let Some(field) = nodes {
        peer.nodes = Some(labels::selector(&field)?);
    }
    if let Some(field) = networks {
        let read: Vec<_> = items(&field)?.iter().map(network).collect();
        peer.nets = Some(read.into_iter().collect::<Result<BTreeSet<_>, _>>()?);
    }
    Ok(peer)
}

fn network(field: &Field<'_>) -> Result<ipnet::IpNet, Unreadable> {
    let network = net(field)?;
    if field.text()?.len() > LONGEST_NETWORK {
        field.with(HONOURED).problem(Level::Note, format!("the API allows {LONGEST_NETWORK} characters"));
    }
    Ok(network)
}

fn traffic(field: &Field<'_>) -> Result<Vec<TrafficMatch>, Unreadable> {
    let read: Vec<_> = items(field)?.iter().map(protocol).collect();
    read.into_iter().collect()
}

fn protocol(field: &Field<'_>) -> Result<TrafficMatch, Unreadable> {
    let mut fields = field.fields()?;
    let mut given: Vec<(Option<u8>, Field<'_>)> =
        TRANSPORTS.iter().filter_map(|(name, number)| Some((Some(*number), fields.take(name)?))).collect();
    given.extend(fields.take("destinationNamedPort").map(|name| (None, name)));
    fields.finish()?;
    let [(protocol, inner)] = &given[..] else {
        return Err(field.bad("needs exactly one of tcp, udp, sctp and destinationNamedPort"));
    };
    let ports = if protocol.is_none() {
        match inner.text()? {
            "" => return Err(inner.bad("must be the name of a port")),
            name => PortMatch::Named(name.to_owned()),
        }
    } else {
        let mut fields = inner.fields()?;
        let port = fields.take("destinationPort");
        fields.finish()?;
        ports(&port.ok_or_else(|| inner.at("destinationPort").bad("a protocol needs a port"))?)?
    };
    Ok(TrafficMatch { protocol: *protocol, ports })
}

fn ports(field: &Field<'_>) -> Result<PortMatch, Unreadable> {
    let mut fields = field.fields()?;
    let (number, range) = (fields.take("number"), fields.take("range"));
    fields.finish()?;
    match (number, range) {
        (Some(number), None) => port(&number).map(|port| PortMatch::Range(port, port)),
        (None, Some(range)) => {
            let mut fields = range.fields()?;
            let (start, end) = (fields.take("start"), fields.take("end"));
            fields.finish()?;
            let start = port(&start.ok_or_else(|| range.at("start").bad("a range needs a start"))?)?;
            let last = end.ok_or_else(|| range.at("end").bad("a range needs an end"))?;
            match port(&last)? {
                end if start < end => Ok(PortMatch::Range(start, end)),
                _ => Err(last.bad("the end must lie above the start")),
            }
        }
        _ => Err(field.bad("needs exactly one of number and range")),
    }
}

fn port(field: &Field<'_>) -> Result<u16, Unreadable> {
    match field.number(65_535)? {
        0 => Err(field.bad("must be a port from 1 to 65535")),
        port => Ok(port),
    }
}
