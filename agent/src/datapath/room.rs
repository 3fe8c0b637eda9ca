//! Which addresses have a place in `ADDRESSES` when there are more than it holds.
//!
//! Invariant: an address without a place is nobody's, and while there is one, selected endpoints deny whoever is not
//! known: it must not pass for an address outside the cluster.

use reeve_abi::address::{Address, AddressValue, OWNER_NODE, OWNER_REMOTE_POD};
use reeve_policy::plan::Op;
use std::collections::BTreeMap;

/// The addresses that are stored, and those that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressRoom {
    capacity: usize,
    stored: BTreeMap<Address, AddressValue>,
    waiting: BTreeMap<Address, AddressValue>,
}

impl AddressRoom {
    /// A map with these rows.
    pub fn new(capacity: u32, stored: &BTreeMap<Address, AddressValue>) -> Self {
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        Self { capacity, stored: stored.clone(), waiting: BTreeMap::new() }
    }

    /// How many addresses have no place.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the address has a place.
    pub fn has(&self, address: &Address) -> bool {
        self.stored.contains_key(address)
    }

    /// The operations without those for which there is no room, and with those that have it now. An address of this node
    /// takes the place of another node's: without it nobody could tell who uses it falsely.
    pub fn fit(&mut self, ops: &[Op]) -> Vec<Op> {
        let mut fitting = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::PutAddress(address, value) => {
                    self.waiting.remove(address);
                    let is_far = matches!(value.owner, OWNER_REMOTE_POD | OWNER_NODE);
                    if !self.has(address) && self.stored.len() >= self.capacity {
                        let Some(far) = (!is_far).then(|| self.any_far()).flatten() else {
                            self.waiting.insert(*address, *value);
                            continue;
                        };
                        if let Some(value) = self.stored.remove(&far) {
                            self.waiting.insert(far, value);
                            fitting.push(Op::DeleteAddress(far));
                        }
                    }
                    self.stored.insert(*address, *value);
                    fitting.push(*op);
                }
                Op::DeleteAddress(address) => {
                    self.waiting.remove(address);
                    if self.stored.remove(address).is_some() {
                        fitting.push(*op);
                    }
                }
                _ => fitting.push(*op),
            }
        }
        let mut placed = false;
        while self.stored.len() < self.capacity
            && let Some((address, value)) = self.waiting.pop_first()
        {
            self.stored.insert(address, value);
            fitting.push(Op::PutAddress(address, value));
            placed = true;
        }
        if placed {
            fitting.push(Op::BumpAddressEpoch);
        }
        fitting
    }

    fn any_far(&self) -> Option<Address> {
        let far = self.stored.iter().find(|(_, value)| matches!(value.owner, OWNER_REMOTE_POD | OWNER_NODE));
        far.map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reeve_abi::address::OWNER_LOCAL_POD;

    fn put(number: u8, owner: u32) -> Op {
        Op::PutAddress(Address::v4([10, 0, 0, number]), AddressValue { owner, ..AddressValue::default() })
    }

    fn delete(number: u8) -> Op {
        Op::DeleteAddress(Address::v4([10, 0, 0, number]))
    }

    #[test]
    fn what_does_not_fit_waits_until_a_place_is_free() {
        let mut room = AddressRoom::new(2, &BTreeMap::new());
        let ops = [put(1, OWNER_LOCAL_POD), put(2, OWNER_REMOTE_POD), put(3, OWNER_REMOTE_POD)];
        assert_eq!(room.fit(&ops), ops[..2]);
        assert_eq!(room.waiting(), 1);
        assert_eq!(room.fit(&[put(3, OWNER_REMOTE_POD)]), [], "it waits already");
        assert_eq!(room.fit(&[delete(2)]), [delete(2), put(3, OWNER_REMOTE_POD), Op::BumpAddressEpoch]);
        assert_eq!(room.waiting(), 0);
        assert_eq!(room.fit(&[delete(3)]), [delete(3)]);
    }

    #[test]
    fn an_address_of_this_node_takes_the_place_of_a_far_one() {
        let mut room = AddressRoom::new(1, &BTreeMap::new());
        room.fit(&[put(1, OWNER_REMOTE_POD)]);
        assert_eq!(room.fit(&[put(2, OWNER_LOCAL_POD)]), [delete(1), put(2, OWNER_LOCAL_POD)]);
        assert_eq!(room.fit(&[put(3, OWNER_LOCAL_POD)]), [], "nobody far is left");
        assert_eq!(room.waiting(), 2);
        assert_eq!(room.fit(&[delete(1)]), [], "it had no place");
        assert_eq!(room.waiting(), 1);
    }
}
