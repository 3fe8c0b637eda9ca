//! Rows of `EDGES` to window records: exact counts, whatever happened to single events.

use crate::decode::{self, DecodeError};
use crate::names::{Namer, Names, icmp, ordered};
use crate::record::{EventKind, Flag, FlowRecord, Owner, Protocol, Reason, SCHEMA, Side};
use crate::time::Timestamp;
use reeve_abi::edge::{EDGE_BANK, EDGE_OVERFLOW, EdgeKey, EdgeValue};
use std::collections::BTreeMap;

/// Adds rows of several banks or reads, so that each key is told once.
///
/// Sums wrap: two processors that flush one flow at once may leave a step forth in one row and a smaller one back in
/// another.
pub fn merged(rows: impl IntoIterator<Item = (EdgeKey, EdgeValue)>) -> BTreeMap<EdgeKey, EdgeValue> {
    let mut sums: BTreeMap<EdgeKey, EdgeValue> = BTreeMap::new();
    for (mut key, value) in rows {
        // The bank says where the row lay, not what it counts.
        key.kind &= !EDGE_BANK;
        match sums.get_mut(&key) {
            None => {
                sums.insert(key, value);
            }
            Some(sum) => {
                sum.connections = sum.connections.wrapping_add(value.connections);
                for way in 0..2 {
                    sum.packets[way] = sum.packets[way].wrapping_add(value.packets[way]);
                    sum.bytes[way] = sum.bytes[way].wrapping_add(value.bytes[way]);
                }
                sum.first_ns = sum.first_ns.min(value.first_ns);
                sum.last_ns = sum.last_ns.max(value.last_ns);
            }
        }
    }
    sums
}

/// Takes out the rows that are a step back: their step forth has been told, so they are owed to the next window.
pub fn owed(sums: &mut BTreeMap<EdgeKey, EdgeValue>) -> Vec<(EdgeKey, EdgeValue)> {
    let is_back = |value: &EdgeValue| value.packets.iter().chain(&value.bytes).any(|count| count >> 63 != 0);
    let keys: Vec<EdgeKey> = sums.iter().filter(|(_, value)| is_back(value)).map(|(key, _)| *key).collect();
    keys.into_iter().filter_map(|key| sums.remove_entry(&key)).collect()
}

/// The record of one row at the end of its window.
pub fn window<N: Names>(
    namer: &Namer<'_, N>,
    key: &EdgeKey,
    value: &EdgeValue,
    end: Timestamp,
    flags: &[Flag],
) -> Result<FlowRecord, DecodeError> {
    let direction = decode::direction(key.kind & 0xff)?;
    let verdict = decode::verdict(key.kind >> 8 & 0xff)?;
    let number = key.service >> 16;
    let protocol = u8::try_from(number).map_err(|_| DecodeError::Value { field: "service", value: number.into() })?;
    let protocol = Protocol(protocol);
    let port = key.service & 0xffff;
    let local = namer.side(key.subject, key.identity, None, None);
    let overflowed = key.kind & EDGE_OVERFLOW != 0;
    let remote = if overflowed {
        Side { owner: Owner::Various, identity: key.peer_identity.to_string(), ..Side::default() }
    } else {
        namer.side(key.peer, key.peer_identity, None, None)
    };
    let mut flags = flags.to_vec();
    if overflowed {
        flags.push(Flag::Overflowed);
    }
    let (source, mut destination) = ordered(direction, local, remote);
    if protocol.has_ports() && !overflowed {
        destination.port = u16::try_from(port).ok();
    }
    Ok(FlowRecord {
        schema: SCHEMA,
        time: end,
        first: namer.clock.moment(value.first_ns),
        last: namer.clock.moment(value.last_ns),
        node: namer.node.to_owned(),
        event: EventKind::Window,
        direction,
        verdict: verdict.into(),
        decision: namer.decision(key.decision, verdict),
        previous: None,
        staged: None,
        policy_revision: key.revision.0,
        source,
        destination,
        service: None,
        protocol,
        icmp: if overflowed { None } else { icmp(protocol, port) },
        packets: value.packets.into(),
        bytes: value.bytes.into(),
        connections: Some(value.connections),
        flags,
        reason: Reason::WindowEnded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;
    use reeve_abi::decision::NO_POLICY_SELECTS;
    use reeve_abi::ids::{IDENTITY_WORLD, IdentityId, Revision, WorkloadId};
    use reeve_policy::provenance::Dictionary;

    fn row(bank: u32, connections: u64, first_ns: u64) -> (EdgeKey, EdgeValue) {
        let key = EdgeKey {
            subject: WorkloadId(7 << 20),
            identity: IdentityId(9 << 20),
            peer_identity: IDENTITY_WORLD,
            decision: NO_POLICY_SELECTS,
            revision: Revision(4),
            service: (6 << 16) + 443,
            kind: 1 | 1 << 8 | bank << 16,
            ..EdgeKey::default()
        };
        (
            key,
            EdgeValue { connections, packets: [connections, 1], bytes: [100, 50], first_ns, last_ns: first_ns + 1_000 },
        )
    }

    #[test]
    fn rows_of_both_banks_add_up_to_one_record() {
        let sums = merged([row(0, 2, 9_000), row(1, 3, 5_000)]);
        assert_eq!(sums.len(), 1);
        let (key, value) = sums.first_key_value().expect("one row");
        let names = Dictionary::default();
        let namer = Namer { names: &names, node: "n1", clock: Clock::from_readings(0, Timestamp::default()) };
        let end = Timestamp { unix_ns: 60_000 };
        let record = window(&namer, key, value, end, &[Flag::Backfilled]).expect("known values");
        assert_eq!((record.connections, record.packets, record.bytes), (Some(5), [5, 2].into(), [200, 100].into()));
        assert_eq!((record.first.unix_ns, record.last.unix_ns, record.time), (5_000, 10_000, end));
        assert_eq!((record.destination.port, record.flags), (Some(443), vec![Flag::Backfilled]));
        assert_eq!(crate::text::decision_text(&record.decision), "no policy selects");
    }

    #[test]
    fn a_step_back_is_owed_to_the_next_window_and_the_sum_is_exact() {
        let (key, value) = row(0, 1, 9_000);
        let forth = EdgeValue { packets: [5, 0], bytes: [500, 0], ..value };
        let back = EdgeValue { packets: [2_u64.wrapping_neg(), 0], bytes: [200_u64.wrapping_neg(), 0], ..value };
        let mut first = merged([(key, forth)]);
        assert_eq!(owed(&mut first), []);
        let mut second = merged([(key, back)]);
        let owing = owed(&mut second);
        assert!(second.is_empty() && owing.len() == 1, "{second:?}");
        let mut third = merged(owing.into_iter().chain([(key, forth)]));
        assert_eq!(owed(&mut third), []);
        assert_eq!((third[&key].packets, third[&key].bytes), ([3, 0], [300, 0]));
    }

    #[test]
    fn an_overflowed_row_names_decision_and_subject_and_no_peer() {
        let (key, value) = row(1, 70, 9_000);
        let key = EdgeKey { service: 17 << 16, kind: key.kind | EDGE_OVERFLOW, peer_identity: IdentityId(0), ..key };
        let sums = merged([(key, value)]);
        let (key, value) = sums.first_key_value().expect("one row");
        let names = Dictionary::default();
        let namer = Namer { names: &names, node: "n1", clock: Clock::from_readings(0, Timestamp::default()) };
        let record = window(&namer, key, value, Timestamp::default(), &[]).expect("known values");
        assert_eq!((record.destination.owner, record.destination.port), (Owner::Various, None));
        assert_eq!(
            (record.flags, record.connections, record.protocol),
            (vec![Flag::Overflowed], Some(70), Protocol(17))
        );
        assert_eq!(crate::text::decision_text(&record.decision), "no policy selects");
    }

    #[test]
    fn unknown_values_are_named() {
        let names = Dictionary::default();
        let namer = Namer { names: &names, node: "n1", clock: Clock::from_readings(0, Timestamp::default()) };
        let key = EdgeKey { kind: 9 << 8, ..EdgeKey::default() };
        let error = window(&namer, &key, &EdgeValue::default(), Timestamp::default(), &[]);
        assert_eq!(error, Err(DecodeError::Value { field: "verdict", value: 9 }));
    }
}
