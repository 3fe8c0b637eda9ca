//! Finds pods' devices and attaches to them.
//!
//! Invariant: an endpoint's row stands before its programs are attached, or they let everything through until it does; a
//! device whose pod is gone stays closed until the device goes.

use super::devices::POD_BRIDGE;
use super::newcomers::placed;
use super::{Enforcer, closed, unmapped};
use crate::cni::Announcement;
use crate::datapath::attach::Look;
use crate::datapath::discover::{self, Bridged, Device, Links, Place};
use crate::datapath::{MapError, reconcile};
use crate::seed::TrackedTable;
use crate::sweep::share;
use anyhow::Context;
use ipnet::IpNet;
use reeve_abi::conntrack::BudgetValue;
use reeve_abi::endpoint::{ENDPOINT_MARKS, EndpointValue};
use reeve_abi::ids::WorkloadId;
use reeve_policy::image::EndpointImage;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long programs are taken to stand where they were seen, unless interfaces change.
const STAND_FOR: Duration = Duration::from_secs(1);

/// Between two looks for every endpoint's device, whatever was heard.
const LOOK_EVERYWHERE: Duration = Duration::from_secs(30);

/// What a step looks at beside the facts, where pods whose device is not known are looked for in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Every device.
    pub everywhere: bool,
    /// Whether devices stand as they stood: those that have changed are looked at, and ports of bridges.
    pub devices: bool,
    /// Addresses to which the way has changed.
    pub routes: BTreeSet<IpAddr>,
    /// Prefixes, longer than none and shorter than an address, to which it has.
    pub prefixes: BTreeSet<IpNet>,
}

impl Scope {
    /// Everything.
    pub fn everything() -> Self {
        Self { everywhere: true, devices: true, ..Self::default() }
    }

    /// Notes that a route has changed; `None` is the default route, or one that cannot be read.
    pub fn hear_of_route(&mut self, to: Option<IpNet>) {
        match to {
            Some(net) if net.prefix_len() == net.max_prefix_len() => drop(self.routes.insert(net.addr())),
            Some(net) if net.prefix_len() > 0 => drop(self.prefixes.insert(net)),
            _ => self.everywhere = true,
        }
    }

    /// Whether nothing was heard of interfaces and routes.
    fn is_about_facts(&self) -> bool {
        !self.everywhere && !self.devices && self.routes.is_empty() && self.prefixes.is_empty()
    }

    /// Whether the way to an address may have changed.
    fn leads_to(&self, address: IpAddr) -> bool {
        self.everywhere
            || self.routes.contains(&address)
            || self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }
}

impl Enforcer {
    /// Finds the devices of local endpoints, attaches to new ones and lets go of those that have vanished. What fails
    /// for one endpoint is a reason not to be ready and keeps no other from being enforced.
    pub(super) async fn find_interfaces(&mut self, scope: &Scope, reasons: &mut Vec<String>) -> anyhow::Result<()> {
        let due = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERYWHERE);
        // What was not right is looked at whole, until it is.
        let everywhere = scope.everywhere || due || !self.reasons.is_empty() || self.upgrade.is_some();
        let endpoints: BTreeMap<WorkloadId, EndpointImage> =
            self.engine.image().endpoints.iter().map(|(id, image)| (*id, *image)).collect();
        let contested = self.engine.is_contested();
        self.homeless.retain(|id, _| endpoints.contains_key(id));
        self.waiting.retain(|id| endpoints.contains_key(id));
        self.resolving.retain(|id, _| endpoints.contains_key(id));
        self.looked.retain(|id, _| endpoints.contains_key(id));
        if !everywhere
            && !contested
            && scope.is_about_facts()
            && endpoints.iter().all(|(id, image)| self.is_placed(*id, image))
        {
            return Ok(());
        }
        let links = Links::read(&self.handle).await.context("the node's interfaces cannot be listed")?;
        let changed = self.stood_at.as_ref().is_none_or(|(_, then)| *then != links);
        if everywhere || changed {
            for (ifindex, _) in self.loaded.maps.endpoints.read()? {
                if !links.contains(ifindex) {
                    self.loaded.maps.endpoints.delete(&ifindex)?;
                    self.attachments.detach(ifindex)?;
                }
            }
            // One that has another name or bridge than before is looked for anew.
            self.interfaces.retain(|_, device| links.contains(device.ifindex));
            self.forget_gone(&links);
            // A younger device may have the number of one that is gone.
            self.brown_field.retain(|ifindex, name| links.device(*ifindex).is_some_and(|device| device.name == *name));
            for ifindex in self.attachments.closed().filter(|ifindex| !links.contains(*ifindex)).collect::<Vec<_>>() {
                self.attachments.detach(ifindex)?;
            }
        }
        let stood = self.stood_at.as_ref().is_some_and(|(at, _)| at.elapsed() < STAND_FOR);
        if changed || !stood && !scope.is_about_facts() {
            self.check_attached(&links, Look::Quick);
            self.stood_at = Some((Instant::now(), links.clone()));
        }
        let (mut tracked, mut bridged) = (TrackedTable::default(), Bridged::default());
        let announced = self.announced.by_workload();
        let mut looked = 0;
        // Who is waited for goes first.
        let (first, rest): (Vec<_>, Vec<_>) =
            endpoints.into_iter().partition(|(id, image)| announced.contains_key(id) && !self.is_placed(*id, image));
        for (workload, image) in first.into_iter().chain(rest) {
            let here = self.interfaces.get(&workload);
            let stays = here.is_some_and(|device| {
                links.device(device.ifindex).as_ref() == Some(device) && (scope.is_about_facts() || device.bridge == 0)
            });
            let addresses = [image.address_v4, image.address_v6];
            let moved = addresses.iter().any(|address| scope.leads_to(unmapped(address.0)));
            if !everywhere && stays && !moved && self.is_placed(workload, &image) {
                continue;
            }
            looked += 1;
            self.looked.remove(&workload);
            match self
                .find_interface(&links, workload, &image, announced.get(&workload), &mut tracked, &mut bridged)
                .await
            {
                Ok(()) => {
                    if let Some(device) = self.interfaces.get(&workload) {
                        let ifindex = device.ifindex;
                        self.looked.insert(workload, addresses);
                        self.serve_newcomer(workload, ifindex);
                    }
                }
                Err(error) => reasons.push(format!("endpoint {workload}: {error:#}")),
            }
        }
        self.close_contested(&links, &mut bridged).await?;
        self.rehung |= changed || looked > 0;
        if everywhere {
            self.looked_at = Some(Instant::now());
        }
        if everywhere || changed || looked > 0 || contested || self.fresh.is_any() {
            self.hook_devices(&links, reasons)
        } else {
            Ok(())
        }
    }

    /// Whether an endpoint's device was found by the addresses that it has.
    fn is_placed(&self, workload: WorkloadId, image: &EndpointImage) -> bool {
        let attached =
            self.interfaces.get(&workload).is_some_and(|device| self.attachments.is_attached(device.ifindex));
        attached && self.looked.get(&workload) == Some(&[image.address_v4, image.address_v6])
    }

    /// Closes the devices of pods that have come and cannot be enforced, until they are; looks after the programs of the
    /// others meanwhile.
    pub(super) async fn close_new(&mut self) -> anyhow::Result<()> {
        let links = Links::read(&self.handle).await.context("the node's interfaces cannot be listed")?;
        self.check_attached(&links, Look::Quick);
        let mut bridged = Bridged::default();
        let endpoints = self.engine.image().endpoints.iter();
        let new: Vec<EndpointImage> =
            endpoints.filter(|(id, _)| !self.interfaces.contains_key(id)).map(|(_, image)| *image).collect();
        for image in new {
            for address in [image.address_v4, image.address_v6].iter().filter(|address| address.0 != [0; 16]) {
                if let Place::Device(device) =
                    discover::find(&self.handle, &links, &mut bridged, unmapped(address.0)).await?
                    && !self.attachments.is_attached(device.ifindex)
                {
                    self.attachments.hold(&mut self.loaded, &device.name, device.ifindex)?;
                    break;
                }
            }
        }
        Ok(())
    }

    async fn find_interface(
        &mut self,
        links: &Links,
        workload: WorkloadId,
        image: &EndpointImage,
        announced: Option<&Announcement>,
        tracked: &mut TrackedTable,
        bridged: &mut Bridged,
    ) -> anyhow::Result<()> {
        let told = announced.and_then(|announced| placed(links, announced));
        let mut place = told.map_or(Place::Nowhere, Place::Device);
        for address in [image.address_v4, image.address_v6].iter().filter(|address| address.0 != [0; 16]) {
            if matches!(place, Place::Device(_)) {
                break;
            }
            place = discover::find(&self.handle, links, bridged, unmapped(address.0)).await?;
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
        // A pod may have more addresses of a family than the one that its endpoint names.
        for (address, value) in &self.engine.image().addresses {
            if value.workload == workload && self.room.has(address) {
                self.loaded.maps.addresses.put(address, &reconcile::placed(*value, &self.interfaces))?;
            }
        }
        let seeds_all = self.upgrade.as_ref().is_some_and(|upgrade| upgrade.seed_flows);
        if self.brown_field.remove(&device.ifindex).is_some()
            && (seeds_all || !self.attachments.is_attached(device.ifindex))
        {
            self.seed(workload, image, tracked)?;
        }
        let row = reconcile::endpoint_row(workload, image, &device, self.known());
        if let Err(error) = self.put_rows(workload, &device, &row) {
            if error.is_full() {
                self.attachments.hold(&mut self.loaded, &device.name, device.ifindex)?;
                self.interfaces.remove(&workload);
                self.waiting.insert(workload);
                self.homeless.insert(workload, self.homeless_problem(workload, &error));
            }
            return Err(error.into());
        }
        if device.bridge != 0 {
            self.uplinks.release(device.bridge)?;
        }
        if !self.attachments.is_attached(device.ifindex) {
            self.guard.prepare();
        }
        if self.attachments.attach(&mut self.loaded, &device.name, device.ifindex)? > 0 {
            self.metrics.adopted_links.inc();
        }
        self.loaded.maps.endpoints.put(&device.ifindex, &row)?;
        self.homeless.remove(&workload);
        self.attachments.release(&mut self.loaded, &device.name, device.ifindex)?;
        tracing::info!(interface = device.name, ifindex = device.ifindex, "endpoint attached");
        // The device that it left is closed, unless it is another pod's already.
        if let Some(old) = moved
            && !self.interfaces.values().any(|other| other.ifindex == old.ifindex)
        {
            self.loaded.maps.endpoints.put(&old.ifindex, &closed(workload, old.ifindex))?;
        }
        Ok(())
    }

    /// What an endpoint's programs look up, before they are attached.
    fn put_rows(&self, workload: WorkloadId, device: &Device, row: &EndpointValue) -> Result<(), MapError> {
        let maps = &self.loaded.maps;
        if device.bridge != 0 {
            // What passes over the bridge keeps its mark until it reaches a pod.
            maps.devices.put(&device.bridge, &POD_BRIDGE)?;
        }
        let budget = BudgetValue { used: 0, limit: share(maps.flows.capacity()) };
        maps.budgets.put_new(&workload.0, &budget)?;
        // Without its programs nothing that it sends is marked.
        let unmarked = EndpointValue { flags: row.flags & !ENDPOINT_MARKS, ..*row };
        maps.endpoints.put(&device.ifindex, &unmarked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(routes: &[Option<&str>]) -> Scope {
        let mut scope = Scope::default();
        for route in routes {
            scope.hear_of_route(route.map(|text| text.parse().expect("a prefix")));
        }
        scope
    }

    #[test]
    fn a_route_is_about_the_addresses_that_it_leads_to_and_no_others() {
        let pods = ["10.1.2.3", "10.1.9.9", "fd00::3"].map(|text| text.parse().expect("an address"));
        for (route, concerned) in [
            ("10.1.2.3/32", [true, false, false]),
            ("10.1.2.0/24", [true, false, false]),
            ("10.0.0.0/8", [true, true, false]),
            ("fd00::/64", [false, false, true]),
            // What comes with each device that is set up.
            ("fe80::/64", [false; 3]),
            ("ff00::/8", [false; 3]),
        ] {
            let scope = heard(&[Some(route)]);
            assert_eq!(pods.map(|pod| scope.leads_to(pod)), concerned, "{route}");
            assert!(!scope.is_about_facts() && !scope.everywhere, "{route}");
        }
        let both = heard(&[Some("10.1.2.3/32"), Some("fd00::/64")]);
        assert_eq!(pods.map(|pod| both.leads_to(pod)), [true, false, true]);
        assert!(heard(&[]).is_about_facts());
    }

    #[test]
    fn a_default_route_and_one_that_cannot_be_read_are_about_everybody() {
        for route in [None, Some("0.0.0.0/0"), Some("::/0")] {
            let scope = heard(&[route]);
            assert!(scope.everywhere && scope.leads_to("10.1.2.3".parse().expect("an address")), "{route:?}");
        }
    }
}
