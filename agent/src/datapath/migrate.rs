//! Maps of an earlier agent that have another layout than this one declares: moved away, and their content taken over.
//!
//! Invariant: programs of the earlier agent go on with its maps, whole, until each is replaced by one whose maps are
//! whole as well. Policy maps are moved away together: rows of one refer to rows of another.

use super::load::{LoadError, Shape, pin_error};
use super::maps::{Batches, MapError, Maps, PINNED, PerCpu, RECENT, Table};
use aya::maps::{MapData, MapInfo, MapType};
use bytemuck::Pod;
use reeve_abi::conntrack::{DeniedValue, FlowKey, FlowValue, FragmentKey, FragmentValue};
use reeve_abi::edge::{EDGE_BANK, EdgeKey, EdgeValue};
use reeve_abi::endpoint::EndpointValue;
use reeve_abi::recent::RecentValue;
use reeve_packet::recent;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Maps that policies fill, and the settings: the image fills them anew.
const POLICY: [&str; 11] = [
    "ENDPOINTS",
    "GENERATION",
    "ADDRESSES",
    "NETWORKS",
    "CLASSES",
    "PEERS",
    "PORTS",
    "RANGES",
    "DEVICES",
    "SERVICES",
    "CONFIG",
];

/// Whether a map's rows mean to us what they meant to who wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The same version of `reeve-abi` wrote them.
    Ours,
    /// Another one did.
    Foreign,
}

/// A map that was moved away.
#[derive(Debug)]
pub struct Aside {
    /// Its name.
    pub name: &'static str,
    /// The kernel's number of it.
    pub id: u32,
    path: PathBuf,
    data: MapData,
    info: MapInfo,
    meaning: Meaning,
}

/// What became of a map's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its rows were copied.
    Copied,
    /// The image, or connection tracking, fills the new one.
    Refilled,
    /// It cannot be read, and is lost.
    Dropped,
}

impl Fate {
    /// Name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Refilled => "refilled",
            Self::Dropped => "dropped",
        }
    }
}

/// Moves away what has another layout; returns that, and what an agent that was ended in the middle had moved away.
pub(super) fn set_aside(directory: &Path, declared: &BTreeMap<String, Shape>) -> Result<Vec<Aside>, LoadError> {
    let meaning = meaning(directory)?;
    let differs = |name: &&str| {
        let path = directory.join(name);
        path.exists() && (meaning == Meaning::Foreign || !matches_declaration(&path, declared.get(*name)))
    };
    let all_policy = POLICY.iter().any(differs);
    for &name in PINNED {
        let path = directory.join(name);
        if path.exists() && (differs(&name) || all_policy && POLICY.contains(&name)) {
            let aside = aside_path(directory, name);
            if aside.exists() {
                std::fs::remove_file(&aside).map_err(pin_error(&aside, "cannot be removed"))?;
            }
            std::fs::rename(&path, &aside).map_err(pin_error(&path, "has another layout and cannot be moved away"))?;
        }
    }
    let mut all = Vec::new();
    for &name in PINNED {
        let path = aside_path(directory, name);
        if !path.exists() {
            continue;
        }
        let failed = |source| LoadError::Map { name, source: Box::new(source) };
        let data = MapData::from_pin(&path).map_err(failed)?;
        let info = data.info().map_err(failed)?;
        all.push(Aside { name, id: info.id(), path, data, info, meaning });
    }
    Ok(all)
}

fn aside_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}-replaced"))
}

fn matches_declaration(path: &Path, declared: Option<&Shape>) -> bool {
    let (Ok(info), Some(declared)) = (MapInfo::from_pin(path), declared) else { return false };
    let Ok(map_type) = info.map_type() else { return false };
    *declared == Shape([map_type as u32, info.key_size(), info.value_size(), info.max_entries(), info.map_flags()])
}

/// Who wrote the pinned maps, as `CONFIG` says in its first word, whatever else it holds.
fn meaning(directory: &Path) -> Result<Meaning, LoadError> {
    let name = "CONFIG";
    let path = [directory.join(name), aside_path(directory, name)].into_iter().find(|path| path.exists());
    let Some(path) = path else { return Ok(Meaning::Ours) };
    let failed = |source| LoadError::Map { name, source: Box::new(source) };
    let data = MapData::from_pin(&path).map_err(failed)?;
    let info = data.info().map_err(failed)?;
    if info.key_size() != 4 || info.value_size() < 4 {
        return Ok(Meaning::Foreign);
    }
    let mut value = vec![0_u8; info.value_size() as usize];
    super::syscall::lookup(data.fd().as_fd(), &0_u32, &mut value).map_err(pin_error(&path, "cannot be read"))?;
    let version: u32 = bytemuck::pod_read_unaligned(&value[..4]);
    // 0: the agent ended between creating the map and writing it.
    Ok(if version == reeve_abi::ABI_VERSION || version == 0 { Meaning::Ours } else { Meaning::Foreign })
}

impl Aside {
    /// Whether policies fill it.
    pub fn is_policy(&self) -> bool {
        POLICY.contains(&self.name)
    }

    /// The map with these types, if its rows are such rows.
    fn table<K: Pod, V: Pod>(&self) -> Option<Table<K, V>> {
        let sizes = (self.info.key_size() as usize, self.info.value_size() as usize);
        if self.meaning == Meaning::Foreign || sizes != (size_of::<K>(), size_of::<V>()) {
            return None;
        }
        let fd = self.data.fd().as_fd().try_clone_to_owned().ok()?;
        let batches = match self.info.map_type() {
            Ok(MapType::Hash | MapType::LruHash) => Batches::Known,
            _ => Batches::Unknown,
        };
        Some(Table::new(self.name, fd, self.id, self.info.max_entries(), batches))
    }

    /// Rows of an earlier `ENDPOINTS`, if they can be read.
    pub fn endpoints(&self) -> Result<Vec<(u32, EndpointValue)>, MapError> {
        if self.name != "ENDPOINTS" {
            return Ok(Vec::new());
        }
        self.table::<u32, EndpointValue>().map_or(Ok(Vec::new()), |table| table.read())
    }

    /// Takes over what programs have written, before any of ours runs. Counts of a flow that `EDGES` does not have yet
    /// stay behind, for [`Aside::counts`].
    pub fn take_over(&self, maps: &Maps) -> Result<Fate, MapError> {
        match self.name {
            "FLOWS" => self.copy(&maps.flows, |flow: FlowValue| FlowValue {
                flushed_packets: flow.packets,
                flushed_bytes: flow.bytes,
                ..flow
            }),
            "DENIED" => self.copy::<FlowKey, DeniedValue>(&maps.denied, |row| row),
            "FRAGMENTS" => self.copy::<FragmentKey, FragmentValue>(&maps.fragments, |row| row),
            // Read when no program writes into them any more.
            "EDGES" | "OVERFLOW" => Ok(self.fate_of_counts::<EdgeKey, EdgeValue>()),
            RECENT => Ok(self.fate_of_counts::<u32, RecentValue>()),
            "STATS" => self.counters(maps),
            _ => Ok(Fate::Refilled),
        }
    }

    fn fate_of_counts<K: Pod, V: Pod>(&self) -> Fate {
        if self.table::<K, V>().is_some() { Fate::Copied } else { Fate::Dropped }
    }

    fn copy<K: Pod, V: Pod>(&self, to: &Table<K, V>, change: impl Fn(V) -> V) -> Result<Fate, MapError> {
        let Some(from) = self.table::<K, V>() else {
            return Ok(if self.name == "FLOWS" { Fate::Refilled } else { Fate::Dropped });
        };
        for (key, value) in from.read()? {
            match to.put_new(&key, &change(value)) {
                // The new one may be smaller.
                Err(error) if error.is_full() => break,
                result => result?,
            }
        }
        Ok(Fate::Copied)
    }

    fn counters(&self, maps: &Maps) -> Result<Fate, MapError> {
        let fd = self.data.fd().as_fd().try_clone_to_owned();
        let (Ok(fd), 8, Ok(cpus)) = (fd, self.info.value_size(), aya::util::nr_cpus()) else {
            return Ok(Fate::Dropped);
        };
        let counters = self.info.max_entries().min(reeve_abi::stats::COUNT);
        maps.stats.add(&PerCpu::new(fd, cpus), counters)?;
        Ok(Fate::Copied)
    }

    /// What an earlier `EDGES` or `OVERFLOW` counted, and earlier flows and processors that it does not have; asked when no
    /// program writes into them any more.
    pub fn counts(
        &self,
        unflushed: impl Fn(&FlowKey, &FlowValue) -> Option<(EdgeKey, EdgeValue)>,
    ) -> Result<Vec<(EdgeKey, EdgeValue)>, MapError> {
        match self.name {
            "EDGES" | "OVERFLOW" => self.table::<EdgeKey, EdgeValue>().map_or(Ok(Vec::new()), |table| table.read()),
            "FLOWS" => {
                let Some(table) = self.table::<FlowKey, FlowValue>() else { return Ok(Vec::new()) };
                Ok(table.read()?.iter().filter_map(|(key, value)| unflushed(key, value)).collect())
            }
            RECENT => {
                let Some(table) = self.table::<u32, RecentValue>() else { return Ok(Vec::new()) };
                Ok(table.read()?.iter().filter_map(|(_, row)| unflushed(&row.key, &recent::owed(row))).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Lets go of the map.
    pub fn forget(self) -> Result<(), LoadError> {
        std::fs::remove_file(&self.path).map_err(pin_error(&self.path, "cannot be removed"))
    }
}

/// Puts counts that are no program's any more into the bank that no program writes, for the next window. Returns those
/// for which there is no room.
pub fn hand_over(
    maps: &Maps,
    idle: u32,
    rows: BTreeMap<EdgeKey, EdgeValue>,
) -> Result<Vec<(EdgeKey, EdgeValue)>, MapError> {
    let mut left = Vec::new();
    for (key, value) in rows {
        let key = EdgeKey { kind: key.kind & !EDGE_BANK | idle, ..key };
        let map = if key.kind & reeve_abi::edge::EDGE_OVERFLOW == 0 { &maps.edges } else { &maps.overflow };
        let sum =
            reeve_flow::aggregate::merged(map.get(&key)?.map(|there| (key, there)).into_iter().chain([(key, value)]));
        let Some((_, sum)) = sum.first_key_value() else { continue };
        match map.put(&key, sum) {
            Err(error) if error.is_full() => left.push((key, value)),
            result => result?,
        }
    }
    Ok(left)
}
