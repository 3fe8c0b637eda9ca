//! Taking over from an agent whose maps had another layout: its programs go on with its maps until each is replaced.

use crate::datapath::grace::grace;
use crate::datapath::migrate::{self, Fate};
use crate::datapath::{Adopted, Loaded, MapError};
use crate::enforcer::{Enforcer, closed};
use crate::metrics::Metrics;
use crate::sweep::unflushed_of;
use reeve_abi::config::Config;
use reeve_abi::edge::{EDGE_BANK, EdgeKey, EdgeValue};
use reeve_abi::ids::WorkloadId;
use reeve_flow::aggregate;
use std::collections::BTreeMap;

/// What is to be done before the earlier agent's maps can go.
#[derive(Debug, Default)]
pub struct Upgrade {
    /// Whose devices the earlier agent had, as far as its maps can be read.
    workloads: BTreeMap<u32, WorkloadId>,
    /// Whether flows could not be copied, so that connection tracking has to tell them.
    pub seed_flows: bool,
    /// Highest revision that the earlier agent's endpoints or flows had.
    pub revision: u64,
}

/// Takes over what programs have written into maps that were moved away; none if there are no such maps.
pub fn begin(loaded: &Loaded, metrics: &Metrics) -> Result<Option<Upgrade>, MapError> {
    if loaded.aside.is_empty() {
        return Ok(None);
    }
    let mut upgrade = Upgrade::default();
    for map in &loaded.aside {
        let fate = map.take_over(&loaded.maps)?;
        metrics.migrated(map.name, fate.name());
        upgrade.seed_flows |= map.name == "FLOWS" && fate == Fate::Refilled;
        tracing::warn!(map = map.name, fate = fate.name(), "a pinned map had another layout");
        for (ifindex, row) in map.endpoints()? {
            upgrade.workloads.insert(ifindex, row.workload);
            upgrade.revision = upgrade.revision.max(row.head_revision.0);
        }
    }
    let flows = loaded.maps.flows.read()?;
    let of_flows = flows.iter().map(|(_, flow)| flow.revision.0).max().unwrap_or_default();
    upgrade.revision = upgrade.revision.max(of_flows);
    if loaded.aside.iter().any(|map| map.name == "FLOWS") {
        // Each generation has a flow table of its own: one may see the reply of what the other has seen opened.
        let config = loaded.maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        loaded.maps.config.put(&0, &Config { mixed_generations: 1, ..config })?;
    }
    Ok(Some(upgrade))
}

impl Enforcer {
    /// Once every endpoint's programs are ours: closes the devices that are no endpoint's any more, replaces the last of
    /// the earlier agent's programs, and takes over what those had counted. Returns counts that no map has room for.
    pub(crate) fn finish_upgrade(&mut self) -> anyhow::Result<Vec<(EdgeKey, EdgeValue)>> {
        let Some(upgrade) = &self.upgrade else { return Ok(Vec::new()) };
        let mut left_over = self.attachments.pinned()?;
        left_over.retain(|ifindex, _| !self.attachments.is_attached(*ifindex));
        for ifindex in left_over.keys() {
            if self.loaded.maps.endpoints.get(ifindex)?.is_some() {
                continue; // closed already, by an earlier agent with these maps
            }
            let workload = upgrade.workloads.get(ifindex).copied().unwrap_or_default();
            self.loaded.maps.endpoints.put(ifindex, &closed(workload, *ifindex))?;
        }
        if !left_over.is_empty() {
            self.attachments.resume(&mut self.loaded)?;
        }
        grace();
        self.loaded.settle()?;
        let maps = &self.loaded.maps;
        let config = maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        maps.config.put(&0, &Config { mixed_generations: 0, ..config })?;
        let mut rows = Vec::new();
        for map in &self.loaded.aside {
            rows.extend(map.counts(unflushed_of)?);
        }
        let idle = (config.edges_bank ^ 1) * EDGE_BANK;
        let left = migrate::hand_over(maps, idle, aggregate::merged(rows))?;
        for map in std::mem::take(&mut self.loaded.aside) {
            map.forget()?;
        }
        self.upgrade = None;
        self.loaded.adopted = Adopted::Maps;
        tracing::info!("the earlier agent's maps are taken over");
        Ok(left)
    }
}
