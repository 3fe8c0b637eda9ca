//! The reference CNI plugins, unpacked from Debian's package and not installed: this machine may have others.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::say;
use crate::process;

const PACKAGE: &str = "containernetworking-plugins";

/// Those that the lab's chains are made of.
const PLUGINS: [&str; 5] = ["ptp", "bridge", "host-local", "portmap", "loopback"];

/// Puts the plugins into this folder, unless they are there.
pub(super) fn ready(place: &Path) -> anyhow::Result<()> {
    if !PLUGINS.iter().all(|plugin| place.join(plugin).is_file()) {
        let work = place.with_extension("new");
        if work.exists() {
            fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
        }
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        unpack(&work)?;
        let unpacked = work.join("usr/lib/cni");
        if let Some(plugin) = PLUGINS.iter().find(|plugin| !unpacked.join(plugin).is_file()) {
            bail!("Debian's {PACKAGE} brings no plugin {plugin}");
        }
        fs::rename(&unpacked, place).with_context(|| format!("cannot rename to {}", place.display()))?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    say("CNI plugins", &format!("{} ({})", PLUGINS.join(", "), place.display()));
    Ok(())
}

fn unpack(work: &Path) -> anyhow::Result<()> {
    if process::in_path("apt-get").is_none() {
        bail!("without apt-get there is nowhere to take Debian's {PACKAGE} from");
    }
    let download = || {
        process::run(
            Command::new("apt-get")
                // Another user would not get into the folder, which may be in somebody's home.
                .args(["-qq", "-o", "APT::Sandbox::User=root", "download", PACKAGE])
                .current_dir(work)
                .stdin(Stdio::null()),
        )
    };
    if download().is_err() {
        super::need_root("apt's package lists are old")?;
        process::run(Command::new("apt-get").args(["-q", "update"]).stdout(Stdio::null()))?;
        download()?;
    }
    let package = fs::read_dir(work)?.next().context("apt-get downloaded nothing")??.path();
    process::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(work))
}
