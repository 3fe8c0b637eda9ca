//! Builds what ships and hands over to the demo or the benchmarks.

use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::compile::{self, Profile};
use crate::places::Places;
use crate::setup;

/// Sets up, builds, then runs a program of the tests crate; its exit code is ours.
pub(crate) fn run(places: &Places, program: &str, arguments: &[String]) -> anyhow::Result<ExitCode> {
    setup::need_root("this makes network namespaces and loads eBPF programs")?;
    setup::lab()?;
    compile::everything(places, Profile::Release)?;
    let program = compile::program(places, Profile::Release, program);
    let status = Command::new(&program)
        .args(arguments)
        .env("REEVE_BPF_OBJECT", places.bpf_object())
        .env("REEVE_AGENT", compile::program(places, Profile::Release, "reeve-agent"))
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
