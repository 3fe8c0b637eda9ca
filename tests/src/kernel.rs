//! The compiled programs in the running kernel, one frame at a time (`BPF_PROG_TEST_RUN`), and their maps, typed.
//!
//! Invariant: nothing is pinned or attached; everything is gone with the value and its thread.

mod image;
mod plan;
mod rows;

use anyhow::Context;
use aya::maps::{Map, MapData, RingBuf};
use aya::programs::{self, ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::config::Config;
use reeve_abi::conntrack::{DeniedValue, FlowKey, FlowValue, FragmentKey, FragmentValue};
use reeve_abi::device::DeviceValue;
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::EndpointValue;
use reeve_abi::event::Event;
use reeve_abi::ids::IdentityId;
use reeve_abi::policy::{ClassValue, PeerKey, PeerValue, PortKey, PortValue, RangeKey};
use reeve_abi::recent::{RECENT_PLACES, RecentValue};
use reeve_abi::service::{ServiceKey, ServiceValue};
use reeve_packet::env::Hook;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

pub use plan::{Dump, Ran, Sent};
pub use rows::Rows;

/// Entries of maps where they are not as in production, by name; of `EVENTS` bytes.
pub type Sizes<'a> = &'a [(&'a str, u32)];

/// Maps that are preallocated or large in production, and entries that are enough for tests.
const SMALL: [(&str, u32); 4] = [("FLOWS", 8_192), ("DENIED", 4_096), ("FRAGMENTS", 1_024), ("EVENTS", 1 << 20)];

/// Entries that are enough for a random world and its flows one at a time: to empty a map costs what it could hold.
const WORLD: [(&str, u32); 14] = [
    ("FLOWS", 1_024),
    ("DENIED", 1_024),
    ("FRAGMENTS", 256),
    ("EVENTS", 1 << 20),
    ("EDGES", 1_024),
    ("OVERFLOW", 256),
    ("ADDRESSES", 1_024),
    ("SERVICES", 1_024),
    ("DEVICES", 64),
    ("NETWORKS", 4_096),
    ("CLASSES", 4_096),
    ("PEERS", 16_384),
    ("PORTS", 16_384),
    ("RANGES", 16_384),
];

/// `struct __sk_buff`, in bytes, and where a test run reads it.
pub(crate) const CONTEXT_BYTES: usize = 192;
pub(crate) const CONTEXT_MARK: usize = 8;
const CONTEXT_INGRESS_IFINDEX: usize = 36;
const CONTEXT_IFINDEX: usize = 40;
const CONTEXT_GSO_SEGMENTS: usize = 164;
const CONTEXT_GSO_SIZE: usize = 176;

pub(crate) const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;

/// The programs, loaded and verified, with maps of their own.
pub struct Kernel {
    programs: Ebpf,
    events: RingBuf<MapData>,
    interfaces: HashSet<u32>,
    /// The network namespace belongs to the thread.
    not_send: PhantomData<*const ()>,
}

/// An entry point of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is described where it is defined")]
pub enum Program {
    FromPod,
    ToPod,
    Uplink,
    UplinkIn,
    HostIn,
    OutSpare,
    InSpare,
    Settle,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::FromPod,
        Self::ToPod,
        Self::Uplink,
        Self::UplinkIn,
        Self::HostIn,
        Self::OutSpare,
        Self::InSpare,
        Self::Settle,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::FromPod => "reeve_from_pod",
            Self::ToPod => "reeve_to_pod",
            Self::Uplink => "reeve_uplink",
            Self::UplinkIn => "reeve_uplink_in",
            Self::HostIn => "reeve_host_in",
            Self::OutSpare => "reeve_out_spare",
            Self::InSpare => "reeve_in_spare",
            Self::Settle => "reeve_settle",
        }
    }
}

impl From<Hook> for Program {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::FromPod => Self::FromPod,
            Hook::ToPod | Hook::Reached => Self::ToPod,
            Hook::Uplink => Self::Uplink,
            Hook::HostIn | Hook::Refused => Self::HostIn,
        }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// On to whoever is next in the chain.
    Continue,
    /// Dropped.
    Drop,
}

/// How the kernel holds a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Held {
    /// In one piece.
    #[default]
    Whole,
    /// To be cut into packets by whoever sends it.
    Offloaded {
        /// How many packets.
        segments: u32,
        /// Payload of each, in bytes.
        size: u32,
    },
}

/// What a program did with one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it.
    pub action: Action,
    /// What was told.
    pub events: Vec<Event>,
    /// The mark that it has now.
    pub mark: u32,
}

impl Kernel {
    /// Loads the object that `REEVE_BPF_OBJECT` names and moves the calling thread into a network namespace of its own,
    /// where interfaces are made as they are asked for.
    pub fn load() -> anyhow::Result<Self> {
        Self::load_with(&SMALL)
    }

    /// The same with maps that hold a random world and what few flows leave, and are emptied quickly.
    pub fn for_worlds() -> anyhow::Result<Self> {
        Self::load_with(&WORLD)
    }

    /// The same with other sizes of maps; of those that are not named as in production.
    pub fn load_with(sizes: Sizes<'_>) -> anyhow::Result<Self> {
        // SAFETY: only this thread's view of the network changes.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .context("cannot make a network namespace")?;
        Self::load_here(sizes)
    }

    /// The programs once more with maps of their own, in the network namespace of this thread: two that take turns, whose
    /// interfaces have different indices.
    pub fn load_beside(&self, sizes: Sizes<'_>) -> anyhow::Result<Self> {
        Self::load_here(sizes)
    }

    fn load_here(sizes: Sizes<'_>) -> anyhow::Result<Self> {
        let path = std::env::var_os("REEVE_BPF_OBJECT").context("REEVE_BPF_OBJECT is not set")?;
        let object = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("RECENT", u32::try_from(cpus()?)? * RECENT_PLACES);
        for (map, entries) in sizes {
            loader.map_max_entries(map, *entries);
        }
        let mut programs = loader.load(&object).context("cannot load the object")?;
        for program in Program::ALL {
            let name = program.name();
            let mut load = || match programs.program_mut(name) {
                Some(programs::Program::SchedClassifier(program)) => program.load(),
                Some(programs::Program::CgroupSkb(program)) => program.load(),
                _ => panic!("the object has no {name} of the right kind"),
            };
            let mut loaded = load();
            // A signal makes the verifier stop with `EAGAIN`, which says nothing of the program.
            for _ in 0..5 {
                match &loaded {
                    Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == ErrorKind::WouldBlock => {
                        loaded = load();
                    }
                    _ => break,
                }
            }
            loaded.with_context(|| format!("the verifier refuses {name}"))?;
        }
        let events = RingBuf::try_from(programs.take_map("EVENTS").context("the object lacks EVENTS")?)?;
        let kernel = Self { programs, events, interfaces: HashSet::new(), not_send: PhantomData };
        kernel.config().put(&0, &Config::DEFAULT)?;
        Ok(kernel)
    }

    /// Empties every map and puts the default settings back; counters of `STATS` stay.
    pub fn clear(&mut self) -> anyhow::Result<()> {
        self.endpoints().clear()?;
        self.devices().clear()?;
        self.services().clear()?;
        self.addresses().clear()?;
        self.networks().clear()?;
        self.classes().clear()?;
        self.peers().clear()?;
        self.ports().clear()?;
        self.ranges().clear()?;
        self.forget()?;
        self.config().put(&0, &Config::DEFAULT)
    }

    /// Forgets flows, denials, fragments, edges and events, and keeps what the agent would have written.
    pub fn forget(&mut self) -> anyhow::Result<()> {
        self.flows().clear()?;
        self.denied().clear()?;
        self.fragments().clear()?;
        self.edges().clear()?;
        self.take_events();
        Ok(())
    }

    /// Writes an endpoint under its interface index, in both copies of it; the interface is made if it is not there.
    pub fn set_endpoint(&mut self, ifindex: u32, value: EndpointValue) -> anyhow::Result<()> {
        self.interface(ifindex)?;
        self.endpoints().put(&ifindex, &image::at(value, ifindex))
    }

    /// Runs the program of a hook over one frame at an interface; `ingress_ifindex` is where it entered the node, 0 if
    /// it was made there.
    pub fn run(&mut self, hook: Hook, frame: &[u8], ifindex: u32, ingress_ifindex: u32) -> anyhow::Result<Outcome> {
        self.run_held(hook, frame, ifindex, ingress_ifindex, Held::Whole)
    }

    /// See [`Kernel::run`]; of a frame that the kernel holds in some way.
    pub fn run_held(
        &mut self,
        hook: Hook,
        frame: &[u8],
        ifindex: u32,
        ingress_ifindex: u32,
        held: Held,
    ) -> anyhow::Result<Outcome> {
        let mut context = context(ifindex, ingress_ifindex, 0);
        let mut set = |at: usize, value: u32| context[at..][..4].copy_from_slice(&value.to_ne_bytes());
        match held {
            Held::Whole => {}
            Held::Offloaded { segments, size } => {
                set(CONTEXT_GSO_SEGMENTS, segments);
                set(CONTEXT_GSO_SIZE, size);
            }
        }
        self.run_in(hook.into(), frame, ifindex, &context)
    }

    /// The same of any program, over a frame that has a mark already. What local processes receive begins with its IP
    /// header, which the kernel sees to.
    pub fn run_marked(
        &mut self,
        program: Program,
        frame: &[u8],
        ifindex: u32,
        ingress_ifindex: u32,
        mark: u32,
    ) -> anyhow::Result<Outcome> {
        self.run_in(program, frame, ifindex, &context(ifindex, ingress_ifindex, mark))
    }

    fn run_in(
        &mut self,
        program: Program,
        frame: &[u8],
        ifindex: u32,
        context: &[u8; CONTEXT_BYTES],
    ) -> anyhow::Result<Outcome> {
        self.interface(ifindex)?;
        let (action, mark) = Programs(&self.programs).run(program, frame, context)?;
        Ok(Outcome { action, events: self.take_events(), mark })
    }

    /// Mean time of one run over a frame, in ns, as the kernel measures `repeat` runs in a row.
    pub fn measure(
        &mut self,
        hook: Hook,
        frame: &[u8],
        ifindex: u32,
        ingress_ifindex: u32,
        repeat: u32,
    ) -> anyhow::Result<f64> {
        self.interface(ifindex)?;
        let (program, context) = (self.program(hook)?, context(ifindex, ingress_ifindex, 0));
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat, ..TestRunOptions::default() };
        let result =
            program.test_run(options).with_context(|| format!("cannot run {hook:?} at interface {ifindex}"))?;
        Ok(result.duration.as_secs_f64() * 1e9)
    }

    /// Runs a program over one frame `repeat` times on each of several threads at once, while another has what CPUs have
    /// counted for themselves added up again and again; what is told is thrown away.
    pub fn hammer(&mut self, hook: Hook, frame: &[u8], ifindex: u32, threads: u32, repeat: u32) -> anyhow::Result<()> {
        self.interface(ifindex)?;
        let (program, context) = (self.program(hook)?, context(ifindex, ifindex, 0));
        let start = Barrier::new(usize::try_from(threads)?);
        let run = || {
            start.wait();
            let options =
                TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat, ..TestRunOptions::new() };
            program.test_run(options)
        };
        // New threads are in this thread's network namespace.
        let (running, programs) = (AtomicBool::new(true), Programs(&self.programs));
        std::thread::scope(|scope| {
            let settles = scope.spawn(|| {
                while running.load(Ordering::Relaxed) {
                    programs.settle()?;
                }
                programs.settle()
            });
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            let ran: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect();
            running.store(false, Ordering::Relaxed);
            settles.join().expect("it does not panic")?;
            ran.into_iter().try_for_each(|run| run.map(drop).context("cannot run the program"))
        })?;
        self.take_events();
        Ok(())
    }

    /// Value of a counter of `reeve_abi::stats`, summed over the CPUs; what they have counted for themselves included.
    pub fn stat(&self, stat: u32) -> anyhow::Result<u64> {
        self.settle()?;
        rows::sum_over_cpus(self.fd("STATS"), stat, cpus()?)
    }

    /// Number of instructions that the verifier walked to accept a program; kernels before 5.16 do not tell.
    pub fn verified_instructions(&self, program: Program) -> anyhow::Result<Option<u32>> {
        let info = match self.programs.program(program.name()) {
            Some(programs::Program::SchedClassifier(program)) => program.info()?,
            Some(programs::Program::CgroupSkb(program)) => program.info()?,
            _ => anyhow::bail!("the object lacks {}", program.name()),
        };
        Ok(info.verified_instruction_count())
    }

    /// A program, to be called by others.
    pub fn program_fd(&self, hook: Hook) -> anyhow::Result<BorrowedFd<'_>> {
        Ok(self.program(hook)?.fd()?.as_fd())
    }

    /// The map of flows, to be read by others.
    pub fn flows_fd(&self) -> BorrowedFd<'_> {
        self.fd("FLOWS")
    }

    fn program(&self, hook: Hook) -> anyhow::Result<&SchedClassifier> {
        let name = Program::from(hook).name();
        match self.programs.program(name) {
            Some(programs::Program::SchedClassifier(program)) => Ok(program),
            _ => anyhow::bail!("the object lacks {name}"),
        }
    }

    /// Interface index -> endpoint.
    pub fn endpoints(&self) -> Rows<'_, u32, EndpointValue> {
        self.rows("ENDPOINTS")
    }
    /// Interface index -> what it is, if it is no pod's.
    pub fn devices(&self) -> Rows<'_, u32, DeviceValue> {
        self.rows("DEVICES")
    }
    /// (address, port, protocol) -> stands for others.
    pub fn services(&self) -> Rows<'_, ServiceKey, ServiceValue> {
        self.rows("SERVICES")
    }
    /// Exact address -> owner.
    pub fn addresses(&self) -> Rows<'_, Address, AddressValue> {
        self.rows("ADDRESSES")
    }
    /// Prefix -> identity.
    pub fn networks(&self) -> Rows<'_, NetworkKey, NetworkValue> {
        self.rows("NETWORKS")
    }
    /// Identity -> class.
    pub fn classes(&self) -> Rows<'_, IdentityId, ClassValue> {
        self.rows("CLASSES")
    }
    /// (policy, class) -> decision or table.
    pub fn peers(&self) -> Rows<'_, PeerKey, PeerValue> {
        self.rows("PEERS")
    }
    /// (table, protocol, port) -> decision.
    pub fn ports(&self) -> Rows<'_, PortKey, PortValue> {
        self.rows("PORTS")
    }
    /// (table, protocol, port prefix) -> decision.
    pub fn ranges(&self) -> Rows<'_, RangeKey, PortValue> {
        self.rows("RANGES")
    }
    /// Settings, at key 0.
    pub fn config(&self) -> Rows<'_, u32, Config> {
        self.rows("CONFIG")
    }
    /// Flows.
    pub fn flows(&self) -> Rows<'_, FlowKey, FlowValue> {
        self.rows("FLOWS")
    }
    /// What each CPU has counted of flows lately.
    pub fn recent(&self) -> Rows<'_, u32, RecentValue> {
        self.rows("RECENT")
    }
    /// Has all of [`Kernel::recent`] added up.
    pub fn settle(&self) -> anyhow::Result<()> {
        Programs(&self.programs).settle()
    }
    /// Denied tuples.
    pub fn denied(&self) -> Rows<'_, FlowKey, DeniedValue> {
        self.rows("DENIED")
    }
    /// Ports of fragmented packets.
    pub fn fragments(&self) -> Rows<'_, FragmentKey, FragmentValue> {
        self.rows("FRAGMENTS")
    }
    /// Exact counts.
    pub fn edges(&self) -> Rows<'_, EdgeKey, EdgeValue> {
        self.rows("EDGES")
    }

    /// What was told since this was asked last.
    pub fn take_events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.push(bytemuck::pod_read_unaligned(&item));
        }
        events
    }

    /// Makes an interface with this index in the thread's namespace, once: a test run wants one that exists. It is a
    /// bridge without ports, because not every kernel has dummy devices.
    pub(crate) fn interface(&mut self, ifindex: u32) -> anyhow::Result<()> {
        self.renew()?;
        if ifindex <= 1 || !self.interfaces.insert(ifindex) {
            return Ok(());
        }
        let (name, index) = (format!("pod{ifindex}"), ifindex.to_string());
        let ip = crate::lab::ip_program().context("iproute2 is not installed")?;
        let output = Command::new(ip).args(["link", "add", &name, "index", &index, "type", "bridge"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "cannot make interface {ifindex}: {}", said.trim());
        Ok(())
    }

    /// Tells the programs, as the agent would, that endpoints may have been written since the last run.
    fn renew(&self) -> anyhow::Result<()> {
        let generation = self.rows::<u32, u64>("GENERATION");
        generation.put(&0, &(generation.get(&0)?.unwrap_or_default() + 1))
    }

    fn rows<K, V>(&self, name: &'static str) -> Rows<'_, K, V> {
        Rows::new(name, self.fd(name))
    }

    fn fd(&self, name: &str) -> BorrowedFd<'_> {
        match self.programs.map(name) {
            Some(
                Map::HashMap(map) | Map::LruHashMap(map) | Map::LpmTrie(map) | Map::Array(map) | Map::PerCpuArray(map),
            ) => map.fd().as_fd(),
            _ => panic!("the object has no map {name} of a kind that tests read"),
        }
    }
}

fn cpus() -> anyhow::Result<usize> {
    aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("cannot read {path}: {error}"))
}

/// The programs alone: any thread may run them.
#[derive(Clone, Copy)]
struct Programs<'a>(&'a Ebpf);

impl Programs<'_> {
    fn settle(self) -> anyhow::Result<()> {
        let rows = u32::try_from(cpus()?)? * RECENT_PLACES;
        let options = TestRunOptions { data_in: Some(&[0; 64]), repeat: rows, ..TestRunOptions::default() };
        match self.0.program(Program::Settle.name()) {
            Some(programs::Program::SchedClassifier(program)) => program.test_run(options)?,
            _ => anyhow::bail!("the object lacks {}", Program::Settle.name()),
        };
        Ok(())
    }

    /// Runs one over a frame; what became of it, and its mark.
    fn run(self, program: Program, frame: &[u8], context: &[u8; CONTEXT_BYTES]) -> anyhow::Result<(Action, u32)> {
        let mut left = [0_u8; CONTEXT_BYTES];
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context),
            ctx_out: Some(&mut left),
            ..TestRunOptions::default()
        };
        let result = match self.0.program(program.name()) {
            Some(programs::Program::SchedClassifier(program)) => program.test_run(options),
            Some(programs::Program::CgroupSkb(program)) => program.test_run(options),
            _ => anyhow::bail!("the object lacks {}", program.name()),
        };
        let result = result.with_context(|| format!("cannot run {program:?}"))?;
        let action = match (program, result.return_value.cast_signed()) {
            (Program::HostIn, 1) | (_, TC_ACT_UNSPEC) => Action::Continue,
            (Program::HostIn, 0) | (_, TC_ACT_SHOT) => Action::Drop,
            (_, other) => anyhow::bail!("{program:?} returned {other}, which lets nothing through and drops nothing"),
        };
        let mark = left[CONTEXT_MARK..][..4].try_into().expect("four bytes");
        Ok((action, u32::from_ne_bytes(mark)))
    }
}

/// `struct __sk_buff` for a run at an interface.
pub(crate) fn context(ifindex: u32, ingress_ifindex: u32, mark: u32) -> [u8; CONTEXT_BYTES] {
    let mut context = [0_u8; CONTEXT_BYTES];
    context[CONTEXT_MARK..][..4].copy_from_slice(&mark.to_ne_bytes());
    context[CONTEXT_INGRESS_IFINDEX..][..4].copy_from_slice(&ingress_ifindex.to_ne_bytes());
    context[CONTEXT_IFINDEX..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
