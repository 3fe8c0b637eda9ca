//! `ENDPOINTS`, of which each CPU keeps what it read last: whoever writes a row tells them that it is old.
//!
//! Invariant: the generation is raised after each write and before the next map call, so what goes after a write is
//! referred to by nothing that a CPU keeps.

use super::maps::{MapError, Table};
use reeve_abi::endpoint::EndpointValue;

/// Interface index -> endpoint.
#[derive(Debug)]
pub struct Endpoints {
    rows: Table<u32, EndpointValue>,
    generation: Table<u32, u64>,
}

impl Endpoints {
    /// An earlier agent may have ended between a write and its telling, so nothing that was kept before counts.
    pub(super) fn new(rows: Table<u32, EndpointValue>, generation: Table<u32, u64>) -> Result<Self, MapError> {
        let endpoints = Self { rows, generation };
        endpoints.raise()?;
        Ok(endpoints)
    }

    /// Tells the programs that what they keep is old: rows of `DEVICES` have changed, which they keep as well.
    pub fn raise(&self) -> Result<(), MapError> {
        let before = self.generation.get(&0)?.unwrap_or_default();
        self.generation.put(&0, &(before + 1))
    }

    /// Inserts or replaces.
    pub fn put(&self, ifindex: &u32, row: &EndpointValue) -> Result<(), MapError> {
        self.rows.put(ifindex, row)?;
        self.raise()
    }

    /// Deletes; absent is fine.
    pub fn delete(&self, ifindex: &u32) -> Result<(), MapError> {
        self.rows.delete(ifindex)?;
        self.raise()
    }

    /// The row of an interface.
    pub fn get(&self, ifindex: &u32) -> Result<Option<EndpointValue>, MapError> {
        self.rows.get(ifindex)
    }

    /// All rows.
    pub fn read(&self) -> Result<Vec<(u32, EndpointValue)>, MapError> {
        self.rows.read()
    }

    /// `max_entries` of the map.
    pub fn capacity(&self) -> u32 {
        self.rows.capacity()
    }
}
