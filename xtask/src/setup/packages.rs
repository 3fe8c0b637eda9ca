//! Debian packages: installed when the file they bring is missing, so that a second run asks nobody.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::{need_root, say};
use crate::process;

/// Installs `package` unless its program is there.
pub(crate) fn need(program: &str, package: &str) -> anyhow::Result<()> {
    if process::in_path(program).is_some() {
        return Ok(());
    }
    install(&format!("the program `{program}`"), &[package])
}

/// Installs `package` unless a file of it is there.
pub(super) fn need_file(path: &str, package: &str) -> anyhow::Result<()> {
    if Path::new(path).exists() { Ok(()) } else { install(path, &[package]) }
}

/// Installs packages because `what` is missing.
pub(super) fn install(what: &str, packages: &[&str]) -> anyhow::Result<()> {
    let names = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("{what} is missing: install what Debian calls {names} with this system's package manager");
    }
    need_root(&format!("{what} is missing (Debian packages: {names})"))?;
    say("installing", &names);
    if apt_get(packages).is_ok() {
        return Ok(());
    }
    // The usual reason is a package list that is old or was never fetched.
    say("refreshing", "apt's package lists");
    process::run(Command::new("apt-get").args(["-q", "update"]).stdout(Stdio::null()))?;
    apt_get(packages)
}

fn apt_get(packages: &[&str]) -> anyhow::Result<()> {
    process::run(
        Command::new("apt-get")
            .args(["-q", "-y", "--no-install-recommends", "install"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null()),
    )
}

/// Unpacks a package into a folder that has nothing yet: this machine may have another version, or none.
pub(super) fn unpack(package: &str, folder: &Path) -> anyhow::Result<()> {
    if process::in_path("apt-get").is_none() {
        bail!("without apt-get there is nowhere to take Debian's {package} from");
    }
    let download = || {
        process::run(
            Command::new("apt-get")
                // Another user would not get into the folder, which may be in somebody's home.
                .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
                .current_dir(folder)
                .stdin(Stdio::null()),
        )
    };
    if download().is_err() {
        need_root("apt's package lists are old")?;
        process::run(Command::new("apt-get").args(["-q", "update"]).stdout(Stdio::null()))?;
        download()?;
    }
    let file = fs::read_dir(folder)?.next().context("apt-get downloaded nothing")??.path();
    process::run(Command::new("dpkg-deb").arg("-x").arg(file).arg(folder))
}
