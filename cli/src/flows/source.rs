//! Lines out of files, those that are still written included.

use anyhow::Context;
use std::fs::{File, Metadata};
use std::io::{BufRead, BufReader, ErrorKind, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Between two looks at a file that has not grown.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Reads a file, or standard input for `-`, to its end.
pub(super) fn read_file(path: &Path, each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return read(std::io::stdin().lock(), "standard input", each);
    }
    read(BufReader::new(open(path)?), &path.display().to_string(), each)
}

/// Reads a file and goes on as it grows; one that was cut or replaced is read from its beginning. Standard input ends.
pub(super) fn follow_file(path: &Path, mut each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return read_file(path, each);
    }
    let context = || format!("cannot read {}", path.display());
    let mut reader = BufReader::new(open(path)?);
    let mut waiting: Vec<u8> = Vec::new();
    loop {
        let read = reader.read_until(b'\n', &mut waiting).with_context(context)?;
        if waiting.ends_with(b"\n") {
            each(String::from_utf8_lossy(&waiting).trim_end())?;
            waiting.clear();
        } else if read == 0 {
            let position = reader.stream_position().with_context(context)?;
            let held = reader.get_ref().metadata().with_context(context)?;
            match std::fs::metadata(path) {
                Ok(named) if is_another(&held, &named) || named.len() < position => {
                    reader = BufReader::new(open(path)?);
                    waiting.clear();
                }
                // Renamed away, and the next one is not there yet.
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(context),
                _ => std::thread::sleep(LOOK_EVERY),
            }
        }
    }
}

fn is_another(held: &Metadata, named: &Metadata) -> bool {
    (held.dev(), held.ino()) != (named.dev(), named.ino())
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read(mut reader: impl BufRead, name: &str, mut each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut line: Vec<u8> = Vec::new();
    while reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read {name}"))? > 0 {
        each(String::from_utf8_lossy(&line).trim_end())?;
        line.clear();
    }
    Ok(())
}
