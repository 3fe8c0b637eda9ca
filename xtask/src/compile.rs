//! Builds the eBPF object, and then the programs that embed or load it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::places::Places;
use crate::process;
use crate::setup;

/// Cargo's profiles that we use for programs of the host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Debug assertions are on: a bug stops a test.
    Dev,
    /// As shipped.
    Release,
}

impl Profile {
    fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Crates whose binaries users and tests run.
const PROGRAMS: [&str; 3] = ["reeve-agent", "reeve", "reeve-tests"];

/// The eBPF object and every program.
pub(crate) fn everything(places: &Places, profile: Profile) -> anyhow::Result<()> {
    bpf_object(places)?;
    programs(places, profile, &PROGRAMS)
}

/// Programs of these packages, with the eBPF object embedded where it belongs.
pub(crate) fn programs(places: &Places, profile: Profile, packages: &[&str]) -> anyhow::Result<()> {
    let mut cargo = cargo_with_object(places);
    cargo.args(["build", "--bins"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    for package in packages {
        cargo.args(["-p", package]);
    }
    process::run(&mut cargo)
}

/// Programs that hold the tests of these files in `tests/tests`, by the file's name.
pub(crate) fn test_programs(
    places: &Places,
    profile: Profile,
    files: &[&str],
) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut cargo = cargo_with_object(places);
    cargo.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]);
    // With all of them, dependencies have the features that `everything` builds them with: nothing is built twice.
    for package in PROGRAMS {
        cargo.args(["-p", package]);
    }
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    for file in files {
        cargo.args(["--test", file]);
    }
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run cargo test")?;
    if !output.status.success() {
        bail!("cargo test does not build tests/{files:?} ({})", output.status);
    }
    let mut programs = BTreeMap::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_slice(line).context("cargo prints a message that is no JSON")?;
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            programs.insert(name.to_owned(), path.into());
        }
    }
    match files.iter().find(|file| !programs.contains_key(**file)) {
        Some(file) => bail!("cargo test names no program for tests/{file}.rs"),
        None => Ok(programs),
    }
}

/// The host's cargo, told where the eBPF object is.
pub(crate) fn cargo_with_object(places: &Places) -> Command {
    let mut cargo = process::cargo();
    cargo.current_dir(&places.root).env("REEVE_BPF_OBJECT", places.bpf_object());
    cargo
}

/// Where cargo leaves a program.
pub(crate) fn program(places: &Places, profile: Profile, name: &str) -> PathBuf {
    places.target.join(profile.directory()).join(name)
}

/// Compiles the eBPF crate and copies its object to where the agent and the tests look for it.
pub(crate) fn bpf_object(places: &Places) -> anyhow::Result<PathBuf> {
    let tools = setup::bpf_tools(places)?;
    let target = places.target.join("ebpf");
    let flags = [
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // What is copied or zeroed whole is not left to a call, which goes byte by byte and has a frame of its own.
        "-Clink-arg=--disable-expand-memcpy-in-order",
        "-Ctarget-cpu=v3",
        // Kernels before 6.2 refuse a loop whose body falls through into its own beginning, which placing blocks makes.
        "-Clink-arg=--llvm-args=-disable-block-placement",
        &format!("-Clinker={}", tools.linker.path.display()),
    ]
    .join("\u{1f}");
    let mut cargo = tools.compiler.cargo();
    cargo
        .args(["build", "--release", "--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(places.ebpf_crate())
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    if places.ebpf_crate().join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    process::run(&mut cargo)?;

    let built = target.join("bpfel-unknown-none/release/reeve-ebpf");
    let object = places.bpf_object();
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{} is not an ELF object", built.display());
    }
    // An untouched file keeps its time stamp, and what embeds it is not built again.
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(object)
}
