//! The pinned maps with their types. Writers: the reconciler writes what carries policy, the programs write what
//! carries traffic, and the agent deletes what has expired.

use super::endpoints::Endpoints;
use super::syscall;
use bytemuck::Pod;
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::config::Config;
use reeve_abi::conntrack::{BudgetValue, DeniedValue, FlowKey, FlowValue, FragmentKey, FragmentValue};
use reeve_abi::device::DeviceValue;
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::policy::{ClassValue, PeerKey, PeerValue, PortKey, PortValue, RangeKey};
use reeve_abi::recent::RecentValue;
use reeve_abi::service::{ServiceKey, ServiceValue};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Names of all maps that are pinned.
pub const PINNED: &[&str] = &[
    "ENDPOINTS",
    "GENERATION",
    "ADDRESSES",
    "DEVICES",
    "SERVICES",
    "SLOTS",
    "NETWORKS",
    "CLASSES",
    "PEERS",
    "PORTS",
    "RANGES",
    "FLOWS",
    RECENT,
    "BUDGETS",
    "DENIED",
    "EDGES",
    "OVERFLOW",
    "FRAGMENTS",
    "STATS",
    "CONFIG",
];

/// The ring buffer; never pinned, a new agent has its own.
pub const EVENTS: &str = "EVENTS";

/// What each CPU has counted of flows lately: as many rows as the machine's CPUs take.
pub const RECENT: &str = "RECENT";

/// A map call that failed.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {operation} failed (it holds up to {capacity} entries)")]
pub struct MapError {
    /// Map name.
    pub map: &'static str,
    /// What was tried.
    pub operation: &'static str,
    /// `max_entries`.
    pub capacity: u32,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl MapError {
    /// Whether the map is full.
    pub fn is_full(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM))
    }
}

/// One map of keys and values.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    fd: OwnedFd,
    id: u32,
    capacity: u32,
    batches: Batches,
    types: PhantomData<fn(K) -> V>,
}

/// Whether the map kind knows the batch commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batches {
    Known,
    Unknown,
}

impl<K: Pod, V: Pod> Table<K, V> {
    pub(super) fn new(name: &'static str, fd: OwnedFd, id: u32, capacity: u32, batches: Batches) -> Self {
        Self { name, fd, id, capacity, batches, types: PhantomData }
    }

    /// Map name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The kernel's number of this very map.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// `max_entries` of the map.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> MapError {
        let (map, capacity) = (self.name, self.capacity);
        move |source| MapError { map, operation, capacity, source }
    }

    /// The value of one key.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut value = V::zeroed();
        let found =
            syscall::lookup(self.fd(), key, bytemuck::bytes_of_mut(&mut value)).map_err(self.failed("look-up"))?;
        Ok(found.map(|()| value))
    }

    /// Inserts or replaces.
    pub fn put(&self, key: &K, value: &V) -> Result<(), MapError> {
        syscall::update(self.fd(), key, value).map_err(self.failed("update"))
    }

    /// Inserts what is not there yet; what is stays as it is.
    pub fn put_new(&self, key: &K, value: &V) -> Result<(), MapError> {
        match syscall::insert(self.fd(), key, value) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result.map_err(self.failed("insert")),
        }
    }

    /// Deletes; absent is fine.
    pub fn delete(&self, key: &K) -> Result<(), MapError> {
        syscall::delete(self.fd(), key).map_err(self.failed("delete"))
    }

    /// Inserts or replaces many in order. With an error, all before the failing one are in.
    pub fn put_many(&self, rows: &[(K, V)]) -> Result<(), MapError> {
        if self.batches == Batches::Known && rows.len() > 1 {
            let (keys, values): (Vec<K>, Vec<V>) = rows.iter().copied().unzip();
            return syscall::update_batch(self.fd(), &keys, &values)
                .map_err(|(_, error)| self.failed("batch update")(error));
        }
        rows.iter().try_for_each(|(key, value)| self.put(key, value))
    }

    /// Deletes many; absent is fine.
    pub fn delete_many(&self, keys: &[K]) -> Result<(), MapError> {
        if self.batches == Batches::Known && keys.len() > 1 {
            match syscall::delete_batch(self.fd(), keys) {
                Ok(()) => return Ok(()),
                Err((_, error)) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err((_, error)) => return Err(self.failed("batch delete")(error)),
            }
        }
        keys.iter().try_for_each(|key| self.delete(key))
    }

    /// All rows. Rows that the programs insert meanwhile may be missing.
    pub fn read(&self) -> Result<Vec<(K, V)>, MapError> {
        if self.batches == Batches::Known {
            return syscall::read_all(self.fd()).map_err(self.failed("batch read"));
        }
        let mut rows = Vec::new();
        let mut last: Option<K> = None;
        while let Some(key) = syscall::next_key(self.fd(), last.as_ref()).map_err(self.failed("read"))? {
            if let Some(value) = self.get(&key)? {
                rows.push((key, value));
            }
            last = Some(key);
        }
        Ok(rows)
    }
}

/// Counters per CPU.
#[derive(Debug)]
pub struct PerCpu {
    fd: OwnedFd,
    cpus: usize,
}

impl PerCpu {
    pub(super) fn new(fd: OwnedFd, cpus: usize) -> Self {
        Self { fd, cpus }
    }

    /// Adds another map's counters, CPU by CPU, as far as both have them.
    pub(super) fn add(&self, other: &PerCpu, counters: u32) -> Result<(), MapError> {
        for index in 0..counters {
            let (mut ours, theirs) = (self.values(index)?, other.values(index)?);
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours = ours.wrapping_add(theirs));
            syscall::write(self.fd.as_fd(), &index, bytemuck::cast_slice(&ours), 0).map_err(stats_error("update"))?;
        }
        Ok(())
    }

    /// One counter, CPU by CPU.
    fn values(&self, index: u32) -> Result<Vec<u64>, MapError> {
        let mut values = vec![0_u64; self.cpus];
        syscall::lookup(self.fd.as_fd(), &index, bytemuck::cast_slice_mut(&mut values))
            .map_err(stats_error("look-up"))?;
        Ok(values)
    }

    /// Sum over all CPUs of one counter.
    pub fn sum(&self, index: u32) -> Result<u64, MapError> {
        Ok(self.values(index)?.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value)))
    }
}

fn stats_error(operation: &'static str) -> impl FnOnce(io::Error) -> MapError {
    move |source| MapError { map: "STATS", operation, capacity: reeve_abi::stats::COUNT, source }
}

/// All maps.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is described at its key and value in reeve-abi")]
pub struct Maps {
    pub endpoints: Endpoints,
    pub addresses: Table<Address, AddressValue>,
    pub devices: Table<u32, DeviceValue>,
    pub services: Table<ServiceKey, ServiceValue>,
    pub networks: Table<NetworkKey, NetworkValue>,
    pub classes: Table<u64, ClassValue>,
    pub peers: Table<PeerKey, PeerValue>,
    pub ports: Table<PortKey, PortValue>,
    pub ranges: Table<RangeKey, PortValue>,
    pub flows: Table<FlowKey, FlowValue>,
    pub recent: Table<u32, RecentValue>,
    pub budgets: Table<u64, BudgetValue>,
    pub denied: Table<FlowKey, DeniedValue>,
    pub edges: Table<EdgeKey, EdgeValue>,
    pub overflow: Table<EdgeKey, EdgeValue>,
    pub fragments: Table<FragmentKey, FragmentValue>,
    pub config: Table<u32, Config>,
    pub stats: PerCpu,
}

/// Name, rows and capacity of one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Occupancy {
    /// Map name.
    pub name: &'static str,
    /// Rows it holds.
    pub entries: u64,
    /// Rows it can hold.
    pub capacity: u64,
}

impl Maps {
    /// Rows of the maps that the reconciler fills are known to it; these are the ones that only reading tells.
    pub fn traffic_occupancy(&self) -> Result<Vec<Occupancy>, MapError> {
        Ok(vec![
            occupancy(&self.flows)?,
            occupancy(&self.budgets)?,
            occupancy(&self.denied)?,
            occupancy(&self.fragments)?,
            occupancy(&self.edges)?,
            occupancy(&self.overflow)?,
        ])
    }
}

/// Counts one map's rows.
pub fn occupancy<K: Pod, V: Pod>(table: &Table<K, V>) -> Result<Occupancy, MapError> {
    Ok(Occupancy { name: table.name(), entries: table.read()?.len() as u64, capacity: u64::from(table.capacity()) })
}
