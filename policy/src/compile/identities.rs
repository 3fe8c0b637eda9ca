//! Identities in use, each counted by what uses it.

use super::same;
use crate::plan::Shows;
use crate::provenance::{DictionaryEntry, Identity, IdentityKind};
use reeve_abi::ids::IdentityId;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub(super) struct Identities {
    held: HashMap<IdentityId, (Arc<Identity>, usize)>,
    /// How many addresses and prefixes show each.
    pub(super) shows: Shows,
    /// Those whose use began or ended since the last [`Identities::take_changes`].
    changed: BTreeSet<IdentityId>,
}

impl Identities {
    /// The world's identity is always there.
    pub(super) fn new() -> Self {
        let mut identities = Self { held: HashMap::new(), shows: Shows::new(), changed: BTreeSet::new() };
        identities.hold(&Arc::new(Identity::bare(IdentityKind::World, BTreeSet::new())));
        identities
    }

    pub(super) fn get(&self, id: IdentityId) -> Option<&Arc<Identity>> {
        self.held.get(&id).map(|(identity, _)| identity)
    }

    /// Counts one more use.
    pub(super) fn hold(&mut self, identity: &Arc<Identity>) -> IdentityId {
        let id = identity.id();
        let (held, uses) = self.held.entry(id).or_insert_with(|| {
            self.changed.insert(id);
            (Arc::clone(identity), 0)
        });
        same(id, held, identity);
        *uses += 1;
        id
    }

    /// Counts one use less.
    pub(super) fn release(&mut self, id: IdentityId) {
        let Some((_, uses)) = self.held.get_mut(&id) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.held.remove(&id);
            self.changed.insert(id);
        }
    }

    /// The same for an address or a prefix.
    pub(super) fn show(&mut self, identity: &Arc<Identity>) -> IdentityId {
        let id = self.hold(identity);
        *self.shows.entry(id).or_default() += 1;
        id
    }

    pub(super) fn hide(&mut self, id: IdentityId) {
        if let Some(shows) = self.shows.get_mut(&id) {
            *shows -= 1;
            if *shows == 0 {
                self.shows.remove(&id);
            }
        }
        self.release(id);
    }

    /// What came into use or went out of it; what did both is among them too.
    pub(super) fn take_changes(&mut self) -> BTreeSet<IdentityId> {
        std::mem::take(&mut self.changed)
    }

    /// What the dictionary is to be told about one.
    pub(super) fn entry(&self, id: IdentityId) -> Option<DictionaryEntry> {
        self.get(id).map(|identity| DictionaryEntry::Identity { id, identity: Arc::clone(identity) })
    }
}
