//! Prometheus metrics; docs/metrics.md explains each.

use crate::continuity::Missed;
use crate::enforcer::Enforcer;
use crate::standing::{Standing, State};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::stats;
use reeve_flow::record::Flag;
use reeve_policy::model::Level;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// One verdict's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VerdictLabels {
    /// `ingress` or `egress`.
    pub direction: String,
    /// `allow` or `deny`.
    pub verdict: String,
    /// `Kind/namespace/name`, `Kind/name` or `default:NAME`.
    pub policy: String,
}

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabels {
    /// From a set that is closed in the code.
    pub state: String,
}

/// A map's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MapLabels {
    /// As in the program.
    pub map: String,
}

/// What had drifted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DriftLabels {
    /// A map's name, or what of a link.
    pub what: String,
}

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    /// As RBAC names it, such as `networkpolicies.networking.k8s.io`.
    pub kind: String,
}

/// A kind of object, and how a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// As RBAC names it.
    pub kind: String,
    /// From a set that is closed in the code.
    pub state: String,
}

/// What became of a map.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FateLabels {
    /// As in the program.
    pub map: String,
    /// From a set that is closed in the code.
    pub state: String,
}

/// All families.
#[derive(Debug)]
#[allow(missing_docs, reason = "docs/metrics.md has a row for each")]
pub struct Metrics {
    registry: Registry,
    pub verdicts: Family<VerdictLabels, Counter>,
    pub flow_events: Family<StateLabels, Counter>,
    pub records_lost: Counter,
    /// Flows that pods began by answering.
    pub began_unseen: Counter,
    pub windows: Family<StateLabels, Counter>,
    pub window_rows: Family<StateLabels, Counter>,
    pub intervals: Family<StateLabels, Counter>,
    pub seeded_flows: Family<StateLabels, Counter>,
    pub migrated_maps: Family<FateLabels, Counter>,
    pub drift: Family<DriftLabels, Counter>,
    pub attestations: Counter,
    pub datapath_packets: Family<StateLabels, Counter<u64, AtomicU64>>,
    pub endpoints: Family<StateLabels, Gauge>,
    pub problems: Family<StateLabels, Gauge>,
    pub identities: Gauge,
    pub policies: Gauge,
    pub policy_states: Family<StateLabels, Gauge>,
    pub policy_active_seconds: Histogram,
    pub policy_waiting_seconds: Gauge<f64, AtomicU64>,
    pub revision: Family<StateLabels, Gauge>,
    pub map_entries: Family<MapLabels, Gauge>,
    pub map_capacity: Family<MapLabels, Gauge>,
    pub apply_seconds: Histogram,
    pub compile_seconds: Histogram,
    pub adopted_links: Gauge,
    pub hooks: Family<StateLabels, Gauge>,
    pub cni_adds: Family<StateLabels, Counter>,
    pub cni_add_seconds: Histogram,
    pub cni_announcements: Family<StateLabels, Gauge>,
    pub watch_objects: Family<KindLabels, Gauge>,
    pub watch_up: Family<KindLabels, Gauge>,
    pub watch_lists: Family<KindLabels, Counter>,
    pub watch_failures: Family<KindLabels, Counter>,
    pub status_leader: Gauge,
    pub status_due: Gauge,
    pub status_requests: Family<RequestLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = || exponential_buckets(0.000_25, 2.0, 16);
        let mut metrics = Self {
            registry: Registry::with_prefix("reeve"),
            verdicts: Family::default(),
            flow_events: Family::default(),
            records_lost: Counter::default(),
            began_unseen: Counter::default(),
            windows: Family::default(),
            window_rows: Family::default(),
            intervals: Family::default(),
            seeded_flows: Family::default(),
            migrated_maps: Family::default(),
            drift: Family::default(),
            attestations: Counter::default(),
            datapath_packets: Family::default(),
            endpoints: Family::default(),
            problems: Family::default(),
            identities: Gauge::default(),
            policies: Gauge::default(),
            policy_states: Family::default(),
            policy_active_seconds: Histogram::new(buckets()),
            policy_waiting_seconds: Gauge::default(),
            revision: Family::default(),
            map_entries: Family::default(),
            map_capacity: Family::default(),
            apply_seconds: Histogram::new(buckets()),
            compile_seconds: Histogram::new(buckets()),
            adopted_links: Gauge::default(),
            hooks: Family::default(),
            cni_adds: Family::default(),
            cni_add_seconds: Histogram::new(buckets()),
            cni_announcements: Family::default(),
            watch_objects: Family::default(),
            watch_up: Family::default(),
            watch_lists: Family::default(),
            watch_failures: Family::default(),
            status_leader: Gauge::default(),
            status_due: Gauge::default(),
            status_requests: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("verdicts", "Verdicts recorded, by decider", metrics.verdicts.clone());
        registry.register("flow_events", "Flow events read from the kernel", metrics.flow_events.clone());
        registry.register(
            "began_unseen",
            "Flows of which no program has seen the first packet: a pod of this node answers it",
            metrics.began_unseen.clone(),
        );
        registry.register("records_lost", "Records that a sink could not take", metrics.records_lost.clone());
        registry.register("windows", "Windows of exact counts that ended", metrics.windows.clone());
        registry.register("window_rows", "Rows of windows told", metrics.window_rows.clone());
        registry.register("intervals", "Intervals between two agents", metrics.intervals.clone());
        registry.register("seeded_flows", "Flows from before enforcement", metrics.seeded_flows.clone());
        registry.register("migrated_maps", "Maps of another layout found", metrics.migrated_maps.clone());
        registry.register("drift", "Found otherwise in the kernel and put right", metrics.drift.clone());
        registry.register("attestations", "Comparisons of the kernel with the image", metrics.attestations.clone());
        registry.register(
            "datapath_packets",
            "Packets and losses counted in the kernel",
            metrics.datapath_packets.clone(),
        );
        registry.register("endpoints", "Endpoints of this node", metrics.endpoints.clone());
        registry.register("problems", "Problems in the input", metrics.problems.clone());
        registry.register("identities", "Identities in use", metrics.identities.clone());
        registry.register("policies", "Policies in force", metrics.policies.clone());
        registry.register("policy_states", "Policies, by what became of them", metrics.policy_states.clone());
        registry.register(
            "policy_active_seconds",
            "From a policy's being taken up to the kernel",
            metrics.policy_active_seconds.clone(),
        );
        registry.register(
            "policy_waiting_seconds",
            "Since when the oldest policy waits to be in force",
            metrics.policy_waiting_seconds.clone(),
        );
        registry.register("revision", "Revisions", metrics.revision.clone());
        registry.register("map_entries", "Rows in a map", metrics.map_entries.clone());
        registry.register("map_capacity", "Rows that a map can hold", metrics.map_capacity.clone());
        registry.register("apply_seconds", "From the change seen to the kernel", metrics.apply_seconds.clone());
        registry.register("compile_seconds", "Time to compile a change", metrics.compile_seconds.clone());
        registry.register("adopted_links", "Links taken over from an earlier agent", metrics.adopted_links.clone());
        registry.register("hooks", "Places where traffic of no one pod is judged", metrics.hooks.clone());
        registry.register("cni_adds", "ADD commands of the CNI plugin", metrics.cni_adds.clone());
        registry.register("cni_add_seconds", "From ADD to its answer", metrics.cni_add_seconds.clone());
        registry.register("cni_announcements", "Pods that the CNI plugin announced", metrics.cni_announcements.clone());
        registry.register("watch_objects", "Objects known of a kind", metrics.watch_objects.clone());
        registry.register("watch_up", "Whether a kind is heard of", metrics.watch_up.clone());
        registry.register("watch_lists", "Lists of a kind that came whole", metrics.watch_lists.clone());
        registry.register("watch_failures", "Lists and watches of a kind that failed", metrics.watch_failures.clone());
        registry.register("status_leader", "Whether this agent tells the cluster", metrics.status_leader.clone());
        registry.register("status_due", "What the cluster is yet to be told", metrics.status_due.clone());
        registry.register("status_requests", "Requests to tell the cluster", metrics.status_requests.clone());
        let build = prometheus_client::metrics::info::Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The agent's build", build);
        metrics
    }
}

fn state(name: &str) -> StateLabels {
    StateLabels { state: name.to_owned() }
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Metrics {
    /// A change took this long from being seen to the kernel.
    pub(crate) fn applied(&self, took: Duration) {
        self.apply_seconds.observe(took.as_secs_f64());
    }

    /// A change took this long to compile.
    pub(crate) fn compiled(&self, took: Duration) {
        self.compile_seconds.observe(took.as_secs_f64());
    }

    /// A policy took this long from being taken up to being in force.
    pub(crate) fn policy_active(&self, took: Duration) {
        self.policy_active_seconds.observe(took.as_secs_f64());
    }

    /// Policies stand like this.
    pub(crate) fn policies_stand(&self, standings: &[Standing<'_>]) {
        for one in State::ALL {
            let count = standings.iter().filter(|standing| standing.state == one).count();
            self.policy_states.get_or_create(&state(one.name())).set(gauge(count));
        }
    }

    /// An ADD of the CNI plugin was answered in this way.
    pub(crate) fn added(&self, how: &str, took: Duration) {
        self.cni_adds.get_or_create(&state(how)).inc();
        self.cni_add_seconds.observe(took.as_secs_f64());
    }

    /// So many announcements are in this state.
    pub(crate) fn announced(&self, what: &str, count: usize) {
        self.cni_announcements.get_or_create(&state(what)).set(gauge(count));
    }

    /// A window ended for this cause and is told by these rows.
    pub(crate) fn window_ended(&self, cause: &str, rows: &[(EdgeKey, EdgeValue, Vec<Flag>)]) {
        self.windows.get_or_create(&state(cause)).inc();
        for (_, _, flags) in rows {
            let proven = match flags.first() {
                Some(Flag::Backfilled) => "backfilled",
                Some(Flag::Unproven) => "unproven",
                _ => "live",
            };
            self.window_rows.get_or_create(&state(proven)).inc();
        }
    }

    /// Flows from before enforcement were, or could not be, given entries.
    pub(crate) fn seeded(&self, what: &str, flows: usize) {
        self.seeded_flows.get_or_create(&state(what)).inc_by(flows as u64);
    }

    /// A map of another layout was found, and this became of its content.
    pub(crate) fn migrated(&self, map: &str, fate: &str) {
        self.migrated_maps.get_or_create(&FateLabels { map: map.to_owned(), state: fate.to_owned() }).inc();
    }

    /// So many things were found otherwise in the kernel than they should be.
    pub(crate) fn drifted(&self, what: &str, count: usize) {
        self.drift.get_or_create(&DriftLabels { what: what.to_owned() }).inc_by(count as u64);
    }

    /// The time before this agent is, or is not, proven to have been counted whole.
    pub(crate) fn interval(&self, missed: &Missed) {
        let proven = if missed.is_proven() { "proven" } else { "unproven" };
        self.intervals.get_or_create(&state(proven)).inc();
    }

    /// A kind of object was listed whole.
    pub(crate) fn listed(&self, kind: &str) {
        self.watch_lists.get_or_create(&KindLabels { kind: kind.to_owned() }).inc();
    }

    /// A kind of object could not be listed or watched.
    pub(crate) fn watch_failed(&self, kind: &str) {
        self.watch_failures.get_or_create(&KindLabels { kind: kind.to_owned() }).inc();
    }

    /// The kinds that are watched, with the objects known of each, and whether they are heard of.
    pub(crate) fn watched<'a>(&self, kinds: impl Iterator<Item = (&'a str, usize, bool)>) {
        self.watch_objects.clear();
        self.watch_up.clear();
        for (kind, objects, up) in kinds {
            let labels = KindLabels { kind: kind.to_owned() };
            self.watch_objects.get_or_create(&labels).set(gauge(objects));
            self.watch_up.get_or_create(&labels).set(i64::from(up));
        }
    }

    /// Whether this agent is the one that tells the cluster how policies stand.
    pub(crate) fn leads(&self, leads: bool) {
        self.status_leader.set(i64::from(leads));
    }

    /// So many things are to be told to the cluster by this agent, and are not told yet.
    pub(crate) fn status_left(&self, count: usize) {
        self.status_due.set(gauge(count));
    }

    /// A request about an object of this kind ended in this way.
    pub(crate) fn status_asked(&self, kind: &str, how: &str) {
        self.status_requests.get_or_create(&RequestLabels { kind: kind.to_owned(), state: how.to_owned() }).inc();
    }

    /// Takes the enforcer's state over.
    pub(crate) fn observe(&self, enforcer: &Enforcer) {
        let image = enforcer.engine.image();
        self.endpoints
            .get_or_create(&state("ready"))
            .set(gauge(image.endpoints.len().saturating_sub(enforcer.waiting.len())));
        self.endpoints.get_or_create(&state("unattached")).set(gauge(enforcer.waiting.len()));
        self.problems.get_or_create(&state("warning")).set(gauge(enforcer.problem_count(Level::Warning)));
        self.problems.get_or_create(&state("note")).set(gauge(enforcer.problem_count(Level::Note)));
        self.hooks.get_or_create(&state("uplink")).set(gauge(enforcer.uplinks.attached().count()));
        self.hooks.get_or_create(&state("host")).set(i64::from(enforcer.host.is_attached()));
        self.hooks.get_or_create(&state("guarded")).set(i64::from(enforcer.guarded));
        self.announced("unconfirmed", enforcer.announced.unconfirmed());
        self.identities.set(gauge(enforcer.engine.identities_of_addresses()));
        self.policies.set(gauge(enforcer.engine.world().tiers.iter().map(|(_, policies)| policies.len()).sum()));
        self.policy_waiting_seconds.set(enforcer.standings.waiting(Instant::now()).as_secs_f64());
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.revision.get_or_create(&state("compiled")).set(number(enforcer.revision()));
        self.revision.get_or_create(&state("active")).set(number(enforcer.active));
        for (map, entries, capacity) in enforcer.maps() {
            let labels = MapLabels { map: map.to_owned() };
            self.map_entries.get_or_create(&labels).set(number(entries));
            self.map_capacity.get_or_create(&labels).set(number(capacity));
        }
        for (index, name) in stats::ALL {
            if let Ok(value) = enforcer.loaded.maps.stats.sum(*index) {
                let counter = self.datapath_packets.get_or_create(&state(name));
                counter.inc_by(value.saturating_sub(counter.get()));
            }
        }
    }

    /// In the text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("a string takes all text");
        text
    }
}
