//! Suites of Debian and Ubuntu that are not this machine's: apt with package lists of its own, which leaves this machine's
//! alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use super::packages;
use crate::process;

/// Where packages come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archive {
    Debian,
    Ubuntu,
}

impl Archive {
    fn mirror(self) -> &'static str {
        match self {
            Self::Debian => "http://deb.debian.org/debian",
            Self::Ubuntu => "http://archive.ubuntu.com/ubuntu",
        }
    }

    fn keyring(self) -> &'static str {
        match self {
            Self::Debian => "/usr/share/keyrings/debian-archive-keyring.gpg",
            Self::Ubuntu => "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
        }
    }

    /// The keys that sign its lists; `directory` is for what has to be fetched.
    fn trusted(self, directory: &Path) -> anyhow::Result<PathBuf> {
        let keyring = PathBuf::from(self.keyring());
        if keyring.exists() {
            return Ok(keyring);
        }
        if self == Self::Debian {
            packages::install("Debian's keyring", &["debian-archive-keyring"])?;
            return Ok(keyring);
        }
        // Not every Debian has it, but those keys are trusted that Debian signs.
        let place = directory.join("keyring");
        let debian = Suites::fetch(Self::Debian, &["trixie"], directory.join("debian"))?;
        debian.unpack(&["ubuntu-keyring".to_owned()], &place)?;
        Ok(place.join(self.keyring().trim_start_matches('/')))
    }
}

/// Package lists of some suites, in a directory that goes with the value.
pub(crate) struct Suites {
    directory: PathBuf,
}

impl Suites {
    /// Fetches the lists into a directory that is made for them.
    pub(crate) fn fetch(archive: Archive, suites: &[&str], directory: PathBuf) -> anyhow::Result<Self> {
        let made = Self { directory };
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = made.directory.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let keyring = archive.trusted(&made.directory)?;
        let line = |suite: &&str| format!("deb [signed-by={}] {} {suite} main\n", keyring.display(), archive.mirror());
        fs::write(made.directory.join("sources.list"), suites.iter().map(line).collect::<String>())?;
        process::run(made.apt("apt-get").args(["-q", "update"]).stdout(Stdio::null()))?;
        Ok(made)
    }

    /// Downloads packages and unpacks them below a directory; nothing is installed.
    pub(crate) fn unpack(&self, names: &[String], place: &Path) -> anyhow::Result<()> {
        let packages = place.join("packages");
        fs::create_dir_all(&packages).with_context(|| format!("cannot make {}", packages.display()))?;
        process::run(self.apt("apt-get").args(["-q", "download"]).args(names).current_dir(&packages))?;
        for package in fs::read_dir(&packages)? {
            process::run(Command::new("dpkg-deb").arg("-x").arg(package?.path()).arg(place))?;
        }
        fs::remove_dir_all(&packages).with_context(|| format!("cannot remove {}", packages.display()))
    }

    /// A program of apt that knows these suites only.
    pub(crate) fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", self.directory.join("sources.list")),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", self.directory.join("lists")),
            ("Dir::Cache", self.directory.join("cache")),
            // Another user would not get into the directory, which may be in somebody's home.
            ("APT::Sandbox::User", "root".into()),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Suites {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("cannot remove {}: {error}", self.directory.display());
        }
    }
}
