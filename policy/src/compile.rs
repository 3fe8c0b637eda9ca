//! A world's facts and policies, as the image that one node's kernel should hold.
//!
//! Invariant: the result depends on the world alone. Numbers are hashes of content, so a row never changes its meaning:
//! it is there or it is not.

mod addresses;
mod rows;
mod subject;

use crate::identity::{Prefixes, Reads};
use crate::image::{EndpointImage, Image, mapped, position};
use crate::model::{Decision, DefaultDecider, Direction, Family, Peer, PortMatch, Problem, Verdict, World};
use crate::provenance::{DictionaryEntry, Identity, IdentityKind, WorkloadName, workload_id};
use ipnet::IpNet;
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::ids::{ClassId, IDENTITY_CONTESTED, IDENTITY_WORLD, IdentityId, PolicyNumber, Revision};
use reeve_abi::policy::{ClassValue, PeerKey};
use rows::Row;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use subject::{Applied, content_number};

/// What compiling gives.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What the maps should hold; revisions are 0.
    pub image: Image,
    /// What its numbers stand for.
    pub entries: Vec<DictionaryEntry>,
    /// What cannot be honoured.
    pub problems: Vec<Problem>,
}

/// Rows compiled before, by the content that they depend on.
#[derive(Debug, Default)]
pub struct RowCache {
    rows: HashMap<RowKey, Arc<Row>>,
}

/// Policy, the rules whose peers match (by position), and the named ports that they read.
type RowKey = (PolicyNumber, Vec<usize>, Vec<(String, u8, u16)>);

/// Compiles a world, whole.
pub fn compile(world: &World, cache: &mut RowCache) -> Compiled {
    let reads = Reads::of(world.tiers.iter().flat_map(|(_, policies)| policies).map(Arc::as_ref));
    let prefixes = Prefixes::new(reads.networks());
    let owners = addresses::owners(world, &reads, &prefixes);
    let mut out = Compiled::default();

    let mut identities: BTreeMap<IdentityId, Identity> = BTreeMap::new();
    for (address, owned) in &owners.addresses {
        let identity = owned.identity.id();
        intern(&mut identities, identity, owned.identity.clone());
        let value = AddressValue { identity, workload: owned.workload, owner: owned.owner, ..AddressValue::default() };
        out.image.addresses.insert(*address, value);
    }
    networks(reads.networks(), &prefixes, &mut out.image, &mut identities);
    let world_identity = Identity::bare(IdentityKind::World, BTreeSet::new());
    identities.insert(IDENTITY_WORLD, world_identity);

    let live = endpoints(world, &reads, &prefixes, &owners, &mut out.image, &mut identities);
    rows_of(&live, &identities, cache, &mut out);

    out.entries.extend(identities.into_iter().map(|(id, identity)| DictionaryEntry::Identity { id, identity }));
    for workload in world.workloads.values().filter(|w| addresses::claims(w)) {
        let name = WorkloadName {
            uid: workload.uid.clone(),
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            node: workload.node.clone(),
        };
        out.entries.push(DictionaryEntry::Workload { id: workload_id(&workload.uid), workload: name });
    }
    out
}

/// Gives content its number. Two contents with one number would be a collision of 64 bits of SHA-256: then the agent
/// stops rather than let one stand for the other, and what the kernel has goes on being enforced.
fn intern<K: Ord + Copy + std::fmt::Debug, V: PartialEq>(numbered: &mut BTreeMap<K, V>, number: K, content: V) {
    let held = numbered.get(&number);
    assert!(held.is_none_or(|held| *held == content), "two contents have the number {number:?}");
    if held.is_none() {
        numbered.insert(number, content);
    }
}

/// IPv4 as a part of the mapped address space.
const V4_SPACE: NetworkKey = NetworkKey { prefix_bits: 96, address: Address::v4([0; 4]) };

fn networks(
    named: &BTreeSet<IpNet>,
    prefixes: &Prefixes,
    image: &mut Image,
    identities: &mut BTreeMap<IdentityId, Identity>,
) {
    let mut covered = false;
    for net in named {
        let length = u32::from(net.prefix_len());
        let address = mapped(net.addr());
        // An IPv6 prefix inside the mapped space would be read as IPv4; no packet carries such an address.
        if matches!(net, IpNet::V6(_)) && length >= 96 && address.is_v4() {
            continue;
        }
        let prefix_bits = if matches!(net, IpNet::V4(_)) { length + 96 } else { length };
        let v4_space = crate::image::truncate(V4_SPACE.address, prefix_bits);
        covered |= matches!(net, IpNet::V6(_)) && prefix_bits <= 96 && v4_space == address;
        let identity = Identity::bare(IdentityKind::Network, prefixes.containing(net.addr(), net.prefix_len()));
        let id = identity.id();
        intern(identities, id, identity);
        image.networks.insert(NetworkKey { prefix_bits, address }, NetworkValue { identity: id });
    }
    if covered {
        image.networks.entry(V4_SPACE).or_insert(NetworkValue { identity: IDENTITY_WORLD });
    }
}

fn endpoints(
    world: &World,
    reads: &Reads,
    prefixes: &Prefixes,
    owners: &addresses::Owners,
    image: &mut Image,
    identities: &mut BTreeMap<IdentityId, Identity>,
) -> BTreeMap<PolicyNumber, Applied> {
    let mut live = BTreeMap::new();
    // Pods that policies see alike share the work.
    let mut known: HashMap<(Identity, Direction, Family), PolicyNumber> = HashMap::new();
    for workload in world.workloads.values().filter(|w| w.node == world.node && addresses::claims(w)) {
        let bare = reads.pod(world, workload);
        let own = owners.own.get(&workload.uid).map_or(&[][..], Vec::as_slice);
        let mut endpoint = EndpointImage { revision: Revision(0), ready: true, ..EndpointImage::default() };
        let mut shown = None;
        for family in [Family::V4, Family::V6] {
            let address = own.iter().find(|a| a.is_ipv4() == (family == Family::V4));
            let mut identity = bare.clone();
            if let Some(address) = address {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                identity.networks = prefixes.containing(*address, bits);
                shown.get_or_insert_with(|| identity.clone());
                match address {
                    IpAddr::V4(_) => endpoint.address_v4 = mapped(*address),
                    IpAddr::V6(_) => endpoint.address_v6 = mapped(*address),
                }
            }
            for direction in [Direction::Ingress, Direction::Egress] {
                let number = *known.entry((identity.clone(), direction, family)).or_insert_with(|| {
                    Applied::of(world, &identity, direction, family).map_or(PolicyNumber(0), |applied| {
                        let number = applied.number();
                        intern(&mut live, number, applied);
                        number
                    })
                });
                endpoint.policies[position(direction, family)] = number;
            }
        }
        let shown = shown.unwrap_or(bare);
        endpoint.identity = shown.id();
        intern(identities, endpoint.identity, shown);
        image.endpoints.insert(workload_id(&workload.uid), endpoint);
    }
    live
}

/// Gives each identity its class, and each policy a row per class that it treats apart.
fn rows_of(
    live: &BTreeMap<PolicyNumber, Applied>,
    identities: &BTreeMap<IdentityId, Identity>,
    cache: &mut RowCache,
    out: &mut Compiled,
) {
    let peers: BTreeSet<&Peer> =
        live.values().flat_map(Applied::rules).flat_map(|rule| rule.peers.iter().flatten()).collect();
    let names: BTreeSet<&str> = live
        .values()
        .flat_map(Applied::rules)
        .flat_map(|rule| rule.traffic.any_of.iter().flatten().chain(&rule.traffic.none_of))
        .filter_map(|one| if let PortMatch::Named(name) = &one.ports { Some(name.as_str()) } else { None })
        .collect();
    let numbers: HashMap<&Peer, u64> = peers.iter().map(|peer| (*peer, content_number("peer", peer))).collect();
    let mut classes: BTreeMap<ClassId, (BTreeSet<&Peer>, Identity)> = BTreeMap::new();
    classes.insert(ClassId(0), (BTreeSet::new(), Identity::bare(IdentityKind::World, BTreeSet::new())));
    for (id, identity) in identities {
        let class = if *id == IDENTITY_CONTESTED {
            ClassId(content_number("class", &"contested"))
        } else {
            let matched: BTreeSet<&Peer> = peers.iter().copied().filter(|peer| identity.is_peer(peer)).collect();
            let mut ports = identity.ports.clone();
            ports.retain(|port| names.contains(port.name.as_str()));
            if matched.is_empty() && ports.is_empty() {
                continue;
            }
            let sorted: BTreeSet<u64> = matched.iter().map(|peer| numbers[peer]).collect();
            let class = ClassId(content_number("class", &(sorted, &ports)));
            let ports_only = Identity { ports, ..Identity::bare(IdentityKind::Pod, BTreeSet::new()) };
            intern(&mut classes, class, (matched, ports_only));
            class
        };
        out.image.classes.insert(*id, ClassValue { class });
    }

    let mut used: Vec<Arc<Row>> = Vec::new();
    let contested = Arc::new(rows::single(Decision::bare(Verdict::Deny, DefaultDecider::ContestedAddress)));
    let contested_class = out.image.classes.get(&IDENTITY_CONTESTED).map(|value| value.class);
    for (number, applied) in live {
        let all: Vec<_> = applied.rules().collect();
        let reads_names = all.iter().any(|rule| {
            let mut traffic = rule.traffic.any_of.iter().flatten().chain(&rule.traffic.none_of);
            traffic.any(|one| matches!(one.ports, PortMatch::Named(_)))
        });
        let mut default = None;
        // Class 0 is the first: the others stand only where they differ from it.
        for (class, (matched, identity)) in &classes {
            let rules: Vec<usize> = all
                .iter()
                .enumerate()
                .filter(|(_, rule)| {
                    rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| matched.contains(peer)))
                })
                .map(|(at, _)| at)
                .collect();
            let ports = if reads_names { &identity.ports } else { &BTreeSet::new() };
            let ports = ports.iter().map(|port| (port.name.clone(), port.protocol, port.port)).collect();
            let row = cache
                .rows
                .entry((*number, rules, ports))
                .or_insert_with_key(|(_, rules, _)| Arc::new(rows::compile(applied, rules, identity)));
            if default.as_ref() == Some(&row.value) {
                continue;
            }
            default.get_or_insert(row.value);
            out.image.peers.insert(PeerKey { policy: *number, class: *class }, row.value);
            used.push(Arc::clone(row));
        }
        if let Some(class) = contested_class {
            out.image.peers.insert(PeerKey { policy: *number, class }, contested.value);
            used.push(Arc::clone(&contested));
        }
    }
    cache.rows.retain(|(number, _, _), _| live.contains_key(number));
    let mut decisions: BTreeMap<_, Arc<Decision>> = BTreeMap::new();
    let mut tables = BTreeMap::new();
    for row in &used {
        if row.value.table.0 != 0 {
            intern(&mut tables, row.value.table, (&row.ports, &row.ranges));
        }
        out.image.ports.extend(row.ports.iter().copied());
        out.image.ranges.extend(row.ranges.iter().copied());
        for decision in &row.decisions {
            intern(&mut decisions, decision.id(), Arc::clone(decision));
        }
    }
    out.entries.extend(
        decisions.into_iter().map(|(id, decision)| DictionaryEntry::Decision { id, decision: (*decision).clone() }),
    );
}
