//! The program for what the node's processes receive, on their cgroup.

use super::attach::{self, AttachError, Repair};
use super::load::{HOST_IN, LoadError, Loaded, make_place};
use super::syscall::{self, CgroupLink};
use aya::programs::CgroupSkbAttachType;
use aya::programs::links::{CgroupAttachMode, FdLink};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The pin of the cgroup's link.
pub(super) const PIN: &str = "host-in";

/// The pinned link on the cgroup.
#[derive(Debug)]
pub struct HostHook {
    cgroup: PathBuf,
    pin: PathBuf,
    link: Option<OwnedFd>,
}

impl HostHook {
    /// Not attached yet; the link is to be pinned in this directory.
    pub fn new(cgroup: &Path, directory: &Path) -> Self {
        Self { cgroup: cgroup.to_owned(), pin: directory.join(PIN), link: None }
    }

    /// Whether local processes are behind the program.
    pub fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    /// Attaches, once; a link that an earlier agent pinned gets the loaded program in place.
    pub fn attach(&mut self, loaded: &mut Loaded) -> Result<(), AttachError> {
        if self.link.is_none() {
            self.link = Some(match self.adopt(loaded)? {
                Some(link) => link,
                None => self.renew(loaded)?,
            });
            tracing::info!(cgroup = %self.cgroup.display(), program = HOST_IN, "cgroup attached");
        }
        Ok(())
    }

    /// Looks whether our program still stands at the cgroup, by a link that is pinned, and puts right what is wrong.
    pub fn check(&mut self, loaded: &mut Loaded) -> Result<Option<Repair>, AttachError> {
        let Some(link) = self.link.as_ref() else { return Ok(None) };
        let found = syscall::cgroup_link(link.as_fd()).map_err(|source| self.failed(source))?;
        if found.cgroup != self.id()? {
            self.link = Some(self.renew(loaded)?);
            return Ok(Some(Repair::Attached));
        }
        if found.program != program_id(loaded)? {
            update(loaded, link.as_fd()).map_err(|source| self.failed(source))?;
            return Ok(Some(Repair::Attached));
        }
        if is_pinned(&self.pin, found) {
            return Ok(None);
        }
        if self.pin.parent().is_some_and(|directory| make_place(directory).is_err()) {
            return Ok(None); // there is no bpffs for it, which is told once for all pins
        }
        if self.pin.exists() {
            attach::remove(&self.pin)?;
        }
        let pin_error = |source| AttachError::File { path: self.pin.clone(), source };
        syscall::pin(link.as_fd(), &self.pin).map_err(pin_error)?;
        Ok(Some(Repair::Pinned))
    }

    /// The pinned link with the loaded program, if it is on our cgroup.
    fn adopt(&self, loaded: &mut Loaded) -> Result<Option<OwnedFd>, AttachError> {
        if !self.pin.exists() {
            return Ok(None);
        }
        let link = syscall::open_pin(&self.pin).map_err(|source| self.failed(source))?;
        if syscall::cgroup_link(link.as_fd()).map_err(|source| self.failed(source))?.cgroup != self.id()? {
            return Ok(None);
        }
        match update(loaded, link.as_fd()) {
            Ok(()) => Ok(Some(link)),
            // The cgroup that it was on has gone this moment.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Attaches by a new link; what is pinned, wherever it is attached, goes when that stands.
    fn renew(&self, loaded: &mut Loaded) -> Result<OwnedFd, AttachError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| self.cgroup_error(source);
        let directory = File::open(&self.cgroup).map_err(|error| failed(error.into()))?;
        let program = loaded.cgroup_program()?;
        // No flags: a link always leaves room for others, and the kernel takes no flag that says so.
        let id = program
            .attach(&directory, CgroupSkbAttachType::Ingress, CgroupAttachMode::Single)
            .map_err(|error| failed(error.into()))?;
        let link = program.take_link(id).map_err(|error| failed(error.into()))?;
        let link = FdLink::try_from(link).map_err(|error| failed(error.into()))?;
        attach::remove(&self.pin)?;
        let pin_error = |what: String| AttachError::Pin { path: self.pin.clone(), what };
        link.pin(&self.pin).map_err(|error| pin_error(error.to_string()))?;
        syscall::open_pin(&self.pin).map_err(|error| pin_error(error.to_string()))
    }

    /// The number under which links know our cgroup.
    fn id(&self) -> Result<u64, AttachError> {
        Ok(std::fs::metadata(&self.cgroup).map_err(|source| self.failed(source))?.ino())
    }

    fn failed(&self, source: io::Error) -> AttachError {
        self.cgroup_error(source.into())
    }

    fn cgroup_error(&self, source: Box<dyn std::error::Error + Send + Sync>) -> AttachError {
        AttachError::Cgroup { path: self.cgroup.clone(), source }
    }
}

fn program_id(loaded: &mut Loaded) -> Result<u32, AttachError> {
    let info = loaded.cgroup_program()?.info();
    Ok(info.map_err(|source| LoadError::Program { name: HOST_IN, source: Box::new(source) })?.id())
}

fn update(loaded: &mut Loaded, link: BorrowedFd<'_>) -> io::Result<()> {
    let program = loaded.cgroup_program().map_err(io::Error::other)?.fd().map_err(io::Error::other)?;
    syscall::update_link(link, program.as_fd())
}

/// Whether this very link is pinned there.
fn is_pinned(path: &Path, link: CgroupLink) -> bool {
    let pinned = syscall::open_pin(path).and_then(|pinned| syscall::cgroup_link(pinned.as_fd()));
    pinned.is_ok_and(|pinned| pinned.link == link.link)
}
