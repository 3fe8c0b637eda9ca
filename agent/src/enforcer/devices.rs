//! What surrounds the pods: the node's other devices, the processes of the node, bridges, and Services' addresses.

use super::Enforcer;
use crate::datapath::discover::Links;
use crate::datapath::{reconcile, services};
use reeve_abi::config::{CONFIG_UNGUARDED, Config};
use reeve_abi::device::{DEVICE_POD_BRIDGE, DEVICE_UPLINK, DeviceValue};
use std::collections::{BTreeMap, BTreeSet};

/// A bridge with ports of pods.
pub(super) const POD_BRIDGE: DeviceValue = DeviceValue { kind: DEVICE_POD_BRIDGE, header_bytes: 14 };

impl Enforcer {
    /// Puts the programs for what leaves and enters the node on every device that is no pod's, and on the cgroup of its
    /// processes. Where something pending could get away unjudged, pods' packets are judged by what they show as well.
    pub(super) fn hook_devices(&mut self, links: &Links, reasons: &mut Vec<String>) -> anyhow::Result<()> {
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
        // A row that is missing tells a device's programs less: the pods' have to be the stricter.
        let mut failed: Vec<String> =
            reconcile::follow(&maps.devices, &rows).err().map(|error| sentence(&error)).into_iter().collect();
        self.device_rows = rows.len();
        let rows = services::rows(self.engine.world(), &self.node);
        let services = reconcile::follow(&maps.services, &rows);
        self.service_rows = rows.len();
        failed.extend(self.uplinks.follow(&mut self.loaded, &devices).iter().map(|error| sentence(error)));
        failed.extend(self.host.attach(&mut self.loaded).err().map(|error| sentence(&error)));
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
}

/// An error with its causes.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
