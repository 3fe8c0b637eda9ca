//! One door for developers and users: what is typed after `cargo xtask`, and nothing else.

mod compile;
mod demo;
mod fuzz;
mod image;
mod kernels;
mod lint;
mod manifests;
mod mutants;
mod places;
mod process;
mod program;
mod setup;
mod tidy;
mod tiers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::compile::Profile;
use crate::fuzz::Purpose;
use crate::places::Places;
use crate::tiers::{JudgeOptions, Tier};

/// Sets up, builds, tests and demonstrates reeve.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install or build what is missing to compile the eBPF programs and to run the demo (needs root the first time).
    Setup,
    /// Build everything, then show enforcement on namespaces that stand for nodes and pods (needs root).
    Demo {
        /// Arguments of the demo itself, such as `--keep` and `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure costs as ratios within one run (needs root).
    Bench {
        /// Names of measures, and `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build the eBPF object and every binary that uses it.
    Build {
        /// Use the dev profile: quicker to build, slower to run.
        #[arg(long)]
        dev: bool,
    },
    /// Build the agent without shared libraries and put it into a container image: an archive for `ctr images import` or
    /// `docker load`.
    Image {
        /// The image's name and tag.
        #[arg(long, value_name = "NAME:TAG")]
        tag: Option<String>,
    },
    /// Write `deploy/manifests` from the chart, for those who install without Helm.
    Manifests,
    /// Run the tests: one tier, or all in order with the fast ones first, but not those that take long.
    Test {
        /// Which tier; without it all but `daemonset`, `faults` and `kernels`.
        tier: Option<Tier>,
        /// How many random worlds the judges look at.
        #[arg(long, value_name = "N")]
        worlds: Option<u64>,
        /// Where the judges' random numbers start.
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
        /// Arguments for the test programs, such as a test's name.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Take one guard after the other out of a copy of the checkout; the test that each names must fail.
    Mutants {
        /// Names of mutants: files of `tests/mutants` without `.patch`.
        #[arg(required_unless_present_any = ["all", "some"], conflicts_with_all = ["all", "some"])]
        names: Vec<String>,
        /// Every mutant; some need root.
        #[arg(long, conflicts_with = "some")]
        all: bool,
        /// So many of those that need neither root nor the lab.
        #[arg(long, value_name = "N")]
        some: Option<usize>,
        /// Which ones `--some` takes; successive numbers take turns.
        #[arg(long, value_name = "S", default_value_t = 0, requires = "some")]
        seed: u64,
    },
    /// Give random input to whatever reads input (builds cargo-fuzz the first time).
    Fuzz {
        /// One of the programs in `fuzz/Cargo.toml`; without it each in turn.
        target: Option<String>,
        /// How long each runs.
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u32,
        /// Do not look for failures: keep the smallest set of inputs that reaches as much as all do, as seeds.
        #[arg(long, conflicts_with = "seconds")]
        minimise: bool,
    },
    /// Check formatting, clippy, rustdoc and dependencies; warnings are errors (needs no root).
    Lint,
    /// Check the repository's own rules: dead files, crate edges, names, sleeps (needs no root).
    Tidy,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let places = Places::find()?;
    match command {
        Command::Setup => setup::everything(&places)?,
        Command::Demo { arguments } => return demo::run(&places, "reeve-demo", arguments),
        Command::Bench { arguments } => return demo::run(&places, "reeve-bench", arguments),
        Command::Build { dev } => {
            let profile = if *dev { Profile::Dev } else { Profile::Release };
            compile::everything(&places, profile)?;
        }
        Command::Image { tag } => println!("{}", image::build(&places, tag.as_deref())?.display()),
        Command::Manifests => manifests::write(&places)?,
        Command::Test { tier, worlds, seed, arguments } => {
            let judges = JudgeOptions { worlds: *worlds, seed: *seed };
            return tiers::run(&places, *tier, judges, arguments);
        }
        Command::Mutants { names, all, some, seed } => {
            let choice = match (all, some) {
                (true, _) => mutants::Choice::All,
                (false, Some(count)) => mutants::Choice::Some { count: *count, seed: *seed },
                (false, None) => mutants::Choice::Named(names.clone()),
            };
            mutants::run(&places, &choice)?;
        }
        Command::Fuzz { target, seconds, minimise } => {
            let purpose = if *minimise { Purpose::Minimise } else { Purpose::Find { seconds: *seconds } };
            fuzz::run(&places, target.as_deref(), purpose)?;
        }
        Command::Lint => lint::run(&places)?,
        Command::Tidy => tidy::run(&places)?,
    }
    Ok(ExitCode::SUCCESS)
}
