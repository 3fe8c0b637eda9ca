//! The container runtime of the daemonset tier's nodes: containerd, built from its Go module once, and Debian's runc.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::go::{self, Module};
use super::{packages, say};
use crate::places::Places;

const MODULE: &str = "github.com/containerd/containerd/v2";

/// What is built of it.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];

/// Its kubelets ask for containerd 2, which Debian 12 does not have; of runc they ask nothing that is new.
const RUNC: &str = "runc";

/// The library that Debian's runc loads.
const SECCOMP: (&str, &str) = ("/usr/lib/x86_64-linux-gnu/libseccomp.so.2", "libseccomp2");

/// A folder with all of them in `bin`.
pub(crate) fn ready(places: &Places) -> anyhow::Result<PathBuf> {
    let module = Module::at(places.root.join("tests/kubernetes/containerd"))?;
    let version = module.version_of(MODULE)?;
    let place = places.cache.join("containerd").join(&version);
    let programs = place.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    let lock = File::create(place.join("lock")).context("cannot make the lock of containerd's programs")?;
    lock.lock().context("cannot take the lock of containerd's programs")?;
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|name| !programs.join(name).is_file()).collect();
    if !missing.is_empty() {
        let go = go::find()?;
        say("building", &format!("{} (once, five minutes from nothing)", missing.join(", ")));
        for name in missing {
            module.build(&go, &format!("{MODULE}/cmd/{name}"), "-s -w", &programs.join(name))?;
        }
    }
    packages::need_file(SECCOMP.0, SECCOMP.1)?;
    if !programs.join(RUNC).is_file() {
        let work = place.join("new");
        if work.exists() {
            fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
        }
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        packages::unpack(RUNC, &work)?;
        let unpacked = ["usr/sbin", "usr/bin"].map(|folder| work.join(folder).join(RUNC));
        let Some(unpacked) = unpacked.iter().find(|path| path.is_file()) else {
            bail!("Debian's {RUNC} brings no program {RUNC}");
        };
        fs::rename(unpacked, programs.join(RUNC)).context("cannot move runc")?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    say("containerd", &format!("{version}, Debian's runc ({})", programs.display()));
    Ok(place)
}
