//! The first process of an emulated machine: mounts what tests need, loads the modules and runs the programs that it was
//! given, and restarts, which ends the emulator. `cargo xtask test kernels` packs it with everything else.
//!
//! What it and its programs say goes to the second serial port; the first one is the kernel's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// What kernels have to be asked for: kind of file system and place.
const MOUNTS: [(&str, &str); 7] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
];

const SERIAL: &str = "/dev/ttyS1";
/// Modules, in the order of their names.
const MODULES: &str = "/modules";
/// A program and its arguments on each line, with spaces between.
const COMMANDS: &str = "/commands";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("this is the first process of an emulated machine: `cargo xtask test kernels`");
        return ExitCode::FAILURE;
    }
    if let Err(error) = run() {
        // To the kernel's console, where there may be somebody to read it.
        eprintln!("reeve-guest: {error:#}");
    }
    let failed = reboot(RebootCommand::Restart);
    eprintln!("reeve-guest: the machine does not restart: {failed:?}");
    ExitCode::FAILURE
}

fn run() -> anyhow::Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        mount(kind, place, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {kind} at {place}"))?;
    }
    let mut serial = OpenOptions::new().write(true).open(SERIAL).with_context(|| format!("cannot open {SERIAL}"))?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    writeln!(serial, "guest: Linux {}", release.trim())?;
    if let Err(error) = tests(&serial) {
        writeln!(serial, "guest: failed: {error:#}")?;
    }
    writeln!(serial, "guest: done")?;
    // The port still has it when the machine is gone.
    rustix::termios::tcdrain(&serial).context("the serial port does not take everything")
}

fn tests(serial: &File) -> anyhow::Result<()> {
    for path in files(Path::new(MODULES))? {
        load(&path).with_context(|| format!("cannot load {}", path.display()))?;
    }
    let commands = fs::read_to_string(COMMANDS).with_context(|| format!("cannot read {COMMANDS}"))?;
    for line in commands.lines() {
        let mut words = line.split(' ');
        let program = words.next().context("a line without a program")?;
        let status = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(serial.try_clone()?)
            .stderr(serial.try_clone()?)
            .status()
            .with_context(|| format!("cannot run {program}"))?;
        ensure!(status.code().is_some(), "{program} was ended ({status})");
    }
    Ok(())
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    files.sort();
    Ok(files)
}

fn load(module: &Path) -> anyhow::Result<()> {
    finit_module(File::open(module)?, c"", 0).context("the kernel refuses it")
}
