//! Runs programs that read commands from their standard input, such as iproute2's, several commands at a time.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Where `ip` is.
pub fn program() -> Option<PathBuf> {
    ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"].iter().map(PathBuf::from).find(|path| Path::exists(path))
}

/// Runs `ip` with these arguments.
pub(super) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    batch_with(arguments, None)
}

/// Runs commands of `ip` in the namespace of that name; the first that fails stops the rest.
pub(super) fn batch(netns: &str, commands: &[String]) -> anyhow::Result<()> {
    batch_with(&["-n", netns, "-batch", "-"], Some(&(commands.join("\n") + "\n")))
}

/// Runs commands of `bridge`, which comes with `ip`, in the namespace of that name.
pub(super) fn bridge(netns: &str, commands: &[String]) -> anyhow::Result<()> {
    let program = program().context("iproute2 is not installed")?.with_file_name("bridge");
    let input = commands.join("\n") + "\n";
    feed(Command::new(program).args(["-n", netns, "-batch", "-"]), Some(&input))
}

fn batch_with(arguments: &[&str], input: Option<&str>) -> anyhow::Result<()> {
    let program = program().context("iproute2 is not installed")?;
    feed(Command::new(program).args(arguments), input)
}

/// Runs a program that reads `input`; an error shows what it says and what it was given.
pub(super) fn feed(command: &mut Command, input: Option<&str>) -> anyhow::Result<()> {
    let name = command.get_program().display().to_string();
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).with_context(|| format!("{name} does not read its commands"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}\n{}", complaint.trim(), input.unwrap_or_default());
    }
    Ok(())
}
