//! Chooses the compiler of the eBPF crate: one that can build `core` for a target that has no release.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{linker, packages, say};
use crate::process;

/// A rustc and cargo of one version, with the sources of `core`.
pub(crate) struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    /// For people.
    pub(crate) description: String,
}

impl Compiler {
    /// The cargo of the pair, told to use the rustc of the pair and to accept unstable options.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = process::isolated(&self.cargo);
        // A nightly ignores the variable; a distribution's release needs it for `-Z build-std`.
        command.env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

/// What must be known of a rustc before it is chosen.
struct Facts {
    /// As in `1.96.0`.
    release: String,
    /// Major version.
    llvm: u32,
    has_core_source: bool,
}

/// rustup's nightly if it fits, else Debian's compiler, which is installed if need be.
pub(super) fn ready() -> anyhow::Result<Compiler> {
    if let Some(nightly) = nightly() {
        return Ok(nightly);
    }
    if let Some(debian) = debian() {
        return Ok(debian);
    }
    say("eBPF compiler", "no nightly with rust-src; Debian's compiler will do");
    packages::install("a Rust compiler that can build `core`", &["rustc-web", "cargo-web", "rust-web-src"])?;
    debian().context(
        "Debian's compiler is installed but cannot be used: `rustup toolchain install nightly --component rust-src` \
         gives another",
    )
}

fn nightly() -> Option<Compiler> {
    process::in_path("rustup")?;
    let path = process::output(process::isolated("rustup").args(["which", "--toolchain", "nightly", "rustc"])).ok()?;
    let rustc = PathBuf::from(path.trim());
    let facts = facts(&rustc).ok()?;
    if !facts.has_core_source {
        return None;
    }
    if facts.llvm > linker::LLVM {
        let why = format!("nightly has LLVM {}, newer than the linker's {}: not used", facts.llvm, linker::LLVM);
        say("eBPF compiler", &why);
        return None;
    }
    Some(Compiler {
        cargo: rustc.with_file_name("cargo"),
        description: format!("rustup's nightly {} with rust-src", facts.release),
        rustc,
    })
}

fn debian() -> Option<Compiler> {
    let (rustc, cargo) = (PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo"));
    if !rustc.exists() || !cargo.exists() {
        return None;
    }
    let facts = facts(&rustc).ok()?;
    // Debian 12 also has a rustc of 2022 under the same name.
    let recent = facts.release.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok()).is_some_and(|m| m >= 85);
    (recent && facts.has_core_source && facts.llvm <= linker::LLVM).then(|| Compiler {
        description: format!("Debian's rustc {} with rust-src", facts.release),
        cargo,
        rustc,
    })
}

fn facts(rustc: &Path) -> anyhow::Result<Facts> {
    let version = process::output(process::isolated(rustc).arg("-vV"))?;
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = field("release:").context("rustc -vV names no release")?.to_owned();
    let llvm = field("LLVM version:").and_then(|llvm| llvm.split('.').next()).context("rustc -vV names no LLVM")?;
    let sysroot = process::output(process::isolated(rustc).args(["--print", "sysroot"]))?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    Ok(Facts { release, llvm: llvm.parse()?, has_core_source: core.exists() })
}
