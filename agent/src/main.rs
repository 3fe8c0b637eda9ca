//! The per-node agent.

use clap::{Parser, Subcommand};
use reeve_agent::config::Given;

/// Enforces network policy on this node and names the decider of every verdict.
#[derive(Parser)]
#[command(name = "reeve-agent", version, args_conflicts_with_subcommands = false)]
struct Arguments {
    #[command(flatten)]
    given: Given,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Takes enforcement off this node: removes pinned links and maps, and the dictionary.
    Uninstall,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("REEVE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
    let config = arguments.given.resolve()?;
    match arguments.command {
        Some(Command::Uninstall) => {
            // An agent that runs would put back what is taken away.
            let _lock = if config.run_dir.is_dir() { Some(reeve_agent::run::lock(&config)?) } else { None };
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
            let settings = serde_json::to_string(&config)?;
            tracing::info!(settings, "starting with these settings");
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(reeve_agent::run::run(config))
        }
    }
}
