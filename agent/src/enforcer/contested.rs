//! Devices behind an address that several pods claim.

use super::{Enforcer, unmapped};
use crate::datapath::discover::{self, Bridged, Links, Place};
use crate::datapath::reconcile;
use reeve_abi::address::{Address, OWNER_CONTESTED};
use reeve_policy::image::{EndpointImage, mapped};
use reeve_policy::model::Workload;
use reeve_policy::provenance::workload_id;
use std::net::IpAddr;
use std::sync::Arc;

impl Enforcer {
    /// A pod whose address others claim too owns none, so it is not found by it: the device behind a contested address
    /// is closed, unless it is known to be a pod's and enforced as such.
    pub(super) async fn close_contested(&mut self, links: &Links, bridged: &mut Bridged) -> anyhow::Result<()> {
        if !self.engine.is_contested() {
            return Ok(());
        }
        let image = self.engine.image();
        let contested = image.addresses.iter().filter(|(_, value)| value.owner == OWNER_CONTESTED);
        let contested: Vec<IpAddr> = contested.map(|(address, _)| unmapped(address.0)).collect();
        for address in contested {
            let world = self.engine.world();
            let here = |pod: &&Arc<Workload>| pod.node == self.node && pod.addresses.contains(&address);
            let Some(claimant) = world.workloads.values().find(here) else { continue };
            let claimant = workload_id(&claimant.uid);
            let Place::Device(device) = discover::find(&self.handle, links, bridged, address).await? else { continue };
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
}
