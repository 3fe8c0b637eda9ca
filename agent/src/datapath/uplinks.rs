//! Attaches the programs for what leaves and enters the node, and for what its processes receive.
//!
//! Invariant: a bridge gets rid of these programs before the first pod behind it is marked, a pod's own device only
//! after its own programs are on it.

use super::attach::{self, AttachError, Hook, Mechanism, Repair, clsact, tcx};
use super::discover::Uplink;
use super::load::{HOST_IN, Loaded, UPLINK, UPLINK_IN};
use super::syscall;
use aya::programs::links::{CgroupAttachMode, FdLink, PinnedLink};
use aya::programs::{CgroupSkbAttachType, TcAttachType};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The two ends of a device's traffic.
pub(super) const HOOKS: [Hook; 2] = [
    Hook { program: UPLINK, side: "out", at: TcAttachType::Egress },
    Hook { program: UPLINK_IN, side: "in", at: TcAttachType::Ingress },
];
/// The pin of the cgroup's link.
const HOST_PIN: &str = "host-in";

/// Whether a pin's name is one of those made here.
pub fn is_pin(name: &str) -> bool {
    let side = name.split_once('-').filter(|(ifindex, _)| ifindex.parse::<u32>().is_ok()).map(|(_, side)| side);
    name == HOST_PIN || HOOKS.iter().any(|hook| side == Some(hook.side))
}

/// What is held, by pin, as a filter, or (in tests) by file descriptor only.
#[derive(Debug)]
pub struct Uplinks {
    directory: Option<PathBuf>,
    mechanism: Mechanism,
    held: BTreeMap<u32, Device>,
    host: Option<Host>,
}

/// A device with both programs. Dropping a link's descriptor detaches it if it is not pinned; filters stay.
#[derive(Debug)]
struct Device {
    name: String,
    links: BTreeMap<&'static str, FdLink>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "dropping the descriptor is what detaches an unpinned link")]
enum Host {
    Pinned(PinnedLink),
    Open(FdLink),
}

impl Uplinks {
    /// Links pinned in this directory, or not pinned at all.
    pub fn new(directory: Option<&Path>, mechanism: Mechanism) -> Self {
        Self { directory: directory.map(Path::to_owned), mechanism, held: BTreeMap::new(), host: None }
    }

    /// Devices with both programs.
    pub fn attached(&self) -> impl Iterator<Item = u32> {
        self.held.keys().copied()
    }

    /// Whether local processes are behind the program.
    pub fn has_host(&self) -> bool {
        self.host.is_some()
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
            if !self.held.contains_key(ifindex) {
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
                    let (link, _) = tcx::attach(loaded, hook, interface, ifindex, path.as_deref())?;
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

    /// Looks whether our programs still stand at the devices, first in their chains, and puts right what is wrong;
    /// filters are put into their place again.
    pub fn check(&mut self, loaded: &mut Loaded) -> Vec<(String, Result<Repair, AttachError>)> {
        let mut done = Vec::new();
        for (ifindex, device) in &mut self.held {
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

    /// Attaches to the cgroup of the node's processes, once; a pinned link gets the loaded program in place.
    pub fn attach_host(&mut self, loaded: &mut Loaded, cgroup: &Path) -> Result<(), AttachError> {
        if self.host.is_some() {
            return Ok(());
        }
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| AttachError::Cgroup { path: cgroup.to_owned(), source };
        let path = self.directory.as_ref().map(|directory| directory.join(HOST_PIN));
        if let Some(path) = &path
            && path.exists()
        {
            let link_error = |source| AttachError::Link { path: path.clone(), source: Box::new(source) };
            let program = loaded.cgroup_program()?.fd().map_err(|error| failed(error.into()))?;
            let link = syscall::open_pin(path).map_err(|error| failed(error.into()))?;
            match syscall::update_link(link.as_fd(), program.as_fd()) {
                Ok(()) => {
                    self.host = Some(Host::Pinned(PinnedLink::from_pin(path).map_err(link_error)?));
                    return Ok(());
                }
                // The cgroup that it was on is gone.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => attach::remove(path)?,
                Err(error) => return Err(failed(error.into())),
            }
        }
        let directory = File::open(cgroup).map_err(|error| failed(error.into()))?;
        let program = loaded.cgroup_program()?;
        // No flags: a link always leaves room for others, and the kernel takes no flag that says so.
        let id = program
            .attach(&directory, CgroupSkbAttachType::Ingress, CgroupAttachMode::Single)
            .map_err(|error| failed(error.into()))?;
        let link = program.take_link(id).map_err(|error| failed(error.into()))?;
        let link = FdLink::try_from(link).map_err(|error| failed(error.into()))?;
        self.host = Some(match path {
            Some(path) => {
                let pinned = link.pin(&path);
                Host::Pinned(pinned.map_err(|error| AttachError::Pin { path, what: error.to_string() })?)
            }
            None => Host::Open(link),
        });
        tracing::info!(cgroup = %cgroup.display(), program = HOST_IN, "cgroup attached");
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
            return Ok(Some(Repair::Pinned));
        }
        if standing == tcx::Standing::Missing {
            self.links.remove(hook.side);
            pin.map_or(Ok(()), attach::remove)?;
            let (link, _) = tcx::attach(loaded, hook, &self.name, ifindex, pin)?;
            self.links.insert(hook.side, link);
            return Ok(Some(Repair::Attached));
        }
        // The kernel has no way to move a link: everything is dropped while ours is made anew.
        let closed = tcx::close(loaded, hook, &self.name, ifindex)?;
        self.links.remove(hook.side);
        pin.map_or(Ok(()), attach::remove)?;
        tcx::wait_for_release(loaded, hook, &self.name, ifindex)?;
        let (link, _) = tcx::attach(loaded, hook, &self.name, ifindex, pin)?;
        self.links.insert(hook.side, link);
        drop(closed);
        tcx::wait_until_open(hook, &self.name, ifindex)?;
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
