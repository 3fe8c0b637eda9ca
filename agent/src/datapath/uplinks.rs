//! Attaches the programs for what leaves and enters the node.
//!
//! Invariant: a bridge gets rid of these programs before the first pod behind it is marked, a pod's own device only
//! after its own programs are on it.

use super::attach::{self, AttachError, Hook, Look, Mechanism, Repair, clsact, tcx};
use super::discover::Uplink;
use super::host;
use super::load::{Loaded, UPLINK, UPLINK_IN, UPLINK_IN_SPARE, UPLINK_SPARE};
use aya::programs::TcAttachType;
use aya::programs::links::FdLink;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The two ends of a device's traffic.
pub(super) const HOOKS: [Hook; 2] = [
    Hook { program: UPLINK, side: "out", at: TcAttachType::Egress },
    Hook { program: UPLINK_IN, side: "in", at: TcAttachType::Ingress },
];

/// The program that stands before a hook's own while that is put first again.
fn spare(hook: Hook) -> &'static str {
    if hook.program == UPLINK { UPLINK_SPARE } else { UPLINK_IN_SPARE }
}

/// Whether a pin's name is one of those that are not pods'.
pub fn is_pin(name: &str) -> bool {
    let side = name.split_once('-').filter(|(ifindex, _)| ifindex.parse::<u32>().is_ok()).map(|(_, side)| side);
    name == host::PIN || HOOKS.iter().any(|hook| side == Some(hook.side))
}

/// What is held, by pin, as a filter, or (in tests) by file descriptor only.
#[derive(Debug)]
pub struct Uplinks {
    directory: Option<PathBuf>,
    mechanism: Mechanism,
    held: BTreeMap<u32, Device>,
}

/// A device with both programs. Dropping a link's descriptor detaches it if it is not pinned; filters stay.
#[derive(Debug)]
struct Device {
    name: String,
    links: BTreeMap<&'static str, FdLink>,
}

impl Uplinks {
    /// Links pinned in this directory, or not pinned at all.
    pub fn new(directory: Option<&Path>, mechanism: Mechanism) -> Self {
        Self { directory: directory.map(Path::to_owned), mechanism, held: BTreeMap::new() }
    }

    /// Devices with both programs.
    pub fn attached(&self) -> impl Iterator<Item = u32> {
        self.held.keys().copied()
    }

    /// Removes pins of devices that are gone, and replaces the programs of the others by the loaded ones; whose they are
    /// is found out by [`Uplinks::follow`].
    pub fn resume(&mut self, loaded: &mut Loaded) -> Result<(), AttachError> {
        let Some(directory) = self.directory.clone() else { return Ok(()) };
        let file = |source| AttachError::File { path: directory.clone(), source };
        for entry in std::fs::read_dir(&directory).map_err(file)? {
            let entry = entry.map_err(file)?;
            let name = entry.file_name();
            let Some((ifindex, side)) = name.to_str().and_then(|name| name.split_once('-')) else { continue };
            let Some(hook) = HOOKS.iter().find(|hook| hook.side == side) else { continue };
            if ifindex.parse::<u32>().is_ok() && tcx::replace(loaded, *hook, &entry.path())?.is_none() {
                attach::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Attaches to these devices and lets go of all others. What fails for one device keeps no other from it.
    pub fn follow(&mut self, loaded: &mut Loaded, devices: &BTreeMap<u32, Uplink>) -> Vec<AttachError> {
        let mut failed = Vec::new();
        let gone: Vec<u32> = self.held.keys().filter(|ifindex| !devices.contains_key(ifindex)).copied().collect();
        for ifindex in gone {
            failed.extend(self.release(ifindex).err());
        }
        for (ifindex, device) in devices {
            if let Some(held) = self.held.get_mut(ifindex) {
                held.name.clone_from(&device.name); // it may have got another one
            } else {
                match self.attach(loaded, &device.name, *ifindex) {
                    Ok(()) => tracing::info!(interface = device.name, ifindex, "device attached"),
                    // One that has gone meanwhile needs no program.
                    Err(_) if !is_there(&device.name, *ifindex) => failed.extend(self.release(*ifindex).err()),
                    Err(error) => failed.push(error),
                }
            }
        }
        failed
    }

    fn attach(&mut self, loaded: &mut Loaded, interface: &str, ifindex: u32) -> Result<(), AttachError> {
        let mut device = Device { name: interface.to_owned(), links: BTreeMap::new() };
        for hook in HOOKS {
            let path = self.pin(ifindex, hook);
            match self.mechanism {
                Mechanism::Clsact => {
                    clsact::attach(loaded, hook, interface, ifindex)?;
                    // An agent that used links may have been here: its programs go when ours stand.
                    path.as_deref().map_or(Ok(()), attach::remove)?;
                }
                Mechanism::Tcx => {
                    let (link, _) = tcx::attach(loaded, hook, interface, ifindex, path.as_deref(), None)?;
                    clsact::detach(interface, hook)?;
                    device.links.insert(hook.side, link);
                }
            }
        }
        self.held.insert(ifindex, device);
        Ok(())
    }

    fn pin(&self, ifindex: u32, hook: Hook) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{ifindex}-{}", hook.side)))
    }

    /// Looks whether our programs still stand at the devices, first in their chains, and puts right what is wrong.
    /// Filters are put into their place again, with [`Look::Whole`] only.
    pub fn check(&mut self, loaded: &mut Loaded, look: Look) -> Vec<(String, Result<Repair, AttachError>)> {
        let mut done = Vec::new();
        if self.mechanism == Mechanism::Clsact && look == Look::Quick {
            return done;
        }
        for (ifindex, device) in &mut self.held {
            if !is_there(&device.name, *ifindex) {
                continue; // it is going, or has got another name: who follows the devices will know
            }
            for hook in HOOKS {
                let pin = self.directory.as_ref().map(|directory| directory.join(format!("{ifindex}-{}", hook.side)));
                let repaired = device.check(loaded, self.mechanism, *ifindex, hook, pin.as_deref());
                done.extend(repaired.transpose().map(|result| (device.name.clone(), result)));
            }
        }
        done
    }

    /// Takes both programs off a device: it is a pod's now, a bridge of pods, or gone.
    pub fn release(&mut self, ifindex: u32) -> Result<(), AttachError> {
        let held = self.held.remove(&ifindex);
        for hook in HOOKS {
            self.pin(ifindex, hook).as_deref().map_or(Ok(()), attach::remove)?;
            if let Some(device) = held.as_ref().filter(|device| is_there(&device.name, ifindex))
                && self.mechanism == Mechanism::Clsact
            {
                clsact::detach(&device.name, hook)?;
            }
        }
        Ok(())
    }
}

impl Device {
    fn check(
        &mut self,
        loaded: &mut Loaded,
        mechanism: Mechanism,
        ifindex: u32,
        hook: Hook,
        pin: Option<&Path>,
    ) -> Result<Option<Repair>, AttachError> {
        if mechanism == Mechanism::Clsact {
            let done = clsact::attach(loaded, hook, &self.name, ifindex)?;
            return Ok((done == clsact::Done::Added).then_some(Repair::Attached));
        }
        let standing = tcx::standing(loaded, hook, &self.name, ifindex)?;
        if standing == tcx::Standing::First {
            let Some(pin) = pin.filter(|pin| !pin.exists()) else { return Ok(None) };
            let Some(link) = self.links.remove(hook.side) else { return Ok(None) };
            self.links.insert(hook.side, tcx::pin(link, pin)?);
            return Ok(pin.exists().then_some(Repair::Pinned));
        }
        if standing == tcx::Standing::Missing {
            self.links.remove(hook.side);
            pin.map_or(Ok(()), attach::remove)?;
            let (link, _) = tcx::attach(loaded, hook, &self.name, ifindex, pin, None)?;
            self.links.insert(hook.side, link);
            return Ok(Some(Repair::Attached));
        }
        let held = self.links.remove(hook.side);
        let link = tcx::to_front(loaded, hook, spare(hook), &self.name, ifindex, held, pin)?;
        self.links.insert(hook.side, link);
        Ok(Some(Repair::First))
    }
}

/// Whether the interface of that name still has this number.
fn is_there(name: &str, ifindex: u32) -> bool {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0));
    socket.is_ok_and(|socket| rustix::net::netdevice::name_to_index(socket, name) == Ok(ifindex))
}

#[cfg(test)]
mod tests {
    use super::is_pin;

    #[test]
    fn only_names_that_are_made_here_are_pins() {
        for (name, ours) in
            [("7-out", true), ("7-in", true), ("host-in", true), ("7-from", false), ("x-in", false), ("7-", false)]
        {
            assert_eq!(is_pin(name), ours, "{name}");
        }
    }
}
