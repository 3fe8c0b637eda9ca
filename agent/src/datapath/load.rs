//! Loads the programs, with the maps that are pinned already or new ones.

use super::endpoints::Endpoints;
use super::maps::{Batches, EVENTS, Maps, PINNED, PerCpu, RECENT, Table};
use super::migrate::{self, Aside};
use super::syscall;
use aya::maps::{Map, MapData, RingBuf};
use aya::programs::{CgroupSkb, Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use bytemuck::Pod;
use reeve_abi::config::Config;
use reeve_abi::recent::RECENT_PLACES;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Program at TC ingress of a pod's host-side device.
pub const FROM_POD: &str = "reeve_from_pod";
/// Program at TC egress of a pod's host-side device.
pub const TO_POD: &str = "reeve_to_pod";
/// Program that drops everything, for the moment in which the others are put in order.
pub const HOLD: &str = "reeve_hold";

/// Program at TC egress of devices that are no pod's.
pub const UPLINK: &str = "reeve_uplink";
/// Program that stands at no hook: adds up what `RECENT` has counted.
pub const SETTLE: &str = "reeve_settle";

/// Program at TC ingress of devices that are no pod's.
pub const UPLINK_IN: &str = "reeve_uplink_in";
/// What stands before [`UPLINK`] while that is put first again.
pub const UPLINK_SPARE: &str = "reeve_out_spare";
/// What stands before [`UPLINK_IN`] while that is put first again.
pub const UPLINK_IN_SPARE: &str = "reeve_in_spare";
/// Program at the ingress of the node's root cgroup.
pub const HOST_IN: &str = "reeve_host_in";

/// Loading failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentence of each variant says it")]
pub enum LoadError {
    #[error("this binary was built without its eBPF object: build it with `cargo xtask build`")]
    NoObject,
    #[error("the eBPF object cannot be read: {what}")]
    Object { what: String },
    #[error("the programs or maps cannot be loaded")]
    Kernel(#[source] Box<aya::EbpfError>),
    #[error("program {name} cannot be loaded")]
    Program {
        name: &'static str,
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    #[error("the eBPF object has no {kind} {name}")]
    Missing { kind: &'static str, name: &'static str },
    #[error("map-entries: {name} = {entries}: there is no such map, or none of that size; the maps are {known}")]
    Capacity { name: String, entries: u32, known: String },
    #[error("map {name}: found {found}, expected {expected}")]
    Shape { name: &'static str, found: String, expected: String },
    #[error(
        "{path} is on no bpffs any more: enforcement goes on, but would end with this agent; mount the bpffs again"
    )]
    NoPlace { path: PathBuf },
    #[error("{path}: {what}")]
    Pin {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("map {name}")]
    Map {
        name: &'static str,
        #[source]
        source: Box<aya::maps::MapError>,
    },
    #[error(transparent)]
    Element(#[from] super::maps::MapError),
}

/// Where maps come from.
#[derive(Clone, Copy, Debug)]
pub enum Pins<'a> {
    /// New maps that vanish with the process (tests, benches).
    None,
    /// Pinned in this directory; what is there is adopted.
    Directory(&'a Path),
}

/// The programs, loaded, and their maps.
#[allow(missing_debug_implementations, reason = "aya's ring buffer has none")]
pub struct Loaded {
    /// The maps.
    pub maps: Maps,
    pub(super) programs: Ebpf,
    events: Option<RingBuf<MapData>>,
    /// Maps of an earlier agent that had another layout and were moved away.
    pub aside: Vec<Aside>,
    /// Whether policy maps were found pinned.
    pub adopted: Adopted,
    /// Where the maps are pinned.
    directory: Option<PathBuf>,
    /// Numbers of programs, as far as they were asked for.
    ids: BTreeMap<&'static str, u32>,
}

/// What was found at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// The maps are new.
    Nothing,
    /// An earlier agent's maps with the same layout.
    Maps,
}

impl Loaded {
    /// Loads `object` with `max_entries` of the named maps replaced.
    pub fn load(object: &[u8], pins: Pins<'_>, capacities: &BTreeMap<String, u32>) -> Result<Self, LoadError> {
        if object.is_empty() {
            return Err(LoadError::NoObject);
        }
        let mut aside = Vec::new();
        let mut adopted = Adopted::Nothing;
        let mut loader = EbpfLoader::new();
        let mut capacities = capacities.clone();
        for (name, entries) in &capacities {
            if *entries == 0 || name == RECENT || name != EVENTS && !PINNED.contains(&name.as_str()) {
                let known = [PINNED, &[EVENTS]].concat().into_iter().filter(|name| *name != RECENT);
                let known = known.collect::<Vec<_>>().join(", ");
                return Err(LoadError::Capacity { name: name.clone(), entries: *entries, known });
            }
        }
        capacities.insert(RECENT.to_owned(), u32::try_from(cpus()?).unwrap_or(u32::MAX).saturating_mul(RECENT_PLACES));
        for (name, entries) in &capacities {
            loader.map_max_entries(name, *entries);
        }
        if let Pins::Directory(directory) = pins {
            std::fs::create_dir_all(directory)
                .map_err(pin_error(directory, "cannot be created (is it on a bpffs?)"))?;
            aside = migrate::set_aside(directory, &declarations(object, &capacities)?)?;
            // While policy maps of an earlier layout are there, the new ones may not be whole.
            if directory.join("ENDPOINTS").exists() && !aside.iter().any(Aside::is_policy) {
                adopted = Adopted::Maps;
            }
            for &name in PINNED {
                loader.map_pin_path(name, directory.join(name));
            }
        }
        let mut programs = loader.load(object).map_err(|source| LoadError::Kernel(Box::new(source)))?;
        verify(&mut programs)?;
        let events = match programs.take_map(EVENTS) {
            Some(map) => {
                RingBuf::try_from(map).map_err(|source| LoadError::Map { name: EVENTS, source: Box::new(source) })?
            }
            None => return Err(LoadError::Missing { kind: "map", name: EVENTS }),
        };
        let maps = open(&programs)?;
        // 0: it is new, or the agent before us ended between creating and writing it.
        if maps.config.get(&0)?.is_none_or(|config| config.abi_version == 0) {
            maps.config.put(&0, &Config::DEFAULT)?;
        }
        let directory = match pins {
            Pins::None => None,
            Pins::Directory(directory) => Some(directory.to_owned()),
        };
        Ok(Self { maps, programs, events: Some(events), aside, adopted, directory, ids: BTreeMap::new() })
    }

    /// Pins the maps again that have lost their pins, and returns how many: without them the next agent would find
    /// programs that judge by maps that it cannot open.
    pub fn keep_pinned(&self) -> Result<usize, LoadError> {
        let Some(directory) = &self.directory else { return Ok(0) };
        let missing: Vec<_> = PINNED.iter().map(|name| (*name, directory.join(name))).collect();
        let missing = missing.into_iter().filter(|(_, path)| !path.exists());
        let missing: Vec<_> = missing.collect();
        if missing.is_empty() {
            return Ok(0);
        }
        make_place(directory)?;
        for (name, path) in &missing {
            syscall::pin(map_data(&self.programs, name)?.fd().as_fd(), path)
                .map_err(pin_error(path, "the map cannot be pinned again"))?;
        }
        Ok(missing.len())
    }

    /// The ring buffer; there is one reader.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    /// Runs one program over one packet (`BPF_PROG_TEST_RUN`) and returns its TC action. `context` is a `struct
    /// __sk_buff` (its `ifindex` and `ingress_ifindex` choose the endpoint and the provenance); `repeat` runs it again.
    pub fn test_run(&self, program: &str, packet: &[u8], context: &[u8], repeat: u32) -> Result<TestRun, LoadError> {
        use aya::programs::{TestRun as _, TestRunOptions};
        let name = if program == FROM_POD { FROM_POD } else { TO_POD };
        let Some(Program::SchedClassifier(classifier)) = self.programs.program(program) else {
            return Err(LoadError::Missing { kind: "program", name });
        };
        let mut out = vec![0_u8; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: (!context.is_empty()).then_some(context),
            repeat,
            ..TestRunOptions::default()
        };
        let result =
            classifier.test_run(options).map_err(|source| LoadError::Program { name, source: Box::new(source) })?;
        Ok(TestRun { action: result.return_value.cast_signed(), duration: result.duration })
    }

    /// Has every row of `RECENT` added up, to its flow or its edge: what the programs have let through until now is counted
    /// in `FLOWS` and `EDGES` then.
    pub fn settle(&self) -> Result<(), LoadError> {
        use aya::programs::{TestRun as _, TestRunOptions};
        let Some(Program::SchedClassifier(program)) = self.programs.program(SETTLE) else {
            return Err(LoadError::Missing { kind: "program", name: SETTLE });
        };
        // The program takes the row that the mark says, 0 at first, and raises it.
        let options = || TestRunOptions {
            data_in: Some(&[0; 64]),
            repeat: self.maps.recent.capacity(),
            ..TestRunOptions::default()
        };
        let settle = || program.test_run(options()).map(drop);
        patiently(settle).map_err(|source| LoadError::Program { name: SETTLE, source: Box::new(source) })
    }

    pub(super) fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        classifier(&mut self.programs, name)
    }

    /// The kernel's number of a program for devices.
    pub(super) fn program_id(&mut self, name: &'static str) -> Result<u32, LoadError> {
        if let Some(id) = self.ids.get(name) {
            return Ok(*id);
        }
        let info = self.classifier(name)?.info();
        let id = info.map_err(|source| LoadError::Program { name, source: Box::new(source) })?.id();
        self.ids.insert(name, id);
        Ok(id)
    }

    /// A program that is loaded when it is wanted for the first time.
    pub(super) fn spare(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        let program = classifier(&mut self.programs, name)?;
        if program.fd().is_err() {
            patiently(|| program.load()).map_err(|source| LoadError::Program { name, source: Box::new(source) })?;
        }
        Ok(program)
    }

    pub(super) fn cgroup_program(&mut self) -> Result<&mut CgroupSkb, LoadError> {
        cgroup_program(&mut self.programs)
    }
}

/// Outcome of a test run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// TC action: -1 lets through (others in the chain still run), 2 drops.
    pub action: i32,
    /// Mean time of one run.
    pub duration: std::time::Duration,
}

fn classifier<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    match programs.program_mut(name) {
        Some(Program::SchedClassifier(classifier)) => Ok(classifier),
        _ => Err(LoadError::Missing { kind: "program", name }),
    }
}

/// The verifier stops with `EAGAIN` when a signal comes while it works, a test run with `EINTR`; neither says anything of
/// the program.
fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 0..LOADS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {}
            Err(ProgramError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
    load()
}

/// How often what was interrupted is tried again.
const LOADS: u32 = 5;

/// Loads the programs that are wanted at once, each on a thread of its own: the kernel takes up to half a second to verify
/// one, and nothing is enforced anew before all are.
fn verify(programs: &mut Ebpf) -> Result<(), LoadError> {
    let wanted = [FROM_POD, TO_POD, HOLD, UPLINK, UPLINK_IN, HOST_IN, SETTLE];
    if let Some(name) = wanted.into_iter().find(|name| programs.program(name).is_none()) {
        return Err(LoadError::Missing { kind: "program", name });
    }
    std::thread::scope(|scope| {
        let mut loads = Vec::new();
        for (found, program) in programs.programs_mut() {
            let Some(name) = wanted.into_iter().find(|name| *name == found) else { continue };
            loads.push((name, scope.spawn(move || patiently(|| load_one(program)))));
        }
        loads.into_iter().try_for_each(|(name, load)| match load.join() {
            Ok(loaded) => loaded.map_err(|source| LoadError::Program { name, source: Box::new(source) }),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

fn load_one(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn cgroup_program(programs: &mut Ebpf) -> Result<&mut CgroupSkb, LoadError> {
    match programs.program_mut(HOST_IN) {
        Some(Program::CgroupSkb(program)) => Ok(program),
        _ => Err(LoadError::Missing { kind: "program", name: HOST_IN }),
    }
}

pub(super) fn pin_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> LoadError {
    let path = path.to_owned();
    move |source| LoadError::Pin { path, what, source }
}

/// Type, key size, value size, entries and flags of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape(pub(super) [u32; 5]);

fn declarations(object: &[u8], capacities: &BTreeMap<String, u32>) -> Result<BTreeMap<String, Shape>, LoadError> {
    let object = aya_obj::Object::parse(object).map_err(|error| LoadError::Object { what: error.to_string() })?;
    Ok(object
        .maps
        .into_iter()
        .map(|(name, map)| {
            let entries = capacities.get(&name).copied().unwrap_or_else(|| map.max_entries());
            let shape = Shape([map.map_type(), map.key_size(), map.value_size(), entries, map.map_flags()]);
            (name, shape)
        })
        .collect())
}

fn open(programs: &Ebpf) -> Result<Maps, LoadError> {
    Ok(Maps {
        endpoints: Endpoints::new(table(programs, "ENDPOINTS")?, table(programs, "GENERATION")?)?,
        addresses: table(programs, "ADDRESSES")?,
        devices: table(programs, "DEVICES")?,
        services: table(programs, "SERVICES")?,
        networks: table(programs, "NETWORKS")?,
        classes: table(programs, "CLASSES")?,
        peers: table(programs, "PEERS")?,
        ports: table(programs, "PORTS")?,
        ranges: table(programs, "RANGES")?,
        flows: table(programs, "FLOWS")?,
        recent: table(programs, RECENT)?,
        budgets: table(programs, "BUDGETS")?,
        denied: table(programs, "DENIED")?,
        edges: table(programs, "EDGES")?,
        overflow: table(programs, "OVERFLOW")?,
        fragments: table(programs, "FRAGMENTS")?,
        config: table(programs, "CONFIG")?,
        stats: {
            let data = map_data(programs, "STATS")?;
            PerCpu::new(clone_fd(data, "STATS")?, cpus()?)
        },
    })
}

/// How many CPUs there can be.
fn cpus() -> Result<usize, LoadError> {
    aya::util::nr_cpus().map_err(|(path, source)| LoadError::Pin {
        path: path.into(),
        what: "does not tell the number of CPUs",
        source,
    })
}

/// Makes a directory for pins, where the bpffs that it lies in was unmounted and mounted again.
pub(super) fn make_place(directory: &Path) -> Result<(), LoadError> {
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    if !syscall::is_bpffs(there) {
        return Err(LoadError::NoPlace { path: directory.to_owned() });
    }
    std::fs::create_dir_all(directory).map_err(pin_error(directory, "cannot be created (is it on a bpffs?)"))
}

fn table<K: Pod, V: Pod>(programs: &Ebpf, name: &'static str) -> Result<Table<K, V>, LoadError> {
    let data = map_data(programs, name)?;
    let info = data.info().map_err(|source| LoadError::Map { name, source: Box::new(source) })?;
    let (found, expected) = ((info.key_size() as usize, info.value_size() as usize), (size_of::<K>(), size_of::<V>()));
    if found != expected {
        return Err(LoadError::Shape {
            name,
            found: format!("key of {} and value of {} bytes", found.0, found.1),
            expected: format!("{} and {}", expected.0, expected.1),
        });
    }
    let batches = match info.map_type() {
        Ok(aya::maps::MapType::Hash | aya::maps::MapType::LruHash) => Batches::Known,
        _ => Batches::Unknown,
    };
    Ok(Table::new(name, clone_fd(data, name)?, info.id(), info.max_entries(), batches))
}

fn clone_fd(data: &MapData, name: &'static str) -> Result<std::os::fd::OwnedFd, LoadError> {
    data.fd().as_fd().try_clone_to_owned().map_err(pin_error(Path::new(name), "file descriptor cannot be copied"))
}

fn map_data<'a>(programs: &'a Ebpf, name: &'static str) -> Result<&'a MapData, LoadError> {
    match programs.map(name) {
        Some(
            Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) | Map::PerCpuArray(data),
        ) => Ok(data),
        _ => Err(LoadError::Missing { kind: "map", name }),
    }
}
