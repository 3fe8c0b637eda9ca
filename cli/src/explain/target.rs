//! The two ends of a flow as they are typed: `namespace/pod`, `service/namespace/name` or an address, and `:PORT/PROTO` at
//! the destination.

use reeve_flow::record::{Icmp, Protocol};
use std::net::IpAddr;
use std::str::FromStr;

/// What is at an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A pod, by namespace and name.
    Pod(String, String),
    /// A Service, by namespace and name.
    Service(String, String),
    /// An address.
    Address(IpAddr),
}

/// The destination and what is sent to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// What is there.
    pub(crate) place: Place,
    /// IP protocol.
    pub(crate) protocol: Protocol,
    /// What of the protocol.
    pub(crate) port: Port,
}

/// What of a protocol, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// A port.
    Number(u16),
    /// A port that the pod names.
    Named(String),
    /// An ICMP message; `None`: an echo request.
    Icmp(Option<Icmp>),
    /// The protocol has no ports.
    None,
}

/// What is wrong with an end as typed. The argument is named by whoever parses it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("{0:?} is neither namespace/pod nor an IP address")]
    Place(String),
    #[error("it does not end in a protocol, as shop/web:8080/TCP and 10.0.0.1/ICMP do")]
    NoProtocol,
    #[error("{0:?} is no protocol: TCP, UDP, SCTP, ICMP, ICMPv6 or a number from 0 to 255")]
    Protocol(String),
    #[error("{0} needs a port, as in shop/web:8080/{0} or [fd00::1]:443/{0}")]
    NoPort(Protocol),
    #[error("port {0:?} is neither a number from 1 to 65535 nor a port's name")]
    Port(String),
    #[error("{0:?} is no ICMP type from 0 to 255, or type and code as in 3.1")]
    IcmpType(String),
    #[error("protocol {0} has no ports, found {1:?}")]
    PortTooMuch(Protocol, String),
}

impl FromStr for Place {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        if let Some((namespace, name)) = text.strip_prefix("service/").and_then(|rest| rest.split_once('/'))
            && is_name(namespace)
            && is_name(name)
        {
            return Ok(Self::Service(namespace.to_owned(), name.to_owned()));
        }
        match text.split_once('/') {
            Some((namespace, pod)) if is_name(namespace) && is_name(pod) => {
                Ok(Self::Pod(namespace.to_owned(), pod.to_owned()))
            }
            _ => Err(TargetError::Place(text.to_owned())),
        }
    }
}

impl FromStr for Destination {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (target, protocol) = text.rsplit_once('/').ok_or(TargetError::NoProtocol)?;
        let parsed = protocol.parse::<Protocol>();
        let (place, port) = match (split_port(target), &parsed) {
            // shop/web:8080: what follows the slash is the pod.
            ((place, None), Err(_)) if is_name(place) => return Err(TargetError::NoProtocol),
            (parts, _) => parts,
        };
        let protocol = parsed.map_err(|_| TargetError::Protocol(protocol.to_owned()))?;
        let place = place.parse()?;
        let port = match (port, protocol) {
            (None, protocol) if protocol.has_ports() => return Err(TargetError::NoPort(protocol)),
            (None, protocol) if protocol.is_icmp() => Port::Icmp(None),
            (None, _) => Port::None,
            (Some(port), protocol) if protocol.has_ports() => number_or_name(port)?,
            (Some(message), protocol) if protocol.is_icmp() => Port::Icmp(Some(icmp(message)?)),
            (Some(port), protocol) => return Err(TargetError::PortTooMuch(protocol, port.to_owned())),
        };
        Ok(Self { place, protocol, port })
    }
}

/// Splits the port off, except where the whole is an address without one.
fn split_port(target: &str) -> (&str, Option<&str>) {
    if target.parse::<IpAddr>().is_ok() || target.ends_with(']') {
        return (target, None);
    }
    match target.rsplit_once(':') {
        Some((place, port)) => (place, Some(port)),
        None => (target, None),
    }
}

fn number_or_name(text: &str) -> Result<Port, TargetError> {
    let error = || TargetError::Port(text.to_owned());
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|port| *port != 0).map(Port::Number).ok_or_else(error);
    }
    if is_name(text) { Ok(Port::Named(text.to_owned())) } else { Err(error()) }
}

fn icmp(text: &str) -> Result<Icmp, TargetError> {
    let (kind, code) = text.split_once('.').unwrap_or((text, "0"));
    let number = |part: &str| part.parse::<u8>().map_err(|_| TargetError::IcmpType(text.to_owned()));
    Ok(Icmp { kind: number(kind)?, code: number(code)? })
}

/// What Kubernetes allows in names of pods, namespaces and ports.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Place {
        Place::Pod("shop".to_owned(), "web".to_owned())
    }

    fn address(text: &str) -> Place {
        Place::Address(text.parse().expect("an address"))
    }

    #[track_caller]
    fn reads(text: &str, place: Place, protocol: Protocol, port: Port) {
        assert_eq!(text.parse(), Ok(Destination { place, protocol, port }));
    }

    #[track_caller]
    fn refused(text: &str, error: &str) {
        assert_eq!(text.parse::<Destination>().map_err(|error| error.to_string()), Err(error.to_owned()));
    }

    #[test]
    fn destinations_are_pods_or_addresses_with_port_and_protocol() {
        reads("shop/web:8080/TCP", pod(), Protocol::TCP, Port::Number(8080));
        reads("shop/web:http/tcp", pod(), Protocol::TCP, Port::Named("http".to_owned()));
        reads("10.0.0.1:53/UDP", address("10.0.0.1"), Protocol::UDP, Port::Number(53));
        reads("[fd00::1]:443/TCP", address("fd00::1"), Protocol::TCP, Port::Number(443));
        reads("shop/web/ICMP", pod(), Protocol::ICMP, Port::Icmp(None));
        reads("shop/web:8/ICMP", pod(), Protocol::ICMP, Port::Icmp(Some(Icmp { kind: 8, code: 0 })));
        reads("fd00::1/ICMPv6", address("fd00::1"), Protocol::ICMPV6, Port::Icmp(None));
        reads(
            "[fd00::1]:1.4/ICMPv6",
            address("fd00::1"),
            Protocol::ICMPV6,
            Port::Icmp(Some(Icmp { kind: 1, code: 4 })),
        );
        reads("shop/web/47", pod(), Protocol(47), Port::None);
        let service = Place::Service("shop".to_owned(), "web".to_owned());
        reads("service/shop/web:80/TCP", service, Protocol::TCP, Port::Number(80));
        let pod_of_such_a_namespace = Place::Pod("service".to_owned(), "web".to_owned());
        reads("service/web:80/TCP", pod_of_such_a_namespace, Protocol::TCP, Port::Number(80));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        refused("web", "it does not end in a protocol, as shop/web:8080/TCP and 10.0.0.1/ICMP do");
        refused("shop/web:8080", "it does not end in a protocol, as shop/web:8080/TCP and 10.0.0.1/ICMP do");
        refused("web:80/TCP", "\"web\" is neither namespace/pod nor an IP address");
        refused("shop/web:80/TPC", "\"TPC\" is no protocol: TCP, UDP, SCTP, ICMP, ICMPv6 or a number from 0 to 255");
        refused("shop/web/TCP", "TCP needs a port, as in shop/web:8080/TCP or [fd00::1]:443/TCP");
        refused("fd00::1:443/TCP", "TCP needs a port, as in shop/web:8080/TCP or [fd00::1]:443/TCP");
        refused("shop/web:0/TCP", "port \"0\" is neither a number from 1 to 65535 nor a port's name");
        refused("shop/web:70000/UDP", "port \"70000\" is neither a number from 1 to 65535 nor a port's name");
        refused("shop/web:echo/ICMP", "\"echo\" is no ICMP type from 0 to 255, or type and code as in 3.1");
        refused("10.0.0.1:8/47", "protocol 47 has no ports, found \"8\"");
    }
}
