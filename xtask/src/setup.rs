//! Installs or builds what is missing, each command only the part that it needs, and says what it chose.

mod compiler;
mod containerd;
mod emulator;
mod go;
mod kubernetes;
mod linker;
mod packages;
mod plugins;
mod suites;

use std::fs;
use std::process::Command;

use anyhow::bail;

use crate::places::Places;
use crate::process;

pub(crate) use compiler::Compiler;
pub(crate) use containerd::ready as containerd;
pub(crate) use emulator::{EMULATOR, emulator};
pub(crate) use kubernetes::{Extent, ready as kubernetes};
pub(crate) use linker::Linker;
pub(crate) use packages::need;
pub(crate) use suites::{Archive, Suites};

const BPFFS: &str = "/sys/fs/bpf";

/// What the eBPF crate is compiled with.
pub(crate) struct BpfTools {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

/// Everything a developer needs.
pub(crate) fn everything(places: &Places) -> anyhow::Result<()> {
    bpf_tools(places)?;
    lab()?;
    kubernetes(places, Extent::ControlPlane).map(drop)
}

/// A compiler and a linker for the eBPF crate; needs root only to install what is missing.
pub(crate) fn bpf_tools(places: &Places) -> anyhow::Result<BpfTools> {
    let compiler = compiler::ready()?;
    say("eBPF compiler", &compiler.description);
    let linker = linker::ready(places)?;
    say("eBPF linker", &linker.description);
    Ok(BpfTools { compiler, linker })
}

/// Programs and mounts of the lab; needs root, as the lab does.
pub(crate) fn lab() -> anyhow::Result<()> {
    packages::need("ip", "iproute2")?;
    packages::need("bpftool", "bpftool")?;
    packages::need("nft", "nftables")?;
    packages::need("iptables-nft-restore", "iptables")?;
    packages::need("ipset", "ipset")?;
    packages::need("faketime", "faketime")?;
    packages::need_file("/usr/lib/cni/ptp", "containernetworking-plugins")?;
    say("lab", "iproute2, bpftool, nftables, iptables, ipset, faketime, CNI plugins");
    if mounted(BPFFS, "bpf")? {
        say("bpffs", &format!("mounted at {BPFFS}"));
    } else {
        need_root(&format!("{BPFFS} is not mounted"))?;
        process::run(Command::new("mount").args(["-t", "bpf", "bpffs", BPFFS]))?;
        say("bpffs", &format!("mounted now at {BPFFS}"));
    }
    Ok(())
}

/// Stops with one sentence that says what to do, unless we are root.
pub(crate) fn need_root(because: &str) -> anyhow::Result<()> {
    if process::is_root() {
        return Ok(());
    }
    let typed: Vec<String> = std::env::args().skip(1).collect();
    bail!("{because}, and that needs root: run `sudo -E env PATH=\"$PATH\" cargo xtask {}`", typed.join(" "))
}

fn mounted(place: &str, kind: &str) -> anyhow::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(place) && fields.next() == Some(kind)
    }))
}

/// One line per thing, aligned.
fn say(thing: &str, what: &str) {
    eprintln!("{thing:>20}  {what}");
}
