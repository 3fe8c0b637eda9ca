//! The kernel's bytes to typed events.
//!
//! Invariant: nothing is guessed; a record of another size or with a value that this version does not know is an error.

use crate::record::Protocol;
use reeve_abi::address::Address;
use reeve_abi::endpoint::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use reeve_abi::event::{self as abi, Event};
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};
use reeve_policy::model::{Direction, Verdict};
use std::net::{IpAddr, Ipv6Addr};

/// Why bytes are no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The kernel's structure is another one.
    #[error("the kernel's record has {found} bytes, {expected} expected")]
    Size {
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// A field has a value without meaning.
    #[error("field {field} of the kernel's record has the unknown value {value}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// Value found.
        value: u64,
    },
}

/// What an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Judged and let through.
    Opened,
    /// Denied.
    Denied,
    /// Judged again.
    Rejudged,
    /// Ended.
    Closed,
}

/// Where a packet was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// As it left the pod.
    FromPod,
    /// As it came to the pod.
    ToPod,
    /// As it left the node.
    Uplink,
    /// As a process of the node got it.
    HostIn,
}

/// An event whose fields all have a meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedEvent {
    /// Numbers, times and counters, as the kernel gave them.
    pub raw: Event,
    /// Kind.
    pub kind: Kind,
    /// Original direction of the flow, as the pod sees it.
    pub direction: Direction,
    /// Verdict.
    pub verdict: Verdict,
    /// Hook.
    pub hook: Hook,
    /// Protocol.
    pub protocol: Protocol,
    /// The pod's address; none where the packet had none that could be read.
    pub local: Option<IpAddr>,
    /// The other side's address.
    pub remote: Option<IpAddr>,
    /// The destination before translation, if that led elsewhere.
    pub service: Option<IpAddr>,
}

/// Flags of events that this version knows.
const FLAGS: u8 =
    abi::EVENT_FLAG_PICKED_UP | abi::EVENT_FLAG_CUT | abi::EVENT_FLAG_MAY_BE_MASQUERADED | abi::EVENT_FLAG_BEGAN_UNSEEN;

/// Reads one record of the ring buffer.
pub fn event(bytes: &[u8]) -> Result<TypedEvent, DecodeError> {
    let expected = size_of::<Event>();
    if bytes.len() != expected {
        return Err(DecodeError::Size { found: bytes.len(), expected });
    }
    typed(bytemuck::pod_read_unaligned(bytes))
}

/// Gives the fields of an event their meaning.
pub fn typed(raw: Event) -> Result<TypedEvent, DecodeError> {
    let kind = match raw.kind {
        abi::EVENT_OPENED => Kind::Opened,
        abi::EVENT_DENIED => Kind::Denied,
        abi::EVENT_REJUDGED => Kind::Rejudged,
        abi::EVENT_CLOSED => Kind::Closed,
        other => return Err(DecodeError::Value { field: "kind", value: other.into() }),
    };
    let hook = match raw.hook {
        abi::HOOK_FROM_POD => Hook::FromPod,
        abi::HOOK_TO_POD => Hook::ToPod,
        abi::HOOK_UPLINK => Hook::Uplink,
        abi::HOOK_HOST_IN => Hook::HostIn,
        other => return Err(DecodeError::Value { field: "hook", value: other.into() }),
    };
    if raw.flags & !FLAGS != 0 {
        return Err(DecodeError::Value { field: "flags", value: raw.flags.into() });
    }
    Ok(TypedEvent {
        kind,
        hook,
        direction: direction(raw.direction.into())?,
        verdict: verdict(raw.verdict.into())?,
        protocol: Protocol(raw.protocol),
        local: address(raw.local),
        remote: address(raw.remote),
        service: address(raw.service),
        raw,
    })
}

/// Reads a `DIRECTION_*`.
pub(crate) fn direction(value: u32) -> Result<Direction, DecodeError> {
    match value {
        DIRECTION_INGRESS => Ok(Direction::Ingress),
        DIRECTION_EGRESS => Ok(Direction::Egress),
        other => Err(DecodeError::Value { field: "direction", value: other.into() }),
    }
}

/// Reads a `VERDICT_*`.
pub(crate) fn verdict(value: u32) -> Result<Verdict, DecodeError> {
    match value {
        VERDICT_ALLOW => Ok(Verdict::Allow),
        VERDICT_DENY => Ok(Verdict::Deny),
        other => Err(DecodeError::Value { field: "verdict", value: other.into() }),
    }
}

fn address(address: Address) -> Option<IpAddr> {
    (address != Address::default()).then(|| IpAddr::V6(Ipv6Addr::from(address.0)).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Event {
        Event {
            kind: abi::EVENT_OPENED,
            hook: abi::HOOK_TO_POD,
            verdict: 1,
            direction: 0,
            protocol: 6,
            local: Address::v4([10, 0, 0, 1]),
            ..Event::default()
        }
    }

    #[test]
    fn bytes_become_an_event() {
        let mut bytes = vec![0];
        bytes.extend(bytemuck::bytes_of(&sample()));
        let event = event(&bytes[1..]).expect("it is whole");
        assert_eq!((event.kind, event.hook, event.verdict), (Kind::Opened, Hook::ToPod, Verdict::Allow));
        assert_eq!((event.local, event.remote), (Some("10.0.0.1".parse().expect("address")), None));
    }

    #[test]
    fn another_size_is_named() {
        assert_eq!(event(&[0; 160]), Err(DecodeError::Size { found: 160, expected: 184 }));
    }

    #[test]
    fn unknown_values_are_named() {
        let field = |change: fn(&mut Event)| {
            let mut raw = sample();
            change(&mut raw);
            typed(raw).expect_err("unknown value").to_string()
        };
        assert_eq!(field(|raw| raw.kind = 9), "field kind of the kernel's record has the unknown value 9");
        assert_eq!(field(|raw| raw.hook = 0), "field hook of the kernel's record has the unknown value 0");
        assert_eq!(field(|raw| raw.direction = 2), "field direction of the kernel's record has the unknown value 2");
        assert_eq!(field(|raw| raw.verdict = 0), "field verdict of the kernel's record has the unknown value 0");
        assert_eq!(field(|raw| raw.flags = 16), "field flags of the kernel's record has the unknown value 16");
    }
}
