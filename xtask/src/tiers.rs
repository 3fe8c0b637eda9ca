//! The tiers of tests: what each needs, which test files it is made of, and how many passed.

mod count;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::compile::{self, Profile};
use crate::image;
use crate::kernels;
use crate::places::Places;
use crate::process;
use crate::setup::{self, Extent};

pub(crate) use count::Count;

/// A group of tests with the same needs, fastest first.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Tier {
    /// Pure code; needs nothing.
    Unit,
    /// Each program passes the verifier and gives the right verdict for crafted packets; needs root.
    Kernel,
    /// Real sockets between network namespaces; needs root.
    Netns,
    /// Three judges agree on random worlds; needs root.
    Judges,
    /// A real API server, watched by agents; needs root, and Go to build Kubernetes once.
    Cluster,
    /// A whole cluster of nodes with kubelets and containers, and the chart in it; needs root, and Go to build Kubernetes and
    /// containerd once.
    Daemonset,
    /// What breaks under traffic, with every datagram accounted for, a few minutes long; needs root. Only when asked for.
    Faults,
    /// The kernel tier and some real traffic on other kernels, emulated; only when asked for by name.
    Kernels,
}

/// What only the judges tier listens to.
#[derive(Clone, Copy)]
pub(crate) struct JudgeOptions {
    pub(crate) worlds: Option<u64>,
    pub(crate) seed: Option<u64>,
}

/// Packages whose own tests are the unit tier.
const PURE: [&str; 7] = ["reeve-abi", "reeve-packet", "reeve-policy", "reeve-flow", "reeve-agent", "reeve", "xtask"];

impl Tier {
    /// Files in `tests/tests/`, without their extension.
    fn test_files(self) -> &'static [&'static str] {
        match self {
            Self::Unit => &["scenarios", "sequences", "staged"],
            Self::Kernel => &["kernel"],
            Self::Netns => &["lab", "netns", "services", "demo", "bench", "cni"],
            Self::Faults => &["faults"],
            Self::Judges => &["judges", "histories"],
            Self::Cluster => &["cluster"],
            Self::Daemonset => &["daemonset"],
            // Those of other tiers.
            Self::Kernels => &["kernel", "netns"],
        }
    }
}

/// Runs one tier, or all but the one of other kernels; the very last line is `N passed, N failed`, and only if that is known.
pub(crate) fn run(
    places: &Places,
    tier: Option<Tier>,
    judges: JudgeOptions,
    arguments: &[String],
) -> anyhow::Result<ExitCode> {
    let mut total = Count::default();
    if let Some(tier) = tier {
        if tier != Tier::Unit && present(places, tier).is_empty() {
            bail!("tests/tests has none of the files {:?}", tier.test_files());
        }
        run_tier(places, tier, judges, arguments, &mut total)?;
    } else {
        let asked_for = [Tier::Kernels, Tier::Faults, Tier::Daemonset];
        for tier in Tier::value_variants().iter().filter(|tier| !asked_for.contains(tier)) {
            if *tier == Tier::Unit || !present(places, *tier).is_empty() {
                run_tier(places, *tier, judges, arguments, &mut total)?;
            } else {
                println!("SKIP {tier:?}: tests/tests has none of the files {:?}", tier.test_files());
            }
        }
    }
    if total.skipped > 0 {
        println!("{} skipped (named above, on lines that begin with SKIP)", total.skipped);
    }
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The test files of a tier that exist.
fn present(places: &Places, tier: Tier) -> Vec<&'static str> {
    let exists = |file: &&str| places.root.join("tests/tests").join(file).with_extension("rs").exists();
    tier.test_files().iter().copied().filter(exists).collect()
}

fn run_tier(
    places: &Places,
    tier: Tier,
    judges: JudgeOptions,
    arguments: &[String],
    total: &mut Count,
) -> anyhow::Result<()> {
    println!("== {} ==", format!("{tier:?}").to_lowercase());
    if tier == Tier::Kernels {
        return kernels::run(places, arguments, total);
    }
    let files = present(places, tier);
    if tier == Tier::Unit {
        let mut cargo = process::cargo();
        cargo.current_dir(&places.root).args(["test", "--no-fail-fast"]);
        for package in PURE {
            cargo.args(["-p", package]);
        }
        count_tests(cargo.arg("--").args(arguments), total)?;
        return count_tests(&mut lab_tests(process::cargo(), places, &files, arguments, &["--lib"]), total);
    }

    setup::need_root("tests of this tier load eBPF programs or make network namespaces")?;
    setup::lab()?;
    compile::bpf_object(places)?;
    if matches!(tier, Tier::Netns | Tier::Faults | Tier::Cluster | Tier::Daemonset) {
        compile::programs(places, Profile::Dev, &["reeve-agent", "reeve", "reeve-tests"])?;
    }
    let mut cargo = compile::cargo_with_object(places);
    cargo.env("REEVE_AGENT", compile::program(places, Profile::Dev, "reeve-agent"));
    if tier == Tier::Cluster {
        cargo.env("REEVE_KUBERNETES", setup::kubernetes(places, Extent::ControlPlane)?);
    }
    if tier == Tier::Daemonset {
        cargo.env("REEVE_KUBERNETES", setup::kubernetes(places, Extent::Nodes)?);
        cargo.env("REEVE_CONTAINERD", setup::containerd(places)?);
        cargo.env("REEVE_AGENT_IMAGE", image::build(places, None)?);
        cargo.env("REEVE_POD_IMAGE", image::pod(places)?);
        cargo.env("REEVE_NODE_PROGRAM", compile::program(places, Profile::Dev, "reeve-node"));
    }
    for (name, value) in [("REEVE_WORLDS", judges.worlds), ("REEVE_SEED", judges.seed)] {
        if let Some(value) = value {
            cargo.env(name, value.to_string());
        }
    }
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        // More at a time only compete for the kernel's network configuration lock and make deadlines unfair.
        cargo.env("RUST_TEST_THREADS", "2");
    }
    count_tests(&mut lab_tests(cargo, places, &files, arguments, &[]), total)
}

fn lab_tests(mut cargo: Command, places: &Places, files: &[&str], arguments: &[String], targets: &[&str]) -> Command {
    cargo.current_dir(&places.root).args(["test", "--no-fail-fast", "-p", "reeve-tests"]).args(targets);
    for file in files {
        cargo.args(["--test", file]);
    }
    cargo.arg("--").args(arguments);
    cargo
}

/// Runs `cargo test`, shows what it prints as it comes, and counts.
fn count_tests(cargo: &mut Command, total: &mut Count) -> anyhow::Result<()> {
    let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let mut lines = BufReader::new(child.stdout.take().expect("standard output was piped"));
    let mut count = Count::default();
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        count.read(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() && count.failed == 0 {
        bail!("cargo test stopped before every test was run ({status}), so there is no count");
    }
    *total += count;
    Ok(())
}
