//! The Kubernetes programs that the cluster tiers run: found in a folder of the user's, else built from Go modules, once.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::go::{self, Module};
use super::{plugins, say};
use crate::places::Places;

/// A folder of programs that test environments of Kubernetes operators have, too.
const FOLDER: &str = "KUBEBUILDER_ASSETS";

/// Below `tests/kubernetes`: the module of Kubernetes and etcd, and the one of Helm.
const MODULES: [&str; 2] = ["", "helm"];

/// What is built: the program's name, its package, and the place of its module in [`MODULES`].
type Program = (&'static str, &'static str, usize);

/// What a control plane and its clients are.
const PROGRAMS: [Program; 6] = [
    ("etcd", "go.etcd.io/etcd/server/v3", 0),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl", 0),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 0),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", 0),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", 0),
    ("helm", "helm.sh/helm/v3/cmd/helm", 1),
];

/// What nodes with containers want besides.
const OF_NODES: [Program; 2] =
    [("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", 0), ("kubelet", "k8s.io/kubernetes/cmd/kubelet", 0)];

/// How much of a cluster a tier runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A control plane, whose nodes the lab plays.
    ControlPlane,
    /// Nodes with kubelets, too.
    Nodes,
}

impl Extent {
    fn programs(self) -> Vec<Program> {
        let more: &[Program] = if self == Self::Nodes { &OF_NODES } else { &[] };
        PROGRAMS.iter().chain(more).copied().collect()
    }
}

/// A folder with each of the programs under its name in `bin`, and the CNI plugins in `cni`.
pub(crate) fn ready(places: &Places, extent: Extent) -> anyhow::Result<PathBuf> {
    let [kubernetes, helm] = MODULES.map(|module| Module::at(places.root.join("tests/kubernetes").join(module)));
    let modules = [kubernetes?, helm?];
    let kubernetes = modules[0].version_of("k8s.io/kubernetes")?;
    let (etcd, helm) = (modules[0].version_of("go.etcd.io/etcd/server/v3")?, modules[1].version_of("helm.sh/helm/v3")?);
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
    for program in extent.programs() {
        let (name, path) = (program.0, programs.join(program.0));
        if let Some(theirs) = given.as_ref().map(|folder| folder.join(name)).filter(|path| path.is_file()) {
            link(&theirs, &path)?;
            taken.push(name);
        } else if !path.is_file() || path.is_symlink() {
            missing.push(program);
        }
    }
    if !missing.is_empty() {
        let go = go::find()?;
        let names: Vec<&str> = missing.iter().map(|program| program.0).collect();
        say("building", &format!("{} (once, ten minutes from nothing)", names.join(", ")));
        for (name, package, module) in missing {
            modules[module].build(&go, package, &flags(&kubernetes), &programs.join(name))?;
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

/// As Kubernetes' own build does it: the API server tells its clients what version it is.
fn flags(kubernetes: &str) -> String {
    let mut parts = kubernetes.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    format!("-s -w -X {package}.gitVersion={kubernetes} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_goes_into_the_programs() {
        assert!(flags("v1.36.2").ends_with("gitVersion=v1.36.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"));
    }
}
