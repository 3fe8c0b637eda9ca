//! Attaches the programs to pods' devices, by pinned TCX links or by clsact filters, and replaces programs in place.
//!
//! Invariant: nothing is detached to be attached again unless everything is dropped meanwhile; only
//! [`Attachments::detach`] and `uninstall` take a program off.

pub mod clsact;
pub(super) mod tcx;

use super::load::{FROM_POD, HOLD, LoadError, Loaded, TO_POD};
use super::syscall;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{ProgramError, TcAttachType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Attaching failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentence of each variant says it")]
pub enum AttachError {
    #[error("interface {interface} ({ifindex}): program {program} cannot be attached")]
    Program {
        interface: String,
        ifindex: u32,
        program: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("interface {interface}: no clsact qdisc")]
    Qdisc {
        interface: String,
        #[source]
        source: Box<aya::programs::tc::TcError>,
    },
    #[error("link {path}")]
    Link {
        path: PathBuf,
        #[source]
        source: Box<LinkError>,
    },
    #[error("link {path} cannot be pinned: {what}")]
    Pin { path: PathBuf, what: String },
    #[error("{path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cgroup {path}")]
    Cgroup {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Map(#[from] super::maps::MapError),
}

/// One end of a device's traffic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// The program that judges there.
    pub(crate) program: &'static str,
    /// Its name in the paths of pins.
    pub(crate) side: &'static str,
    /// Where it is attached.
    pub(crate) at: TcAttachType,
}

/// Both ends.
pub(crate) const HOOKS: [Hook; 2] = [
    Hook { program: FROM_POD, side: "from", at: TcAttachType::Ingress },
    Hook { program: TO_POD, side: "to", at: TcAttachType::Egress },
];

/// By what the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// TCX links (kernel 6.6 and newer), pinned.
    Tcx,
    /// Filters of the clsact qdisc, with a priority and a handle of our own.
    Clsact,
}

/// What stands at a hook in the kernel, to be recognised after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Id of the link; 0 for a filter, which has none.
    pub link: u32,
    /// Id of the program.
    pub program: u32,
}

/// What was found wrong at a device and is right again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repair {
    /// A program had been taken off.
    Attached,
    /// Another program had put itself before ours.
    First,
    /// The pin had been removed: the link would have gone with this process.
    Pinned,
}

/// How one hook of one device is held.
#[derive(Debug)]
enum Held {
    /// A TCX link; it is pinned unless this is a test without pins.
    Link(FdLink),
    /// A filter stays by itself.
    Filter,
}

/// Everything attached.
#[derive(Debug)]
pub struct Attachments {
    directory: Option<PathBuf>,
    mechanism: Mechanism,
    held: BTreeMap<u32, BTreeMap<&'static str, Held>>,
    /// Links of [`Attachments::attach_ahead`]. They have no pins: without this process they are nothing.
    ahead: BTreeMap<u32, BTreeMap<&'static str, FdLink>>,
    /// What drops everything at a hook, by the path of its pin.
    holding: BTreeMap<PathBuf, FdLink>,
}

/// What became of the links that were pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Interfaces whose programs were replaced in place.
    pub replaced: Vec<u32>,
    /// Interfaces that are gone; their pins were removed.
    pub gone: Vec<u32>,
}

impl Attachments {
    /// Links pinned in this directory, or not pinned at all.
    pub fn new(directory: Option<&Path>, mechanism: Mechanism) -> Result<Self, AttachError> {
        if let Some(path) = directory {
            std::fs::create_dir_all(path).map_err(|source| AttachError::File { path: path.to_owned(), source })?;
        }
        Ok(Self {
            directory: directory.map(Path::to_owned),
            mechanism,
            held: BTreeMap::new(),
            ahead: BTreeMap::new(),
            holding: BTreeMap::new(),
        })
    }

    /// By what programs are attached.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Pins that are there, by interface.
    pub fn pinned(&self) -> Result<BTreeMap<u32, Vec<PathBuf>>, AttachError> {
        let mut found: BTreeMap<u32, Vec<PathBuf>> = BTreeMap::new();
        let Some(directory) = &self.directory else { return Ok(found) };
        let failed = |source| AttachError::File { path: directory.clone(), source };
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if let Some((ifindex, _)) = parse(&path) {
                found.entry(ifindex).or_default().push(path);
            }
        }
        Ok(found)
    }

    /// What an earlier agent left at each hook, by the pin's name. Pins that cannot be read are left out: what is not
    /// there proves nothing.
    pub fn marks_of_pins(&self) -> Result<BTreeMap<String, Mark>, AttachError> {
        let paths = self.pinned()?;
        Ok(paths.values().flatten().filter_map(|path| Some((name(path), tcx::mark_of_pin(path)?))).collect())
    }

    /// What stands at each hook held now.
    pub fn marks(&self, loaded: &mut Loaded) -> Result<BTreeMap<String, Mark>, AttachError> {
        let mut marks = BTreeMap::new();
        for hook in HOOKS {
            let program = program_id(loaded, hook)?;
            for (ifindex, sides) in &self.held {
                let Some(held) = sides.get(hook.side) else { continue };
                let link = match held {
                    Held::Filter => 0,
                    Held::Link(link) => {
                        let path = self.directory.clone().unwrap_or_default().join(pin_name(*ifindex, hook));
                        link.info().map_err(|source| AttachError::Link { path, source: Box::new(source) })?.id()
                    }
                };
                marks.insert(pin_name(*ifindex, hook), Mark { link, program });
            }
        }
        Ok(marks)
    }

    /// Replaces the programs of every pinned link by the loaded ones; no packet goes unjudged.
    pub fn resume(&mut self, loaded: &mut Loaded) -> Result<Resumed, AttachError> {
        let mut resumed = Resumed::default();
        if self.mechanism == Mechanism::Clsact {
            return Ok(resumed); // filters are replaced as their interfaces are found
        }
        for (ifindex, paths) in self.pinned()? {
            let mut live = BTreeMap::new();
            for path in paths {
                let Some((_, hook)) = parse(&path) else { continue };
                match tcx::replace(loaded, hook, &path)? {
                    Some(link) => drop(live.insert(hook.side, Held::Link(link))),
                    None => remove(&path)?,
                }
            }
            if live.is_empty() {
                resumed.gone.push(ifindex);
            } else {
                self.held.insert(ifindex, live);
                resumed.replaced.push(ifindex);
            }
        }
        Ok(resumed)
    }

    /// Interfaces with both programs attached.
    pub fn attached(&self) -> impl Iterator<Item = u32> {
        self.held.iter().filter(|(_, sides)| sides.len() == HOOKS.len()).map(|(ifindex, _)| *ifindex)
    }

    /// Whether both programs are attached to the interface.
    pub fn is_attached(&self, ifindex: u32) -> bool {
        self.held.get(&ifindex).is_some_and(|sides| sides.len() == HOOKS.len())
    }

    /// Attaches both programs, first in their chains; a side that is attached already stays, and one that an earlier
    /// agent attached is replaced in place. Returns how many were replaced.
    pub fn attach(&mut self, loaded: &mut Loaded, interface: &str, ifindex: u32) -> Result<usize, AttachError> {
        let mut replaced = 0;
        for hook in HOOKS {
            if self.held.get(&ifindex).is_some_and(|sides| sides.contains_key(hook.side)) {
                continue;
            }
            let path = self.directory.as_ref().map(|directory| directory.join(pin_name(ifindex, hook)));
            let held = match self.mechanism {
                Mechanism::Clsact => {
                    replaced +=
                        usize::from(clsact::attach(loaded, hook, interface, ifindex)? == clsact::Done::Replaced);
                    // An agent that used links may have been here: its programs go when ours stand.
                    path.as_deref().map_or(Ok(()), remove)?;
                    Held::Filter
                }
                Mechanism::Tcx => {
                    let ahead = self.ahead.get_mut(&ifindex).and_then(|sides| sides.remove(hook.side));
                    let (link, done) = tcx::attach(loaded, hook, interface, ifindex, path.as_deref(), ahead)?;
                    replaced += usize::from(done == clsact::Done::Replaced);
                    clsact::detach(interface, hook)?;
                    Held::Link(link)
                }
            };
            self.held.entry(ifindex).or_default().insert(hook.side, held);
        }
        Ok(replaced)
    }

    /// Puts the next of both programs at a device that has just come and may become a pod's: attaching waits for the
    /// kernel, and the pod need not wait for that again. Without a row they let everything through, as if they were not
    /// there. Whether one was put there; filters do not wait.
    pub fn attach_ahead(&mut self, loaded: &mut Loaded, interface: &str, ifindex: u32) -> Result<bool, AttachError> {
        if self.mechanism == Mechanism::Clsact || self.held.contains_key(&ifindex) {
            return Ok(false);
        }
        let there = |hook: &Hook| self.ahead.get(&ifindex).is_some_and(|sides| sides.contains_key(hook.side));
        let Some(hook) = HOOKS.into_iter().find(|hook| !there(hook)) else { return Ok(false) };
        let (link, _) = tcx::attach(loaded, hook, interface, ifindex, None, None)?;
        self.ahead.entry(ifindex).or_default().insert(hook.side, link);
        Ok(true)
    }

    /// Takes what was put ahead off all devices but these.
    pub fn give_up_ahead(&mut self, but: impl Fn(u32) -> bool) {
        self.ahead.retain(|ifindex, _| but(*ifindex));
    }

    /// Drops everything at a device for which there is no row to judge by, until [`Attachments::release`].
    pub fn hold(&mut self, loaded: &mut Loaded, interface: &str, ifindex: u32) -> Result<(), AttachError> {
        for hook in HOOKS {
            match (&self.directory, self.mechanism) {
                (_, Mechanism::Clsact) => {
                    // In the place of the program that judges, which takes it when there is room.
                    clsact::attach(loaded, Hook { program: HOLD, ..hook }, interface, ifindex)?;
                }
                (Some(directory), Mechanism::Tcx) => {
                    // Asked of the device: a pin may be that of one that went, or of an earlier agent.
                    let hold = Hook { program: HOLD, ..hook };
                    if tcx::standing(loaded, hold, interface, ifindex)? == tcx::Standing::Missing {
                        let link = tcx::close(loaded, hook, interface, ifindex)?;
                        let path = directory.join(hold_name(ifindex, hook));
                        remove(&path)?;
                        let link = tcx::pin(link, &path)?;
                        self.holding.insert(path, link);
                    }
                }
                (None, Mechanism::Tcx) => {} // tests without pins have room
            }
        }
        Ok(())
    }

    /// Devices that this agent has closed with [`Attachments::hold`].
    pub fn closed(&self) -> impl Iterator<Item = u32> {
        let ifindex = |path: &PathBuf| name(path).split_once('-').and_then(|(ifindex, _)| ifindex.parse().ok());
        self.holding.keys().filter_map(ifindex)
    }

    /// Takes away what [`Attachments::hold`] put there, and waits until it is gone; nothing there is fine.
    pub fn release(&mut self, loaded: &mut Loaded, interface: &str, ifindex: u32) -> Result<(), AttachError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        for hook in HOOKS {
            let path = directory.join(hold_name(ifindex, hook));
            let held = self.holding.remove(&path);
            if held.is_some() || path.exists() {
                remove(&path)?;
                drop(held);
                tcx::wait_until_open(loaded, hook, interface, ifindex)?;
            }
        }
        Ok(())
    }

    /// Looks whether our programs still stand at an interface, first in their chains, and puts right what is wrong.
    /// Filters are only looked at with [`Look::Whole`].
    pub fn check(
        &mut self,
        loaded: &mut Loaded,
        interface: &str,
        ifindex: u32,
        look: Look,
    ) -> Result<Vec<Repair>, AttachError> {
        let mut repairs = Vec::new();
        for hook in HOOKS {
            let Some(held) = self.held.get(&ifindex).and_then(|sides| sides.get(hook.side)) else { continue };
            let path = self.directory.as_ref().map(|directory| directory.join(pin_name(ifindex, hook)));
            match held {
                Held::Filter if look == Look::Quick => {}
                Held::Filter => {
                    if clsact::attach(loaded, hook, interface, ifindex)? == clsact::Done::Added {
                        repairs.push(Repair::Attached);
                    }
                }
                Held::Link(_) => match tcx::standing(loaded, hook, interface, ifindex)? {
                    tcx::Standing::First => {
                        if let Some(path) = path.filter(|path| !path.exists())
                            && let Some(Held::Link(link)) = self.take(ifindex, hook)
                        {
                            self.put(ifindex, hook, tcx::pin(link, &path)?);
                            repairs.extend(path.exists().then_some(Repair::Pinned));
                        }
                    }
                    tcx::Standing::Missing => {
                        drop(self.take(ifindex, hook));
                        path.as_deref().map_or(Ok(()), remove)?;
                        let (link, _) = tcx::attach(loaded, hook, interface, ifindex, path.as_deref(), None)?;
                        self.put(ifindex, hook, link);
                        repairs.push(Repair::Attached);
                    }
                    tcx::Standing::Behind => {
                        // The kernel has no way to move a link: everything is dropped while ours is made anew.
                        let closed = tcx::close(loaded, hook, interface, ifindex)?;
                        drop(self.take(ifindex, hook));
                        path.as_deref().map_or(Ok(()), remove)?;
                        tcx::wait_for_release(loaded, hook, interface, ifindex)?;
                        let (link, _) = tcx::attach(loaded, hook, interface, ifindex, path.as_deref(), None)?;
                        self.put(ifindex, hook, link);
                        drop(closed);
                        tcx::wait_until_open(loaded, hook, interface, ifindex)?;
                        repairs.push(Repair::First);
                    }
                },
            }
        }
        Ok(repairs)
    }

    fn take(&mut self, ifindex: u32, hook: Hook) -> Option<Held> {
        self.held.get_mut(&ifindex).and_then(|sides| sides.remove(hook.side))
    }

    fn put(&mut self, ifindex: u32, hook: Hook, link: FdLink) {
        self.held.entry(ifindex).or_default().insert(hook.side, Held::Link(link));
    }

    /// Takes both programs off an interface (its pod or the device itself is gone). Filters go with the device.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.held.remove(&ifindex);
        if let Some(directory) = &self.directory {
            for hook in HOOKS {
                remove(&directory.join(pin_name(ifindex, hook)))?;
                let hold = directory.join(hold_name(ifindex, hook));
                self.holding.remove(&hold);
                remove(&hold)?;
            }
        }
        Ok(())
    }
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At what can be asked for cheaply.
    Quick,
    /// At everything.
    Whole,
}

fn hold_name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-hold-{}", hook.side)
}

/// Whether a pin is one of ours.
pub(crate) fn is_ours(path: &Path) -> bool {
    let text = path.to_string_lossy().replacen("-hold-", "-", 1);
    parse(Path::new(&text)).is_some()
}

/// Interface and hook of a pin's path.
pub(crate) fn parse(path: &Path) -> Option<(u32, Hook)> {
    let (ifindex, side) = path.file_name()?.to_str()?.split_once('-')?;
    let hook = HOOKS.iter().find(|hook| hook.side == side)?;
    Some((ifindex.parse().ok()?, *hook))
}

fn pin_name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-{}", hook.side)
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn program_id(loaded: &mut Loaded, hook: Hook) -> Result<u32, AttachError> {
    Ok(loaded.program_id(hook.program)?)
}

fn attach_error(interface: &str, ifindex: u32, hook: Hook) -> impl Fn(ProgramError) -> AttachError + use<> {
    let interface = interface.to_owned();
    move |source| AttachError::Program {
        interface: interface.clone(),
        ifindex,
        program: hook.program,
        source: Box::new(source),
    }
}

/// Index of the loopback device, in each namespace.
const LOOPBACK: u32 = 1;

/// By what programs can be attached here: TCX where the kernel knows it.
pub fn probe() -> Mechanism {
    // The loopback device is in every namespace; a kernel without TCX does not know the question. Only numbers are asked
    // for: who a program of others is, nobody may know without CAP_SYS_ADMIN.
    match syscall::chain(LOOPBACK, tcx::BPF_TCX_INGRESS) {
        Ok(_) => Mechanism::Tcx,
        Err(error) => {
            tracing::info!(%error, "no TCX here: clsact filters are used");
            Mechanism::Clsact
        }
    }
}

/// Takes a pinned link off its device and removes the pin.
pub(super) fn remove(path: &Path) -> Result<(), AttachError> {
    detach(path);
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Takes a pinned link off its device: nothing is judged by it any more when this returns. The pin stays.
pub(crate) fn detach(path: &Path) {
    let detached = syscall::open_pin(path).and_then(|link| syscall::detach_link(link.as_fd()));
    if let Err(error) = detached
        && error.kind() != io::ErrorKind::NotFound
    {
        // Its device may be gone; and without its pin the kernel takes it off by itself, if a moment later.
        tracing::debug!(%error, pin = %path.display(), "the link was not detached before its pin is removed");
    }
}
