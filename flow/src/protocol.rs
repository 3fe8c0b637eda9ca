//! IP protocols by name.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IP protocol, by number. Written as a name (`TCP`, `UDP`, `ICMP`, `ICMPv6`, `SCTP`), any other as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

/// A text that names no protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no protocol: TCP, UDP, SCTP, ICMP, ICMPv6 or a number from 0 to 255")]
pub struct ProtocolError(pub String);

const NAMES: &[(Protocol, &str)] = &[
    (Protocol::TCP, "TCP"),
    (Protocol::UDP, "UDP"),
    (Protocol::ICMP, "ICMP"),
    (Protocol::ICMPV6, "ICMPv6"),
    (Protocol::SCTP, "SCTP"),
];

impl Protocol {
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);

    /// The name, where there is one.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(protocol, _)| *protocol == self).map(|(_, name)| *name)
    }

    /// Whether it is ICMP or ICMPv6.
    pub const fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }

    /// Whether its packets have ports that policies can name.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for Protocol {
    type Err = ProtocolError;

    fn from_str(text: &str) -> Result<Self, ProtocolError> {
        match NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)) {
            Some((protocol, _)) => Ok(*protocol),
            None => text.parse().map(Self).map_err(|_| ProtocolError(text.to_owned())),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.name() {
            Some(name) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u8),
            Name(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Name(name) => name.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_have_names_and_the_others_numbers() {
        for (protocol, json) in [
            (Protocol::TCP, "\"TCP\""),
            (Protocol::UDP, "\"UDP\""),
            (Protocol::ICMP, "\"ICMP\""),
            (Protocol::ICMPV6, "\"ICMPv6\""),
            (Protocol::SCTP, "\"SCTP\""),
            (Protocol(47), "47"),
        ] {
            assert_eq!(serde_json::to_string(&protocol).expect("plain"), json);
            assert_eq!(serde_json::from_str::<Protocol>(json).expect("as written"), protocol);
        }
        assert_eq!("icmpv6".parse(), Ok(Protocol::ICMPV6));
        assert_eq!("TPC".parse::<Protocol>(), Err(ProtocolError("TPC".to_owned())));
    }
}
