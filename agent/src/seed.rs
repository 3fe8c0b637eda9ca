//! Flow entries of connections that were there before their endpoint was enforced, so that each goes on in the direction
//! in which it was opened.
//!
//! Invariant: a seeded entry grants nothing. Its revision is older than any endpoint's, so its next packet is judged by
//! the policies of now: what they allow goes on, and what they deny is cut and told as a live flow that was cut.

use crate::datapath::MapError;
use crate::datapath::conntrack::{self, Tracked, Way};
use crate::enforcer::{Enforcer, unmapped};
use crate::records::monotonic_ns;
use reeve_abi::address::Address;
use reeve_abi::conntrack::{
    FLOW_MASQUERADED, FLOW_OWN_NODE, FLOW_PENDING, FLOW_SEEN_ORIGINAL, FLOW_SEEN_REPLY, FLOW_SELF, FLOW_TO_HOST,
    FlowKey, FlowValue, KEY_FROM_POD, KEY_TO_POD,
};
use reeve_abi::decision::{ESTABLISHED_BEFORE, OWN_NODE, SELF};
use reeve_abi::endpoint::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use reeve_abi::ids::{IdentityId, WorkloadId};
use reeve_abi::policy::VERDICT_ALLOW;
use reeve_policy::image::{EndpointImage, Image, mapped};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const ICMP: [u8; 2] = [1, 58];
const TCP: u8 = 6;
/// `TCP_CONNTRACK_TIME_WAIT` and `TCP_CONNTRACK_CLOSE`: nothing but stragglers comes.
const TCP_OVER: [u8; 2] = [7, 8];

/// The connection tracking table, read when it is first asked for.
#[derive(Debug, Default)]
pub struct TrackedTable(Option<BTreeMap<IpAddr, Vec<Tracked>>>);

impl TrackedTable {
    /// Connections of which this address is one end.
    fn of(&mut self, address: IpAddr) -> std::io::Result<&[Tracked]> {
        let table = match self.0.take() {
            Some(table) => table,
            None => {
                let mut table: BTreeMap<IpAddr, Vec<Tracked>> = BTreeMap::new();
                for one in conntrack::dump()? {
                    for end in BTreeSet::from([one.original.source, one.reply.source]) {
                        table.entry(end).or_default().push(one);
                    }
                }
                table
            }
        };
        Ok(self.0.insert(table).get(&address).map_or(&[], Vec::as_slice))
    }
}

/// One pod, and everybody else as the image has them.
struct OneSubject<'a> {
    workload: WorkloadId,
    endpoint: &'a EndpointImage,
    image: &'a Image,
    local: &'a BTreeSet<IpAddr>,
}

impl Owners for OneSubject<'_> {
    fn subject(&self, address: IpAddr) -> Option<(WorkloadId, IdentityId)> {
        let address = mapped(address);
        let own = address == self.endpoint.address_v4 || address == self.endpoint.address_v6;
        own.then_some((self.workload, self.endpoint.identity))
    }

    fn peer(&self, address: IpAddr) -> (WorkloadId, IdentityId) {
        let address = mapped(address);
        match self.image.addresses.get(&address) {
            Some(value) => (value.workload, value.identity),
            None => (WorkloadId(0), self.image.network_of(address)),
        }
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }
}

impl Enforcer {
    /// Gives the connections of a pod that was here before the agent their entries. Without the table the pod is enforced
    /// all the same: TCP goes on where either orientation is allowed, other replies are judged as if they began.
    pub(crate) fn seed(
        &self,
        workload: WorkloadId,
        endpoint: &EndpointImage,
        tracked: &mut TrackedTable,
    ) -> Result<(), MapError> {
        let owners = OneSubject { workload, endpoint, image: self.engine.image(), local: &self.local_addresses };
        let now_ns = monotonic_ns();
        for address in [endpoint.address_v4, endpoint.address_v6].iter().filter(|address| address.0 != [0; 16]) {
            let of_pod = match tracked.of(unmapped(address.0)) {
                Ok(of_pod) => of_pod,
                Err(error) => {
                    tracing::warn!(%workload, %error, "connections cannot be listed: live ones may be cut");
                    self.metrics.seeded("unlisted", 1);
                    return Ok(());
                }
            };
            let seeds = seeds(of_pod, &owners, now_ns);
            for (key, value) in &seeds.rows {
                self.loaded.maps.flows.put_new(key, value)?;
            }
            self.metrics.seeded("seeded", seeds.rows.len());
            self.metrics.seeded("contradictory", seeds.contradictory.len());
            tracing::info!(%workload, flows = seeds.rows.len(), "connections from before enforcement go on");
        }
        Ok(())
    }
}

/// Entries for one set of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seeds {
    /// Entries.
    pub rows: BTreeMap<FlowKey, FlowValue>,
    /// Flows that zones tell as opened from both sides: none of the two is believed.
    pub contradictory: BTreeSet<FlowKey>,
}

/// Who is who, as far as it is asked here.
pub trait Owners {
    /// The pod to be seeded that owns the address, with its identity.
    fn subject(&self, address: IpAddr) -> Option<(WorkloadId, IdentityId)>;
    /// Who a peer's address belongs to.
    fn peer(&self, address: IpAddr) -> (WorkloadId, IdentityId);
    /// Whether the address is this node's own.
    fn is_local(&self, address: IpAddr) -> bool;
}

/// The entries that the tracked connections ask for. `now_ns` is `CLOCK_MONOTONIC`: idle times begin anew.
pub fn seeds(tracked: &[Tracked], owners: &impl Owners, now_ns: u64) -> Seeds {
    let mut seeds = Seeds::default();
    for one in tracked {
        if one.protocol == TCP && one.tcp_state.is_some_and(|state| TCP_OVER.contains(&state)) {
            continue;
        }
        // Where the pod that asks sends, nothing has been translated yet; where the answerer receives, everything has.
        let asked = Half { way: one.original, remote: one.original.destination, direction: DIRECTION_EGRESS };
        let answered = Half { way: turned(one.reply), remote: one.reply.destination, direction: DIRECTION_INGRESS };
        for (subject, half) in [(one.original.source, asked), (one.reply.source, answered)] {
            if let Some((workload, identity)) = owners.subject(subject) {
                let (key, value) = entry(one, &half, workload, identity, owners, now_ns);
                seeds.add(key, value);
            }
        }
    }
    seeds
}

/// What one endpoint sees of a connection.
struct Half {
    /// Original direction, as this endpoint sees its packets.
    way: Way,
    remote: IpAddr,
    direction: u32,
}

/// The direction in which the connection was opened, from the one in which it is answered.
fn turned(reply: Way) -> Way {
    Way {
        source: reply.destination,
        destination: reply.source,
        source_port: reply.destination_port,
        destination_port: reply.source_port,
        ..reply
    }
}

fn entry(
    one: &Tracked,
    half: &Half,
    workload: WorkloadId,
    own_identity: IdentityId,
    owners: &impl Owners,
    now_ns: u64,
) -> (FlowKey, FlowValue) {
    let from_pod = half.direction == DIRECTION_EGRESS;
    let (local, remote) = if from_pod {
        (half.way.source_port, half.way.destination_port)
    } else {
        (half.way.destination_port, half.way.source_port)
    };
    let icmp = ICMP.contains(&one.protocol);
    // Judged by what was reached, which is what answers.
    let (ports, side, port) = if icmp {
        let side = if from_pod { KEY_FROM_POD } else { KEY_TO_POD };
        (u32::from(half.way.icmp_id), side, u32::from(one.original.icmp_type) << 8)
    } else {
        (u32::from(local) << 16 | u32::from(remote), 0, u32::from(one.reply.source_port))
    };
    let own_node = !from_pod && owners.is_local(one.original.source);
    let to_itself = one.original.source == one.reply.source;
    let translated = Translated::of(one, half, own_node);
    let (peer_workload, peer_identity) = owners.peer(translated.real.unwrap_or(half.remote));
    let key = FlowKey { workload, remote: mapped(half.remote), ports, protocol: u32::from(one.protocol) | side };
    let value = FlowValue {
        decision: if own_node {
            OWN_NODE
        } else if to_itself {
            SELF
        } else {
            ESTABLISHED_BEFORE
        },
        peer_workload,
        peer_identity,
        own_identity,
        first_ns: now_ns,
        last_ns: now_ns,
        flushed_ns: now_ns,
        real: translated.real.map_or_else(Address::default, mapped),
        service: translated.service.map_or_else(Address::default, mapped),
        rewritten_ports: if icmp { 0 } else { translated.ports },
        direction: half.direction,
        verdict: VERDICT_ALLOW,
        flags: FLOW_SEEN_ORIGINAL
            | translated.flags
            | if one.answered { FLOW_SEEN_REPLY } else { 0 }
            | if own_node { FLOW_OWN_NODE } else { 0 }
            | if to_itself { FLOW_SELF } else { 0 }
            | if from_pod && owners.is_local(one.reply.source) { FLOW_TO_HOST } else { 0 },
        port,
        ..FlowValue::default()
    };
    (key, value)
}

/// What translation hides from an endpoint, as the programs would have noted it.
#[derive(Default)]
struct Translated {
    real: Option<IpAddr>,
    service: Option<IpAddr>,
    ports: u32,
    flags: u32,
}

impl Translated {
    fn of(one: &Tracked, half: &Half, own_node: bool) -> Self {
        let (asked, reached) = (&one.original, &one.reply);
        let mut found = Self::default();
        if (asked.destination, asked.destination_port) != (reached.source, reached.source_port) {
            found.service = Some(asked.destination);
            found.ports = u32::from(asked.destination_port);
        }
        if half.direction == DIRECTION_EGRESS {
            if found.service.is_some() {
                found.real = Some(reached.source);
                found.ports |= u32::from(reached.source_port) << 16;
                found.flags = FLOW_PENDING;
            }
        } else if half.remote != asked.source && !own_node {
            found.real = Some(asked.source);
            found.ports |= u32::from(asked.source_port) << 16;
            found.flags = FLOW_MASQUERADED;
        }
        found
    }
}

impl Seeds {
    fn add(&mut self, key: FlowKey, value: FlowValue) {
        match self.rows.get(&key) {
            Some(before) if before.direction != value.direction => {
                self.rows.remove(&key);
                self.contradictory.insert(key);
            }
            // Another zone says the same.
            Some(_) => {}
            None if self.contradictory.contains(&key) => {}
            None => drop(self.rows.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "10.0.0.1";
    const OTHER: &str = "10.0.0.2";
    const SERVICE: &str = "10.96.0.1";
    const NODE: &str = "172.18.0.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn ports(local: u32, remote: u32) -> u32 {
        (local << 16) + remote
    }

    struct Known;

    impl Owners for Known {
        fn subject(&self, address: IpAddr) -> Option<(WorkloadId, IdentityId)> {
            let number = if address == ip(POD) {
                1
            } else if address == ip(OTHER) {
                2
            } else {
                return None;
            };
            Some((WorkloadId(number), IdentityId(number * 10)))
        }
        fn peer(&self, address: IpAddr) -> (WorkloadId, IdentityId) {
            self.subject(address).unwrap_or_default()
        }
        fn is_local(&self, address: IpAddr) -> bool {
            address == ip(NODE)
        }
    }

    fn way(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Way {
        Way {
            source: ip(source),
            destination: ip(destination),
            source_port,
            destination_port,
            icmp_id: 0,
            icmp_type: 0,
        }
    }

    fn tracked(protocol: u8, original: Way, reply: Way) -> Tracked {
        Tracked { protocol, original, reply, answered: true, tcp_state: (protocol == TCP).then_some(3) }
    }

    fn rows(tracked: &[Tracked]) -> Vec<(u64, IpAddr, u32, u32, u32)> {
        let seeds = seeds(tracked, &Known, 5);
        seeds
            .rows
            .iter()
            .map(|(key, value)| {
                (key.workload.0, crate::enforcer::unmapped(key.remote.0), key.ports, value.direction, value.port)
            })
            .collect()
    }

    #[test]
    fn both_pods_of_a_connection_through_a_service_get_what_each_of_them_sees() {
        let original = way(POD, 40_000, SERVICE, 80);
        let reply = way(OTHER, 8080, POD, 40_000);
        assert_eq!(
            rows(&[tracked(17, original, reply)]),
            [
                (1, ip(SERVICE), ports(40_000, 80), DIRECTION_EGRESS, 8080),
                (2, ip(POD), ports(8080, 40_000), DIRECTION_INGRESS, 8080),
            ]
        );
        let found: Vec<FlowValue> = seeds(&[tracked(17, original, reply)], &Known, 5).rows.into_values().collect();
        let noted = |value: &FlowValue| (value.real, value.service, value.rewritten_ports, value.flags & FLOW_PENDING);
        assert_eq!(noted(&found[0]), (mapped(ip(OTHER)), mapped(ip(SERVICE)), ports(8080, 80), FLOW_PENDING));
        assert_eq!(noted(&found[1]), (Address::default(), mapped(ip(SERVICE)), 80, 0));
        assert_eq!(found[0].peer_workload, WorkloadId(2), "the next packet is judged by the backend");
    }

    #[test]
    fn pod_that_reaches_itself_through_a_service_is_known_as_itself() {
        let seeds = seeds(&[tracked(TCP, way(POD, 40_000, SERVICE, 80), way(POD, 8080, NODE, 61_000))], &Known, 5);
        let found: Vec<_> = seeds.rows.values().map(|value| (value.decision, value.flags & FLOW_SELF)).collect();
        assert_eq!(found, [(SELF, FLOW_SELF); 2]);
    }

    #[test]
    fn masqueraded_connection_is_keyed_by_the_address_that_the_pod_answers_to() {
        let original = way("192.0.2.9", 5_000, NODE, 30_080);
        let reply = way(OTHER, 8080, NODE, 61_000);
        let seeds = seeds(&[tracked(TCP, original, reply)], &Known, 5);
        let (key, value) = seeds.rows.first_key_value().expect("one row");
        assert_eq!((key.remote, key.ports), (mapped(ip(NODE)), ports(8080, 61_000)));
        assert_eq!((value.flags & FLOW_OWN_NODE, value.decision), (0, ESTABLISHED_BEFORE), "a client is not the node");
        let noted = (value.real, value.rewritten_ports, value.flags & FLOW_MASQUERADED);
        assert_eq!(noted, (mapped(ip("192.0.2.9")), ports(5_000, 30_080), FLOW_MASQUERADED), "who it really is");
        let probe = seeds_of_probe();
        assert_eq!((probe.flags & FLOW_OWN_NODE, probe.decision), (FLOW_OWN_NODE, OWN_NODE));
    }

    fn seeds_of_probe() -> FlowValue {
        let one = tracked(TCP, way(NODE, 5_000, OTHER, 8080), way(OTHER, 8080, NODE, 5_000));
        *seeds(&[one], &Known, 5).rows.values().next().expect("one row")
    }

    #[test]
    fn connection_that_is_over_is_not_seeded_and_a_query_is_by_its_identifier() {
        let over = Tracked { tcp_state: Some(7), ..tracked(TCP, way(POD, 1, OTHER, 2), way(OTHER, 2, POD, 1)) };
        assert_eq!(rows(&[over]), []);
        let asks = Way { icmp_id: 77, icmp_type: 8, ..way(POD, 0, NODE, 0) };
        let told = Way { icmp_id: 77, ..way(NODE, 0, POD, 0) };
        let seeds = seeds(&[tracked(1, asks, told)], &Known, 5);
        let (key, value) = seeds.rows.first_key_value().expect("one row");
        assert_eq!((key.ports, key.protocol, value.port), (77, 1 | KEY_FROM_POD, 8 << 8));
    }

    #[test]
    fn zones_that_agree_give_one_entry_and_those_that_do_not_give_none() {
        let forth = tracked(17, way(POD, 1, NODE, 2), way(NODE, 2, POD, 1));
        assert_eq!(rows(&[forth, forth]).len(), 1);
        let back = tracked(17, way(NODE, 2, POD, 1), way(POD, 1, NODE, 2));
        let found = seeds(&[forth, back, forth], &Known, 5);
        assert_eq!((found.rows.len(), found.contradictory.len()), (0, 1));
    }
}
