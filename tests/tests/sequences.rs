//! Histories end in the image of their last facts, however they were told; and no plan shows a half-done change.
//!
//! `REEVE_SEQUENCES` is the number of histories (default 40), `REEVE_SEED` the seed of the first (default: random); both
//! are printed.
#![allow(clippy::format_collect, reason = "a failure's text may be slow")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use fastrand::Rng;
use reeve_abi::address::Address;
use reeve_abi::ids::{ClassId, DecisionId, PolicyNumber, TableId, WorkloadId};
use reeve_abi::policy::{PEER_TABLE, PeerKey, PortKey, PortValue, RangeKey};
use reeve_policy::engine::Engine;
use reeve_policy::image::{Image, mapped};
use reeve_policy::model::{Direction, Family};
use reeve_policy::plan::Op;
use reeve_policy::store::Change;
use reeve_tests::sequence::Sequence;
use reeve_tests::worlds::{NODE, NODES, OUTSIDE};

const STEPS: usize = 25;

fn number(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name)
        .map_or_else(|_| otherwise(), |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

fn each_sequence(check: impl Fn(&str, &Sequence, &mut Rng)) {
    let count = number("REEVE_SEQUENCES", || 40);
    let seed = number("REEVE_SEED", || fastrand::u64(..));
    println!("{count} histories of {STEPS} changes, REEVE_SEED={seed}");
    for seed in (0..count).map(|nth| seed.wrapping_add(nth)) {
        let name = format!("REEVE_SEED={seed} REEVE_SEQUENCES=1");
        check(&name, &Sequence::new(seed, STEPS), &mut Rng::with_seed(!seed));
    }
}

/// An engine and a kernel that does what it is told.
struct Node {
    engine: Engine,
    kernel: Image,
}

impl Node {
    fn new() -> Self {
        Self { engine: Engine::new(NODE, 0), kernel: Image::default() }
    }

    fn told(groups: impl IntoIterator<Item = Vec<Change>>) -> Self {
        let mut node = Self::new();
        for changes in groups {
            let update = node.engine.apply(changes);
            update.plan.iter().for_each(|op| node.kernel.execute(op));
            assert_eq!(node.kernel, *node.engine.image(), "the plan leads elsewhere");
        }
        node
    }

    /// Starts the engine anew: it learns the facts that hold and adopts what the kernel has.
    fn restarted(self, facts: Vec<Change>) -> Self {
        let mut node = Self { engine: Engine::new(NODE, self.engine.revision().0), kernel: self.kernel };
        node.engine.apply(facts);
        node.engine.adopt(&node.kernel.clone()).iter().for_each(|op| node.kernel.execute(op));
        assert_eq!(node.kernel, *node.engine.image(), "adopting leads elsewhere");
        node
    }
}

/// Keys of two images that have other values, a line each; empty for equal images.
fn differences(one: &Image, other: &Image) -> String {
    fn of<K: Ord + Debug, V: PartialEq + Debug>(map: &str, one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> String {
        let keys: BTreeSet<&K> = one.keys().chain(other.keys()).collect();
        let differing = keys.into_iter().filter(|key| one.get(key) != other.get(key));
        differing.map(|key| format!("{map} {key:?}: {:?}, {:?}\n", one.get(key), other.get(key))).collect()
    }
    [
        of("endpoint", &one.endpoints, &other.endpoints),
        of("address", &one.addresses, &other.addresses),
        of("network", &one.networks, &other.networks),
        of("class", &one.classes, &other.classes),
        of("peer", &one.peers, &other.peers),
        of("port", &one.ports, &other.ports),
        of("range", &one.ranges, &other.ranges),
    ]
    .concat()
}

fn one_by_one(changes: &[Change]) -> impl Iterator<Item = Vec<Change>> + '_ {
    changes.iter().map(|change| vec![change.clone()])
}

#[test]
fn every_telling_of_a_history_ends_in_the_same_image() {
    each_sequence(|name, sequence, rng| {
        let last = sequence.last_words();
        let reversed: Vec<Change> = last.iter().rev().cloned().collect();
        let doubled: Vec<Change> =
            sequence.changes.iter().flat_map(|change| [change.clone(), change.clone()]).collect();
        let mut fresh = Node::told([last.clone()]);
        let middle = rng.usize(..sequence.changes.len());
        let (before, after) = sequence.changes.split_at(middle);
        let known = Sequence { changes: before.to_vec() }.last_words();
        let mut restarted = Node::told(one_by_one(before)).restarted(known);
        for change in after {
            let update = restarted.engine.apply(vec![change.clone()]);
            update.plan.iter().for_each(|op| restarted.kernel.execute(op));
        }
        let told = [
            ("forward", Node::told(one_by_one(&sequence.changes))),
            ("reversed", Node::told(one_by_one(&reversed))),
            ("squashed", Node::told([sequence.changes.clone()])),
            ("duplicated", Node::told(one_by_one(&doubled))),
            ("restarted", restarted),
        ];
        let problems = fresh.engine.apply(Vec::new()).problems;
        for (how, mut node) in told {
            let differences = differences(&node.kernel.canonical(), &fresh.kernel.canonical());
            assert!(differences.is_empty(), "{name}: {how}, told and fresh differ in\n{differences}");
            let again = node.engine.apply(Vec::new());
            assert_eq!((again.plan, again.changed), (Vec::new(), false), "{name}: nothing happened, {how}");
            assert_eq!(again.problems, problems, "{name}: problems, {how}");
        }
    });
}

/// One question to an image.
#[derive(Clone, Copy, Debug)]
struct Question {
    subject: WorkloadId,
    direction: Direction,
    family: Family,
    peer: Address,
    protocol: u8,
    port: u16,
}

impl Question {
    fn answer(&self, image: &Image) -> Option<DecisionId> {
        image.lookup(self.subject, self.direction, self.family, self.peer, self.protocol, self.port)
    }
}

/// Everything that could be asked about two images.
struct Questions {
    subjects: Vec<WorkloadId>,
    peers: Vec<Address>,
}

impl Questions {
    fn of(old: &Image, new: &Image) -> Self {
        let subjects: BTreeSet<WorkloadId> = old.endpoints.keys().chain(new.endpoints.keys()).copied().collect();
        let others = OUTSIDE.iter().chain(&NODES).map(|text| mapped(text.parse().expect("an address")));
        let peers: BTreeSet<Address> =
            old.addresses.keys().chain(new.addresses.keys()).copied().chain(others).collect();
        Self { subjects: subjects.into_iter().collect(), peers: peers.into_iter().collect() }
    }

    /// Asks about a peer that the operation speaks of, if there is one, or about any.
    fn pick(&self, image: &Image, op: &Op, rng: &mut Rng) -> Option<Question> {
        let spoken_of = |peer: &&Address| match op {
            Op::PutAddress(address, _) | Op::DeleteAddress(address) => address == *peer,
            Op::PutClass(id, _) | Op::DeleteClass(id) => image.addresses.get(*peer).is_some_and(|v| v.identity == *id),
            _ => false,
        };
        let near: Vec<Address> = self.peers.iter().filter(spoken_of).copied().collect();
        let peer = if rng.bool() { rng.choice(&near).copied() } else { None };
        let peer = peer.or_else(|| rng.choice(&self.peers).copied())?;
        let (protocol, port) =
            *rng.choice(&[(6, 80), (6, 8080), (6, 8050), (6, 443), (17, 53), (1, 8 << 8), (47, 0)])?;
        Some(Question {
            subject: *rng.choice(&self.subjects)?,
            direction: *rng.choice(&[Direction::Ingress, Direction::Egress])?,
            family: if peer.is_v4() { Family::V4 } else { Family::V6 },
            peer,
            protocol,
            port,
        })
    }
}

/// A table's rows.
type Table = (BTreeMap<PortKey, PortValue>, BTreeMap<RangeKey, PortValue>);

fn table(image: &Image, table: TableId) -> Table {
    let ports = image.ports.range(PortKey { table, protocol: 0, port: 0 }..).take_while(|(key, _)| key.table == table);
    let bytes = table.0.to_ne_bytes();
    let ranges = image.ranges.iter().filter(|(key, _)| key.table == bytes);
    (ports.map(|(k, v)| (*k, *v)).collect(), ranges.map(|(k, v)| (*k, *v)).collect())
}

/// Something that is referred to and not there, or not whole, after this operation.
fn dangling(image: &Image, op: &Op, tables: &BTreeMap<TableId, Table>) -> Option<String> {
    let rows_of = |policy: PolicyNumber| {
        let from = PeerKey { policy, class: ClassId(0) };
        image.peers.range(from..).take_while(move |(key, _)| key.policy == policy)
    };
    let used: BTreeSet<PolicyNumber> = match op {
        Op::PutEndpoint(_, endpoint) => endpoint.policies.into_iter().collect(),
        Op::PutPeer(key, _) | Op::DeletePeer(key) => [key.policy].into(),
        Op::PutPort(..) | Op::DeletePort(_) | Op::PutRange(..) | Op::DeleteRange(_) => BTreeSet::new(),
        _ => return None,
    };
    let live: BTreeSet<PolicyNumber> =
        image.endpoints.values().flat_map(|endpoint| endpoint.policies).filter(|policy| policy.0 != 0).collect();
    for policy in used.intersection(&live) {
        if !image.peers.contains_key(&PeerKey { policy: *policy, class: ClassId(0) }) {
            return Some(format!("policy {policy} has no default row"));
        }
    }
    let touched = match op {
        Op::PutPort(key, _) | Op::DeletePort(key) => Some(key.table),
        Op::PutRange(key, _) | Op::DeleteRange(key) => Some(TableId(u64::from_ne_bytes(key.table))),
        _ => None,
    };
    let policies = if touched.is_some() { &live } else { &used };
    let mut wanted: BTreeSet<TableId> = policies
        .intersection(&live)
        .flat_map(|policy| rows_of(*policy))
        .filter(|(_, row)| row.flags & PEER_TABLE != 0)
        .map(|(_, row)| row.table)
        .collect();
    wanted.retain(|table| touched.is_none_or(|touched| touched == *table));
    let broken = wanted.into_iter().find(|wanted| Some(&table(image, *wanted)) != tables.get(wanted));
    broken.map(|table| format!("table {table} is referred to and not whole"))
}

fn shown(plan: &[Op]) -> String {
    plan.iter().enumerate().map(|(nth, op)| format!("{nth} {op:?}\n")).collect()
}

/// Carries out a plan op by op; after each, every answer is the old image's or the new one's.
fn walk(name: &str, old: &Image, new: &Image, plan: &[Op], rng: &mut Rng) {
    let mut tables: BTreeMap<TableId, Table> = BTreeMap::new();
    for image in [old, new] {
        for row in image.peers.values().filter(|row| row.flags & PEER_TABLE != 0) {
            tables.entry(row.table).or_insert_with(|| table(image, row.table));
        }
    }
    let questions = Questions::of(old, new);
    let mut image = old.clone();
    for (nth, op) in plan.iter().enumerate() {
        image.execute(op);
        assert_eq!(dangling(&image, op, &tables), None, "{name}: after op {nth}, {op:?}, of\n{}", shown(plan));
        for question in (0..25).filter_map(|_| questions.pick(&image, op, rng)) {
            let (before, now, after) = (question.answer(old), question.answer(&image), question.answer(new));
            // Under its new revision an endpoint never answers as before: that answer would stay with a flow.
            let revision = |image: &Image| image.endpoints.get(&question.subject).map(|endpoint| endpoint.revision);
            let renewed = revision(&image) == revision(new) && revision(new) != revision(old);
            let before = if renewed { after } else { before };
            assert!(
                now == before || now == after,
                "{name}: after op {nth}, {op:?}, {question:?} is answered by {now:?}, not {before:?} or {after:?}, of\n{}",
                shown(plan),
            );
        }
    }
    assert_eq!(image, *new, "{name}");
}

#[test]
fn every_step_of_a_plan_answers_as_before_or_as_after() {
    each_sequence(|name, sequence, rng| {
        let mut engine = Engine::new(NODE, 0);
        let mut rest = sequence.changes.as_slice();
        let mut told = 0;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.usize(1..=rest.len().min(12)));
            rest = later;
            told += now.len();
            let old = engine.image().clone();
            let update = engine.apply(now.to_vec());
            walk(&format!("{name}, {told} changes told"), &old, engine.image(), &update.plan, rng);
        }
        // What a restart finds may be any other image, and a plan may have been cut short anywhere.
        let mut kernel = engine.image().clone();
        for seed in [rng.u64(..), rng.u64(..)] {
            let mut other = Engine::new(NODE, engine.revision().0);
            other.apply(Sequence::new(seed, STEPS).changes);
            let plan = other.adopt(&kernel);
            walk(&format!("{name}, adopting {seed}"), &kernel, other.image(), &plan, rng);
            plan.iter().take(rng.usize(..=plan.len())).for_each(|op| kernel.execute(op));
        }
    });
}
