//! Mutants as they stand in `tests/mutants`: what is taken out, which test notices, and the patch.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum as _;

use crate::places::Places;
use crate::tiers::Tier;

/// One guard less.
#[derive(Debug)]
pub(crate) struct Mutant {
    /// Name of the file, without `.patch`.
    pub(crate) name: String,
    pub(crate) target: Target,
    /// The whole file.
    pub(crate) text: String,
}

/// The test that must fail.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) tier: Tier,
    /// Package, and after a `/` the name of one of its test files; without that the tests of its library.
    pub(crate) package: String,
    pub(crate) file: Option<String>,
    /// Part of the test's name.
    pub(crate) filter: String,
}

impl Target {
    /// Whether it needs neither root nor the crates of the lab, which take minutes to build.
    pub(crate) fn is_cheap(&self) -> bool {
        self.tier == Tier::Unit && self.package != "reeve-tests"
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (slash, file) = self.file.as_ref().map_or(("", ""), |file| ("/", file.as_str()));
        write!(f, "{} {}{slash}{file} {}", format!("{:?}", self.tier).to_lowercase(), self.package, self.filter)
    }
}

impl Mutant {
    /// Reads a file: a sentence, a line `test: TIER PACKAGE[/FILE] NAME`, and a patch as `git diff` writes it.
    pub(crate) fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let header = text.split("\n--- a/").next().unwrap_or_default();
        if header.len() == text.len() {
            bail!("has no line `--- a/...`, so it changes nothing");
        }
        let line = header.lines().find_map(|line| line.strip_prefix("test: "));
        let line = line.context("has no line `test: TIER PACKAGE[/FILE] NAME` before the patch")?;
        let [tier, place, filter] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            bail!("`test: {line}` is not `test: TIER PACKAGE[/FILE] NAME`");
        };
        let Ok(tier) = Tier::from_str(tier, false) else { bail!("there is no tier {tier}") };
        let (package, file) =
            place.split_once('/').map_or((place, None), |(package, file)| (package, Some(file.to_owned())));
        let target = Target { tier, package: package.to_owned(), file, filter: filter.to_owned() };
        Ok(Self { name: name.to_owned(), target, text: text.to_owned() })
    }
}

/// All mutants, by name.
pub(crate) fn all(places: &Places) -> anyhow::Result<Vec<Mutant>> {
    read(&places.root.join("tests/mutants"))
}

fn read(directory: &Path) -> anyhow::Result<Vec<Mutant>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    let mut mutants = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "patch")) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        mutants.push(Mutant::parse(&name, &text).with_context(|| format!("{}", path.display()))?);
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_header_says_which_test_must_fail() {
        let text = "Ports of later fragments.\ntest: kernel reeve-tests/kernel a_later\n\n--- a/x\n+++ b/x\n";
        let mutant = Mutant::parse("ports", text).expect("well formed");
        assert_eq!(mutant.target.to_string(), "kernel reeve-tests/kernel a_later");
        for bad in [
            "test: kernel reeve-tests a_later\n",
            "no test\n\n--- a/x\n",
            "test: kernel x\n\n--- a/x\n",
            "test: moon x y\n\n--- a/x\n",
        ] {
            assert!(Mutant::parse("bad", bad).is_err(), "{bad}");
        }
    }

    /// A patch that no longer applies guards nothing: it is to be renewed together with the code that it is about.
    #[test]
    fn every_mutant_of_this_checkout_applies() {
        let root = crate::places::checkout();
        let mutants = read(&root.join("tests/mutants")).expect("readable");
        assert!(mutants.len() >= 15, "{}", mutants.len());
        for mutant in mutants {
            let file = root.join("tests/mutants").join(format!("{}.patch", mutant.name));
            let mut git = Command::new("git");
            git.args(["-c", "safe.directory=*", "apply", "--check"]).arg(file).current_dir(&root);
            let output = git.output().expect("git runs");
            assert!(output.status.success(), "{}: {}", mutant.name, String::from_utf8_lossy(&output.stderr));
        }
    }
}
