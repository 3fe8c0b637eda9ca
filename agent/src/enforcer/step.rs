//! One step: facts in, the kernel's maps and hooks out.
//!
//! Invariant: nothing in the kernel changes before every file, or every kind of object, has been read once; entries are on disk before any map
//! refers to them.

use super::interfaces::Scope;
use super::{Enforcer, Leaving, closed};
use crate::continuity::{Checkpoint, Telling};
use crate::datapath::grace::Passing;
use crate::datapath::reconcile::{self, Known};
use crate::datapath::room::AddressRoom;
use crate::datapath::{MapError, adopt, discover};
use crate::status::Outcome;
use anyhow::Context;
use reeve_abi::ids::WorkloadId;
use reeve_abi::stats;
use reeve_policy::plan::Op;
use reeve_policy::provenance::DictionaryEntry;
use reeve_policy::store::Change;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two counts of the maps that traffic fills.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// How often a pod's port is looked for before the agent is ready without it.
const LOOKS_BEFORE_GIVING_UP: u32 = 20;

impl Enforcer {
    /// Reads the facts and makes the kernel enforce them. What fails is a reason not to be ready and is tried again
    /// with the next step.
    pub async fn step(&mut self, scope: &Scope) {
        let begun = Instant::now();
        let mut reasons = Vec::new();
        if let Err(error) = self.try_step(begun, scope, &mut reasons).await {
            reasons.push(format!("{error:#}"));
            self.adopt_first = true;
        }
        if reasons != self.reasons {
            tracing::warn!(reasons = reasons.join("; "), "readiness changed");
            self.reasons = reasons;
        }
        if std::mem::take(&mut self.rehung) {
            self.remember();
        }
        if self.standings.take_stirred() {
            self.tell_standings();
        }
        self.metrics.observe(self);
    }

    /// What nobody waits for once a step is done: what traffic fills is counted, and what stands is written down.
    pub fn tidy_up(&mut self) {
        self.count_traffic_rows();
        // Whatever is hooked otherwise is written down by the step that did it.
        let now = self.loaded.maps.stats.sum(stats::EDGES_LOST).ok().map(|lost| (self.revision(), lost));
        // Counts that cannot be read are an error, which writing them down tells.
        if now.is_none() || now != self.remembered {
            self.remember();
        }
    }

    /// A grace period is over: what waits for it goes now.
    pub fn let_go(&mut self) {
        // What was heard may be of an earlier one that somebody could not wait for.
        if self.leaving.as_ref().is_some_and(|leaving| leaving.after.is_over())
            && let Err(error) = self.clear_away()
        {
            self.reasons.push(format!("{:#}", anyhow::Error::from(error)));
            self.adopt_first = true;
        }
    }

    /// How policies stand, for metrics and for the cluster.
    fn tell_standings(&self) {
        let standings = self.standings.look(&self.engine, &self.problems);
        self.metrics.policies_stand(&standings);
        // Before anything is enforced, nobody knows of all policies; with manifests, nobody asks.
        if self.active > 0 && !self.outcomes.is_closed() {
            let outcomes = Outcome::all(&standings);
            self.outcomes.send_if_modified(|told| {
                let news = told.as_deref() != Some(&outcomes);
                *told = Some(Arc::new(outcomes));
                news
            });
        }
    }

    fn remember(&mut self) {
        if self.active > 0
            && let Err(error) = self.checkpoint(self.telling)
        {
            tracing::error!(error = format!("{error:#}"), "the next agent will not be able to prove what it missed");
        }
    }

    /// Takes away what the last plan left for later.
    pub(crate) fn clear_away(&mut self) -> Result<(), MapError> {
        let Some(Leaving { after, ops }) = self.leaving.take() else { return Ok(()) };
        after.end();
        reconcile::apply(&self.loaded.maps, &ops, &self.interfaces, self.known())
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

    async fn try_step(&mut self, begun: Instant, scope: &Scope, reasons: &mut Vec<String>) -> anyhow::Result<()> {
        // What can fail comes before the scan: a change is told by one scan only.
        let local = discover::local_addresses(&self.handle).await.context("the node's addresses cannot be listed")?;
        let scan = self.source.scan()?;
        self.source_problems = scan.problems;
        if scan.stale != self.stale {
            tracing::warn!(reasons = scan.stale.join("; "), "what is known may be old");
            self.stale = scan.stale;
        }
        let mut changes = self.announced.heed(scan.changes);
        self.standings.note(&changes, begun);
        if local != self.local_addresses {
            self.local_addresses.clone_from(&local);
            changes.push(Change::LocalAddresses(local));
        }
        // On disk before anybody is answered.
        self.write_announced();
        let first = self.active == 0;
        if first && !scan.unread.is_empty() {
            reasons.extend(scan.unread.iter().map(|what| format!("{what}; the kernel stays as it is")));
            // The changes that were told now will not be told again: they go into the engine, the kernel stays.
            self.learn(changes)?;
            return Ok(());
        }
        let nothing_new = changes.is_empty() && !first && !self.adopt_first;
        let learnt = if nothing_new { Ok(Vec::new()) } else { self.learn(changes) };
        let mut ops = match learnt {
            Ok(ops) => ops,
            Err(error) if first => return Err(error),
            Err(error) => {
                // Nobody can write down who has come: nothing of it is enforced, so nothing of it is let through.
                self.close_new().await?;
                return Err(error);
            }
        };
        if self.adopt_first {
            self.clear_away()?; // what is on its way out is not to be found
            let found = adopt::read(&self.loaded.maps)?;
            self.room = AddressRoom::new(self.loaded.maps.addresses.capacity(), &found.image.addresses);
            let update = self.engine.resume(&found.image);
            self.tell(update.entries)?;
            ops = update.plan;
        }
        self.carry_out(&ops)?;
        self.adopt_first = false;
        self.look_after_pins(reasons);
        self.find_interfaces(scope, reasons).await?;
        if self.services_stirred || !self.services_stand {
            self.follow_services(reasons);
        }
        if self.upgrade.is_some() && !self.is_resolving() && reasons.is_empty() {
            let left = self.finish_upgrade()?;
            self.unplaced.extend(left);
        }
        self.remember_settings()?;
        if self.is_resolving() {
            reasons.push(format!("bridges have not told the ports of {} pods yet", self.resolving.len()));
        }
        if !nothing_new {
            self.activate();
            self.metrics.applied(begun.elapsed());
        }
        Ok(())
    }

    /// The kernel enforces what the engine has.
    pub(crate) fn activate(&mut self) {
        if self.active == 0 {
            self.standings.stir();
        }
        self.active = self.revision();
        for took in self.standings.activated(&self.engine, Instant::now()) {
            self.metrics.policy_active(took);
        }
    }

    /// Whether a bridge is still expected to learn a pod's port; one that stays silent is waited for no longer.
    pub(crate) fn is_resolving(&self) -> bool {
        self.resolving.values().any(|looks| *looks < LOOKS_BEFORE_GIVING_UP)
    }

    pub(crate) fn learn(&mut self, changes: Vec<Change>) -> anyhow::Result<Vec<Op>> {
        let begun = Instant::now();
        let update = self.engine.apply(changes);
        self.metrics.compiled(begun.elapsed());
        self.standings.compiled(Instant::now());
        if update.problems != self.problems {
            self.standings.stir();
        }
        self.problems = update.problems;
        self.services_stirred |= update.stand_ins;
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

    /// Makes the maps hold what the plan leads to. Removals at its end are left for [`Enforcer::clear_away`]: they wait for
    /// programs that still work with what was before, and enforcement does not wait for them.
    pub(crate) fn carry_out(&mut self, ops: &[Op]) -> Result<(), MapError> {
        self.clear_away()?;
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
        let last = ops.iter().rposition(|op| !reconcile::is_removal(op)).map_or(0, |last| last + 1);
        let (ops, leaving) = ops.split_at(last);
        reconcile::apply(&self.loaded.maps, ops, &self.interfaces, now)?;
        if !leaving.is_empty() {
            self.leaving = Some(Leaving { after: Passing::begin(&self.passed), ops: leaving.to_vec() });
        }
        if now == Known::All && before == Known::Some {
            reconcile::set_known(&self.loaded.maps, now)?;
        }
        Ok(())
    }

    /// Writes down what stands in the kernel, for the next agent; `telling`: the window that is being told.
    pub(crate) fn checkpoint(&mut self, telling: Option<Telling>) -> anyhow::Result<()> {
        self.telling = telling;
        self.remembered = None;
        let lost = self.loaded.maps.stats.sum(stats::EDGES_LOST)?;
        let checkpoint = Checkpoint {
            boot: self.boot.clone(),
            edges: self.loaded.maps.edges.id(),
            lost,
            marks: self.attachments.marks(&mut self.loaded)?,
            revision: self.revision(),
            telling,
        };
        self.checkpoint_file.write(&checkpoint).context("the checkpoint cannot be written")?;
        self.remembered = Some((checkpoint.revision, checkpoint.lost));
        Ok(())
    }

    /// Whether the rows of the maps that traffic fills were counted after that moment.
    pub(crate) fn counted_since(&self, moment: Instant) -> bool {
        self.counted_at.is_some_and(|at| at > moment)
    }
}
