//! Builds what ships and hands over to the demo or the benchmarks.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::compile::{self, Profile};
use crate::places::Places;
use crate::setup::{self, Extent};

/// Sets up, builds, then runs a program of the tests crate; its exit code is ours.
pub(crate) fn run(places: &Places, program: &str, arguments: &[String]) -> anyhow::Result<ExitCode> {
    setup::need_root("this makes network namespaces and loads eBPF programs")?;
    setup::lab()?;
    compile::everything(places, Profile::Release)?;
    let program = compile::program(places, Profile::Release, program);
    let mut command = Command::new(&program);
    if needs_kubernetes(&program, arguments)? {
        command.env("REEVE_KUBERNETES", setup::kubernetes(places, Extent::ControlPlane)?);
    }
    let status = command
        .args(arguments)
        .env("REEVE_BPF_OBJECT", places.bpf_object())
        .env("REEVE_AGENT", compile::program(places, Profile::Release, "reeve-agent"))
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Whether a control plane is needed: by the demo that is asked for one, and by some measures of the benchmarks.
fn needs_kubernetes(program: &Path, arguments: &[String]) -> anyhow::Result<bool> {
    if !program.ends_with("reeve-bench") {
        return Ok(arguments.iter().any(|argument| argument == "--cluster"));
    }
    if arguments.iter().any(|argument| matches!(&**argument, "--list" | "--help" | "-h")) {
        return Ok(false);
    }
    let listed =
        Command::new(program).args(arguments).arg("--list").output().context("the measures cannot be listed")?;
    Ok(String::from_utf8_lossy(&listed.stdout).lines().any(|measure| measure.starts_with("propagation/")))
}
