//! The Kubernetes programs that the cluster tier runs: found in a folder of the user's, else built from Go modules, once.
//!
//! Invariant: a program is in the cache whole or not at all.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{plugins, say};
use crate::places::Places;
use crate::process;

/// A folder of programs that test environments of Kubernetes operators have, too.
const FOLDER: &str = "KUBEBUILDER_ASSETS";

/// The oldest Go that the modules ask for.
const OLDEST_GO: (u32, u32) = (1, 26);

/// Where Go's own installer puts it, which not every PATH has.
const GO: &str = "/usr/local/go/bin/go";

/// Below `tests/kubernetes`: the module of Kubernetes and etcd, and the one of Helm.
const MODULES: [&str; 2] = ["", "helm"];

/// What is built: the program's name, its package, and the place of its module in [`MODULES`].
const PROGRAMS: [(&str, &str, usize); 6] = [
    ("etcd", "go.etcd.io/etcd/server/v3", 0),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl", 0),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 0),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", 0),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", 0),
    ("helm", "helm.sh/helm/v3/cmd/helm", 1),
];

/// A folder with each of the programs under its name in `bin`, and the CNI plugins in `cni`.
pub(crate) fn ready(places: &Places) -> anyhow::Result<PathBuf> {
    let modules = places.root.join("tests/kubernetes");
    let version = |module: usize, name: &str| {
        let file = modules.join(MODULES[module]).join("go.mod");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        required(&text, name).with_context(|| format!("{} requires no {name}", file.display()))
    };
    let kubernetes = version(0, "k8s.io/kubernetes")?;
    let (etcd, helm) = (version(0, "go.etcd.io/etcd/server/v3")?, version(1, "helm.sh/helm/v3")?);
    let given = env::var_os(FOLDER).map(PathBuf::from);
    // What is taken from elsewhere is linked, so it has a folder of its own.
    let kind = if given.is_some() { "-given" } else { "" };
    let place = places.cache.join("kubernetes").join(format!("{kubernetes}-etcd-{etcd}-helm-{helm}{kind}"));
    let programs = place.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    let lock = File::create(place.join("lock")).context("cannot make the lock of the Kubernetes programs")?;
    lock.lock().context("cannot take the lock of the Kubernetes programs")?;

    let mut missing = Vec::new();
    let mut taken = Vec::new();
    for program in PROGRAMS {
        let (name, path) = (program.0, programs.join(program.0));
        if let Some(theirs) = given.as_ref().map(|folder| folder.join(name)).filter(|path| path.is_file()) {
            link(&theirs, &path)?;
            taken.push(name);
        } else if !path.is_file() || path.is_symlink() {
            missing.push(program);
        }
    }
    for (index, module) in MODULES.iter().enumerate() {
        let wanted: Vec<_> = missing.iter().filter(|program| program.2 == index).collect();
        if !wanted.is_empty() {
            let go = go()?;
            let names: Vec<&str> = wanted.iter().map(|program| program.0).collect();
            say("building", &format!("{} (once, ten minutes from nothing)", names.join(", ")));
            for (name, package, _) in wanted {
                build(&go, &modules.join(module), package, &kubernetes, &programs.join(name))?;
            }
        }
    }
    let mut what = format!("{kubernetes}, etcd {etcd}, Helm {helm} ({})", programs.display());
    if let Some(folder) = given {
        what = format!("{what}; from {FOLDER}={}: {}", folder.display(), taken.join(", "));
    }
    say("Kubernetes", &what);
    plugins::ready(&place.join("cni"))?;
    Ok(place)
}

fn link(to: &Path, path: &Path) -> anyhow::Result<()> {
    if fs::read_link(path).is_ok_and(|old| old == to) {
        return Ok(());
    }
    if path.is_symlink() || path.exists() {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    std::os::unix::fs::symlink(to, path).with_context(|| format!("cannot link {}", path.display()))
}

/// Builds beside and renames.
fn build(go: &Path, module: &Path, package: &str, kubernetes: &str, program: &Path) -> anyhow::Result<()> {
    let unfinished = program.with_extension("new");
    process::run(
        Command::new(go)
            .args(["build", "-trimpath", "-ldflags", &flags(kubernetes), "-o"])
            .arg(&unfinished)
            .arg(package)
            .current_dir(module)
            .envs([("GOTOOLCHAIN", "local"), ("GOFLAGS", "-mod=readonly"), ("CGO_ENABLED", "0"), ("GOWORK", "off")]),
    )?;
    fs::rename(&unfinished, program).with_context(|| format!("cannot rename to {}", program.display()))
}

/// As Kubernetes' own build does it: the API server tells its clients what version it is.
fn flags(kubernetes: &str) -> String {
    let mut parts = kubernetes.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    format!("-s -w -X {package}.gitVersion={kubernetes} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}")
}

/// A Go that is new enough; Debian's is installed where there is none.
fn go() -> anyhow::Result<PathBuf> {
    let find = || process::in_path("go").or_else(|| Some(PathBuf::from(GO)).filter(|path| path.is_file()));
    if find().is_none() {
        super::need("go", "golang")?;
    }
    let go = find().context("golang was installed and brings no program `go`")?;
    let version = process::output(Command::new(&go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))?;
    if numbers(&version).is_none_or(|numbers| numbers < OLDEST_GO) {
        let (major, minor) = OLDEST_GO;
        bail!(
            "{} is {}, and the Kubernetes programs need Go {major}.{minor} or newer: put one first in PATH",
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
        assert!(numbers("go1.26.8\n") >= Some(OLDEST_GO) && numbers("go1.27rc1") >= Some(OLDEST_GO));
        assert!(numbers("go1.19.8") < Some(OLDEST_GO));
        assert_eq!(numbers("devel"), None);
    }

    #[test]
    fn the_version_goes_into_the_programs() {
        assert!(flags("v1.36.2").ends_with("gitVersion=v1.36.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"));
    }
}
