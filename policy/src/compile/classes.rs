//! Classes of identities that all live policies treat alike, and the rows of each policy for each class.
//!
//! Invariant: a row depends on its policy and on which of its rules' peers match, so an identity that changes costs the
//! rows of its class, and a policy that changes costs its own.

use super::identities::Identities;
use super::matching::Matching;
use super::rows::{self, Row};
use super::same;
use super::subject::{Applied, content_number};
use crate::delta::{Delta, set};
use crate::image::Image;
use crate::model::{Decision, DefaultDecider, Peer, PortMatch, Verdict};
use crate::provenance::{DictionaryEntry, Identity, IdentityKind, IdentityPort};
use reeve_abi::ids::{ClassId, IDENTITY_CONTESTED, IdentityId, PolicyNumber, TableId};
use reeve_abi::policy::{ClassValue, PeerKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Number of a peer, by its content.
pub(super) type PeerNumber = u64;

/// The rules whose peers match (by position), and the named ports that they read.
type RowKey = (Vec<usize>, Vec<IdentityPort>);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Classes {
    live: HashMap<PolicyNumber, Live>,
    peers: HashMap<PeerNumber, UsedPeer>,
    /// Which peers include an identity.
    matching: Matching,
    members: HashMap<IdentityId, Member>,
    held: HashMap<ClassId, Class>,
    /// Names of ports that live policies read, and those that do.
    readers: HashMap<String, BTreeSet<PolicyNumber>>,
    /// Classes whose last identity has left; some may have got another since.
    emptied: BTreeSet<ClassId>,
    tables: HashMap<TableId, (Arc<Row>, usize)>,
}

/// A policy that some endpoint has.
#[derive(Debug)]
struct Live {
    applied: Arc<Applied>,
    /// How many endpoints, directions and families have it.
    uses: usize,
    /// By position of the rule; `None`: anyone.
    peers: Vec<Option<Vec<PeerNumber>>>,
    /// Whether some rule names ports.
    reads_names: bool,
    rows: BTreeMap<ClassId, Arc<Row>>,
    cache: HashMap<RowKey, Arc<Row>>,
}

/// A peer that some live policy's rule names.
#[derive(Debug)]
struct UsedPeer {
    policies: BTreeSet<PolicyNumber>,
    classes: BTreeSet<ClassId>,
    identities: BTreeSet<IdentityId>,
}

/// What puts an identity into its class.
#[derive(Debug, Default)]
struct Member {
    matched: BTreeSet<PeerNumber>,
    class: ClassId,
}

#[derive(Debug)]
struct Class {
    matched: BTreeSet<PeerNumber>,
    /// An identity that has these ports and nothing else.
    ports: Identity,
    contested: bool,
    members: usize,
}

/// What has changed since the last [`Classes::settle`].
#[derive(Debug, Default)]
pub(super) struct Pending {
    born: BTreeSet<PolicyNumber>,
    dead: BTreeMap<PolicyNumber, Live>,
}

impl Classes {
    /// Counts one more use of a policy.
    pub(super) fn hold(&mut self, number: PolicyNumber, applied: &Arc<Applied>, pending: &mut Pending) {
        let live = self.live.entry(number).or_insert_with(|| {
            pending.dead.remove(&number).unwrap_or_else(|| {
                pending.born.insert(number);
                Live::new(Arc::clone(applied))
            })
        });
        same(number, &*live.applied, &**applied);
        live.uses += 1;
    }

    /// Counts one use less.
    pub(super) fn release(&mut self, number: PolicyNumber, pending: &mut Pending) {
        let Some(live) = self.live.get_mut(&number) else { return };
        live.uses -= 1;
        if live.uses > 0 {
            return;
        }
        let live = self.live.remove(&number).expect("it was there");
        if !pending.born.remove(&number) {
            pending.dead.insert(number, live);
        }
    }

    /// Brings classes and rows in line with the policies and the identities in use; `changed` came into use or left it.
    pub(super) fn settle(
        &mut self,
        pending: Pending,
        identities: &Identities,
        changed: BTreeSet<IdentityId>,
        out: &mut Output<'_>,
    ) {
        let mut unsettled: BTreeSet<IdentityId> = BTreeSet::new();
        // What new policies share with old ones stays known.
        for number in &pending.born {
            self.learn_peers(*number, identities, &mut unsettled);
            self.learn_names(*number, identities, &mut unsettled);
        }
        for (number, live) in pending.dead {
            for (class, row) in live.rows {
                set(&mut out.image.peers, &mut out.delta.peers, PeerKey { policy: number, class }, None);
                self.release_table(&row, out);
            }
            self.forget_peers(number, &live.peers, &mut unsettled);
            self.forget_names(number, &live.applied, identities, &mut unsettled);
        }
        for id in changed {
            match identities.get(id) {
                Some(identity) => {
                    let known = self.members.contains_key(&id);
                    let member = self.members.entry(id).or_default();
                    if !known {
                        member.matched = self.matching.peers_of(identity).collect();
                        for peer in &member.matched {
                            self.peers.get_mut(peer).expect("it is matched").identities.insert(id);
                        }
                        unsettled.insert(id);
                    }
                }
                None => {
                    unsettled.remove(&id);
                    if let Some(member) = self.members.remove(&id) {
                        for peer in &member.matched {
                            self.peers.get_mut(peer).expect("it is matched").identities.remove(&id);
                        }
                        set(&mut out.image.classes, &mut out.delta.classes, id, None);
                        self.leave(member.class);
                    }
                }
            }
        }
        let mut made = BTreeSet::new();
        for id in unsettled {
            self.classify(id, identities, &mut made, out);
        }
        for id in std::mem::take(&mut self.emptied) {
            if self.held.get(&id).is_some_and(|class| class.members == 0) {
                made.remove(&id);
                self.desert(id, out);
            }
        }
        for number in &pending.born {
            self.rows_of_policy(*number, out);
        }
        for class in made {
            for number in self.policies_for(class) {
                if !pending.born.contains(&number) {
                    self.row(number, class, out);
                }
            }
        }
    }

    fn forget_peers(
        &mut self,
        number: PolicyNumber,
        peers: &[Option<Vec<PeerNumber>>],
        unsettled: &mut BTreeSet<IdentityId>,
    ) {
        for peer in peers.iter().flatten().flatten() {
            let Some(used) = self.peers.get_mut(peer) else { continue };
            used.policies.remove(&number);
            if used.policies.is_empty() {
                let used = self.peers.remove(peer).expect("it was there");
                self.matching.remove(*peer);
                for id in used.identities {
                    self.members.get_mut(&id).expect("it is matched").matched.remove(peer);
                    unsettled.insert(id);
                }
            }
        }
    }

    fn learn_peers(&mut self, number: PolicyNumber, identities: &Identities, unsettled: &mut BTreeSet<IdentityId>) {
        let live = &self.live[&number];
        let applied = Arc::clone(&live.applied);
        let numbers = live.peers.clone();
        for (rule, numbers) in applied.rules().zip(&numbers) {
            for (peer, id) in rule.peers.iter().flatten().zip(numbers.iter().flatten()) {
                if let Some(used) = self.peers.get_mut(id) {
                    used.policies.insert(number);
                    continue;
                }
                self.matching.insert(*id, peer);
                let matches =
                    |known: &&IdentityId| identities.get(**known).is_some_and(|identity| identity.is_peer(peer));
                let included: BTreeSet<IdentityId> = self.members.keys().filter(matches).copied().collect();
                for identity in &included {
                    self.members.get_mut(identity).expect("it is known").matched.insert(*id);
                }
                unsettled.extend(included.iter().copied());
                let used = UsedPeer { policies: [number].into(), classes: BTreeSet::new(), identities: included };
                self.peers.insert(*id, used);
            }
        }
    }

    fn learn_names(&mut self, number: PolicyNumber, identities: &Identities, unsettled: &mut BTreeSet<IdentityId>) {
        for name in names(&self.live[&number].applied) {
            let readers = self.readers.entry(name.clone()).or_default();
            if readers.is_empty() {
                unsettled.extend(having(identities, &self.members, &name));
            }
            readers.insert(number);
        }
    }

    fn forget_names(
        &mut self,
        number: PolicyNumber,
        applied: &Applied,
        identities: &Identities,
        unsettled: &mut BTreeSet<IdentityId>,
    ) {
        for name in names(applied) {
            let Some(readers) = self.readers.get_mut(&name) else { continue };
            readers.remove(&number);
            if readers.is_empty() {
                self.readers.remove(&name);
                unsettled.extend(having(identities, &self.members, &name));
            }
        }
    }

    /// Puts an identity into its class.
    fn classify(
        &mut self,
        id: IdentityId,
        identities: &Identities,
        made: &mut BTreeSet<ClassId>,
        out: &mut Output<'_>,
    ) {
        let (Some(identity), Some(member)) = (identities.get(id), self.members.get(&id)) else { return };
        let contested = id == IDENTITY_CONTESTED;
        let mut ports = identity.ports.clone();
        ports.retain(|port| self.readers.contains_key(&port.name));
        let class = if contested {
            ClassId(content_number("class", &"contested"))
        } else if member.matched.is_empty() && ports.is_empty() {
            ClassId(0)
        } else {
            ClassId(content_number("class", &(&member.matched, &ports)))
        };
        if class != member.class {
            let left = member.class;
            if class.0 != 0 {
                let matched = if contested { BTreeSet::new() } else { member.matched.clone() };
                let ports = Identity { ports, ..Identity::bare(IdentityKind::Pod, BTreeSet::new()) };
                let content = Class { matched, ports, contested, members: 0 };
                self.join(class, content, made);
            }
            self.leave(left);
            self.members.get_mut(&id).expect("it is known").class = class;
        }
        let value = (class.0 != 0).then_some(ClassValue { class });
        set(&mut out.image.classes, &mut out.delta.classes, id, value);
    }

    fn join(&mut self, id: ClassId, content: Class, made: &mut BTreeSet<ClassId>) {
        if let Some(held) = self.held.get_mut(&id) {
            same(id, &(&held.matched, &held.ports), &(&content.matched, &content.ports));
            held.members += 1;
            return;
        }
        made.insert(id);
        for peer in &content.matched {
            self.peers.get_mut(peer).expect("it is matched").classes.insert(id);
        }
        self.held.insert(id, Class { members: 1, ..content });
    }

    fn leave(&mut self, id: ClassId) {
        if let Some(class) = self.held.get_mut(&id) {
            class.members -= 1;
            if class.members == 0 {
                self.emptied.insert(id);
            }
        }
    }

    /// Takes away a class that nothing is in any more.
    fn desert(&mut self, id: ClassId, out: &mut Output<'_>) {
        for number in self.policies_for(id) {
            let row = self.live.get_mut(&number).and_then(|live| live.rows.remove(&id));
            if let Some(row) = row {
                set(&mut out.image.peers, &mut out.delta.peers, PeerKey { policy: number, class: id }, None);
                self.release_table(&row, out);
            }
        }
        let class = self.held.remove(&id).expect("it was there");
        for peer in &class.matched {
            if let Some(used) = self.peers.get_mut(peer) {
                used.classes.remove(&id);
            }
        }
    }

    /// Policies that may treat a class apart.
    fn policies_for(&self, id: ClassId) -> BTreeSet<PolicyNumber> {
        let class = &self.held[&id];
        if class.contested {
            return self.live.keys().copied().collect();
        }
        let by_peer = class.matched.iter().filter_map(|peer| self.peers.get(peer)).flat_map(|used| &used.policies);
        let by_name = class.ports.ports.iter().filter_map(|port| self.readers.get(&port.name)).flatten();
        by_peer.chain(by_name).copied().collect()
    }

    /// All rows of a policy that is new.
    fn rows_of_policy(&mut self, number: PolicyNumber, out: &mut Output<'_>) {
        self.row(number, ClassId(0), out);
        let live = &self.live[&number];
        let by_peer = live.peers.iter().flatten().flatten().flat_map(|peer| &self.peers[peer].classes).copied();
        let mut classes: BTreeSet<ClassId> = by_peer.collect();
        let apart = |class: &Class| class.contested || live.reads_names && !class.ports.ports.is_empty();
        classes.extend(self.held.iter().filter(|(_, class)| apart(class)).map(|(id, _)| *id));
        for class in classes {
            self.row(number, class, out);
        }
    }

    /// Makes a policy's row for a class, where it differs from that of class 0.
    fn row(&mut self, number: PolicyNumber, id: ClassId, out: &mut Output<'_>) {
        let live = self.live.get_mut(&number).expect("it lives");
        let class = self.held.get(&id);
        let row = match class {
            Some(class) if class.contested => {
                Arc::new(rows::single(Decision::bare(Verdict::Deny, DefaultDecider::ContestedAddress)))
            }
            _ => live.row(class),
        };
        let default = live.rows.get(&ClassId(0));
        let contested = class.is_some_and(|class| class.contested);
        if !contested && default.is_some_and(|default| default.value == row.value) {
            return;
        }
        let held = live.rows.insert(id, Arc::clone(&row));
        debug_assert!(held.is_none(), "a row is made once");
        set(&mut out.image.peers, &mut out.delta.peers, PeerKey { policy: number, class: id }, Some(row.value));
        out.entries.extend(
            row.decisions
                .iter()
                .map(|decision| DictionaryEntry::Decision { id: decision.id(), decision: Arc::clone(decision) }),
        );
        self.hold_table(&row, out);
    }

    fn hold_table(&mut self, row: &Arc<Row>, out: &mut Output<'_>) {
        let table = row.value.table;
        if table.0 == 0 {
            return;
        }
        let (held, uses) = self.tables.entry(table).or_insert_with(|| (Arc::clone(row), 0));
        same(table, &(&held.ports, &held.ranges), &(&row.ports, &row.ranges));
        *uses += 1;
        if *uses == 1 {
            for (key, value) in &row.ports {
                set(&mut out.image.ports, &mut out.delta.ports, *key, Some(*value));
            }
            for (key, value) in &row.ranges {
                set(&mut out.image.ranges, &mut out.delta.ranges, *key, Some(*value));
            }
        }
    }

    fn release_table(&mut self, row: &Row, out: &mut Output<'_>) {
        let table = row.value.table;
        let Some((_, uses)) = self.tables.get_mut(&table) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.tables.remove(&table);
            for (key, _) in &row.ports {
                set(&mut out.image.ports, &mut out.delta.ports, *key, None);
            }
            for (key, _) in &row.ranges {
                set(&mut out.image.ranges, &mut out.delta.ranges, *key, None);
            }
        }
    }
}

/// Where results go.
pub(super) struct Output<'a> {
    pub(super) image: &'a mut Image,
    pub(super) delta: &'a mut Delta,
    pub(super) entries: &'a mut Vec<DictionaryEntry>,
}

impl Live {
    fn new(applied: Arc<Applied>) -> Self {
        let number = |peer: &Peer| content_number("peer", peer);
        let peers = applied.rules().map(|rule| rule.peers.as_ref().map(|peers| peers.iter().map(number).collect()));
        let peers = peers.collect();
        let reads_names = names(&applied).next().is_some();
        Self { applied, uses: 0, peers, reads_names, rows: BTreeMap::new(), cache: HashMap::new() }
    }

    /// The row for a class; `None`: for class 0.
    fn row(&mut self, class: Option<&Class>) -> Arc<Row> {
        let matches =
            |peers: &Vec<PeerNumber>| class.is_some_and(|class| peers.iter().any(|peer| class.matched.contains(peer)));
        let rules: Vec<usize> =
            (0..self.peers.len()).filter(|at| self.peers[*at].as_ref().is_none_or(matches)).collect();
        let bare = || Identity::bare(IdentityKind::World, BTreeSet::new());
        let peer = class.filter(|_| self.reads_names).map_or_else(bare, |class| class.ports.clone());
        // As many again may be kept for those that come back.
        if self.cache.len() > 2 * self.rows.len() + 64 {
            self.cache.clear();
        }
        let ports = peer.ports.iter().cloned().collect();
        let applied = &self.applied;
        let made = self.cache.entry((rules, ports));
        Arc::clone(made.or_insert_with_key(|(rules, _)| Arc::new(rows::compile(applied, rules, &peer))))
    }
}

/// Names of ports that a policy reads on its peers.
fn names(applied: &Applied) -> impl Iterator<Item = String> + '_ {
    let traffic = applied.rules().flat_map(|rule| rule.traffic.any_of.iter().flatten().chain(&rule.traffic.none_of));
    traffic.filter_map(|one| if let PortMatch::Named(name) = &one.ports { Some(name.clone()) } else { None })
}

fn having<'a>(
    identities: &'a Identities,
    members: &'a HashMap<IdentityId, Member>,
    name: &'a str,
) -> impl Iterator<Item = IdentityId> + 'a {
    let has = move |id: &&IdentityId| {
        identities.get(**id).is_some_and(|identity| identity.ports.iter().any(|port| port.name == name))
    };
    members.keys().filter(has).copied()
}
