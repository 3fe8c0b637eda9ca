//! What a lab has made, on disk, and how it is removed: by the lab itself, or by the next one if it was killed.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::{hierarchies, ip, wait};

/// One directory per lab.
const LABS: &str = "/run/reeve-lab";

const OWNER: &str = "owner";
const NAMESPACES: &str = "namespaces";
const CHILDREN: &str = "children";
const CGROUPS: &str = "cgroups";
const TREES: &str = "cgroup-trees";

/// Several labs may live in one process.
static LABS_OF_THIS_PROCESS: AtomicU32 = AtomicU32::new(0);

/// A lab's directory; removes everything that was noted in it when dropped.
pub(super) struct Register {
    directory: PathBuf,
    /// Short and unique on this machine: what names of namespaces and cgroups begin with.
    prefix: String,
}

impl Register {
    /// Sweeps dead labs and registers a new one; one process at a time.
    pub(super) fn open(name: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(LABS).with_context(|| format!("cannot make {LABS}"))?;
        let lock = File::create(Path::new(LABS).join("lock")).context("cannot make the labs' lock")?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot take the labs' lock")?;
        sweep()?;
        let process = std::process::id();
        let number = LABS_OF_THIS_PROCESS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("reeve-{name}-{process}-{number}");
        let directory = Path::new(LABS).join(&prefix);
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let start = start_ticks(process).context("this process has no start time")?;
        fs::write(directory.join(OWNER), format!("{process} {start}\n"))?;
        Ok(Self { directory, prefix })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A name for a namespace, noted.
    pub(super) fn namespace(&self, name: &str) -> anyhow::Result<String> {
        let name = format!("{}-{name}", self.prefix);
        self.note(NAMESPACES, &name)?;
        Ok(name)
    }

    /// A cgroup below our own, noted and made.
    ///
    /// It is a threaded one: a thread of the test can then be a process of the node, as far as sockets are concerned.
    pub(super) fn cgroup(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = own_cgroup()?.join(format!("{}-{name}", self.prefix));
        self.note(CGROUPS, &path.to_string_lossy())?;
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        fs::write(path.join("cgroup.type"), "threaded")
            .with_context(|| format!("{} cannot hold single threads", path.display()))?;
        Ok(path)
    }

    /// A cgroup in each of the machine's hierarchies, noted and made, below which others can be made.
    pub(super) fn cgroup_trees(&self, name: &str) -> anyhow::Result<Vec<PathBuf>> {
        let name = format!("{}-{name}-machine", self.prefix);
        let make = |hierarchy: hierarchies::Hierarchy| {
            self.note(TREES, &hierarchy.place.join(&name).to_string_lossy())?;
            hierarchy.make(&name)
        };
        hierarchies::hierarchies()?.into_iter().map(make).collect()
    }

    /// Notes a process to be ended with the lab.
    pub(super) fn child(&self, process: u32) -> anyhow::Result<()> {
        let start = start_ticks(process).context("the child has ended already")?;
        self.note(CHILDREN, &format!("{process} {start}"))
    }

    fn note(&self, kind: &str, line: &str) -> anyhow::Result<()> {
        let path = self.directory.join(kind);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Register {
    fn drop(&mut self) {
        if let Err(error) = clean(&self.directory) {
            eprintln!("the lab in {} leaves something behind: {error:#}", self.directory.display());
        }
    }
}

/// The cgroup of this process in the machine's cgroup2 hierarchy.
pub fn own_cgroup() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 hierarchy is mounted")?;
    let cgroups = fs::read_to_string("/proc/self/cgroup")?;
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).context("this process has no cgroup2")?;
    Ok(mount.join(own))
}

/// Removes what labs left whose process is gone.
fn sweep() -> anyhow::Result<()> {
    for entry in fs::read_dir(LABS)? {
        let directory = entry?.path();
        if directory.is_dir() && !is_alive(&fs::read_to_string(directory.join(OWNER)).unwrap_or_default()) {
            clean(&directory).with_context(|| format!("cannot sweep {}", directory.display()))?;
        }
    }
    Ok(())
}

/// Ends processes, then removes namespaces, mounts, cgroups and the directory; what is gone already is no error.
fn clean(directory: &Path) -> anyhow::Result<()> {
    for child in noted(directory, CHILDREN) {
        end(&child)?;
    }
    for name in noted(directory, NAMESPACES) {
        if Path::new("/run/netns").join(&name).exists() {
            ip::run(&["netns", "del", &name])?;
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(mount).starts_with(directory) {
            unmount(mount, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {mount}"))?;
        }
    }
    for cgroup in noted(directory, CGROUPS) {
        // A thread that has been joined can still be on its way out of the cgroup.
        wait::until("a cgroup to be empty", Duration::from_secs(5), || match fs::remove_dir(&cgroup) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(())),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                end_members(Path::new(&cgroup));
                Ok(None)
            }
            Err(error) => bail!("cannot remove {cgroup}: {error}"),
        })?;
    }
    for tree in noted(directory, TREES) {
        hierarchies::remove(Path::new(&tree))?;
    }
    match fs::remove_dir_all(directory) {
        // A lab that goes takes away who owns it, and is then taken for a dead one: both remove it.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done.with_context(|| format!("cannot remove {}", directory.display())),
    }
}

fn noted(directory: &Path, kind: &str) -> Vec<String> {
    let text = fs::read_to_string(directory.join(kind)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Kills a noted process and waits until it is gone, unless its number belongs to another one by now.
fn end(note: &str) -> anyhow::Result<()> {
    let Some(process) = note.split(' ').next().and_then(|pid| pid.parse::<i32>().ok()).and_then(Pid::from_raw) else {
        return Ok(());
    };
    // The descriptor is taken first: what it names cannot change between the check and the signal.
    let Ok(descriptor) = pidfd_open(process, PidfdFlags::empty()) else { return Ok(()) };
    if !is_alive(note) {
        return Ok(());
    }
    pidfd_send_signal(&descriptor, Signal::KILL).with_context(|| format!("cannot kill process {note}"))?;
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&patience))? == 0 {
        bail!("process {note} was killed but does not end");
    }
    Ok(())
}

/// Kills what nobody noted: children of a node's processes, or one that was started when the lab was killed.
fn end_members(cgroup: &Path) {
    // A threaded cgroup lists threads only, and has no `cgroup.kill`.
    let threads = fs::read_to_string(cgroup.join("cgroup.threads")).unwrap_or_default();
    for thread in threads.lines() {
        let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
        let group = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
        let process = group.and_then(Pid::from_raw).filter(|process| *process != rustix::process::getpid());
        if let Some(process) = process {
            // It may have ended in the meantime.
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// Whether the process of a note, `pid start`, still lives and is the same one.
fn is_alive(note: &str) -> bool {
    let mut words = note.split_whitespace();
    let process = words.next().and_then(|word| word.parse().ok());
    process.and_then(start_ticks).is_some_and(|start| words.next() == Some(start.to_string().as_str()))
}

/// When a process started, in clock ticks since boot; none if it has ended.
fn start_ticks(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The program's name is in parentheses and may hold anything, blanks and parentheses included.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
