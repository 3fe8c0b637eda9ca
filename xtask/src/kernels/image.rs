//! Kernels of Debian and Ubuntu as files: fetched with apt into the cache and unpacked there; nothing is installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::places::Places;
use crate::process;
use crate::setup::{self, Archive, Suites};

/// What a kernel can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All.
    Whole,
    /// Whether it takes the programs, and what they do to real traffic: its test runs do not say where a packet comes
    /// from (those of 5.18 and later do).
    Traffic,
}

/// Where kernels come from, with a package that depends on the newest of the suite. Oldest first: 5.15, below which
/// nothing is promised; the oldest of Debian, 6.1; its first with TCX, 6.12; its newest.
///
/// Kernels for clouds and virtual machines are small and have everything that we need.
const SOURCES: [(Archive, &str, &str, Scope); 4] = [
    (Archive::Ubuntu, "jammy-updates", "linux-image-virtual", Scope::Traffic),
    (Archive::Debian, "bookworm", "linux-image-cloud-amd64", Scope::Whole),
    (Archive::Debian, "bookworm-backports", "linux-image-cloud-amd64", Scope::Whole),
    (Archive::Debian, "trixie-backports", "linux-image-cloud-amd64", Scope::Whole),
];

/// What a kernel consists of; older ones have everything in the first.
const PARTS: [&str; 4] = ["linux-image-", "linux-base-", "linux-binary-", "linux-modules-"];

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) release: String,
    /// What an emulator starts.
    pub(super) image: PathBuf,
    /// What it can be asked.
    pub(super) scope: Scope,
    /// Where its modules are.
    modules: PathBuf,
    /// File of each module that is no part of the image, relative to `modules`, and the files that it needs loaded.
    needs: BTreeMap<String, Vec<String>>,
}

/// One kernel of each source; those that are in the cache are not looked for again.
pub(super) fn kernels(places: &Places) -> anyhow::Result<Vec<Kernel>> {
    let cache = places.cache.join("kernels");
    let mut kernels = Vec::new();
    for (archive, suite, meta, scope) in SOURCES {
        let place = cache.join(suite);
        if !place.exists() {
            let new = cache.join(format!("{suite}.new"));
            fetch(archive, suite, meta, &new).with_context(|| format!("the kernel of {suite}"))?;
            fs::rename(&new, &place).with_context(|| format!("cannot rename {}", new.display()))?;
        }
        kernels.push(
            Kernel::read(&place, scope).with_context(|| format!("{} (remove it to fetch again)", place.display()))?,
        );
    }
    Ok(kernels)
}

fn fetch(archive: Archive, suite: &str, meta: &str, place: &Path) -> anyhow::Result<()> {
    setup::need("depmod", "kmod")?;
    if place.exists() {
        fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    let suites = Suites::fetch(archive, &[suite], place.join("suites"))?;
    let parts = parts(&suites, meta)?;
    eprintln!("fetching {} ({suite})", parts.join(" "));
    suites.unpack(&parts, place)?;
    // Newer packages have only `usr/lib`, where the links of an installed system would lead.
    if !place.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", place.join("lib"))?;
    }
    let depmod = process::in_path("depmod").context("depmod is not in PATH")?;
    process::run(Command::new(depmod).arg("-b").arg(place).arg(release(place)?))
}

/// Packages of the kernel that the meta package stands for.
fn parts(suites: &Suites, meta: &str) -> anyhow::Result<Vec<String>> {
    let mut parts: Vec<String> = Vec::new();
    let mut asked = meta.to_owned();
    for next in 0.. {
        let list = process::output(suites.apt("apt-cache").args(["depends", &asked]))?;
        for name in list.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")) {
            if PARTS.iter().any(|part| name.starts_with(part)) && !parts.iter().any(|known| known == name) {
                parts.push(name.to_owned());
            }
        }
        match parts.get(next) {
            Some(part) => asked.clone_from(part),
            None => break,
        }
    }
    Ok(parts)
}

fn release(place: &Path) -> anyhow::Result<String> {
    let modules = place.join("lib/modules");
    let mut entries = fs::read_dir(&modules).with_context(|| format!("cannot read {}", modules.display()))?;
    let entry = entries.next().with_context(|| format!("nothing is in {}", modules.display()))??;
    entry.file_name().into_string().ok().context("a release that is no text")
}

impl Kernel {
    fn read(place: &Path, scope: Scope) -> anyhow::Result<Self> {
        let release = release(place)?;
        let modules = place.join("lib/modules").join(&release);
        let images = [place.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|path| path.exists()).context("no vmlinuz")?;
        let list = fs::read_to_string(modules.join("modules.dep")).context("cannot read modules.dep")?;
        let mut needs = BTreeMap::new();
        for line in list.lines() {
            let (file, others) = line.split_once(':').with_context(|| format!("modules.dep says {line:?}"))?;
            needs.insert(file.to_owned(), others.split_whitespace().map(str::to_owned).collect());
        }
        Ok(Self { release, image, scope, modules, needs })
    }

    /// The content of these modules and of those that they need, each after what it needs; what is built into the image
    /// is left out.
    pub(super) fn modules(&self, wanted: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let built_in =
            fs::read_to_string(self.modules.join("modules.builtin")).context("cannot read modules.builtin")?;
        let mut order: Vec<&str> = Vec::new();
        for wanted in wanted {
            match self.needs.keys().find(|file| name(file) == *wanted) {
                Some(file) => self.put_after_needs(file, &mut order)?,
                None if built_in.lines().any(|file| name(file) == *wanted) => {}
                None => bail!("Linux {} has no module {wanted}", self.release),
            }
        }
        order.into_iter().map(|file| Ok((name(file), self.content(file)?))).collect()
    }

    fn put_after_needs<'a>(&'a self, file: &'a str, order: &mut Vec<&'a str>) -> anyhow::Result<()> {
        if order.contains(&file) {
            return Ok(());
        }
        for needed in self.needs.get(file).with_context(|| format!("modules.dep does not know {file}"))? {
            self.put_after_needs(needed, order)?;
        }
        order.push(file);
        Ok(())
    }

    fn content(&self, file: &str) -> anyhow::Result<Vec<u8>> {
        let path = self.modules.join(file);
        if Path::new(file).extension().is_none_or(|end| end != "xz") {
            return fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
        }
        let output = Command::new("xz").arg("-dc").arg(&path).output().context("cannot run xz")?;
        if !output.status.success() {
            bail!("xz cannot unpack {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout)
    }
}

/// What the kernel calls a module.
fn name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}
