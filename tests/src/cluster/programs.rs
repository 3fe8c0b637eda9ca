//! Where the programs of Kubernetes are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::Nodes;

/// Those without which there is no cluster; `cargo xtask setup` has the same names.
const NAMES: [&str; 6] = ["etcd", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-proxy", "helm"];

/// What nodes with containers want besides.
const OF_NODES: [&str; 2] = ["kube-scheduler", "kubelet"];

/// A folder that has them in `bin`, and CNI plugins in `cni`.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The folder that `REEVE_KUBERNETES` names, complete.
    pub fn find(nodes: Nodes) -> anyhow::Result<Self> {
        let folder = env::var_os("REEVE_KUBERNETES").context("REEVE_KUBERNETES names no folder")?;
        let found = Self { folder: PathBuf::from(folder) };
        let more: &[&str] = if nodes == Nodes::Real { &OF_NODES } else { &[] };
        if let Some(name) = NAMES.iter().chain(more).find(|name| !found.path(name).is_file()) {
            bail!(
                "REEVE_KUBERNETES has no program bin/{name}: `cargo xtask test` builds it for the tier that needs it"
            );
        }
        Ok(found)
    }

    /// One of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// One of them, to be run.
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.path(name))
    }

    /// The folder of CNI plugins.
    pub fn plugins(&self) -> PathBuf {
        self.folder.join("cni")
    }
}

/// The chart that installs the agent.
pub(super) fn chart() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("this package is a directory of the checkout").join("deploy/helm/reeve")
}
