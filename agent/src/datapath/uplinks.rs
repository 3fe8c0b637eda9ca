//! Attaches the programs for what leaves and enters the node, and for what its processes receive.
//!
//! Invariant: a bridge gets rid of these programs before the first pod behind it is marked, a pod's own device only
//! after its own programs are on it.

use super::attach::{self, AttachError};
use super::discover::Uplink;
use super::load::{HOST_IN, Loaded, UPLINK, UPLINK_IN};
use super::syscall;
use aya::programs::links::{CgroupAttachMode, FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{CgroupSkbAttachType, TcAttachType};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The two ends of a device's traffic: program, name in the pin, where it is attached.
const HOOKS: [(&str, &str, TcAttachType); 2] =
    [(UPLINK, "out", TcAttachType::Egress), (UPLINK_IN, "in", TcAttachType::Ingress)];
/// The pin of the cgroup's link.
const HOST_PIN: &str = "host-in";

/// Whether a pin's name is one of those made here.
pub fn is_pin(name: &str) -> bool {
    let side = name.split_once('-').filter(|(ifindex, _)| ifindex.parse::<u32>().is_ok()).map(|(_, side)| side);
    name == HOST_PIN || HOOKS.iter().any(|(_, known, _)| side == Some(known))
}

/// Links held, by pin or (in tests) by file descriptor only.
#[derive(Debug)]
pub struct Uplinks {
    directory: Option<PathBuf>,
    held: BTreeMap<u32, Vec<Held>>,
    host: Option<Host>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "dropping the descriptor is what detaches an unpinned link")]
enum Held {
    Pinned(PinnedLink),
    Open(SchedClassifierLink),
}

#[derive(Debug)]
#[allow(dead_code, reason = "dropping the descriptor is what detaches an unpinned link")]
enum Host {
    Pinned(PinnedLink),
    Open(FdLink),
}

impl Uplinks {
    /// Links pinned in this directory, or not pinned at all.
    pub fn new(directory: Option<&Path>) -> Self {
        Self { directory: directory.map(Path::to_owned), held: BTreeMap::new(), host: None }
    }

    /// Devices with both programs.
    pub fn attached(&self) -> impl Iterator<Item = u32> {
        self.held.keys().copied()
    }

    /// Whether local processes are behind the program.
    pub fn has_host(&self) -> bool {
        self.host.is_some()
    }

    /// Replaces the programs of pinned links by the loaded ones; pins of devices that are gone are removed.
    pub fn resume(&mut self, loaded: &mut Loaded) -> Result<(), AttachError> {
        let Some(directory) = self.directory.clone() else { return Ok(()) };
        let file = |source| AttachError::File { path: directory.clone(), source };
        for entry in std::fs::read_dir(&directory).map_err(file)? {
            let entry = entry.map_err(file)?;
            let name = entry.file_name();
            let Some((ifindex, side)) = name.to_str().and_then(|name| name.split_once('-')) else { continue };
            let Ok(ifindex) = ifindex.parse::<u32>() else { continue };
            let Some((program, ..)) = HOOKS.iter().find(|(_, name, _)| *name == side) else { continue };
            match attach::replace(loaded, program, &entry.path())? {
                Some(link) => self.held.entry(ifindex).or_default().push(Held::Pinned(link)),
                None => attach::remove(&entry.path())?,
            }
        }
        // One side alone is put right by `follow`, which takes its pin over.
        self.held.retain(|_, links| links.len() == HOOKS.len());
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
        let mut links = Vec::new();
        for (program, side, attach_type) in HOOKS {
            let path = self.directory.as_ref().map(|directory| directory.join(format!("{ifindex}-{side}")));
            if let Some(path) = &path
                && path.exists()
            {
                if let Some(link) = attach::replace(loaded, program, path)? {
                    links.push(Held::Pinned(link));
                    continue;
                }
                attach::remove(path)?;
            }
            let failed = |source| AttachError::Program {
                interface: interface.to_owned(),
                ifindex,
                program,
                source: Box::new(source),
            };
            let classifier = loaded.classifier(program)?;
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = classifier.attach_with_options(interface, attach_type, order).map_err(failed)?;
            let link = classifier.take_link(id).map_err(failed)?;
            links.push(match path {
                Some(path) => Held::Pinned(attach::pin(link, &path)?),
                None => Held::Open(link),
            });
        }
        self.held.insert(ifindex, links);
        Ok(())
    }

    /// Takes both programs off a device: it is a pod's now, a bridge of pods, or gone.
    pub fn release(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.held.remove(&ifindex);
        if let Some(directory) = &self.directory {
            for (_, side, _) in HOOKS {
                attach::remove(&directory.join(format!("{ifindex}-{side}")))?;
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
