//! One cgroup in each of the machine's hierarchies, as a node with containers wants it, of cgroup v1, v2 or both.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::wait;

/// Where hierarchies are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Longest wait for killed processes to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where its root is.
    pub place: PathBuf,
    /// What to give `mount` to have it elsewhere: the kind of file system and its options.
    pub kind: (&'static str, String),
}

/// All of them.
pub fn hierarchies() -> anyhow::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    Ok(mounts.lines().filter_map(hierarchy).collect())
}

fn hierarchy(mount: &str) -> Option<Hierarchy> {
    let mut fields = mount.split(' ').skip(1);
    let (place, kind, options) = (PathBuf::from(fields.next()?), fields.next()?, fields.next()?);
    if !place.starts_with(ROOT) {
        return None;
    }
    let kind = match kind {
        "cgroup2" => ("cgroup2", String::new()),
        "cgroup" => {
            // Options of every mount come first; the controllers, or the name, are the rest.
            let general = ["rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "xattr", "clone_children"];
            let own: Vec<&str> = options
                .split(',')
                .filter(|option| !general.contains(option) && !option.starts_with("release_agent="))
                .collect();
            let named = own.iter().any(|option| option.starts_with("name="));
            ("cgroup", if named { format!("none,{}", own.join(",")) } else { own.join(",") })
        }
        _ => return None,
    };
    Some(Hierarchy { place, kind })
}

impl Hierarchy {
    /// Makes a cgroup that processes can be put into.
    pub fn make(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.place.join(name);
        if self.kind.0 == "cgroup2" {
            // Its children get what the root has to give; a hierarchy beside those of v1 has nothing.
            enable_controllers(&self.place)?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        // A new cpuset of v1 has no processors and takes no process.
        for setting in ["cpuset.cpus", "cpuset.mems"] {
            if self.kind.0 == "cgroup" && path.join(setting).exists() {
                let all = fs::read_to_string(self.place.join(setting))?;
                fs::write(path.join(setting), all.trim()).with_context(|| format!("cannot set {setting}"))?;
                fs::write(path.join("cgroup.clone_children"), "1").context("cannot set cgroup.clone_children")?;
            }
        }
        Ok(path)
    }
}

/// Gives the children of a cgroup of v2 every controller that it has.
pub fn enable_controllers(cgroup: &Path) -> anyhow::Result<()> {
    let has = fs::read_to_string(cgroup.join("cgroup.controllers"))
        .with_context(|| format!("{} is no cgroup of v2", cgroup.display()))?;
    for controller in has.split_whitespace() {
        fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("{} does not pass {controller} on", cgroup.display()))?;
    }
    Ok(())
}

/// Kills what is left in a cgroup and in those below it, and removes them all; one that is gone is no error.
pub(super) fn remove(cgroup: &Path) -> anyhow::Result<()> {
    wait::until("a node's cgroup to be empty", PATIENCE, || {
        if !cgroup.exists() {
            return Ok(Some(()));
        }
        remove_empty(cgroup);
        if cgroup.exists() {
            end_members(cgroup);
        }
        Ok((!cgroup.exists()).then_some(()))
    })
    .with_context(|| format!("{} cannot be removed", cgroup.display()))
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    // A directory that goes while it is read has no children.
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn remove_empty(cgroup: &Path) {
    for child in children(cgroup) {
        remove_empty(&child);
    }
    // One that still has processes stays, and is looked at again.
    let _ = fs::remove_dir(cgroup);
}

fn end_members(cgroup: &Path) {
    for child in children(cgroup) {
        end_members(&child);
    }
    let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for member in members.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        // It may have ended in the meantime.
        let _ = kill_process(member, Signal::KILL);
    }
}

/// Moves this process into a cgroup.
pub fn join(cgroup: &Path) -> anyhow::Result<()> {
    if !cgroup.is_dir() {
        bail!("there is no cgroup {}", cgroup.display());
    }
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("cannot join {}", cgroup.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_mounts_of_either_version() {
        let check = |line: &str, want: Option<(&'static str, &str)>| {
            let got = hierarchy(line).map(|found| found.kind);
            assert_eq!(got, want.map(|(kind, options)| (kind, options.to_owned())), "{line}");
        };
        check(
            "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0",
            Some(("cgroup", "cpu,cpuacct")),
        );
        check(
            "systemd /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,release_agent=/lib/a,name=systemd 0 0",
            Some(("cgroup", "none,name=systemd")),
        );
        check("cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0", Some(("cgroup2", "")));
        check("cgroup2 /elsewhere cgroup2 rw 0 0", None);
        check("tmpfs /sys/fs/cgroup tmpfs rw 0 0", None);
    }
}
