//! Older and newer kernels, emulated: the programs load, packets get the verdicts that they get here,
//! and an agent enforces by the means that the kernel has.
//!
//! The tests are those of the kernel tier, all of them, and a few of the netns tier; here is only the way there.

mod emulator;
mod guest;
mod image;
mod transcript;

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::compile::{self, Profile};
use crate::places::Places;
use crate::process;
use crate::setup;
use crate::tiers::Count;

use guest::Guest;
use image::{Kernel, Scope};
use transcript::{Ended, Transcript};

/// Tests of the netns tier that show what differs between kernels: how programs are attached, adopted and replaced, what
/// the kernel says of a packet's origin, and what a process of the node receives.
const REAL_TRAFFIC: [&str; 6] = [
    "clsact::clsact_filters_judge_as_links_do_and_are_replaced_in_place",
    "reach::routed_pods_over_ipv4",
    "reach::routed_pods_over_ipv6",
    "origin::probe_from_the_node_reaches_an_isolated_routed_pod",
    "life::killed_agent_leaves_routed_pods_enforced_and_the_next_one_takes_over",
    "nodes::pods_reach_only_the_node_whose_address_their_policy_names",
];

/// The test of the kernel tier that runs no program.
const VERIFIER: &str = "all_programs_pass_the_verifier_with_room_to_spare";

/// What the lab and the agent ask of a kernel that may have it as modules.
const MODULES: [&str; 6] = ["veth", "bridge", "sch_ingress", "cls_bpf", "nf_conntrack_netlink", "nf_tables"];

/// What of that is a module of its own only before 5.17.
const OLD_MODULES: [&str; 1] = ["nft_counter"];

/// Programs of this machine that the lab runs, by the path where it looks for them.
const TOOLS: [(&str, &str); 4] =
    [("ip", "/usr/sbin/ip"), ("bridge", "/usr/sbin/bridge"), ("tc", "/usr/sbin/tc"), ("nft", "/usr/sbin/nft")];

const ENVIRONMENT: &str = "REEVE_REQUIRE=all REEVE_BPF_OBJECT=/reeve-ebpf.o REEVE_AGENT=/reeve-agent \
                           RUST_TEST_THREADS=1 PATH=/usr/sbin:/usr/bin";

/// Runs every test on every kernel; arguments choose tests by parts of their names.
pub(crate) fn run(places: &Places, arguments: &[String], total: &mut Count) -> anyhow::Result<()> {
    setup::emulator(places)?;
    setup::need("ip", "iproute2")?;
    setup::need("nft", "nftables")?;
    let kernels = image::kernels(places)?;
    let guest = packed(places)?;
    let work = places.target.join("kernels");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    for kernel in kernels {
        let mut guest = guest.clone();
        guest.file("/commands", commands(kernel.scope, arguments).into_bytes());
        *total += run_on(&kernel, guest, &work)?;
    }
    Ok(())
}

/// A guest with everything but modules and what it is to run.
fn packed(places: &Places) -> anyhow::Result<Guest> {
    compile::everything(places, Profile::Release)?;
    let tests = compile::test_programs(places, Profile::Release, &["kernel", "netns"])?;
    let mut guest = Guest::default();
    for (program, path) in TOOLS {
        guest.program(path, &process::in_path(program).with_context(|| format!("{program} is not in PATH"))?)?;
    }
    guest.program("/init", &compile::program(places, Profile::Release, "reeve-guest"))?;
    guest.program("/reeve-agent", &compile::program(places, Profile::Release, "reeve-agent"))?;
    for (name, path) in &tests {
        guest.program(&format!("/{name}"), path)?;
    }
    let object = places.bpf_object();
    guest.file("/reeve-ebpf.o", fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?);
    Ok(guest)
}

/// The command lines that a guest runs.
fn commands(scope: Scope, arguments: &[String]) -> String {
    let chosen = |name: &&str| arguments.is_empty() || arguments.iter().any(|part| name.contains(part.as_str()));
    let kernel = match scope {
        Scope::Whole => Some(format!("/kernel {}\n", arguments.join(" "))),
        Scope::Traffic => chosen(&VERIFIER).then(|| format!("/kernel --exact {VERIFIER}\n")),
    };
    let netns: Vec<&str> = REAL_TRAFFIC.into_iter().filter(chosen).collect();
    let netns = (!netns.is_empty()).then(|| format!("/netns --exact {}\n", netns.join(" ")));
    kernel.into_iter().chain(netns).collect()
}

fn run_on(kernel: &Kernel, mut guest: Guest, work: &Path) -> anyhow::Result<Count> {
    let release = &kernel.release;
    let old: &[&str] = if kernel.scope == Scope::Traffic { &OLD_MODULES } else { &[] };
    for (number, (name, content)) in kernel.modules(&[&MODULES, old].concat())?.into_iter().enumerate() {
        guest.file(&format!("/modules/{number:03}-{name}.ko"), content);
    }
    let (archive, console) = (work.join(format!("{release}.cpio")), work.join(format!("{release}.console")));
    fs::write(&archive, guest.archive()?).with_context(|| format!("cannot write {}", archive.display()))?;
    let mut transcript = Transcript::default();
    let mut others = Vec::new();
    let ran = emulator::run(kernel, &archive, ENVIRONMENT, &console, |line| match transcript.read(line) {
        Some((name, Ended::Well)) => println!("PASS Linux {release}: {name}"),
        Some((name, Ended::Badly)) => println!("FAIL Linux {release}: {name}"),
        None => others.push(line.to_owned()),
    });
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    let complaint = others.iter().find(|line| line.starts_with("guest: failed: "));
    let broken = ran.err().map(|error| format!("{error:#}")).or_else(|| complaint.cloned());
    if let Some(why) = broken {
        let test = transcript.unfinished().unwrap_or("no test was running");
        println!("FAIL Linux {release}: {test}: {why}\n{}", others.join("\n"));
        transcript.count.failed += 1;
    }
    for line in &transcript.failures {
        println!("Linux {release}: {line}");
    }
    Ok(transcript.count)
}
