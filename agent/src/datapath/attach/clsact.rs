//! Programs as filters of the clsact qdisc, for kernels without TCX: a priority and a handle of our own say which are
//! ours, so that the next agent replaces them in place.

use super::{AttachError, HOOKS, Hook, attach_error};
use crate::datapath::load::{HOLD, Loaded};
use crate::datapath::uplinks;
use aya::programs::ProgramError;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use std::io;

/// Before everybody who does not ask for the first place too.
const PRIORITY: u16 = 1;
/// Anything that others are unlikely to choose.
const HANDLE: TcHandle = TcHandle::new(0, 0x7ee1);

/// How a program came to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing of ours was there.
    Added,
    /// It took the place of an earlier agent's, or of itself.
    Replaced,
}

/// Puts the loaded program into our place; what is there is replaced without a gap.
pub(in crate::datapath) fn attach(
    loaded: &mut Loaded,
    hook: Hook,
    interface: &str,
    ifindex: u32,
) -> Result<Done, AttachError> {
    let failed = attach_error(interface, ifindex, hook);
    let classifier = loaded.classifier(hook.program)?;
    let ours = SchedClassifierLink::attached(interface, hook.at, PRIORITY, HANDLE, None)
        .map_err(|error| failed(TcError::IoError(error).into()))?;
    // Without a filter of ours there, or without the qdisc, this fails and changes nothing.
    let (id, done) = match classifier.attach_to_link(ours) {
        Ok(id) => (id, Done::Replaced),
        Err(_) => {
            add_qdisc(interface)?;
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            let id = classifier
                .attach_with_options(interface, hook.at, TcAttachOptions::Netlink(options))
                .map_err(&failed)?;
            (id, Done::Added)
        }
    };
    // A link that is dropped detaches: this one is to stay when the process ends.
    std::mem::forget(classifier.take_link(id).map_err(failed)?);
    Ok(done)
}

fn add_qdisc(interface: &str) -> Result<(), AttachError> {
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => {
            result.map_err(|source| AttachError::Qdisc { interface: interface.to_owned(), source: Box::new(source) })
        }
    }
}

/// Removes our filter at one hook, and says whether there was one. The qdisc stays: it may be somebody else's too.
pub(in crate::datapath) fn detach(interface: &str, hook: Hook) -> Result<bool, AttachError> {
    match tc::qdisc_detach_program(interface, hook.at, hook.program) {
        Ok(()) => Ok(true),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // No qdisc, no filters.
        Err(TcError::NetlinkError(error))
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) =>
        {
            Ok(false)
        }
        Err(source) => Err(attach_error(interface, 0, hook)(ProgramError::from(source))),
    }
}

/// Removes our filters from every interface of this network namespace; returns the names of those that had any.
pub fn detach_everywhere() -> Result<Vec<String>, AttachError> {
    let mut freed = Vec::new();
    for interface in interfaces() {
        for hook in uplinks::HOOKS {
            if detach(&interface, hook)? {
                freed.push(format!("{interface} {}", hook.side));
            }
        }
        for hook in HOOKS {
            let held = detach(&interface, Hook { program: HOLD, ..hook })?;
            if detach(&interface, hook)? || held {
                freed.push(format!("{interface} {}", hook.side));
            }
        }
    }
    Ok(freed)
}

/// Names of the interfaces of this network namespace.
fn interfaces() -> Vec<String> {
    // SAFETY: the list that the C library returns ends with an entry without a name and is freed once, after reading.
    unsafe {
        let list = libc::if_nameindex();
        if list.is_null() {
            return Vec::new();
        }
        let mut names = Vec::new();
        let mut entry = list;
        while !(*entry).if_name.is_null() {
            names.push(std::ffi::CStr::from_ptr((*entry).if_name).to_string_lossy().into_owned());
            entry = entry.add(1);
        }
        libc::if_freenameindex(list);
        names
    }
}
