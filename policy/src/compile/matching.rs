//! Which peers include an identity, without asking each of them.

use super::classes::PeerNumber;
use crate::model::{NamespaceMatch, Peer, Selector};
use crate::provenance::Identity;
use std::collections::{BTreeSet, HashMap};

/// Something that an identity must have to be included, if there is a single such thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Needs {
    /// A pod label with this value.
    Label(String, String),
    /// This namespace.
    Namespace(String),
    /// Nothing that can be looked up.
    Nothing,
}

impl Needs {
    fn of(peer: &Peer) -> Vec<Self> {
        let Some(workload) = &peer.workload else { return vec![Self::Nothing] };
        let labels = values(&workload.pod);
        if !labels.is_empty() {
            return labels;
        }
        match &workload.namespace {
            NamespaceMatch::Named(name) => vec![Self::Namespace(name.clone())],
            NamespaceMatch::Any | NamespaceMatch::Labels(_) => vec![Self::Nothing],
        }
    }
}

/// The label values one of which a selector demands; empty if it demands none.
fn values(selector: &Selector) -> Vec<Needs> {
    match selector {
        Selector::Equals(key, value) => vec![Needs::Label(key.clone(), value.clone())],
        Selector::In(key, values) => values.iter().map(|value| Needs::Label(key.clone(), value.clone())).collect(),
        Selector::And(all) => all.iter().map(values).find(|needs| !needs.is_empty()).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Matching {
    peers: HashMap<PeerNumber, Peer>,
    by_need: HashMap<Needs, BTreeSet<PeerNumber>>,
}

impl Matching {
    pub(super) fn insert(&mut self, number: PeerNumber, peer: &Peer) {
        for need in Needs::of(peer) {
            self.by_need.entry(need).or_default().insert(number);
        }
        self.peers.insert(number, peer.clone());
    }

    pub(super) fn remove(&mut self, number: PeerNumber) {
        let Some(peer) = self.peers.remove(&number) else { return };
        for need in Needs::of(&peer) {
            if let Some(all) = self.by_need.get_mut(&need) {
                all.remove(&number);
                if all.is_empty() {
                    self.by_need.remove(&need);
                }
            }
        }
    }

    /// The peers that include an identity.
    pub(super) fn peers_of<'a>(&'a self, identity: &'a Identity) -> impl Iterator<Item = PeerNumber> + 'a {
        let labels = identity.labels.iter().map(|(key, value)| Needs::Label(key.clone(), value.clone()));
        let namespace = identity.namespace.iter().cloned().map(Needs::Namespace);
        let needs = labels.chain(namespace).chain([Needs::Nothing]);
        let candidates = needs.filter_map(|need| self.by_need.get(&need)).flatten().copied();
        candidates.filter(|number| identity.is_peer(&self.peers[number]))
    }
}
