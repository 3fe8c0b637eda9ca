//! Where things are: the checkout, the cache of tools, the target directory.

use std::env;
use std::path::PathBuf;

use anyhow::Context;

/// The directories that every command shares, all absolute.
pub(crate) struct Places {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// What outlives a build: `$REEVE_CACHE`, else `~/.cache/reeve`.
    pub(crate) cache: PathBuf,
    /// What cargo builds into: `$CARGO_TARGET_DIR`, else `target/` in the checkout.
    pub(crate) target: PathBuf,
}

impl Places {
    /// Reads the environment; creates nothing.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = checkout();
        let cache = match path_from("REEVE_CACHE") {
            Some(path) => path,
            None => path_from("HOME").context("neither REEVE_CACHE nor HOME is set")?.join(".cache/reeve"),
        };
        let target = path_from("CARGO_TARGET_DIR").unwrap_or_else(|| root.join("target"));
        let here = env::current_dir().context("the current directory")?;
        Ok(Self { cache: here.join(cache), target: here.join(target), root })
    }

    /// Root of `cargo install` for tools that we pin; its programs are in `bin`.
    pub(crate) fn tools(&self) -> PathBuf {
        self.cache.join("tools")
    }

    /// The eBPF crate, a workspace of its own.
    pub(crate) fn ebpf_crate(&self) -> PathBuf {
        self.root.join("ebpf")
    }

    /// The compiled eBPF programs, as the agent embeds them.
    pub(crate) fn bpf_object(&self) -> PathBuf {
        self.target.join("reeve-ebpf.o")
    }
}

/// The checkout that cargo runs us in; several can share one target directory, and with it this program.
pub(crate) fn checkout() -> PathBuf {
    let package = path_from("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    package.parent().expect("xtask is a directory of the checkout").to_owned()
}

fn path_from(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
