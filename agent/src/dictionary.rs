//! The dictionary on disk: JSON lines, number -> meaning, appended and synced before a map refers to a number.

use reeve_policy::provenance::DictionaryEntry;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The dictionary cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentence of each variant says it")]
pub enum DictionaryError {
    #[error("dictionary {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("dictionary {path}, line {line}: {what}")]
    Line { path: PathBuf, line: usize, what: String },
}

/// The open file.
#[derive(Debug)]
pub struct DictionaryFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl DictionaryFile {
    /// Opens or creates it and reads what it holds. A last line without its end (a crash while writing) is cut off: no
    /// map refers to it, as it was never synced.
    pub fn open(path: &Path) -> Result<(Self, Vec<DictionaryEntry>), DictionaryError> {
        let failed = |source| DictionaryError::File { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let text = io::read_to_string(&file).map_err(failed)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut entries = Vec::new();
        for (number, line) in text[..whole].lines().enumerate() {
            let entry = serde_json::from_str(line).map_err(|error| DictionaryError::Line {
                path: path.to_owned(),
                line: number + 1,
                what: error.to_string(),
            })?;
            entries.push(entry);
        }
        file.set_len(whole as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok((Self { path: path.to_owned(), file, length: whole as u64 }, entries))
    }

    /// Appends and syncs. After an error nothing of it counts, and it may be tried again.
    pub fn append(&mut self, entries: &[DictionaryEntry]) -> Result<(), DictionaryError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for entry in entries {
            text.push_str(&serde_json::to_string(entry).expect("entries are plain data"));
            text.push('\n');
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.length += text.len() as u64;
                Ok(())
            }
            Err(source) => {
                // Back to the last whole line; the next attempt writes from there.
                let _back = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::End(0)));
                Err(DictionaryError::File { path: self.path.clone(), source })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reeve_policy::provenance::{WorkloadName, workload_id};
    use std::sync::Arc;

    fn entry(uid: &str) -> DictionaryEntry {
        let workload = WorkloadName {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: uid.to_owned(),
            node: String::new(),
        };
        DictionaryEntry::Workload { id: workload_id(uid), workload: Arc::new(workload) }
    }

    #[test]
    fn torn_last_line_is_cut_and_the_rest_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("dictionary");
        let (mut file, found) = DictionaryFile::open(&path).expect("opened");
        assert_eq!(found, []);
        file.append(&[entry("a"), entry("b")]).expect("appended");
        drop(file);
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(&path, &text[..text.len() - 4]).expect("torn");
        let (mut file, found) = DictionaryFile::open(&path).expect("opened");
        assert_eq!(found, [entry("a")]);
        file.append(&[entry("c")]).expect("appended");
        assert_eq!(DictionaryFile::open(&path).expect("opened").1, [entry("a"), entry("c")]);
    }

    #[test]
    fn unreadable_line_in_the_middle_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("dictionary");
        std::fs::write(&path, "{}\n").expect("written");
        let error = DictionaryFile::open(&path).expect_err("refused");
        assert!(matches!(error, DictionaryError::Line { line: 1, .. }), "{error}");
    }
}
