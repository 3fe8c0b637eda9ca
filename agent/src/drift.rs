//! Compares what is in the kernel with what this agent put there, puts right what differs, and says so.
//!
//! Invariant: what was let through by what had been changed is judged again: after a repair of policy every endpoint has
//! a new revision.

use crate::datapath::attach::Look;
use crate::datapath::discover::Links;
use crate::datapath::{Repair, adopt, reconcile};
use crate::enforcer::Enforcer;
use anyhow::Context;
use reeve_abi::address::{Address, AddressValue};
use reeve_abi::config::Config;
use reeve_policy::image::Image;
use reeve_policy::model::{Level, Problem};
use std::collections::BTreeMap;

impl Repair {
    /// Name in metrics, and what was found.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Attached => ("attached", "a program had been taken off"),
            Self::First => ("order", "another program had been put before ours"),
            Self::Pinned => ("pin", "a link's pin had been removed"),
        }
    }
}

impl Enforcer {
    /// Looks whether the programs still stand at each device, first in their chains. What cannot be put right is tried
    /// again with the next look.
    pub(crate) fn check_attached(&mut self, links: &Links, look: Look) {
        let attached: Vec<u32> = self.attachments.attached().collect();
        for ifindex in attached {
            let Some(device) = links.device(ifindex) else { continue };
            match self.attachments.check(&mut self.loaded, &device.name, ifindex, look) {
                Ok(repairs) => {
                    self.rehung |= !repairs.is_empty();
                    for (name, what) in repairs.into_iter().map(Repair::words) {
                        self.report_drift(name, 1, &format!("interface {} ({ifindex})", device.name), what);
                    }
                }
                Err(error) => {
                    // The device may be going this very moment: the next look knows.
                    tracing::error!(
                        interface = device.name,
                        error = format!("{:#}", anyhow::Error::from(error)),
                        "its programs cannot be looked after"
                    );
                }
            }
        }
        self.check_uplinks(look);
    }

    /// The same of the devices that are no pod's, and of the cgroup.
    fn check_uplinks(&mut self, look: Look) {
        let devices = self.uplinks.check(&mut self.loaded, look).into_iter();
        let mut found: Vec<_> = devices.map(|(interface, result)| (format!("interface {interface}"), result)).collect();
        if let Some(result) = self.host.check(&mut self.loaded).transpose() {
            found.push(("cgroup of the node's processes".to_owned(), result));
        }
        for (place, result) in found {
            match result {
                Ok(repair) => {
                    let (name, what) = repair.words();
                    self.report_drift(name, 1, &place, what);
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(place, error, "its programs cannot be looked after");
                }
            }
        }
    }

    /// Looks whether the maps are still pinned, and pins them again. Where there is no bpffs any more, what enforces lives
    /// only as long as this agent.
    pub(crate) fn look_after_pins(&mut self, reasons: &mut Vec<String>) {
        match self.loaded.keep_pinned() {
            Ok(0) => {}
            Ok(count) => self.report_drift("pin", count, "the maps' pins", "pins of maps had been removed"),
            Err(error) => reasons.push(format!("{:#}", anyhow::Error::from(error))),
        }
    }

    fn report_drift(&mut self, name: &str, count: usize, place: &str, what: &str) {
        self.metrics.drifted(name, count);
        tracing::error!(place, count, what, "the kernel had something else than this agent left there; put right");
        let problem = Problem {
            level: Level::Warning,
            object: format!("Node/{}", self.node),
            field: place.to_owned(),
            value: count.to_string(),
            what: format!("{what}: somebody else changed what this agent enforces by"),
            effect: "it was put right, and live flows are judged again".to_owned(),
        };
        self.drift.retain(|before| before.field != problem.field || before.what != problem.what);
        self.drift.push(problem);
    }

    /// Reads everything back and compares it with the image.
    pub(crate) async fn attest(&mut self) -> anyhow::Result<()> {
        if self.active == 0 || self.upgrade.is_some() || self.adopt_first {
            return Ok(()); // what should be there is not known, or not there yet
        }
        self.clear_away()?;
        self.services_stand = false; // compared with the next step
        self.drift.clear();
        let links = Links::read(&self.handle).await.context("the node's interfaces cannot be listed")?;
        self.check_attached(&links, Look::Whole);
        let maps = &self.loaded.maps;
        let mut found = adopt::read(maps)?;
        // Those that have no room are not expected there.
        let mut wanted = self.engine.image().addresses.clone();
        wanted.retain(|address, _| self.has_room(address));
        let mut differing = differences(&found.image, self.engine.image(), &wanted);
        let places = maps.addresses.read()?.into_iter().filter(|(address, value)| {
            let wanted = self.engine.image().addresses.get(address);
            // Where no device is known, the one of before may still stand there.
            let known = self.interfaces.contains_key(&value.workload);
            known && wanted.is_some_and(|wanted| reconcile::placed(*wanted, &self.interfaces) != *value)
        });
        let displaced = places.count();
        if displaced > 0 {
            let count = differing.entry("ADDRESSES").or_default();
            *count = displaced.max(*count);
        }
        for (workload, image) in &self.engine.image().endpoints {
            let Some(device) = self.interfaces.get(workload) else { continue };
            let wanted = reconcile::endpoint_row(*workload, image, device, self.known());
            if maps.endpoints.get(&device.ifindex)? != Some(wanted) {
                *differing.entry("ENDPOINTS").or_default() += 1;
            }
        }
        if !differing.is_empty() {
            for (map, count) in &differing {
                self.report_drift(map, *count, &format!("map {map}"), "rows were other ones, or were missing");
            }
            self.repair(&mut found.image)?;
        }
        self.attest_settings()?;
        self.metrics.attestations.inc();
        Ok(())
    }

    /// Writes what differs, and every endpoint under a new revision, so that no flow keeps a verdict that was had by
    /// what had been changed.
    fn repair(&mut self, kernel: &mut Image) -> anyhow::Result<()> {
        let ops = self.learn(Vec::new())?;
        debug_assert!(ops.is_empty(), "nothing new was learnt");
        kernel.endpoints.clear();
        // Devices are this machine's part of an address: those that differ are written whatever the image says.
        for (address, value) in &self.engine.image().addresses {
            let placed = reconcile::placed(*value, &self.interfaces);
            if self.interfaces.contains_key(&value.workload) && self.loaded.maps.addresses.get(address)? != Some(placed)
            {
                self.loaded.maps.addresses.put(address, &placed)?;
            }
        }
        let update = self.engine.resume(kernel);
        self.tell(update.entries)?;
        self.carry_out(&update.plan)?;
        self.activate();
        Ok(())
    }

    /// Remembers the settings as they stand when everything is in force for the first time.
    pub(crate) fn remember_settings(&mut self) -> anyhow::Result<()> {
        if self.settings.is_none() && self.upgrade.is_none() {
            self.settings = self.loaded.maps.config.get(&0)?;
        }
        Ok(())
    }

    /// Settings stay as they were, those excepted that this agent itself changes.
    fn attest_settings(&mut self) -> anyhow::Result<()> {
        let Some(settings) = self.settings else { return Ok(()) };
        let maps = &self.loaded.maps;
        let found = maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        let wanted = Config {
            edges_bank: found.edges_bank & 1,
            address_epoch: found.address_epoch.max(1),
            flags: self.config_flags(),
            ..settings
        };
        if found != wanted {
            maps.config.put(&0, &wanted)?;
            self.report_drift("CONFIG", 1, "map CONFIG", "settings were other ones");
        }
        Ok(())
    }
}

/// How many rows of each map differ.
fn differences(
    found: &Image,
    wanted: &Image,
    addresses: &BTreeMap<Address, AddressValue>,
) -> BTreeMap<&'static str, usize> {
    let counts = [
        ("ADDRESSES", differing(&found.addresses, addresses)),
        ("NETWORKS", differing(&found.networks, &wanted.networks)),
        ("CLASSES", differing(&found.classes, &wanted.classes)),
        ("PEERS", differing(&found.peers, &wanted.peers)),
        ("PORTS", differing(&found.ports, &wanted.ports)),
        ("RANGES", differing(&found.ranges, &wanted.ranges)),
    ];
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

fn differing<K: Ord, V: PartialEq>(found: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> usize {
    let missing = wanted.iter().filter(|(key, value)| found.get(key) != Some(value)).count();
    missing + found.keys().filter(|key| !wanted.contains_key(key)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_missing_changed_or_too_many_counts_once() {
        let wanted = BTreeMap::from([(1, "a"), (2, "b"), (3, "c")]);
        assert_eq!(differing(&wanted, &wanted), 0);
        assert_eq!(differing(&BTreeMap::from([(1, "a"), (2, "x"), (4, "d")]), &wanted), 3);
    }
}
