//! A copy of the checkout with its own target directory, where one mutant at a time is applied, built and tested.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::patch::{Mutant, Target};
use crate::compile::{self, Profile};
use crate::places::Places;
use crate::process;
use crate::tidy;
use crate::tiers::Tier;

/// The copy.
pub(super) struct Scratch {
    places: Places,
}

/// How a test went.
pub(super) enum Outcome {
    /// So many tests passed.
    Passed(u64),
    /// At least one failed.
    Failed,
}

impl Scratch {
    /// Brings the copy up to date with the checkout, uncommitted edits included.
    pub(super) fn new(places: &Places) -> anyhow::Result<Self> {
        let place = places.target.join("mutants");
        let root = place.join("checkout");
        let paths = tidy::tracked(&places.root)?;
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        for path in &paths {
            copy(&places.root.join(path), &root.join(path))?;
        }
        let kept = |path: &Path| paths.iter().any(|kept| Path::new(kept) == path);
        for path in files_under(&root, Path::new(""))? {
            if !kept(&path) {
                fs::remove_file(root.join(&path)).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(Self { places: Places { root, cache: places.cache.clone(), target: place.join("target") } })
    }

    /// Does something while a mutant is applied, and takes it back whatever came of it.
    pub(super) fn with<T>(
        &self,
        mutant: &Mutant,
        action: impl FnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.git_apply(mutant, &[])?;
        let result = action(self).with_context(|| format!("mutant {}", mutant.name));
        self.git_apply(mutant, &["--reverse"])?;
        result
    }

    /// Builds and runs tests; what does not build is an error, not a failure.
    pub(super) fn test(&self, target: &Target) -> anyhow::Result<Outcome> {
        let mut cargo = process::cargo();
        cargo.current_dir(&self.places.root).env("CARGO_TARGET_DIR", &self.places.target);
        // Built anew for each mutant in any case; what incremental compilation writes costs more than it saves.
        cargo.env("CARGO_INCREMENTAL", "0");
        if target.tier != Tier::Unit {
            compile::bpf_object(&self.places)?;
            cargo.env("REEVE_BPF_OBJECT", self.places.bpf_object()).env("REEVE_REQUIRE", "all");
        }
        if target.tier == Tier::Netns {
            let mut build = process::cargo();
            build.current_dir(&self.places.root).env("CARGO_TARGET_DIR", &self.places.target);
            build.env("REEVE_BPF_OBJECT", self.places.bpf_object()).args(["build", "--quiet", "--bins"]);
            process::run(build.args(["-p", "reeve-agent", "-p", "reeve-tests"]))?;
            cargo.env("REEVE_AGENT", compile::program(&self.places, Profile::Dev, "reeve-agent"));
        }
        cargo.args(["test", "--quiet", "-p", &target.package]);
        match &target.file {
            Some(file) => cargo.args(["--test", file]),
            None => cargo.args(["--lib"]),
        };
        let mut built = Command::new(cargo.get_program());
        built.args(cargo.get_args()).arg("--no-run").current_dir(&self.places.root);
        for (name, value) in cargo.get_envs() {
            match value {
                Some(value) => built.env(name, value),
                None => built.env_remove(name),
            };
        }
        process::run(&mut built).context("it does not build, so it says nothing about a test")?;

        let output = cargo.args(["--", &target.filter]).stdin(Stdio::null()).output().context("cannot run cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        match counted(&text) {
            Some((_, failed)) if failed > 0 => Ok(Outcome::Failed),
            Some((passed, _)) if output.status.success() => Ok(Outcome::Passed(passed)),
            _ => bail!("{target} ended without a result ({}):\n{text}", output.status),
        }
    }

    fn git_apply(&self, mutant: &Mutant, options: &[&str]) -> anyhow::Result<()> {
        let root = &self.places.root;
        let mut git = Command::new("git");
        // The copy may lie inside a repository, which `git apply` would take for the place to change.
        git.env("GIT_CEILING_DIRECTORIES", root.parent().unwrap_or(root));
        git.arg("apply").args(options).arg("-").current_dir(root).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = git.spawn().context("cannot run git")?;
        child.stdin.take().expect("it was piped").write_all(mutant.text.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("tests/mutants/{}.patch does not apply: {}", mutant.name, said.trim());
        }
        Ok(())
    }
}

/// Passed and failed tests of the one test program that ran.
fn counted(output: &str) -> Option<(u64, u64)> {
    let result = output.lines().find_map(|line| line.trim_start().strip_prefix("test result: "))?;
    let number = |word: &str| {
        let words: Vec<&str> = result.split([' ', ';', '.']).filter(|part| !part.is_empty()).collect();
        words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok())
    };
    Some((number("passed")?, number("failed")?))
}

/// Copies a file unless it is the same: an untouched time stamp keeps what was built from it.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let bytes = match fs::read(from) {
        Ok(bytes) => bytes,
        // Deleted and not yet committed, or a link to a directory.
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::IsADirectory) => {
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", from.display())),
    };
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let directory = to.parent().expect("a file of the checkout is in a directory");
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::write(to, bytes).with_context(|| format!("cannot write {}", to.display()))
}

/// Every file under a directory, relative to it.
fn files_under(root: &Path, inside: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let directory = root.join(inside);
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let entry = entry?;
        let path = inside.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files.extend(files_under(root, &path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_and_their_absence_is_told() {
        let text = "\nrunning 2 tests\n..\ntest result: FAILED. 1 passed; 2 failed; 0 ignored; finished in 0.10s\n";
        assert_eq!(counted(text), Some((1, 2)));
        assert_eq!(counted("error: could not compile"), None);
    }
}
