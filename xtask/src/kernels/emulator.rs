//! QEMU: starts a machine and reads what its guest says, line by line.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, bail};

use super::image::Kernel;
use crate::setup::EMULATOR;

/// Without what only hardware can do, of which QEMU would complain.
const CPU: &str = "Haswell-v4,-pcid,-x2apic,-tsc-deadline,-invpcid,-spec-ctrl";

/// How often a machine is started whose guest says nothing: without hardware that helps, some die early.
const STARTS: u32 = 4;
/// How long a guest may take to its first line.
const BOOT: Duration = Duration::from_mins(2);
/// How long a guest may say nothing after that.
const SILENCE: Duration = Duration::from_mins(5);

/// What the guest's first process says first and last.
const FIRST: &str = "guest: Linux ";
const LAST: &str = "guest: done";

/// Runs a guest to its end and hands on every line between the first and the last one that it says; the kernel's own
/// messages go to the file `console`.
pub(super) fn run(
    kernel: &Kernel,
    archive: &Path,
    environment: &str,
    console: &Path,
    mut line: impl FnMut(&str),
) -> anyhow::Result<()> {
    for start in 1..=STARTS {
        let machine = Machine::start(kernel, archive, environment, console)?;
        match machine.next(BOOT) {
            Ok(first) if first.starts_with(FIRST) => {
                if first[FIRST.len()..] != kernel.release {
                    bail!("Linux {} says that it is {first:?}", kernel.release);
                }
                loop {
                    match machine.next(SILENCE) {
                        Ok(last) if last == LAST => return Ok(()),
                        Ok(next) => line(&next),
                        Err(why) => bail!("the guest {why}; see {}", console.display()),
                    }
                }
            }
            Ok(other) => bail!("the guest begins with {other:?}"),
            Err(why) => eprintln!("Linux {}, start {start} of {STARTS}: the guest {why}", kernel.release),
        }
    }
    bail!("the guest never comes to its first line; see {}", console.display())
}

struct Machine {
    qemu: Child,
    lines: Receiver<String>,
}

impl Machine {
    fn start(kernel: &Kernel, archive: &Path, environment: &str, console: &Path) -> anyhow::Result<Self> {
        let mut qemu = Command::new(EMULATOR)
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-accel", "tcg", "-cpu", CPU, "-smp", "1", "-m", "2048"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(archive)
            // What the kernel does not know by name is environment of its first process.
            .args(["-append", &format!("console=ttyS0 panic=-1 quiet {environment}")])
            .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {EMULATOR}"))?;
        let output = BufReader::new(qemu.stdout.take().expect("standard output was piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line);
                // As a terminal, the port ends lines with a carriage return too.
                if sender.send(text.trim_end_matches('\r').to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { qemu, lines })
    }

    /// The next line; else a clause that says what the guest does instead.
    fn next(&self, patience: Duration) -> Result<String, String> {
        self.lines.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("says nothing for {} s", patience.as_secs()),
            RecvTimeoutError::Disconnected => "ends before it is done".to_owned(),
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
