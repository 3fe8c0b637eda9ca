//! Who holds what, where several may hold the same thing: addresses, UIDs.

use std::collections::{BTreeMap, BTreeSet};

/// Holders by what they hold; what several hold is found without asking for each.
#[derive(Debug)]
pub(crate) struct Holders<K, H> {
    /// In order and without repetition. A list: there is hardly ever more than one, and a set of one takes the room of eleven.
    all: BTreeMap<K, Vec<H>>,
    shared: BTreeSet<K>,
}

impl<K, H> Default for Holders<K, H> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), shared: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, H: Ord + Clone> Holders<K, H> {
    /// Lets a holder hold these things in place of those; all of them are returned.
    pub(crate) fn replace(
        &mut self,
        holder: &H,
        before: impl IntoIterator<Item = K>,
        after: impl IntoIterator<Item = K>,
    ) -> BTreeSet<K> {
        let mut about = BTreeSet::new();
        for key in before {
            if let Some(holders) = self.all.get_mut(&key) {
                if let Ok(at) = holders.binary_search(holder) {
                    holders.remove(at);
                }
                if holders.is_empty() {
                    self.all.remove(&key);
                }
            }
            about.insert(key);
        }
        for key in after {
            let holders = self.all.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1));
            if let Err(at) = holders.binary_search(holder) {
                holders.insert(at, holder.clone());
            }
            about.insert(key);
        }
        for key in &about {
            if self.of(key).count() > 1 {
                self.shared.insert(key.clone());
            } else {
                self.shared.remove(key);
            }
        }
        about
    }

    /// Who holds this.
    pub(crate) fn of<'a>(&'a self, key: &K) -> impl ExactSizeIterator<Item = &'a H> + use<'a, K, H> {
        self.all.get(key).map(|holders| holders.iter()).unwrap_or_default()
    }

    /// What is held, from the first to the last.
    pub(crate) fn between<'a>(&'a self, first: &K, last: &K) -> impl Iterator<Item = &'a K> + use<'a, K, H> {
        self.all.range(first..=last).map(|(key, _)| key)
    }

    /// What several hold, and who.
    pub(crate) fn shared(&self) -> impl Iterator<Item = (&K, &[H])> {
        self.shared.iter().filter_map(|key| self.all.get_key_value(key)).map(|(key, holders)| (key, holders.as_slice()))
    }
}
