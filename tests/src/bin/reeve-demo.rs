//! `cargo xtask demo`: watch real traffic being allowed and denied by name.

use std::process::ExitCode;

use clap::Parser;
use reeve_tests::demo::story::{self, Control, Keep, Options, Print, Sabotage};
use reeve_tests::lab::Mode;

/// Watch real traffic between pods being allowed and denied by name.
#[derive(Parser)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own on the command line")]
#[command(name = "cargo xtask demo")]
struct Arguments {
    /// Leave everything running and print the commands to look around with.
    #[arg(long)]
    keep: bool,
    /// Print the records only, as JSON lines.
    #[arg(long)]
    json: bool,
    /// Play it on two nodes of a Kubernetes control plane, by `kubectl`.
    #[arg(long)]
    cluster: bool,
    /// Put the pods behind a bridge instead of routing to each.
    #[arg(long)]
    bridged: bool,
    /// Take a program away half-way: the demo must notice and fail.
    #[arg(long, hide = true)]
    sabotage: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        keep: if arguments.keep { Keep::Running } else { Keep::Nothing },
        print: if arguments.json { Print::Records } else { Print::Story },
        mode: if arguments.bridged { Mode::Bridged } else { Mode::Routed },
        control: if arguments.cluster { Control::Kubernetes } else { Control::Files },
        sabotage: if arguments.sabotage { Sabotage::Detach } else { Sabotage::None },
    };
    match story::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
