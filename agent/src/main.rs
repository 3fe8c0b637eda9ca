//! The per-node agent.

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use reeve_agent::config::{Given, Origins};
use reeve_agent::uninstall::{self, everywhere, stay};
use std::process::ExitCode;
use std::time::Duration;

/// Enforces network policy on this node and names the decider of every verdict.
#[derive(Parser)]
#[command(name = "reeve-agent", version, args_conflicts_with_subcommands = false)]
struct Arguments {
    #[command(flatten)]
    given: Given,
    /// Prints each setting that holds and where its value comes from, and ends.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Takes enforcement off this node: removes pinned links and maps, and the dictionary.
    Uninstall {
        /// Stay when it is done, and say so on the port of the metrics, as a pod that ended would be started again.
        #[arg(long)]
        stay: bool,
        /// Do it on every node of a cluster, by pods of this DaemonSet, and wait for them.
        #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "stay")]
        daemonset: Option<String>,
        /// How many seconds to wait for all nodes.
        #[arg(long, value_name = "SECONDS", default_value_t = 240, requires = "daemonset")]
        within: u64,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let matches = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches)?;
    // The client tells of each connection that breaks; what that means for the agent is told by the watches.
    let default = "info,kube_client=off";
    let filter = tracing_subscriber::EnvFilter::try_from_env("REEVE_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
    let origins = Origins::of(&matches)?;
    let config = arguments.given.resolve(&origins)?;
    if arguments.print_config {
        config.lines(&origins).iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    match arguments.command {
        Some(Command::Uninstall { daemonset: Some(set), within, .. }) => {
            let (namespace, name) = set.split_once('/').context("--daemonset is NAMESPACE/NAME")?;
            let within = Duration::from_secs(within);
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(everywhere::everywhere(
                config.kubeconfig,
                namespace,
                name,
                within,
            ))
        }
        Some(Command::Uninstall { stay: true, .. }) => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(stay::stay(config))
        }
        Some(Command::Uninstall { .. }) => {
            let done = uninstall::node(&config)?;
            done.lines().iter().for_each(|line| println!("{line}"));
            done.complaints.iter().for_each(|(path, what)| eprintln!("warning: {}: {what}", path.display()));
            Ok(())
        }
        None => {
            for setting in config.lines(&origins) {
                tracing::info!(setting, "starting");
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(reeve_agent::run::run(config))
        }
    }
}
