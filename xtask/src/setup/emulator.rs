//! Finds or installs QEMU.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::bail;

use super::{Archive, Suites, need_root, packages, say};
use crate::places::Places;
use crate::process;

/// The program.
pub(crate) const EMULATOR: &str = "qemu-system-x86_64";

const PACKAGE: &str = "qemu-system-x86";

/// The oldest that emulates without damage: under 7.2, every second start of Linux 6.12 ends in an oops or in silence.
const OLDEST: u32 = 10;

/// A QEMU that is new enough; where Debian's own is not, that of its backports.
pub(crate) fn emulator(places: &Places) -> anyhow::Result<()> {
    if version().is_some_and(|version| version >= OLDEST) {
        return Ok(());
    }
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if system.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        need_root(&format!("{EMULATOR} {OLDEST} or newer is missing (Debian package: {PACKAGE}, from backports)"))?;
        let suites =
            Suites::fetch(Archive::Debian, &["bookworm", "bookworm-backports"], places.cache.join("qemu-suites"))?;
        say("installing", &format!("{PACKAGE} (bookworm-backports)"));
        process::run(
            suites
                .apt("apt-get")
                .args(["-q", "-y", "--no-install-recommends", "-t", "bookworm-backports", "install", PACKAGE])
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdout(Stdio::null()),
        )?;
    } else {
        packages::install(&format!("the program `{EMULATOR}`"), &[PACKAGE])?;
    }
    match version() {
        Some(version) if version >= OLDEST => Ok(()),
        Some(version) => bail!("{EMULATOR} is of version {version}; {OLDEST} or newer is needed"),
        None => bail!("{EMULATOR} was installed and does not tell its version"),
    }
}

/// The first number of its version.
fn version() -> Option<u32> {
    let text = process::output(Command::new(process::in_path(EMULATOR)?).arg("--version")).ok()?;
    major(&text)
}

fn major(text: &str) -> Option<u32> {
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_of_a_version_counts() {
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003-2025"), Some(10));
        assert_eq!(major("something else"), None);
    }
}
