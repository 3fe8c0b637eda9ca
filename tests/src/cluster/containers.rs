//! Where the container runtime is, and the images and the first process of nodes that have one.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// What `cargo xtask test daemonset` has built; variables of the environment name it.
#[derive(Clone, Debug)]
pub struct Containers {
    programs: PathBuf,
    node: PathBuf,
    images: Vec<PathBuf>,
}

/// Without these no container runs.
const PROGRAMS: [&str; 4] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"];

impl Containers {
    /// All of it.
    pub fn find() -> anyhow::Result<Self> {
        let programs = named("REEVE_CONTAINERD")?.join("bin");
        if let Some(name) = PROGRAMS.iter().find(|name| !programs.join(name).is_file()) {
            bail!("REEVE_CONTAINERD has no program bin/{name}: `cargo xtask test daemonset` builds it");
        }
        let images = ["REEVE_AGENT_IMAGE", "REEVE_POD_IMAGE"].into_iter().map(named).collect::<anyhow::Result<_>>()?;
        Ok(Self { programs, node: named("REEVE_NODE_PROGRAM")?, images })
    }

    /// The folder of containerd, its shim, its client and runc.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The first process of a node.
    pub(super) fn node(&self) -> &Path {
        &self.node
    }

    /// Archives of the images that every node has.
    pub(super) fn images(&self) -> &[PathBuf] {
        &self.images
    }
}

fn named(variable: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from).with_context(|| format!("{variable} is not set"))?;
    if path.exists() { Ok(path) } else { bail!("{variable} names nothing: {}", path.display()) }
}
