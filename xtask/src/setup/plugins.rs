//! The reference CNI plugins, unpacked from Debian's package and not installed: this machine may have others.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use super::{packages, say};

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
        packages::unpack(PACKAGE, &work)?;
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
