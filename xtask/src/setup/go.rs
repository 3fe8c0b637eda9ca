//! Programs that are built from Go modules, once, into a cache.
//!
//! Invariant: a program is in the cache whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process;

/// The oldest Go that the modules ask for.
const OLDEST: (u32, u32) = (1, 26);

/// Where Go's own installer puts it, which not every PATH has.
const INSTALLED: &str = "/usr/local/go/bin/go";

/// A directory with a go.mod that names programs as tools.
pub(super) struct Module {
    directory: PathBuf,
    text: String,
}

impl Module {
    pub(super) fn at(directory: PathBuf) -> anyhow::Result<Self> {
        let file = directory.join("go.mod");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self { directory, text })
    }

    /// The version that it requires of another module.
    pub(super) fn version_of(&self, module: &str) -> anyhow::Result<String> {
        required(&self.text, module)
            .with_context(|| format!("{}/go.mod requires no {module}", self.directory.display()))
    }

    /// Builds a package beside `program`, and renames.
    pub(super) fn build(&self, go: &Path, package: &str, flags: &str, program: &Path) -> anyhow::Result<()> {
        let unfinished = program.with_extension("new");
        process::run(
            Command::new(go)
                .args(["build", "-trimpath", "-ldflags", flags, "-o"])
                .arg(&unfinished)
                .arg(package)
                .current_dir(&self.directory)
                .envs([
                    ("GOTOOLCHAIN", "local"),
                    ("GOFLAGS", "-mod=readonly"),
                    ("CGO_ENABLED", "0"),
                    ("GOWORK", "off"),
                ]),
        )?;
        fs::rename(&unfinished, program).with_context(|| format!("cannot rename to {}", program.display()))
    }
}

/// A Go that is new enough; Debian's is installed where there is none.
pub(super) fn find() -> anyhow::Result<PathBuf> {
    let find = || process::in_path("go").or_else(|| Some(PathBuf::from(INSTALLED)).filter(|path| path.is_file()));
    if find().is_none() {
        super::need("go", "golang")?;
    }
    let go = find().context("golang was installed and brings no program `go`")?;
    let version = process::output(Command::new(&go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))?;
    if numbers(&version).is_none_or(|numbers| numbers < OLDEST) {
        let (major, minor) = OLDEST;
        bail!(
            "{} is {}, and the programs of the test cluster need Go {major}.{minor} or newer: put one first in PATH",
            go.display(),
            version.trim()
        );
    }
    Ok(go)
}

/// The first two numbers of a version such as `go1.26.8`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    let mut parts = version.trim().strip_prefix("go")?.split('.');
    Some((digits(parts.next()?)?, digits(parts.next()?)?))
}

/// The version that a go.mod requires of a module.
fn required(text: &str, module: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        let named = words.next() == Some(module);
        words.next().filter(|version| named && version.starts_with('v')).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_required_version_is_read_whichever_way_it_is_written() {
        let text = "module m\n\ntool k8s.io/kubernetes/cmd/kubectl\n\nrequire (\n\tk8s.io/kubernetes v1.36.2\n)\n\
                    require helm.sh/helm/v3 v3.22.0\nreplace k8s.io/api => k8s.io/api v0.36.2\n";
        assert_eq!(required(text, "k8s.io/kubernetes").as_deref(), Some("v1.36.2"));
        assert_eq!(required(text, "helm.sh/helm/v3").as_deref(), Some("v3.22.0"));
        assert_eq!(required(text, "k8s.io/api"), None);
    }

    #[test]
    fn an_old_go_is_told_from_a_new_one() {
        assert!(numbers("go1.26.8\n") >= Some(OLDEST) && numbers("go1.27rc1") >= Some(OLDEST));
        assert!(numbers("go1.19.8") < Some(OLDEST));
        assert_eq!(numbers("devel"), None);
    }
}
