//! Pods that the CNI plugin announces: enforced at the device that it tells, closed until they can be.

use super::announced::Known;
use super::{Enforcer, unmapped};
use crate::cni::{Announcement, Answer, Attachment, Request};
use crate::datapath::discover::{Device, Links};
use reeve_abi::ids::WorkloadId;
use reeve_policy::provenance::workload_id;
use std::net::IpAddr;
use tokio::sync::oneshot;

impl Enforcer {
    /// Takes an announcement; the next step heeds it. `gone`: containers of which the plugin knows that their network is.
    pub(crate) async fn announce(&mut self, new: Announcement, gone: &[String]) -> Result<(), Answer> {
        let not = |why: String| Err(Answer::Not { why });
        if self.active == 0 {
            return not(format!("the agent has just started: {}", self.reasons.join("; ")));
        }
        let links = match Links::read(&self.handle).await {
            Ok(links) => links,
            Err(error) => return not(format!("the node's interfaces cannot be listed: {error}")),
        };
        if placed(&links, &new).is_none() {
            return not(format!(
                "interface {} ({}) is no veth device of the node's network namespace",
                new.device, new.ifindex
            ));
        }
        let rivals: Vec<Announcement> = self.announced.rivals(&new).cloned().collect();
        for old in rivals {
            if !gone.contains(&old.attachment.container) && placed(&links, &old).is_some() {
                let why = format!(
                    "{} (container {}) has {} and {:?}, which {} (container {}) claims as {} and {:?}",
                    old.full_name(),
                    old.attachment.container,
                    old.device,
                    old.addresses,
                    new.full_name(),
                    new.attachment.container,
                    new.device,
                    new.addresses
                );
                return Err(Answer::Claimed { by: old.attachment, netns: old.netns, why });
            }
            self.announced.forget(|other| *other == old.attachment);
        }
        self.refuse_taken_device(&new)?;
        // It begins now: nothing that is to be seeded can live on it.
        self.brown_field.remove(&new.ifindex);
        if let Some(workload) = self.workload_of(&new) {
            self.looked.remove(&workload);
        }
        self.announced.announce(new);
        Ok(())
    }

    /// Takes what the plugin asks for; whether there is something to do for a step.
    pub(crate) async fn asked(&mut self, request: Request, answer: oneshot::Sender<Answer>) -> bool {
        let mut newcomers = std::mem::take(&mut self.newcomers);
        let step = newcomers.take(self, request, answer).await;
        self.newcomers = newcomers;
        step
    }

    /// After a step: answers who is served or has waited too long.
    pub(crate) fn answer_newcomers(&mut self) {
        let mut newcomers = std::mem::take(&mut self.newcomers);
        newcomers.answer(self);
        self.newcomers = newcomers;
    }

    /// In the middle of a step: a pod's programs stand. Whoever waits for it does not wait for the next pod, nor for what
    /// surrounds the pods, but for the way to it: what another pod sends it is pending until its own programs judge it.
    pub(super) fn serve_newcomer(&mut self, workload: WorkloadId, ifindex: u32) {
        let waited_for = |enforcer: &Self, attachment: &Attachment| {
            enforcer.announced.get(attachment).is_some_and(|one| enforcer.workload_of(one) == Some(workload))
        };
        if !self.newcomers.attachments().any(|attachment| waited_for(self, attachment)) {
            return;
        }
        if let Err(error) = self.guard.admit(ifindex) {
            tracing::warn!(%error, ifindex, "the way to a pod cannot be opened yet");
            return; // the step's end tries again, and says so
        }
        let mut newcomers = std::mem::take(&mut self.newcomers);
        newcomers.answer_served(self, |attachment| waited_for(self, attachment));
        self.newcomers = newcomers;
    }

    /// A device on which another pod is enforced, by its own addresses, is that pod's.
    fn refuse_taken_device(&self, new: &Announcement) -> Result<(), Answer> {
        let Some((id, _)) = self.interfaces.iter().find(|(_, device)| device.ifindex == new.ifindex) else {
            return Ok(());
        };
        let owner = self.engine.world().workloads.values().find(|pod| workload_id(&pod.uid) == *id);
        let Some(owner) = owner.filter(|pod| (&pod.namespace, &pod.name) != (&new.namespace, &new.pod)) else {
            return Ok(());
        };
        if owner.addresses.iter().any(|address| new.addresses.contains(address)) {
            return Ok(()); // a claim to the address, which the facts have to settle: nobody passes meanwhile
        }
        let why = format!(
            "{} is the device of {}/{}, and {} claims it",
            new.device,
            owner.namespace,
            owner.name,
            new.full_name()
        );
        Err(Answer::Not { why })
    }

    /// Forgets announcements; whether there were any.
    pub(crate) fn forget(&mut self, which: impl Fn(&Attachment) -> bool) -> bool {
        let any = self.announced.forget(which);
        self.write_announced();
        any
    }

    pub(super) fn write_announced(&mut self) {
        if let Err(error) = self.announced.write() {
            tracing::error!(%error, "what the CNI plugin announced cannot be written down: the next agent will not know it");
        }
    }

    /// Whether a pod is enforced as it was announced, else why not.
    pub(crate) fn stands(&self, attachment: &Attachment) -> Result<(), String> {
        let announcement = self.announced.get(attachment).ok_or("its network was given up meanwhile")?;
        let pod = announcement.full_name();
        match self.announced.known(announcement) {
            Known::AsAnnounced(_) => {}
            Known::Unknown => return Err(format!("the agent has not heard of a pod {pod} on this node")),
            Known::Other(uid) => {
                let announced = announcement.uid.as_deref().unwrap_or_default();
                return Err(format!("the pod {pod} that the agent knows has UID {uid}, this one {announced}"));
            }
        }
        let id = self.workload_of(announcement).ok_or_else(|| format!("what is known of {pod} cannot be read"))?;
        if self.adopt_first {
            return Err(format!("the kernel does not take what is to be enforced: {}", self.reasons.join("; ")));
        }
        let image = self.engine.image();
        let endpoint = image.endpoints.get(&id).ok_or_else(|| format!("{pod} is no endpoint of this node"))?;
        let held = [endpoint.address_v4, endpoint.address_v6];
        let held: Vec<IpAddr> = held.iter().filter(|one| one.0 != [0; 16]).map(|one| unmapped(one.0)).collect();
        if endpoint.contested.contains(&true) {
            return Err(format!("another pod claims an address of {pod} ({:?})", announcement.addresses));
        }
        if held.is_empty() || held.iter().any(|address| !announcement.addresses.contains(address)) {
            return Err(format!("{pod} is known with {held:?} and announced with {:?}", announcement.addresses));
        }
        if !endpoint.ready {
            return Err(format!("{pod} has no complete image yet"));
        }
        match self.interfaces.get(&id) {
            Some(device) if device.ifindex == announcement.ifindex && self.attachments.is_attached(device.ifindex) => {
                Ok(())
            }
            _ if self.reasons.is_empty() => Err(format!("no programs stand at {} yet", announcement.device)),
            _ => Err(format!("no programs stand at {}: {}", announcement.device, self.reasons.join("; "))),
        }
    }

    /// `CHECK`.
    pub(crate) fn check_announced(&self, wanted: &Announcement) -> Answer {
        let stands = match self.announced.get(&wanted.attachment) {
            None => Err(format!("nothing was announced of container {}", wanted.attachment.container)),
            Some(held) if (held.ifindex, &held.addresses) != (wanted.ifindex, &wanted.addresses) => Err(format!(
                "announced were {} and {:?}, now there are {} and {:?}",
                held.device, held.addresses, wanted.device, wanted.addresses
            )),
            Some(_) => self.stands(&wanted.attachment),
        };
        stands.map_or_else(|why| Answer::Not { why }, |()| Answer::Done)
    }

    /// `STATUS`.
    pub(crate) fn takes_new_pods(&self) -> Answer {
        if self.active == 0 || self.adopt_first {
            return Answer::Not { why: self.reasons.join("; ") };
        }
        Answer::Done
    }

    /// Drops everything at the device of a pod that is not enforced yet.
    pub(crate) fn close_announced(&mut self, attachment: &Attachment) {
        let Some(announcement) = self.announced.get(attachment).cloned() else { return };
        if self.attachments.is_attached(announcement.ifindex) {
            return; // its row decides, and lets nothing through that is not to pass
        }
        if let Err(error) = self.attachments.hold(&mut self.loaded, &announcement.device, announcement.ifindex) {
            tracing::warn!(%error, interface = announcement.device, "the device of an announced pod cannot be closed");
        }
    }

    /// Forgets announcements whose devices are gone: nobody gives up what went with a node's restart.
    pub(super) fn forget_gone(&mut self, links: &Links) {
        let gone: Vec<Attachment> =
            self.announced.all().filter(|one| placed(links, one).is_none()).map(|one| one.attachment.clone()).collect();
        if !gone.is_empty() {
            self.announced.forget(|one| gone.contains(one));
        }
    }

    fn workload_of(&self, announcement: &Announcement) -> Option<WorkloadId> {
        match self.announced.known(announcement) {
            Known::AsAnnounced(Some(uid)) => Some(workload_id(uid)),
            // A manifest without a UID: the pod has one that was made of its name.
            Known::AsAnnounced(None) => {
                let named = (&announcement.namespace, &announcement.pod);
                let mut pods = self.engine.world().workloads.values();
                pods.find(|pod| (&pod.namespace, &pod.name) == named).map(|pod| workload_id(&pod.uid))
            }
            Known::Other(_) | Known::Unknown => None,
        }
    }
}

/// The announced device as it is now: by number, by name, and of the kind that one pod hangs on.
pub(super) fn placed(links: &Links, announcement: &Announcement) -> Option<Device> {
    let device = links.veth(announcement.ifindex)?;
    (device.name == announcement.device).then_some(device)
}
