//! What surrounds the pods: the node's other devices, the processes of the node, bridges, and Services' addresses.

use super::Enforcer;
use crate::datapath::discover::{Links, Uplink};
use crate::datapath::{reconcile, services};
use reeve_abi::config::{CONFIG_UNGUARDED, Config};
use reeve_abi::device::{DEVICE_POD_BRIDGE, DEVICE_UPLINK, DeviceValue};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long the end of a new pair may be that of a pod of which nobody has told yet.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// Ends of pairs that have just come. They are taken for pods' for a moment: they get the programs of pods, which let
/// everything through until the pod is told. What is pending does not leave by them meanwhile: the guard sees to that.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    /// When each device that is no pod's was first seen; nothing is known of those that were there at the start.
    seen: BTreeMap<u32, Option<Instant>>,
    /// Those that are taken for pods', with their names.
    left: BTreeMap<u32, String>,
    /// Those of them that may lack a program.
    unhooked: BTreeMap<u32, String>,
}

impl Fresh {
    /// Whether any device is taken for a pod's, and is to be looked at again soon.
    pub(crate) fn is_any(&self) -> bool {
        !self.left.is_empty()
    }
}

/// A bridge with ports of pods.
pub(super) const POD_BRIDGE: DeviceValue = DeviceValue { kind: DEVICE_POD_BRIDGE, header_bytes: 14 };

impl Enforcer {
    /// Puts the programs for what leaves and enters the node on every device that is no pod's, and on the cgroup of its
    /// processes. Where something pending could get away unjudged, pods' packets are judged by what they show as well.
    pub(super) fn hook_devices(&mut self, links: &Links, reasons: &mut Vec<String>) -> anyhow::Result<()> {
        let pods: BTreeSet<u32> = self.loaded.maps.endpoints.read()?.into_iter().map(|(ifindex, _)| ifindex).collect();
        let bridges: BTreeSet<u32> =
            self.interfaces.values().map(|device| device.bridge).filter(|bridge| *bridge != 0).collect();
        let mut devices = links.uplinks(&pods, &bridges);
        self.leave_fresh(links, &mut devices);
        self.attachments.give_up_ahead(|ifindex| self.fresh.left.contains_key(&ifindex));
        let mut rows: BTreeMap<u32, DeviceValue> = devices
            .iter()
            .map(|(ifindex, device)| (*ifindex, DeviceValue { kind: DEVICE_UPLINK, header_bytes: device.header_bytes }))
            .collect();
        rows.extend(bridges.iter().map(|bridge| (*bridge, POD_BRIDGE)));
        // A row that is missing tells a device's programs less: the pods' have to be the stricter.
        let changed = reconcile::follow(&self.loaded.maps.devices, &rows);
        if !matches!(changed, Ok(false)) {
            self.loaded.maps.endpoints.raise()?;
        }
        let mut failed: Vec<String> = changed.err().map(|error| sentence(&error)).into_iter().collect();
        self.device_rows = rows.len();
        failed.extend(self.uplinks.follow(&mut self.loaded, &devices).iter().map(|error| sentence(error)));
        failed.extend(self.host.attach(&mut self.loaded).err().map(|error| sentence(&error)));
        let hooked = self.attachments.attached().chain(self.uplinks.attached()).chain(bridges).collect();
        failed.extend(self.guard.follow(&hooked).err().map(|error| sentence(&error)));
        self.guarded = failed.is_empty();
        reasons.extend(failed);
        let config = self.loaded.maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        let flags = self.config_flags();
        if config.flags != flags {
            self.loaded.maps.config.put(&0, &Config { flags, ..config })?;
        }
        Ok(())
    }

    fn leave_fresh(&mut self, links: &Links, devices: &mut BTreeMap<u32, Uplink>) {
        let (first, now) = (self.fresh.seen.is_empty(), Instant::now());
        self.fresh.seen.retain(|ifindex, _| links.contains(*ifindex));
        for ifindex in devices.keys() {
            self.fresh.seen.entry(*ifindex).or_insert((!first).then_some(now));
        }
        self.fresh.left.clear();
        self.fresh.unhooked.clear();
        let hooked: BTreeSet<u32> = self.uplinks.attached().collect();
        let fresh = &mut self.fresh;
        devices.retain(|ifindex, device| {
            let seen = fresh.seen.get(ifindex).copied().flatten();
            let leave = seen.is_some_and(|at| now.duration_since(at) < FRESH_FOR)
                && !hooked.contains(ifindex)
                && links.veth(*ifindex).is_some();
            if leave {
                fresh.left.insert(*ifindex, device.name.clone());
            }
            !leave
        });
        fresh.unhooked.clone_from(&fresh.left);
    }

    /// While nobody waits for anything: puts one program at a device that is taken for a pod's. Whether there was one to put.
    pub(crate) fn hook_ahead(&mut self) -> bool {
        while let Some(next) = self.fresh.unhooked.first_entry() {
            match self.attachments.attach_ahead(&mut self.loaded, next.get(), *next.key()) {
                Ok(true) => return true,
                Ok(false) => {}
                // It may have gone; a pod's device is attached to anew when the pod is told, and that says what is wrong.
                Err(error) => tracing::debug!(error = sentence(&error), "no program was put there ahead"),
            }
            next.remove();
        }
        false
    }

    /// Tells the programs which addresses and ports stand for others. A client whom nobody notes is nobody in particular:
    /// what is missing here opens nothing.
    pub(super) fn follow_services(&mut self, reasons: &mut Vec<String>) {
        let rows = services::rows(self.engine.world(), &self.node);
        self.services_stirred = false;
        if self.services_stand && rows == self.service_rows {
            return;
        }
        let failed = reconcile::follow(&self.loaded.maps.services, &rows).err();
        self.services_stand = failed.is_none();
        self.service_rows = rows;
        reasons.extend(failed.map(|error| sentence(&error)));
    }

    /// The `CONFIG_*` bits that hold now.
    pub(crate) fn config_flags(&self) -> u32 {
        if self.guarded { 0 } else { CONFIG_UNGUARDED }
    }
}

/// An error with its causes.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
