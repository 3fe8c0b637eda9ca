//! What all addresses of an image together are seen as: counted as they change, as there are many.

use reeve_abi::address::{AddressValue, OWNER_CONTESTED};
use reeve_abi::ids::IdentityId;
use std::collections::HashMap;

/// Counts of an image's addresses.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    identities: HashMap<IdentityId, usize>,
    contested: usize,
}

impl Seen {
    /// Counts an address that was this and is that.
    pub(super) fn change(&mut self, before: Option<&AddressValue>, after: Option<&AddressValue>) {
        if let Some(after) = after {
            *self.identities.entry(after.identity).or_default() += 1;
            self.contested += usize::from(after.owner == OWNER_CONTESTED);
        }
        if let Some(before) = before {
            let held = self.identities.get_mut(&before.identity).expect("it was counted when it came");
            *held -= 1;
            if *held == 0 {
                self.identities.remove(&before.identity);
            }
            self.contested -= usize::from(before.owner == OWNER_CONTESTED);
        }
    }

    /// How many identities they have.
    pub(crate) fn identities(&self) -> usize {
        self.identities.len()
    }

    /// Whether several pods claim one of them.
    pub(crate) fn is_contested(&self) -> bool {
        self.contested > 0
    }
}
