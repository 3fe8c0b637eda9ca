//! Finds or builds bpf-linker, which turns the compiler's LLVM bitcode into an eBPF object with BTF.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{packages, say};
use crate::places::Places;
use crate::process;

/// The LLVM that bpf-linker is built with; it reads bitcode of that version and older.
pub(super) const LLVM: u32 = 22;

const VERSION: &str = "0.13.0";

/// A bpf-linker of the version that we pin.
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    /// For people.
    pub(crate) description: String,
}

/// The one in the cache or in `PATH` if its version is right, else one built now.
pub(super) fn ready(places: &Places) -> anyhow::Result<Linker> {
    let cached = places.tools().join("bin/bpf-linker");
    let candidates = [Some(cached.clone()), process::in_path("bpf-linker")];
    if let Some(path) = candidates.into_iter().flatten().find(|path| has_version(path)) {
        return Ok(described(path));
    }
    build(places)?;
    if !has_version(&cached) {
        bail!("{} was built but does not say that it is version {VERSION}", cached.display());
    }
    Ok(described(cached))
}

fn described(path: PathBuf) -> Linker {
    let description = format!("bpf-linker {VERSION} ({})", path.display());
    Linker { path, description }
}

fn has_version(path: &Path) -> bool {
    path.exists()
        && process::output(process::isolated(path).arg("--version"))
            .is_ok_and(|text| text.split_whitespace().last() == Some(VERSION))
}

fn build(places: &Places) -> anyhow::Result<()> {
    let llvm_programs = PathBuf::from(format!("/usr/lib/llvm-{LLVM}/bin"));
    if !llvm_programs.join("llvm-config").exists() {
        let (llvm, headers) = (format!("llvm-{LLVM}"), format!("llvm-{LLVM}-dev"));
        packages::install(&format!("LLVM {LLVM}"), &[&llvm, &headers])?;
    }
    say("building", &format!("bpf-linker {VERSION} (once, a few minutes)"));
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([llvm_programs].into_iter().chain(env::split_paths(&path)))
        .context("PATH cannot be extended")?;
    // Not in the workspace's target directory: nothing there is shared, and this can be thrown away.
    let target = places.cache.join("build-bpf-linker");
    process::run(
        process::cargo()
            .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
            .args(["--no-default-features", "--features", &format!("llvm-{LLVM}")])
            .arg("--root")
            .arg(places.tools())
            .current_dir("/")
            .env("PATH", path)
            .env("CARGO_TARGET_DIR", &target),
    )?;
    fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))
}
