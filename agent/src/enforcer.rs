//! The one owner of engine, maps and links: takes facts in, makes the kernel enforce them, answers questions.
//!
//! Invariant: nothing in the kernel changes before every file has been read once; an endpoint's row stands before its
//! programs are attached; a device whose pod is gone stays closed until the device goes.

use crate::config::{self, Attach};
use crate::continuity::{self, Checkpoint, CheckpointFile, Missed};
use crate::datapath::attach::{self, Look, Mechanism, Resumed};
use crate::datapath::discover::{self, Links, Place};
use crate::datapath::guard::{self, Guard};
use crate::datapath::maps::Occupancy;
use crate::datapath::reconcile::{self, Interfaces, Known};
use crate::datapath::room::AddressRoom;
use crate::datapath::services;
use crate::datapath::uplinks::Uplinks;
use crate::datapath::{Adopted, Attachments, Loaded, MapError, Maps, Pins, adopt, embedded_object};
use crate::dictionary::DictionaryFile;
use crate::metrics::Metrics;
use crate::seed::TrackedTable;
use crate::sweep::share;
use crate::upgrade::{self, Upgrade};
use crate::watch::files::Directory;
use anyhow::Context;
use reeve_abi::address::{Address, OWNER_CONTESTED};
use reeve_abi::config::{CONFIG_UNGUARDED, Config};
use reeve_abi::conntrack::BudgetValue;
use reeve_abi::device::{DEVICE_POD_BRIDGE, DEVICE_UPLINK, DeviceValue};
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::{ENDPOINT_MARKS, EndpointValue};
use reeve_abi::ids::WorkloadId;
use reeve_abi::{mark, stats};
use reeve_policy::Preview;
use reeve_policy::engine::Engine;
use reeve_policy::image::{EndpointImage, mapped};
use reeve_policy::limits::Limits;
use reeve_policy::model::{Level, Problem, Workload};
use reeve_policy::plan::Op;
use reeve_policy::provenance::{Dictionary, DictionaryEntry, workload_id};
use reeve_policy::store::Change;
use rtnetlink::Handle;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

/// What numbers stand for, shared with those who write records.
pub type SharedDictionary = Arc<RwLock<Dictionary>>;

/// What staged policies would decide, for those who write records.
pub type SharedPreview = Arc<RwLock<Preview>>;

/// What numbers mean, and what staged policies would decide.
#[derive(Clone, Debug)]
pub struct Meanings {
    /// The dictionary.
    pub dictionary: SharedDictionary,
    /// The preview.
    pub preview: SharedPreview,
}

/// How often a pod's port is looked for before the agent is ready without it.
const LOOKS_BEFORE_GIVING_UP: u32 = 20;

/// How long programs are taken to stand where they were seen, unless interfaces change.
const STAND_FOR: Duration = Duration::from_secs(1);

/// Between two counts of the maps that traffic fills.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// The node's enforcement.
#[allow(missing_debug_implementations, reason = "holds aya's handles, which have none")]
pub struct Enforcer {
    pub(crate) engine: Engine,
    pub(crate) loaded: Loaded,
    pub(crate) attachments: Attachments,
    pub(crate) uplinks: Uplinks,
    guard: Guard,
    /// Whether nothing unjudged can leave by a device without program.
    pub(crate) guarded: bool,
    cgroup: PathBuf,
    pub(crate) interfaces: Interfaces,
    pub(crate) directory: Directory,
    pub(crate) local_addresses: BTreeSet<IpAddr>,
    pub(crate) file_problems: Vec<Problem>,
    pub(crate) problems: Vec<Problem>,
    /// What in the kernel was found otherwise than it should be, until a whole look finds nothing.
    pub(crate) drift: Vec<Problem>,
    /// The settings that are to stay.
    pub(crate) settings: Option<Config>,
    /// When it was last looked whether programs still stand, and which interfaces there were.
    stood_at: Option<(Instant, Links)>,
    /// Pods that have used up their share of the flow table.
    pub(crate) crowded: Vec<Problem>,
    /// Pods for which `ENDPOINTS` has no room.
    homeless: BTreeMap<WorkloadId, Problem>,
    room: AddressRoom,
    /// Flows that had been denied for that when it was last looked at.
    pub(crate) crowded_out: u64,
    pub(crate) node: String,
    /// The revision that the kernel enforces.
    pub(crate) active: u64,
    /// Local endpoints whose interface has not been found.
    pub(crate) waiting: BTreeSet<WorkloadId>,
    /// Why the agent is not ready.
    pub(crate) reasons: Vec<String>,
    /// Pods behind a bridge that has not learnt their port: how often they were looked for.
    pub(crate) resolving: BTreeMap<WorkloadId, u32>,
    /// Rows of the maps that traffic fills, as they were last counted.
    pub(crate) traffic_rows: Vec<Occupancy>,
    counted_at: Option<Instant>,
    dictionary_file: DictionaryFile,
    /// Told to those who write records, but not on disk yet.
    unwritten: Vec<DictionaryEntry>,
    dictionary: SharedDictionary,
    preview: SharedPreview,
    pub(crate) handle: Handle,
    pub(crate) metrics: Arc<Metrics>,
    /// What the kernel held at start, or after a failed plan: the next plan starts from there.
    pub(crate) adopt_first: bool,
    /// What is known of the time before this agent.
    missed: Missed,
    /// Interfaces that were here before this agent and that nobody enforced: what lives on them is not to be cut for
    /// want of knowing who began.
    brown_field: BTreeSet<u32>,
    /// What is left to do of taking over from an agent with another layout of maps.
    pub(crate) upgrade: Option<Upgrade>,
    /// Counts that are told with the next window.
    pub(crate) unplaced: Vec<(EdgeKey, EdgeValue)>,
    boot: String,
    telling: bool,
    checkpoint_file: CheckpointFile,
}

impl Enforcer {
    /// Loads the programs, adopting what an earlier agent pinned; enforcement is as it was until the first step.
    pub async fn start(config: &config::Config, handle: Handle, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let node = config.node.clone().context("which node is this? give --node NAME")?;
        let manifests = config.manifests.clone().context("where are the manifests? give --manifests DIR")?;
        let (dictionary_file, entries) = DictionaryFile::open(&config.dictionary())?;
        guard::look_for_others(config.mark_mask.shift)?;
        let loaded = Loaded::load(embedded_object(), Pins::Directory(&config.map_pins()), &config.map_entries)?;
        configure(&loaded.maps, config.mark_mask.shift)?;
        let upgrade = upgrade::begin(&loaded, &metrics)?;
        let mechanism = match config.attach {
            Attach::Auto => attach::probe(),
            Attach::Tcx => Mechanism::Tcx,
            Attach::Clsact => Mechanism::Clsact,
        };
        let mut attachments = Attachments::new(Some(&config.link_pins()), mechanism)?;
        let found = adopt::read(&loaded.maps)?;
        let mut interfaces = Interfaces::new();
        let links = Links::read(&handle).await.context("the node's interfaces cannot be listed")?;
        for (workload, ifindex) in &found.interfaces {
            interfaces.extend(links.device(*ifindex).map(|device| (*workload, device)));
        }
        let checkpoint_file = CheckpointFile::open(&config.checkpoint());
        let boot = continuity::boot_id().context("the kernel does not say which boot this is")?;
        let counted = loaded.aside.iter().find(|map| map.name == "EDGES");
        let now = Checkpoint {
            boot: boot.clone(),
            // One that was moved away is told when its last program has been replaced.
            edges: counted.map_or_else(|| loaded.maps.edges.id(), |map| map.id),
            lost: loaded.maps.stats.sum(stats::EDGES_LOST)?,
            marks: attachments.marks_of_pins()?,
            ..Checkpoint::default()
        };
        let subject = |hook: &str| {
            let ifindex = attach::parse(Path::new(hook))?.0;
            found.interfaces.iter().find_map(|(workload, other)| (*other == ifindex).then_some(*workload))
        };
        let missed = Missed::between(checkpoint_file.last(), &now, subject);
        let mut loaded = loaded;
        // Programs of ours would judge by maps that are not filled yet: they are replaced one by one when those are.
        let rebuilding =
            upgrade.as_ref().is_some_and(|upgrade| upgrade.seed_flows || loaded.adopted == Adopted::Nothing);
        let resumed = if rebuilding { Resumed::default() } else { attachments.resume(&mut loaded)? };
        let mut uplinks = Uplinks::new(Some(&config.link_pins()), mechanism);
        if !rebuilding {
            uplinks.resume(&mut loaded)?;
        }
        metrics.adopted_links.set(i64::try_from(resumed.replaced.len()).unwrap_or(i64::MAX));
        tracing::info!(replaced = resumed.replaced.len(), gone = resumed.gone.len(), "links adopted");
        let mut enforced: BTreeSet<u32> = attachments.pinned()?.into_keys().collect();
        enforced.extend(loaded.maps.endpoints.read()?.into_iter().map(|(ifindex, _)| ifindex));
        if upgrade.as_ref().is_some_and(|upgrade| upgrade.seed_flows) {
            enforced.clear(); // their flows are as unknown as those of pods that nobody enforced
        }
        let brown_field = links.indexes().filter(|ifindex| !enforced.contains(ifindex)).collect();
        let last = checkpoint_file.last().map_or(0, |last| last.revision);
        let revision = found.revision.0.max(last).max(upgrade.as_ref().map_or(0, |upgrade| upgrade.revision));
        Ok(Self {
            brown_field,
            engine: Engine::with_limits(&node, revision, limits(&loaded.maps)),
            loaded,
            attachments,
            uplinks,
            guard: Guard::new(config.mark_mask.shift),
            guarded: true,
            cgroup: config.cgroup.clone(),
            interfaces,
            directory: Directory::new(&manifests),
            local_addresses: BTreeSet::new(),
            file_problems: Vec::new(),
            problems: Vec::new(),
            drift: Vec::new(),
            settings: None,
            stood_at: None,
            crowded: Vec::new(),
            homeless: BTreeMap::new(),
            room: AddressRoom::default(),
            crowded_out: 0,
            node,
            active: 0,
            waiting: BTreeSet::new(),
            reasons: vec!["the manifests have not been read yet".to_owned()],
            resolving: BTreeMap::new(),
            traffic_rows: Vec::new(),
            counted_at: None,
            dictionary_file,
            unwritten: Vec::new(),
            dictionary: Arc::new(RwLock::new(Dictionary::load(entries))),
            preview: Arc::default(),
            handle,
            metrics,
            adopt_first: true,
            missed,
            upgrade,
            unplaced: Vec::new(),
            boot,
            telling: false,
            checkpoint_file,
        })
    }

    /// What is known of the time before this agent, which is said once.
    pub(crate) fn missed(&mut self) -> Missed {
        let missed = std::mem::take(&mut self.missed);
        self.metrics.interval(&missed);
        if missed.is_proven() {
            tracing::info!("every packet since the last agent was counted: the same links, programs and maps stand");
        } else {
            let (reasons, pods) = (missed.reasons.join("; "), missed.unproven.len());
            tracing::warn!(reasons, pods, "nothing proves that every packet since the last agent was counted");
        }
        missed
    }

    /// Writes down what stands in the kernel, for the next agent; `telling`: a window is being told.
    pub(crate) fn checkpoint(&mut self, telling: bool) -> anyhow::Result<()> {
        self.telling = telling;
        let lost = self.loaded.maps.stats.sum(stats::EDGES_LOST)?;
        let checkpoint = Checkpoint {
            boot: self.boot.clone(),
            edges: self.loaded.maps.edges.id(),
            lost,
            marks: self.attachments.marks(&mut self.loaded)?,
            revision: self.revision(),
            telling,
        };
        self.checkpoint_file.write(&checkpoint).context("the checkpoint cannot be written")
    }

    /// Whether the rows of the maps that traffic fills were counted after that moment.
    pub(crate) fn counted_since(&self, moment: Instant) -> bool {
        self.counted_at.is_some_and(|at| at > moment)
    }

    /// What records are told with.
    pub fn meanings(&self) -> Meanings {
        Meanings { dictionary: Arc::clone(&self.dictionary), preview: Arc::clone(&self.preview) }
    }

    /// Reads the facts and makes the kernel enforce them. What fails is a reason not to be ready and is tried again
    /// with the next step.
    pub async fn step(&mut self) {
        let begun = Instant::now();
        let mut reasons = Vec::new();
        if let Err(error) = self.try_step(begun, &mut reasons).await {
            reasons.push(format!("{error:#}"));
            self.adopt_first = true;
        }
        if reasons != self.reasons {
            tracing::warn!(reasons = reasons.join("; "), "readiness changed");
            self.reasons = reasons;
        }
        self.count_traffic_rows();
        if self.active > 0
            && let Err(error) = self.checkpoint(self.telling)
        {
            tracing::error!(error = format!("{error:#}"), "the next agent will not be able to prove what it missed");
        }
        self.metrics.observe(self);
    }

    /// The kernel cannot say how full a map is: counting reads all of it, so this is done now and then.
    fn count_traffic_rows(&mut self) {
        if self.counted_at.is_some_and(|at| at.elapsed() < COUNT_EVERY) {
            return;
        }
        match self.loaded.maps.traffic_occupancy() {
            Ok(rows) => self.traffic_rows = rows,
            Err(error) => tracing::error!(error = format!("{error:#}"), "the rows of maps cannot be counted"),
        }
        self.counted_at = Some(Instant::now());
    }

    async fn try_step(&mut self, begun: Instant, reasons: &mut Vec<String>) -> anyhow::Result<()> {
        // What can fail comes before the scan: a change is told by one scan only.
        let local = discover::local_addresses(&self.handle).await.context("the node's addresses cannot be listed")?;
        let scan = self
            .directory
            .scan()
            .with_context(|| format!("manifests directory {} cannot be listed", self.directory.root().display()))?;
        self.file_problems = scan.problems;
        let mut changes = scan.changes;
        if local != self.local_addresses {
            self.local_addresses.clone_from(&local);
            changes.push(Change::LocalAddresses(local));
        }
        let first = self.active == 0;
        if first && !scan.unread.is_empty() {
            reasons.extend(scan.unread.iter().map(|path| unread(path)));
            // The changes that were told now will not be told again: they go into the engine, the kernel stays.
            self.learn(changes)?;
            return Ok(());
        }
        let nothing_new = changes.is_empty() && !first && !self.adopt_first;
        let mut ops = if nothing_new { Vec::new() } else { self.learn(changes)? };
        if self.adopt_first {
            let found = adopt::read(&self.loaded.maps)?;
            self.room = AddressRoom::new(self.loaded.maps.addresses.capacity(), &found.image.addresses);
            let update = self.engine.resume(&found.image);
            self.tell(update.entries)?;
            ops = update.plan;
        }
        self.carry_out(&ops)?;
        self.adopt_first = false;
        self.find_interfaces(reasons).await?;
        if self.upgrade.is_some() && !self.is_resolving() && reasons.is_empty() {
            let left = self.finish_upgrade()?;
            self.unplaced.extend(left);
        }
        self.remember_settings()?;
        if self.is_resolving() {
            reasons.push(format!("bridges have not told the ports of {} pods yet", self.resolving.len()));
        }
        if !nothing_new {
            self.active = self.revision();
            self.metrics.applied(begun.elapsed());
        }
        Ok(())
    }

    /// Whether a bridge is still expected to learn a pod's port; one that stays silent is waited for no longer.
    pub(crate) fn is_resolving(&self) -> bool {
        self.resolving.values().any(|looks| *looks < LOOKS_BEFORE_GIVING_UP)
    }

    /// The newest revision that the engine has made.
    pub(crate) fn revision(&self) -> u64 {
        self.engine.revision().0
    }

    pub(crate) fn learn(&mut self, changes: Vec<Change>) -> anyhow::Result<Vec<Op>> {
        let begun = Instant::now();
        let update = self.engine.apply(changes);
        self.metrics.compiled(begun.elapsed());
        self.problems = update.problems;
        self.tell(update.entries)?;
        let now = self.engine.preview();
        let mut told = self.preview.write().expect("nobody panics while writing the preview");
        if !(now.is_empty() && told.is_empty()) {
            told.clone_from(now);
        }
        drop(told);
        Ok(update.plan)
    }

    /// Makes entries known: on disk before any map refers to them. What a full disk refuses is tried again with the
    /// next change.
    pub(crate) fn tell(&mut self, entries: Vec<DictionaryEntry>) -> anyhow::Result<()> {
        let mut known = self.dictionary.write().expect("nobody panics while writing the dictionary");
        self.unwritten.extend(entries.into_iter().filter(|entry| known.insert(entry)));
        drop(known);
        self.dictionary_file.append(&self.unwritten)?;
        self.unwritten.clear();
        Ok(())
    }

    /// All problems: those of files and those of objects.
    pub(crate) fn all_problems(&self) -> impl Iterator<Item = Problem> {
        let kept = self.file_problems.iter().chain(&self.problems).chain(&self.drift).chain(&self.crowded);
        kept.cloned().chain(self.unplaced_problems())
    }

    /// How many problems of a level there are.
    pub(crate) fn problem_count(&self, level: Level) -> usize {
        self.all_problems().filter(|problem| problem.level == level).count()
    }

    pub(crate) fn carry_out(&mut self, ops: &[Op]) -> Result<(), MapError> {
        // A pod that is gone from the facts may live on for a while: its device is closed, not freed.
        let gone: Vec<WorkloadId> = ops
            .iter()
            .filter_map(|op| if let Op::DeleteEndpoint(workload) = op { Some(*workload) } else { None })
            .collect();
        for workload in gone {
            if let Some(device) = self.interfaces.remove(&workload) {
                self.waiting.remove(&workload);
                let taken = self.interfaces.values().any(|other| other.ifindex == device.ifindex);
                if !taken {
                    self.loaded.maps.endpoints.put(&device.ifindex, &closed(workload, device.ifindex))?;
                }
            }
        }
        let before = self.known();
        let ops = self.room.fit(ops);
        let now = self.known();
        if now == Known::Some && before == Known::All {
            // Before an address is passed over, nobody may take it for one outside the cluster.
            reconcile::set_known(&self.loaded.maps, now)?;
        }
        reconcile::apply(&self.loaded.maps, &ops, &self.interfaces, now)?;
        if now == Known::All && before == Known::Some {
            reconcile::set_known(&self.loaded.maps, now)?;
        }
        Ok(())
    }

    /// Whether every address has a place in the kernel.
    pub(crate) fn known(&self) -> Known {
        if self.room.waiting() == 0 { Known::All } else { Known::Some }
    }

    /// Whether this address has a place in the kernel.
    pub(crate) fn has_room(&self, address: &Address) -> bool {
        self.room.has(address)
    }

    /// What has no room in the kernel.
    pub(crate) fn unplaced_problems(&self) -> Vec<Problem> {
        let mut problems = self.homeless.values().cloned().collect::<Vec<_>>();
        if self.known() == Known::Some {
            problems.push(Problem {
                level: Level::Warning,
                object: format!("Node/{}", self.node),
                field: "map ADDRESSES".to_owned(),
                value: self.loaded.maps.addresses.capacity().to_string(),
                what: format!("{} addresses have no room", self.room.waiting()),
                effect: "workloads that a policy selects are denied every peer that is not known".to_owned(),
            });
        }
        problems
    }

    /// Finds the devices of local endpoints, attaches to new ones and lets go of those that have vanished. What fails
    /// for one endpoint is a reason not to be ready and keeps no other from being enforced.
    async fn find_interfaces(&mut self, reasons: &mut Vec<String>) -> anyhow::Result<()> {
        let links = Links::read(&self.handle).await.context("the node's interfaces cannot be listed")?;
        for (ifindex, _) in self.loaded.maps.endpoints.read()? {
            if !links.contains(ifindex) {
                self.loaded.maps.endpoints.delete(&ifindex)?;
                self.attachments.detach(ifindex)?;
            }
        }
        self.interfaces.retain(|_, device| links.contains(device.ifindex));
        let stood = self.stood_at.as_ref().is_some_and(|(at, then)| at.elapsed() < STAND_FOR && *then == links);
        if !stood {
            self.check_attached(&links, Look::Quick);
            self.stood_at = Some((Instant::now(), links.clone()));
        }
        let endpoints: Vec<_> = self.engine.image().endpoints.iter().map(|(id, image)| (*id, *image)).collect();
        self.homeless.retain(|id, _| endpoints.iter().any(|(other, _)| other == id));
        self.waiting.retain(|id| endpoints.iter().any(|(other, _)| other == id));
        self.resolving.retain(|id, _| endpoints.iter().any(|(other, _)| other == id));
        let mut tracked = TrackedTable::default();
        for (workload, image) in endpoints {
            if let Err(error) = self.find_interface(&links, workload, &image, &mut tracked).await {
                reasons.push(format!("endpoint {workload}: {error:#}"));
            }
        }
        self.close_contested(&links).await?;
        self.hook_devices(&links, reasons)
    }

    /// Puts the programs for what leaves and enters the node on every device that is no pod's, and on the cgroup of its
    /// processes. Where something pending could get away unjudged, pods' packets are judged by what they show as well.
    fn hook_devices(&mut self, links: &Links, reasons: &mut Vec<String>) -> anyhow::Result<()> {
        let maps = &self.loaded.maps;
        let pods: BTreeSet<u32> = maps.endpoints.read()?.into_iter().map(|(ifindex, _)| ifindex).collect();
        let bridges: BTreeSet<u32> =
            self.interfaces.values().map(|device| device.bridge).filter(|bridge| *bridge != 0).collect();
        let devices = links.uplinks(&pods, &bridges);
        let mut rows: BTreeMap<u32, DeviceValue> = devices
            .iter()
            .map(|(ifindex, device)| (*ifindex, DeviceValue { kind: DEVICE_UPLINK, header_bytes: device.header_bytes }))
            .collect();
        rows.extend(bridges.iter().map(|bridge| (*bridge, POD_BRIDGE)));
        reconcile::follow(&maps.devices, &rows)?;
        let services = reconcile::follow(&maps.services, &services::rows(self.engine.world()));
        let mut failed: Vec<String> =
            self.uplinks.follow(&mut self.loaded, &devices).iter().map(|error| sentence(error)).collect();
        failed.extend(self.uplinks.attach_host(&mut self.loaded, &self.cgroup).err().map(|error| sentence(&error)));
        let hooked = self.attachments.attached().chain(self.uplinks.attached()).chain(bridges).collect();
        failed.extend(self.guard.follow(&hooked).err().map(|error| sentence(&error)));
        self.guarded = failed.is_empty();
        reasons.extend(failed);
        // A client whom nobody notes is nobody in particular: what is missing here opens nothing.
        reasons.extend(services.err().map(|error| sentence(&error)));
        let config = self.loaded.maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        let flags = self.config_flags();
        if config.flags != flags {
            self.loaded.maps.config.put(&0, &Config { flags, ..config })?;
        }
        Ok(())
    }

    /// The `CONFIG_*` bits that hold now.
    pub(crate) fn config_flags(&self) -> u32 {
        if self.guarded { 0 } else { CONFIG_UNGUARDED }
    }

    /// A pod whose address others claim too owns none, so it is not found by it: the device behind a contested address
    /// is closed, unless it is known to be a pod's and enforced as such.
    async fn close_contested(&mut self, links: &Links) -> anyhow::Result<()> {
        let image = self.engine.image();
        let contested = image.addresses.iter().filter(|(_, value)| value.owner == OWNER_CONTESTED);
        let contested: Vec<IpAddr> = contested.map(|(address, _)| unmapped(address.0)).collect();
        for address in contested {
            let world = self.engine.world();
            let here = |pod: &&Arc<Workload>| pod.node == self.node && pod.addresses.contains(&address);
            let Some(claimant) = world.workloads.values().find(here) else { continue };
            let claimant = workload_id(&claimant.uid);
            let Place::Device(device) = discover::find(&self.handle, links, address).await? else { continue };
            if self.attachments.is_attached(device.ifindex) {
                continue;
            }
            // Which of several claimants is behind it cannot be told, so no policy is asked either.
            // It answers who asks for its neighbour, so that packets come as far as the program that denies them.
            let (address_v4, address_v6) = match address {
                IpAddr::V4(_) => (mapped(address), Address::default()),
                IpAddr::V6(_) => (Address::default(), mapped(address)),
            };
            let image = EndpointImage {
                contested: [true; 2],
                ready: false,
                address_v4,
                address_v6,
                ..EndpointImage::default()
            };
            let row = reconcile::endpoint_row(claimant, &image, &device, self.known());
            self.loaded.maps.endpoints.put(&device.ifindex, &row)?;
            self.attachments.attach(&mut self.loaded, &device.name, device.ifindex)?;
            tracing::warn!(interface = device.name, %address, "closed: several pods claim the address behind it");
        }
        Ok(())
    }

    async fn find_interface(
        &mut self,
        links: &Links,
        workload: WorkloadId,
        image: &EndpointImage,
        tracked: &mut TrackedTable,
    ) -> anyhow::Result<()> {
        let mut place = Place::Nowhere;
        for address in [image.address_v4, image.address_v6].iter().filter(|address| address.0 != [0; 16]) {
            place = discover::find(&self.handle, links, unmapped(address.0)).await?;
            if matches!(place, Place::Device(_)) {
                break;
            }
        }
        let Place::Device(device) = place else {
            // One that was found before keeps its place: a route may be gone for a moment.
            if !self.interfaces.contains_key(&workload) {
                self.waiting.insert(workload);
                if matches!(place, Place::Resolving { .. }) {
                    *self.resolving.entry(workload).or_default() += 1;
                }
            }
            return Ok(());
        };
        self.waiting.remove(&workload);
        self.resolving.remove(&workload);
        let known = self.interfaces.get(&workload);
        if known == Some(&device) && self.attachments.is_attached(device.ifindex) {
            return Ok(());
        }
        let moved = known.filter(|known| known.ifindex != device.ifindex).cloned();
        // A device is one pod's: whose address is behind it now, not who was found there before.
        self.interfaces.retain(|_, other| other.ifindex != device.ifindex);
        self.interfaces.insert(workload, device.clone());
        for (address, value) in &self.engine.image().addresses {
            if value.workload == workload && self.room.has(address) {
                self.loaded.maps.addresses.put(address, &reconcile::placed(*value, &self.interfaces))?;
            }
        }
        let seeds_all = self.upgrade.as_ref().is_some_and(|upgrade| upgrade.seed_flows);
        if self.brown_field.remove(&device.ifindex) && (seeds_all || !self.attachments.is_attached(device.ifindex)) {
            self.seed(workload, image, tracked)?;
        }
        if device.bridge != 0 {
            // What passes over the bridge keeps its mark until it reaches a pod.
            self.loaded.maps.devices.put(&device.bridge, &POD_BRIDGE)?;
            self.uplinks.release(device.bridge)?;
        }
        let row = reconcile::endpoint_row(workload, image, &device, self.known());
        // Without its programs nothing that it sends is marked.
        let unmarked = EndpointValue { flags: row.flags & !ENDPOINT_MARKS, ..row };
        if let Err(error) = self.loaded.maps.endpoints.put(&device.ifindex, &unmarked) {
            if error.is_full() {
                self.attachments.hold(&mut self.loaded, &device.name, device.ifindex)?;
                self.interfaces.remove(&workload);
                self.waiting.insert(workload);
                self.homeless.insert(workload, self.homeless_problem(workload));
            }
            return Err(error.into());
        }
        let budget = BudgetValue { used: 0, limit: share(self.loaded.maps.flows.capacity()) };
        self.loaded.maps.budgets.put_new(&workload.0, &budget)?;
        if self.attachments.attach(&mut self.loaded, &device.name, device.ifindex)? > 0 {
            self.metrics.adopted_links.inc();
        }
        self.loaded.maps.endpoints.put(&device.ifindex, &row)?;
        self.homeless.remove(&workload);
        self.attachments.release(&device.name, device.ifindex)?;
        tracing::info!(interface = device.name, ifindex = device.ifindex, "endpoint attached");
        // The device that it left is closed, unless it is another pod's already.
        if let Some(old) = moved
            && !self.interfaces.values().any(|other| other.ifindex == old.ifindex)
        {
            self.loaded.maps.endpoints.put(&old.ifindex, &closed(workload, old.ifindex))?;
        }
        Ok(())
    }
}

impl Enforcer {
    fn homeless_problem(&self, workload: WorkloadId) -> Problem {
        let pod = self.engine.world().workloads.values().find(|pod| workload_id(&pod.uid) == workload);
        Problem {
            level: Level::Warning,
            object: pod.map_or_else(|| workload.to_string(), |pod| format!("Pod/{}/{}", pod.namespace, pod.name)),
            field: "map ENDPOINTS".to_owned(),
            value: self.loaded.maps.endpoints.capacity().to_string(),
            what: "there is no room for another endpoint".to_owned(),
            effect: "everything that the pod sends or receives is dropped".to_owned(),
        }
    }
}

fn unread(path: &Path) -> String {
    format!("{} has not been readable yet; the kernel stays as it is", path.display())
}

/// Half of what each map holds: while a plan is carried out the old rows and the new ones are there together.
fn limits(maps: &Maps) -> Limits {
    let half = |capacity: u32| usize::try_from(capacity / 2).unwrap_or(usize::MAX);
    Limits {
        networks: half(maps.networks.capacity()),
        classes: half(maps.classes.capacity()),
        peers: half(maps.peers.capacity()),
        ports: half(maps.ports.capacity()),
        ranges: half(maps.ranges.capacity()),
    }
}

/// A bridge with ports of pods.
const POD_BRIDGE: DeviceValue = DeviceValue { kind: DEVICE_POD_BRIDGE, header_bytes: 14 };

/// Tells the programs which bits of marks they may use, and how many slots each CPU has.
fn configure(maps: &Maps, mark_shift: u32) -> anyhow::Result<()> {
    let cpus = std::fs::read_to_string("/sys/devices/system/cpu/possible").context("the CPUs cannot be counted")?;
    let last = cpus.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    let cpus = last.with_context(|| format!("/sys/devices/system/cpu/possible says {cpus:?}"))? + 1;
    let slots_per_cpu = 1 << (mark::SLOTS / cpus).max(1).ilog2();
    let config = maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
    maps.config.put(&0, &Config { mark_shift, slots_per_cpu, ..config })?;
    Ok(())
}

/// An error with its causes.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A row that lets nothing new through: not ready.
pub(crate) fn closed(workload: WorkloadId, ifindex: u32) -> EndpointValue {
    EndpointValue { head_ifindex: ifindex, tail_ifindex: ifindex, workload, ..EndpointValue::default() }
}

/// The address that a mapped form stands for.
pub(crate) fn unmapped(bytes: [u8; 16]) -> IpAddr {
    let v6 = std::net::Ipv6Addr::from(bytes);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}
