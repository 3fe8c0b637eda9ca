//! The per-node agent.

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use reeve_agent::config::{Given, Origins};
use std::process::ExitCode;

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
    Uninstall,
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
        Some(Command::Uninstall) => {
            // An agent that runs would put back what is taken away.
            let _lock = if config.run_dir.is_dir() { Some(reeve_agent::run::lock(&config)?) } else { None };
            // First: a plugin without an agent lets no pod start.
            if let Some(installer) = reeve_agent::cni::installer::Installer::of(&config)? {
                let (done, complaints) = installer.uninstall();
                done.iter().for_each(|what| println!("{what}"));
                complaints.iter().for_each(|(path, what)| eprintln!("warning: {}: {what}", path.display()));
            }
            for filter in reeve_agent::datapath::attach::clsact::detach_everywhere()? {
                println!("removed the clsact filter of {filter}");
            }
            for path in reeve_agent::uninstall::uninstall(&config)? {
                println!("removed {}", path.display());
            }
            if reeve_agent::datapath::guard::remove()? {
                println!("removed table {}", reeve_agent::datapath::guard::TABLE);
            }
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
