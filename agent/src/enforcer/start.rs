//! Takes over what an earlier agent left in the kernel, before anything is changed there.

use super::Enforcer;
use super::announced::Announced;
use super::devices::Fresh;
use crate::cni::installer::Complaints;
use crate::cni::waiting::Waiting;
use crate::config::{self, Attach};
use crate::continuity::{self, Checkpoint, CheckpointFile, Missed};
use crate::datapath::attach::{self, Mechanism, Resumed};
use crate::datapath::discover::Links;
use crate::datapath::guard::{self, Guard};
use crate::datapath::host::HostHook;
use crate::datapath::reconcile::Interfaces;
use crate::datapath::room::AddressRoom;
use crate::datapath::uplinks::Uplinks;
use crate::datapath::{Adopted, Attachments, Loaded, Maps, Pins, adopt, embedded_object};
use crate::dictionary::DictionaryFile;
use crate::metrics::Metrics;
use crate::standing::Standings;
use crate::status;
use crate::unseen::Unseen;
use crate::upgrade;
use crate::watch::Source;
use anyhow::Context;
use reeve_abi::config::Config;
use reeve_abi::{mark, stats};
use reeve_policy::engine::Engine;
use reeve_policy::limits::Limits;
use reeve_policy::provenance::Dictionary;
use rtnetlink::Handle;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, RwLock};
use tokio::sync::watch;

impl Enforcer {
    /// Loads the programs, adopting what an earlier agent pinned; enforcement is as it was until the first step.
    pub async fn start(
        config: &config::Config,
        source: Source,
        handle: Handle,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let node = config.node.clone().context("which node is this? give --node NAME")?;
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
        let telling = missed.telling;
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
        let announced = Announced::open(&config.announced(), &boot, &node);
        // What was announced began under an agent: nothing unknown lives on it.
        enforced.extend(announced.all().map(|one| one.ifindex));
        let unknown = links.indexes().filter(|ifindex| !enforced.contains(ifindex));
        let brown_field = unknown.filter_map(|ifindex| Some((ifindex, links.device(ifindex)?.name))).collect();
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
            host: HostHook::new(&config.cgroup, &config.link_pins()),
            interfaces,
            source,
            announced,
            fresh: Fresh::default(),
            newcomers: Waiting::default(),
            complaints: Complaints::default(),
            unseen: Unseen::default(),
            local_addresses: BTreeSet::new(),
            source_problems: Vec::new(),
            problems: Vec::new(),
            standings: Standings::default(),
            outcomes: watch::Sender::new(None),
            untold: status::Complaints::default(),
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
            reasons: vec!["the facts have not been read yet".to_owned()],
            stale: Vec::new(),
            resolving: BTreeMap::new(),
            traffic_rows: Vec::new(),
            counted_at: None,
            device_rows: 0,
            service_rows: BTreeMap::new(),
            services_stand: false,
            services_stirred: false,
            leaving: None,
            passed: Arc::default(),
            looked: BTreeMap::new(),
            looked_at: None,
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
            rehung: false,
            remembered: None,
            // Until its rows are told anew and gone, an agent after this one has to know of them too.
            telling,
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
