//! Runs iproute2, several commands at a time.

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

fn batch_with(arguments: &[&str], input: Option<&str>) -> anyhow::Result<()> {
    let program = program().context("iproute2 is not installed")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).context("ip does not read its commands")?;
    }
    let output = child.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}\n{}", arguments.join(" "), complaint.trim(), input.unwrap_or_default());
    }
    Ok(())
}
