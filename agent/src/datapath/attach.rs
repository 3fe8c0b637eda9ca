//! Attaches the programs to pods' devices by pinned TCX links, and replaces programs by updating those links.
//!
//! Invariant: nothing is detached to be attached again; only [`Attachments::detach`] and `uninstall` take a program off.

use super::load::{FROM_POD, LoadError, Loaded, TO_POD};
use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, TcAttachType};
use std::collections::BTreeMap;
use std::io;
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

/// The two ends of a device's traffic.
const HOOKS: [(&str, &str, TcAttachType); 2] =
    [(FROM_POD, "from", TcAttachType::Ingress), (TO_POD, "to", TcAttachType::Egress)];

/// Links held, pinned or (in tests) by file descriptor only.
#[derive(Debug)]
pub struct Attachments {
    directory: Option<PathBuf>,
    held: BTreeMap<u32, Vec<Held>>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "dropping the descriptor is what detaches an unpinned link")]
enum Held {
    Pinned(PinnedLink),
    Open(SchedClassifierLink),
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
    pub fn new(directory: Option<&Path>) -> Result<Self, AttachError> {
        if let Some(path) = directory {
            std::fs::create_dir_all(path).map_err(|source| AttachError::File { path: path.to_owned(), source })?;
        }
        Ok(Self { directory: directory.map(Path::to_owned), held: BTreeMap::new() })
    }

    /// Replaces the programs of every pinned link by the loaded ones; no packet goes unjudged.
    pub fn resume(&mut self, loaded: &mut Loaded) -> Result<Resumed, AttachError> {
        let mut resumed = Resumed::default();
        let Some(directory) = self.directory.clone() else { return Ok(resumed) };
        let entries =
            std::fs::read_dir(&directory).map_err(|source| AttachError::File { path: directory.clone(), source })?;
        let mut found: BTreeMap<u32, Vec<(&'static str, PathBuf)>> = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(|source| AttachError::File { path: directory.clone(), source })?;
            let name = entry.file_name();
            let Some((ifindex, side)) = name.to_str().and_then(|name| name.split_once('-')) else { continue };
            let Ok(ifindex) = ifindex.parse::<u32>() else { continue };
            let Some((program, ..)) = HOOKS.iter().find(|(_, name, _)| *name == side) else { continue };
            found.entry(ifindex).or_default().push((program, entry.path()));
        }
        for (ifindex, links) in found {
            let mut live = Vec::new();
            for (program, path) in links {
                match replace(loaded, program, &path)? {
                    Some(link) => live.push(Held::Pinned(link)),
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
        self.held.iter().filter(|(_, links)| links.len() == HOOKS.len()).map(|(ifindex, _)| *ifindex)
    }

    /// Whether both programs are attached to the interface.
    pub fn is_attached(&self, ifindex: u32) -> bool {
        self.held.get(&ifindex).is_some_and(|links| links.len() == HOOKS.len())
    }

    /// Attaches both programs, first in their chains; a side that is attached already stays.
    pub fn attach(&mut self, loaded: &mut Loaded, interface: &str, ifindex: u32) -> Result<(), AttachError> {
        if self.is_attached(ifindex) {
            return Ok(());
        }
        let mut links = Vec::new();
        for (program, side, attach_type) in HOOKS {
            let path = self.directory.as_ref().map(|directory| directory.join(format!("{ifindex}-{side}")));
            if let Some(path) = &path
                && path.exists()
            {
                if let Some(link) = replace(loaded, program, path)? {
                    links.push(Held::Pinned(link));
                    continue;
                }
                remove(path)?;
            }
            let failed = |source| AttachError::Program {
                interface: interface.to_owned(),
                ifindex,
                program,
                source: Box::new(source),
            };
            let classifier = loaded.classifier(program)?;
            let id = classifier
                .attach_with_options(interface, attach_type, TcAttachOptions::TcxOrder(LinkOrder::first()))
                .map_err(failed)?;
            let link = classifier.take_link(id).map_err(failed)?;
            links.push(match path {
                Some(path) => Held::Pinned(pin(link, &path)?),
                None => Held::Open(link),
            });
        }
        self.held.insert(ifindex, links);
        Ok(())
    }

    /// Takes both programs off an interface (its pod or the device itself is gone).
    pub fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.held.remove(&ifindex);
        if let Some(directory) = &self.directory {
            for (_, side, _) in HOOKS {
                remove(&directory.join(format!("{ifindex}-{side}")))?;
            }
        }
        Ok(())
    }
}

/// Updates a pinned link to the loaded program; `None` if its device is gone.
pub(super) fn replace(
    loaded: &mut Loaded,
    program: &'static str,
    path: &Path,
) -> Result<Option<PinnedLink>, AttachError> {
    let link_error = |source| AttachError::Link { path: path.to_owned(), source: Box::new(source) };
    let pinned = PinnedLink::from_pin(path).map_err(link_error)?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(link_error)?;
    match loaded.classifier(program)?.attach_to_link(link) {
        Ok(id) => {
            // The link stays pinned under its path; the copy held here only keeps the descriptor.
            let link = loaded.classifier(program)?.take_link(id).map_err(|source| AttachError::Program {
                interface: path.display().to_string(),
                ifindex: 0,
                program,
                source: Box::new(source),
            })?;
            drop(link);
            PinnedLink::from_pin(path).map(Some).map_err(link_error)
        }
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOLINK) => Ok(None),
        Err(source) => Err(AttachError::Program {
            interface: path.display().to_string(),
            ifindex: 0,
            program,
            source: Box::new(source),
        }),
    }
}

pub(super) fn pin(link: SchedClassifierLink, path: &Path) -> Result<PinnedLink, AttachError> {
    let link: FdLink =
        link.try_into().map_err(|source| AttachError::Link { path: path.to_owned(), source: Box::new(source) })?;
    link.pin(path).map_err(|error| AttachError::Pin { path: path.to_owned(), what: error.to_string() })
}

pub(super) fn remove(path: &Path) -> Result<(), AttachError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
