//! Programs of this machine, to be taken elsewhere: small, and with the libraries that they load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process;

/// A program without debug information.
pub(crate) fn stripped(program: &Path) -> anyhow::Result<Vec<u8>> {
    let small = std::env::temp_dir().join(format!("reeve-stripped-{}", std::process::id()));
    process::run(Command::new("strip").arg("-o").arg(&small).arg(program))?;
    let content = fs::read(&small).with_context(|| format!("cannot read {}", small.display()));
    fs::remove_file(&small).with_context(|| format!("cannot remove {}", small.display()))?;
    content
}

/// The dynamic linker and all libraries, by the paths that the linker looks for.
pub(crate) fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = process::output(Command::new("ldd").arg(program))?;
    let mut found = Vec::new();
    for line in list.lines() {
        // `name => path (address)`, `path (address)`, or what the kernel provides itself.
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        let Some(place) = place.trim().split(" (").next() else { continue };
        if place == "not found" {
            bail!("{}: {}", program.display(), line.trim());
        }
        if place.starts_with('/') {
            found.push(place.into());
        }
    }
    Ok(found)
}
