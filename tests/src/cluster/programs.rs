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
        Self::of(PathBuf::from(folder), nodes)
    }

    fn of(folder: PathBuf, nodes: Nodes) -> anyhow::Result<Self> {
        let found = Self { folder };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_is_missing_is_named() {
        let folder = env::temp_dir().join(format!("reeve-programs-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("bin")).expect("a directory");
        for name in NAMES {
            let error = Programs::of(folder.clone(), Nodes::Played).expect_err("it is not there").to_string();
            assert!(error.contains(&format!("bin/{name}:")), "{error}");
            std::fs::write(folder.join("bin").join(name), "").expect("a program");
        }
        assert!(Programs::of(folder.clone(), Nodes::Played).is_ok());
        let error = Programs::of(folder.clone(), Nodes::Real).expect_err("no kubelet").to_string();
        assert!(error.contains("bin/kube-scheduler:"), "{error}");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
