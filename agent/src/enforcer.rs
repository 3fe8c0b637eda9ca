//! The one owner of engine, maps and links: takes facts in, makes the kernel enforce them, answers questions.
//!
//! Here is what it holds. `start` takes over from an earlier agent, `step` carries facts into the kernel,
//! `interfaces` finds pods' devices, `announced` and `newcomers` take those that the CNI plugin tells, `contested` closes those of quarrels, `devices` looks after all others, and
//! `problems` says what cannot be honoured.

mod announced;
mod contested;
mod devices;
mod interfaces;
mod newcomers;
mod problems;
mod start;
mod step;

pub use interfaces::Scope;

use crate::cni::installer::Complaints;
use crate::cni::waiting::Waiting;
use crate::continuity::{CheckpointFile, Missed, Telling};
use crate::datapath::discover::Links;
use crate::datapath::grace::Passing;
use crate::datapath::guard::Guard;
use crate::datapath::host::HostHook;
use crate::datapath::maps::Occupancy;
use crate::datapath::reconcile::Interfaces;
use crate::datapath::room::AddressRoom;
use crate::datapath::uplinks::Uplinks;
use crate::datapath::{Attachments, Loaded};
use crate::dictionary::DictionaryFile;
use crate::metrics::Metrics;
use crate::standing::Standings;
use crate::status::{self, Outcomes};
use crate::unseen::Unseen;
use crate::upgrade::Upgrade;
use crate::watch::Source;
use announced::Announced;
use devices::Fresh;
use reeve_abi::address::Address;
use reeve_abi::config::Config;
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::EndpointValue;
use reeve_abi::ids::WorkloadId;
use reeve_abi::service::{ServiceKey, ServiceValue};
use reeve_policy::Preview;
use reeve_policy::engine::Engine;
use reeve_policy::model::Problem;
use reeve_policy::plan::Op;
use reeve_policy::provenance::{Dictionary, DictionaryEntry};
use rtnetlink::Handle;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, RwLock};
use std::time::Instant;
use tokio::sync::{Notify, watch};

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

/// What the last plan takes away, once no program works with what was before.
struct Leaving {
    after: Passing,
    ops: Vec<Op>,
}

/// The node's enforcement.
#[allow(missing_debug_implementations, reason = "holds aya's handles, which have none")]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own, not one state of several")]
pub struct Enforcer {
    pub(crate) engine: Engine,
    pub(crate) loaded: Loaded,
    pub(crate) attachments: Attachments,
    pub(crate) uplinks: Uplinks,
    pub(crate) host: HostHook,
    guard: Guard,
    /// Whether nothing unjudged can leave by a device without program.
    pub(crate) guarded: bool,
    pub(crate) interfaces: Interfaces,
    pub(crate) source: Source,
    pub(crate) announced: Announced,
    pub(crate) fresh: Fresh,
    /// Those who wait for a pod to be enforced.
    pub(crate) newcomers: Waiting,
    /// What keeps the CNI plugin from being in use.
    pub(crate) complaints: Complaints,
    /// Pods that answer what no program has seen.
    pub(crate) unseen: Unseen,
    pub(crate) local_addresses: BTreeSet<IpAddr>,
    pub(crate) source_problems: Vec<Problem>,
    pub(crate) problems: Vec<Problem>,
    /// What became of each policy.
    pub(crate) standings: Standings,
    /// What there is to tell the cluster of it, for who does.
    pub(crate) outcomes: watch::Sender<Outcomes>,
    /// What of it the API server does not take.
    pub(crate) untold: status::Complaints,
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
    /// Removals of the last plan that nothing waits for.
    leaving: Option<Leaving>,
    /// Hears when that may go.
    pub(crate) passed: Arc<Notify>,
    /// Local endpoints with the addresses by which their interface was found.
    looked: BTreeMap<WorkloadId, [Address; 2]>,
    /// When every interface was last looked for.
    looked_at: Option<Instant>,
    /// Local endpoints whose interface has not been found.
    pub(crate) waiting: BTreeSet<WorkloadId>,
    /// Why not everything that is known is enforced.
    pub(crate) reasons: Vec<String>,
    /// Why what is known may be old.
    pub(crate) stale: Vec<String>,
    /// Pods behind a bridge that has not learnt their port: how often they were looked for.
    pub(crate) resolving: BTreeMap<WorkloadId, u32>,
    /// Rows of the maps that traffic fills, as they were last counted.
    pub(crate) traffic_rows: Vec<Occupancy>,
    counted_at: Option<Instant>,
    /// Rows that `DEVICES` should hold.
    pub(crate) device_rows: usize,
    /// Rows that `SERVICES` should hold.
    pub(crate) service_rows: BTreeMap<ServiceKey, ServiceValue>,
    /// Whether it was left holding them.
    pub(crate) services_stand: bool,
    /// Whether something changed that they are made of.
    pub(crate) services_stirred: bool,
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
    brown_field: BTreeMap<u32, String>,
    /// What is left to do of taking over from an agent with another layout of maps.
    pub(crate) upgrade: Option<Upgrade>,
    /// Counts that are told with the next window.
    pub(crate) unplaced: Vec<(EdgeKey, EdgeValue)>,
    /// Whether something was attached or let go since what stands was last written down.
    pub(crate) rehung: bool,
    /// Revision and lost counts as they were last written down.
    remembered: Option<(u64, u64)>,
    boot: String,
    telling: Option<Telling>,
    checkpoint_file: CheckpointFile,
}
impl Enforcer {
    /// What records are told with.
    pub fn meanings(&self) -> Meanings {
        Meanings { dictionary: Arc::clone(&self.dictionary), preview: Arc::clone(&self.preview) }
    }

    /// The newest revision that the engine has made.
    pub(crate) fn revision(&self) -> u64 {
        self.engine.revision().0
    }
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
