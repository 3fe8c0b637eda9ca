//! What an emulated machine has: a root file system in an archive that its kernel unpacks.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use anyhow::Context;
use cpio::newc;

use crate::program::{libraries, stripped};

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
