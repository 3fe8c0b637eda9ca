//! Follows the agent's file of records.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::wait;

/// A reader that stands somewhere in a file of JSON lines which may not exist yet.
pub struct Records {
    path: PathBuf,
    /// Everything before has been read.
    offset_bytes: u64,
    /// The beginning of a line whose end was not written yet.
    partial: Vec<u8>,
    /// Read and not yet asked for, oldest first.
    seen: Vec<Value>,
}

impl Records {
    /// From the beginning of the file.
    pub(super) fn from_start(path: &Path) -> Self {
        Self { path: path.to_owned(), offset_bytes: 0, partial: Vec::new(), seen: Vec::new() }
    }

    /// The first record, from where the reader stands, that `wanted` accepts; those before it are passed over.
    ///
    /// An error lists what came instead.
    pub fn wait_for(&mut self, patience: Duration, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let found = wait::until("a record", patience, || {
            self.read()?;
            let position = self.seen.iter().position(&wanted);
            Ok(position.map(|position| self.seen.drain(..=position).next_back().expect("its end is in the range")))
        });
        found.with_context(|| {
            let lines: Vec<String> = self.seen.iter().map(ToString::to_string).collect();
            format!("{} other records came:\n{}", lines.len(), lines.join("\n"))
        })
    }

    /// Everything from where the reader stands to the end of the file.
    pub fn rest(&mut self) -> anyhow::Result<Vec<Value>> {
        self.read()?;
        Ok(std::mem::take(&mut self.seen))
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", self.path.display())),
        };
        file.seek(SeekFrom::Start(self.offset_bytes))?;
        let read = file.read_to_end(&mut self.partial)?;
        self.offset_bytes += u64::try_from(read)?;
        let whole = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.partial.drain(..whole).collect();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let record = serde_json::from_slice(line)
                .with_context(|| format!("no record: {}", String::from_utf8_lossy(line).trim()))?;
            self.seen.push(record);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_line_is_read_when_its_end_is_there_and_only_once() {
        let path = std::env::temp_dir().join(format!("reeve-records-{}", std::process::id()));
        let mut records = Records::from_start(&path);
        assert!(records.rest().unwrap().is_empty(), "no file, no records");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"n\":1}\n{\"n\":2}\n{\"n\"").unwrap();
        let second = records.wait_for(Duration::ZERO, |record| record["n"] == 2).unwrap();
        assert_eq!(second["n"], 2);
        assert!(records.wait_for(Duration::ZERO, |record| record["n"] == 1).is_err(), "passed over");
        file.write_all(b":3}\n").unwrap();
        assert_eq!(records.rest().unwrap(), [serde_json::json!({ "n": 3 })]);
        std::fs::remove_file(&path).unwrap();
    }
}
