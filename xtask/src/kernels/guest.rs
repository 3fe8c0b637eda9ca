//! What an emulated machine has: a root file system in an archive that its kernel unpacks.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use cpio::newc;

use crate::process;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

/// Paths from the root without their `/`, with mode and content. A directory sorts before what is in it.
#[derive(Clone, Default)]
pub(super) struct Guest {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Guest {
    /// A file.
    pub(super) fn file(&mut self, path: &str, content: Vec<u8>) {
        self.put(path, FILE, content);
    }

    /// A program of this machine and the libraries that it loads, without debug information.
    pub(super) fn program(&mut self, path: &str, from: &Path) -> anyhow::Result<()> {
        self.put(path, PROGRAM, stripped(from)?);
        for library in libraries(from)? {
            let place = library.to_str().context("a library whose path is no text")?;
            if !self.entries.contains_key(&place[1..]) {
                self.put(place, PROGRAM, fs::read(&library).with_context(|| format!("cannot read {place}"))?);
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].to_owned()).or_insert((DIRECTORY, Vec::new()));
        }
        self.entries.insert(path.to_owned(), (mode, content));
    }

    /// The archive.
    pub(super) fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let inputs = self.entries.iter().map(|(path, (mode, content))| {
            (newc::Builder::new(path).mode(*mode).nlink(1), Cursor::new(content.as_slice()))
        });
        cpio::write_cpio(inputs, Vec::new()).context("cannot write the archive")
    }
}

fn stripped(program: &Path) -> anyhow::Result<Vec<u8>> {
    let small = std::env::temp_dir().join(format!("reeve-stripped-{}", std::process::id()));
    process::run(Command::new("strip").arg("-o").arg(&small).arg(program))?;
    let content = fs::read(&small).with_context(|| format!("cannot read {}", small.display()));
    fs::remove_file(&small).with_context(|| format!("cannot remove {}", small.display()))?;
    content
}

/// The dynamic linker and all libraries, by the paths that the linker looks for.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
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
