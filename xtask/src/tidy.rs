//! The repository's own rules, as a command and as a test.
//!
//! A rule is a function from the checkout's files to complaints; each complaint names a file, a line and what to do.

mod edges;
mod reach;
mod text;
mod traps;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::places::Places;
use crate::process;

/// Something to put right.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Complaint {
    /// Relative to the checkout.
    file: String,
    /// From 1; 1 where the file as a whole is meant.
    line: usize,
    what: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A file of the checkout.
struct File {
    /// Relative to the checkout, with `/`.
    path: String,
    text: String,
}

impl File {
    fn complaint(&self, line: usize, what: impl Into<String>) -> Complaint {
        Complaint { file: self.path.clone(), line, what: what.into() }
    }

    fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }

    /// Lines with their numbers, from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// Applies every rule.
pub(crate) fn run(places: &Places) -> anyhow::Result<()> {
    let complaints = complaints(&files(&places.root)?)?;
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} complaints of tidy", complaints.len());
    }
    eprintln!("tidy: no complaints");
    Ok(())
}

fn complaints(files: &[File]) -> anyhow::Result<Vec<Complaint>> {
    let mut complaints = reach::unreachable(files)?;
    complaints.extend(edges::forbidden(files)?);
    complaints.extend(text::all(files));
    complaints.extend(traps::unknown(files));
    complaints.sort();
    complaints.dedup();
    Ok(complaints)
}

/// Text files that git tracks or would track; everything else (objects, pictures) has no rules.
fn files(root: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    for path in tracked(root)? {
        let full: PathBuf = root.join(&path);
        // Deleted but not yet committed, a directory link, or not text.
        let Ok(bytes) = fs::read(&full) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        files.push(File { path, text });
    }
    Ok(files)
}

/// Paths that git tracks or would track, sorted, relative to the checkout.
pub(crate) fn tracked(root: &Path) -> anyhow::Result<Vec<String>> {
    let list = process::output(
        Command::new("git")
            // A checkout that belongs to another user (sudo, containers) is only listed here; nothing in it is run.
            .args(["-c", "safe.directory=*"])
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root),
    )
    .context("git lists the checkout's files")?;
    let mut paths: Vec<String> = list.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_checkout_is_tidy() {
        let complaints = complaints(&files(&crate::places::checkout()).unwrap()).unwrap();
        let lines: Vec<String> = complaints.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}", lines.join("\n"));
    }
}
