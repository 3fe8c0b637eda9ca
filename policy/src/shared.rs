//! Equal values, each kept once: most pods have what their neighbours have.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Fewest values that are looked through for those that nobody has any more.
const SWEEP_FROM: usize = 64;

/// Values that somebody has. Those that nobody has any more stay until there are twice as many as were in use.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    all: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), sweep_at: SWEEP_FROM }
    }
}

impl<T: Eq + Hash> Shared<T> {
    /// The one that equals this.
    pub(crate) fn of(&mut self, value: T) -> Arc<T> {
        if let Some(found) = self.all.get(&value) {
            return Arc::clone(found);
        }
        if self.all.len() >= self.sweep_at {
            self.all.retain(|held| Arc::strong_count(held) > 1);
            self.sweep_at = SWEEP_FROM.max(self.all.len() * 2);
        }
        let value = Arc::new(value);
        self.all.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_what_nobody_has_any_more_goes() {
        let mut shared = Shared::default();
        let (one, another, other) = (shared.of(1), shared.of(1), shared.of(2));
        assert!(Arc::ptr_eq(&one, &another) && *other == 2);
        drop(other);
        for nobodys in 0..10_000 {
            shared.of(nobodys + 10);
        }
        assert!(shared.all.len() <= SWEEP_FROM, "{} values are kept, and one is in use", shared.all.len());
        assert!(Arc::ptr_eq(&one, &shared.of(1)), "one that is in use stays the same");
    }
}
