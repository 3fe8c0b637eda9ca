//! Programs held by pinned TCX links.

use super::clsact::Done;
use super::{AttachError, Hook, Mark, attach_error, program_id, remove};
use crate::datapath::load::{HOLD, Loaded, make_place};
use crate::datapath::syscall;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::sys::SyscallError;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where our program stands in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::datapath) enum Standing {
    First,
    Behind,
    Missing,
}

/// `enum bpf_attach_type`.
pub(super) const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// How long the kernel may take to let go of a link that nobody holds any more.
const RELEASE: Duration = Duration::from_secs(2);

/// Attaches first in the chain, or replaces the program of the link that is pinned there. `ahead`: a link that was put there
/// before and may have lost its place since.
pub(in crate::datapath) fn attach(
    loaded: &mut Loaded,
    hook: Hook,
    interface: &str,
    ifindex: u32,
    path: Option<&Path>,
    ahead: Option<FdLink>,
) -> Result<(FdLink, Done), AttachError> {
    if let Some(path) = path.filter(|path| path.exists()) {
        if let Some(link) = replace(loaded, hook, path)? {
            return Ok((link, Done::Replaced));
        }
        remove(path)?;
    }
    let link = match ahead {
        Some(link) if standing(loaded, hook, interface, ifindex)? == Standing::First => link,
        Some(link) => {
            drop(link);
            wait_for_release(loaded, hook, interface, ifindex)?;
            first(loaded, hook.program, hook, interface, ifindex)?
        }
        None => first(loaded, hook.program, hook, interface, ifindex)?,
    };
    match path {
        Some(path) => Ok((pin(link, path)?, Done::Added)),
        None => Ok((link, Done::Added)),
    }
}

fn first(
    loaded: &mut Loaded,
    program: &'static str,
    hook: Hook,
    interface: &str,
    ifindex: u32,
) -> Result<FdLink, AttachError> {
    let failed = attach_error(interface, ifindex, hook);
    let classifier = loaded.classifier(program)?;
    let link = stand(classifier, hook, interface, LinkOrder::first()).map_err(failed)?;
    link.try_into().map_err(|source| AttachError::Link { path: interface.into(), source: Box::new(source) })
}

/// A link at this place of the chain.
fn stand(
    classifier: &mut SchedClassifier,
    hook: Hook,
    interface: &str,
    order: LinkOrder,
) -> Result<SchedClassifierLink, ProgramError> {
    let id = classifier.attach_with_options(interface, hook.at, TcAttachOptions::TcxOrder(order))?;
    classifier.take_link(id)
}

/// Makes our link anew, first in the chain, as the kernel has no way to move one. A spare program stands before it
/// meanwhile, which does the same and knows that ours may come behind it: nothing passes unjudged, nothing is dropped.
pub(in crate::datapath) fn to_front(
    loaded: &mut Loaded,
    hook: Hook,
    spare: &'static str,
    interface: &str,
    ifindex: u32,
    held: Option<FdLink>,
    path: Option<&Path>,
) -> Result<FdLink, AttachError> {
    let failed = attach_error(interface, ifindex, hook);
    let link_error = |source| AttachError::Link { path: interface.into(), source: Box::new(source) };
    let before = stand(loaded.spare(spare)?, hook, interface, LinkOrder::first()).map_err(&failed)?;
    path.map_or(Ok(()), remove)?;
    drop(held);
    wait_for_release(loaded, hook, interface, ifindex)?;
    let behind = LinkOrder::after_link(&before).map_err(link_error)?;
    let link = stand(loaded.classifier(hook.program)?, hook, interface, behind).map_err(&failed)?;
    let link = FdLink::try_from(link).map_err(link_error)?;
    let link = match path {
        Some(path) => pin(link, path),
        None => Ok(link),
    };
    drop(before);
    wait_for_release(loaded, Hook { program: spare, ..hook }, interface, ifindex)?;
    link
}

/// Drops everything at the hook until the link that is returned goes.
pub(in crate::datapath) fn close(
    loaded: &mut Loaded,
    hook: Hook,
    interface: &str,
    ifindex: u32,
) -> Result<FdLink, AttachError> {
    first(loaded, HOLD, hook, interface, ifindex)
}

/// Waits until our program is out of the chain: the kernel frees a link some time after its last descriptor.
pub(in crate::datapath) fn wait_for_release(
    loaded: &mut Loaded,
    hook: Hook,
    interface: &str,
    ifindex: u32,
) -> Result<(), AttachError> {
    let begun = Instant::now();
    while standing(loaded, hook, interface, ifindex)? != Standing::Missing {
        if begun.elapsed() > RELEASE {
            let source = ProgramError::AlreadyAttached;
            return Err(attach_error(interface, ifindex, hook)(source));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until our program that drops everything is out of the chain. That of an earlier agent was taken off with its pin.
pub(in crate::datapath) fn wait_until_open(
    loaded: &mut Loaded,
    hook: Hook,
    interface: &str,
    ifindex: u32,
) -> Result<(), AttachError> {
    wait_for_release(loaded, Hook { program: HOLD, ..hook }, interface, ifindex)
}

/// Where our program stands at an interface.
pub(in crate::datapath) fn standing(
    loaded: &mut Loaded,
    hook: Hook,
    interface: &str,
    ifindex: u32,
) -> Result<Standing, AttachError> {
    let ours = program_id(loaded, hook)?;
    let at = if hook.at == TcAttachType::Ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS };
    let chain = syscall::chain(ifindex, at).map_err(|io_error| {
        attach_error(interface, ifindex, hook)(SyscallError { call: "bpf_prog_query", io_error }.into())
    })?;
    Ok(match chain.iter().position(|program| *program == ours) {
        Some(0) => Standing::First,
        Some(_) => Standing::Behind,
        None => Standing::Missing,
    })
}

/// Updates a pinned link to the loaded program; `None` if its device is gone.
pub(in crate::datapath) fn replace(
    loaded: &mut Loaded,
    hook: Hook,
    path: &Path,
) -> Result<Option<FdLink>, AttachError> {
    let link_error = |source| AttachError::Link { path: path.to_owned(), source: Box::new(source) };
    let shown = path.display().to_string();
    let failed = attach_error(&shown, 0, hook);
    let pinned = PinnedLink::from_pin(path).map_err(link_error)?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(link_error)?;
    let classifier = loaded.classifier(hook.program)?;
    match classifier.attach_to_link(link) {
        Ok(id) => classifier.take_link(id).map_err(failed)?.try_into().map(Some).map_err(link_error),
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOLINK) => Ok(None),
        Err(source) => Err(failed(source)),
    }
}

/// Pins a link; it stays pinned when the descriptor that is returned goes. Where there is no bpffs for the pin, the link
/// is only held by its descriptor: an attempt that fails would take it off its device.
pub(in crate::datapath) fn pin(link: FdLink, path: &Path) -> Result<FdLink, AttachError> {
    if path.parent().is_some_and(|directory| make_place(directory).is_err()) {
        return Ok(link);
    }
    let pinned = link.pin(path).map_err(|error| AttachError::Pin { path: path.to_owned(), what: error.to_string() })?;
    Ok(pinned.into())
}

/// What a pin holds; none if it cannot be read.
pub(in crate::datapath) fn mark_of_pin(path: &Path) -> Option<Mark> {
    let link = FdLink::from(PinnedLink::from_pin(path).ok()?);
    let info = link.info().ok()?;
    Some(Mark { link: info.id(), program: info.program_id() })
}
