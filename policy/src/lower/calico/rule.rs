//! One rule of a Calico policy.

use super::super::reader::{Field, Unreadable};
use super::{labels, namespaces, peer_base};
use crate::model::{
    Action, Direction, Family, NamespaceMatch, Peer, Peers, PortMatch, Rule, Selector, ServiceAccountMatch, ServiceName,
};
use crate::model::{SetScope, SetSelector, Traffic, TrafficMatch, WorkloadSelector};
use crate::selector::Written;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

const MATCHES_NOBODY: &str = "this rule matches nobody";
const DENIES_ALL: &str = "this rule denies everything for the policy's subjects";
const ALL: Traffic = Traffic { any_of: None, none_of: Vec::new() };

/// Lowers one rule. One that cannot be read keeps its place: an allow matches nobody, any other denies everyone.
pub(super) fn lower(field: &Field<'_>, index: u32, direction: Direction, namespace: Option<&str>) -> Rule {
    let action = match field.find("action").map(|action| action.with(DENIES_ALL)) {
        Some(text) => match text.text() {
            Ok("Allow") => Some(Action::Allow),
            Ok("Deny") => Some(Action::Deny),
            Ok("Pass") => Some(Action::Pass),
            Ok("Log") => Some(Action::Log),
            Ok(_) => {
                text.bad("must be Allow, Deny, Log or Pass");
                None
            }
            Err(Unreadable) => None,
        },
        None => {
            field.at("action").with(DENIES_ALL).bad("a rule needs an action");
            None
        }
    };
    let closes = !matches!(action, Some(Action::Allow | Action::Log));
    let read = read(&field.with(if closes { DENIES_ALL } else { MATCHES_NOBODY }), direction, namespace);
    let everyone = Rule {
        index,
        action: Action::DenyUnreadable,
        name: None,
        family: None,
        peer: Peers::Anyone,
        own: Peers::Anyone,
        traffic: ALL,
    };
    match (action, read) {
        (Some(action), Ok(rule)) => Rule { index, action, ..rule },
        (Some(action @ (Action::Allow | Action::Log)), Err(Unreadable)) => {
            Rule { action, peer: Peers::Nobody, ..everyone }
        }
        _ => everyone,
    }
}

fn read(field: &Field<'_>, direction: Direction, namespace: Option<&str>) -> Result<Rule, Unreadable> {
    let mut fields = field.fields()?;
    fields.take("action");
    // Annotations are for people.
    fields.take("metadata");
    let family = fields.take("ipVersion").map(|version| match version.integer()? {
        4 => Ok(Family::V4),
        6 => Ok(Family::V6),
        _ => Err(version.bad("must be 4 or 6")),
    });
    let only = fields.take("protocol").map(|name| protocol(&name));
    let but = fields.take("notProtocol").map(|name| protocol(&name));
    let icmp = fields.take("icmp").map(|inner| (icmp(&inner), inner));
    let not_icmp = fields.take("notICMP").map(|inner| (super::rule::icmp(&inner), inner));
    let http = fields.take("http").map(|http| http.bad("what is said inside a connection is not looked at"));
    let (peer_side, own_side) = match direction {
        Direction::Ingress => ("source", "destination"),
        Direction::Egress => ("destination", "source"),
    };
    let peer = fields.take(peer_side).map(|entity| Entity::read(&entity, namespace)).transpose();
    let own = fields.take(own_side).map(|entity| Entity::read(&entity, namespace)).transpose();
    let known = fields.finish();
    let (peer, own) = (peer?.unwrap_or_default(), own?.unwrap_or_default());
    known?;
    http.map_or(Ok(()), Err)?;
    let (family, only, but) = (family.transpose()?, only.transpose()?, but.transpose()?);

    if let Some((_, services)) = &own.service {
        return Err(services.bad("a rule may name a service for the other side only"));
    }
    for name in ["protocol", "notProtocol"] {
        let family_of = |number: u8| [(1, Family::V4), (58, Family::V6)].into_iter().find(|(icmp, _)| *icmp == number);
        let wanted = if name == "protocol" { only } else { but }.and_then(family_of);
        if let (Some(family), Some((_, wanted))) = (family, wanted)
            && family != wanted
        {
            return Err(field.at(name).bad("ICMP goes with ipVersion 4, ICMPv6 with ipVersion 6"));
        }
    }
    let (source, destination) = if direction == Direction::Ingress { (&peer, &own) } else { (&own, &peer) };
    if let Some(ports) = source.ports.as_ref().or(source.not_ports.as_ref()) {
        return Err(ports.bad("source ports are not supported"));
    }
    let mut none_of: Vec<TrafficMatch> =
        but.map(|but| TrafficMatch { protocol: Some(but), ports: PortMatch::Any }).into_iter().collect();
    let mut any_of = only.map(|only| vec![TrafficMatch { protocol: Some(only), ports: PortMatch::Any }]);
    let with_ports = |field: &Field<'_>| match only {
        Some(6 | 17 | 132) => Ok(()),
        _ => Err(field.bad("ports need protocol TCP, UDP or SCTP")),
    };
    if let Some(list) = &destination.ports {
        with_ports(list)?;
        if let (Direction::Egress, Some((_, services))) = (direction, &peer.service) {
            return Err(services.bad("a service brings its own ports: give none beside it"));
        }
        any_of = Some(ports(list)?.into_iter().map(|ports| TrafficMatch { protocol: only, ports }).collect());
    }
    if let Some(list) = &destination.not_ports {
        if let (Direction::Egress, Some((_, services))) = (direction, &peer.service) {
            return Err(services.bad("a service brings its own ports: give none beside it"));
        }
        with_ports(list)?;
        none_of.extend(ports(list)?.into_iter().map(|ports| TrafficMatch { protocol: only, ports }));
    }
    for (is_not, given) in [(false, icmp), (true, not_icmp)] {
        let Some((read, field)) = given else { continue };
        let Some(ports) = read? else { continue };
        if !matches!(only, Some(1 | 58)) {
            return Err(field.bad("ICMP types need protocol ICMP or ICMPv6"));
        }
        let one = TrafficMatch { protocol: only, ports };
        if is_not { none_of.push(one) } else { any_of = Some(vec![one]) }
    }
    Ok(Rule {
        index: 0,
        action: Action::Allow,
        name: None,
        family,
        peer: peer.peers(),
        own: own.peers(),
        traffic: Traffic { any_of, none_of },
    })
}

/// The `source` or `destination` of a rule.
#[derive(Default)]
struct Entity<'a> {
    peer: Option<Peer>,
    service: Option<(ServiceName, Field<'a>)>,
    ports: Option<Field<'a>>,
    not_ports: Option<Field<'a>>,
}

impl<'a> Entity<'a> {
    fn peers(self) -> Peers {
        match (self.service, self.peer) {
            (Some((service, _)), _) => Peers::BackendsOf(service),
            (None, Some(peer)) => Peers::OneOf(vec![peer]),
            (None, None) => Peers::Anyone,
        }
    }

    fn read(field: &Field<'a>, namespace: Option<&str>) -> Result<Self, Unreadable> {
        let mut fields = field.fields()?;
        let text = |field: Option<Field<'a>>| field.filter(|field| !field.is_empty());
        let selector = text(fields.take("selector"));
        let not_selector = text(fields.take("notSelector"));
        let in_namespaces = fields.take("namespaceSelector").map(|field| namespaces(&field));
        let accounts = fields.take("serviceAccounts").map(|field| accounts(&field));
        let inside = text(fields.take("nets")).map(|field| nets(&field));
        let outside = text(fields.take("notNets")).map(|field| nets(&field));
        let services = fields.take("services").map(|field| Ok((service(&field, namespace)?, field)));
        let ports = text(fields.take("ports"));
        let not_ports = text(fields.take("notPorts"));
        fields.finish()?;
        let selector = selector.map(|field| labels(&field)).transpose()?;
        let not_selector = not_selector.map(|field| labels(&field)).transpose()?;
        let in_namespaces = in_namespaces.transpose()?.flatten();
        let (accounts, service) = (accounts.transpose()?.flatten(), services.transpose()?);
        let (inside, outside) = (inside.transpose()?, outside.transpose()?);

        // As soon as one of these is given the side must be a workload or a network set; in a namespaced policy (without
        // a namespaceSelector) one of its own namespace. Elsewhere `notSelector` alone also holds for other addresses.
        let wanted = selector.is_some()
            || accounts.is_some()
            || in_namespaces.is_some()
            || namespace.is_some() && not_selector.is_some();
        let labels = selector.unwrap_or(Selector::Everything);
        // Network sets have no service account.
        let sets = (wanted && accounts.is_none())
            .then(|| SetSelector { scope: scope(in_namespaces.as_ref(), namespace), labels: labels.clone() });
        let workload = (wanted && in_namespaces != Some(Written::Global)).then(|| {
            let mut wanted = peer_base(if in_namespaces.is_some() { None } else { namespace });
            wanted.pod = labels;
            wanted.service_account = accounts.unwrap_or(ServiceAccountMatch::Any);
            if let Some(Written::Labels(labels)) = in_namespaces
                && labels != Selector::Everything
            {
                wanted.namespace = NamespaceMatch::Labels(labels);
            }
            wanted
        });
        // `notSelector` is about labels alone, in whatever namespace.
        let not_sets: Vec<_> = not_selector
            .iter()
            .map(|labels| SetSelector { scope: SetScope::Everywhere, labels: labels.clone() })
            .collect();
        let not_workloads = not_selector.map(|pod| WorkloadSelector { pod, ..peer_base(None) }).into_iter().collect();
        let not_nets = outside.unwrap_or_default();
        let peer = Peer { workload, sets, nodes: None, not_workloads, not_sets, nets: inside, not_nets };
        let restricted = peer != Peer::default();
        if let (true, Some((_, services))) = (restricted, &service) {
            return Err(services.bad("a service stands alone, without selectors, networks and accounts"));
        }
        if wanted && peer.workload.is_none() && peer.sets.is_none() {
            // Service accounts of what is in no namespace: there are none.
            return Ok(Self { peer: Some(Peer { nets: Some(BTreeSet::new()), ..peer }), service, ports, not_ports });
        }
        Ok(Self { peer: restricted.then_some(peer), service, ports, not_ports })
    }
}

/// Which network sets a side's namespaceSelector speaks of.
fn scope(in_namespaces: Option<&Written>, namespace: Option<&str>) -> SetScope {
    match (in_namespaces, namespace) {
        (Some(Written::Global), _) => SetScope::Global,
        (Some(Written::Labels(Selector::Everything)), _) => SetScope::AnyNamespace,
        (Some(Written::Labels(labels)), _) => SetScope::Namespaces(labels.clone()),
        (None, Some(namespace)) => SetScope::Namespace(namespace.to_owned()),
        (None, None) => SetScope::Everywhere,
    }
}

/// `services`: one, by name; of the policy's namespace where nothing else is said.
fn service(field: &Field<'_>, namespace: Option<&str>) -> Result<ServiceName, Unreadable> {
    let mut fields = field.fields()?;
    let (name, given) = (fields.take("name"), fields.take("namespace"));
    fields.finish()?;
    let name = name.filter(|name| !name.is_empty()).map(|name| name.text()).transpose()?;
    let name = name.ok_or_else(|| field.at("name").bad("a service needs a name"))?;
    let given = given.filter(|given| !given.is_empty()).map(|given| given.text()).transpose()?;
    let Some(namespace) = given.or(namespace) else {
        return Err(field.at("namespace").bad("a policy of no namespace must say the service's"));
    };
    Ok(ServiceName { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn accounts(field: &Field<'_>) -> Result<Option<ServiceAccountMatch>, Unreadable> {
    let mut fields = field.fields()?;
    let names = fields.take("names");
    let selector = fields.take("selector").filter(|field| !field.is_empty());
    fields.finish()?;
    let names = names.map(|names| names.texts()).transpose()?.filter(|names| !names.is_empty());
    let names = names.map(|names| names.into_iter().map(str::to_owned).collect());
    let labels = selector.map(|field| labels(&field)).transpose()?;
    Ok((names.is_some() || labels.is_some())
        .then(|| ServiceAccountMatch::Selected { names, labels: labels.unwrap_or(Selector::Everything) }))
}

fn nets(field: &Field<'_>) -> Result<BTreeSet<IpNet>, Unreadable> {
    let read: Vec<_> = field.list()?.iter().map(network).collect();
    read.into_iter().collect()
}

/// A network; an address without prefix is itself.
pub(in crate::lower) fn network(item: &Field<'_>) -> Result<IpNet, Unreadable> {
    match item.text()?.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address.to_canonical())),
        Err(_) => super::super::network_policy::net(item),
    }
}

fn protocol(field: &Field<'_>) -> Result<u8, Unreadable> {
    if !field.is_text() {
        return match field.number(255)? {
            0 => Err(field.bad("must be a protocol's name or a number from 1 to 255")),
            number => Ok(number),
        };
    }
    let text = field.text()?;
    let known = [("tcp", 6), ("udp", 17), ("icmp", 1), ("icmpv6", 58), ("sctp", 132), ("udplite", 136)];
    let named = known.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, number)| *number);
    // reported below
    let number = named.or_else(|| text.parse().ok().filter(|number| *number > 0));
    number.ok_or_else(|| field.bad("must be TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255"))
}

/// ICMP type and code; `None` if neither is given.
fn icmp(field: &Field<'_>) -> Result<Option<PortMatch>, Unreadable> {
    let mut fields = field.fields()?;
    let (kind, code) = (fields.take("type"), fields.take("code"));
    fields.finish()?;
    match (kind, code) {
        (None, None) => Ok(None),
        (None, Some(code)) => Err(code.bad("a code needs a type")),
        (Some(kind), code) => {
            Ok(Some(PortMatch::Icmp(kind.number(254)?, code.map(|code| code.number(255)).transpose()?)))
        }
    }
}

/// Numbers, ranges `first:last` and names.
fn ports(field: &Field<'_>) -> Result<Vec<PortMatch>, Unreadable> {
    let read: Vec<_> = field.list()?.iter().map(port).collect();
    read.into_iter().collect()
}

fn port(field: &Field<'_>) -> Result<PortMatch, Unreadable> {
    if !field.is_text() {
        return field.number(65_535).map(|port| PortMatch::Range(port, port));
    }
    let text = field.text()?;
    let number = |text: &str| {
        text.parse::<u16>().map_err(|_| field.bad("must be a port from 0 to 65535, a range such as 80:90, or a name"))
    };
    if let Some((first, last)) = text.split_once(':') {
        return match (number(first)?, number(last)?) {
            (first, last) if first <= last => Ok(PortMatch::Range(first, last)),
            _ => Err(field.bad("the range must not end below its start")),
        };
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return number(text).map(|port| PortMatch::Range(port, port));
    }
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
        return Ok(PortMatch::Named(text.to_owned()));
    }
    Err(field.bad("must be a port from 0 to 65535, a range such as 80:90, or a name"))
}
