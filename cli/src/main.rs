//! What a person types: explain, policy check, flows, status, endpoints, identities, maps, problems.
//!
//! Exit codes: 0 yes (allowed, ready, nothing wrong), 1 no (denied, not ready, problems), 2 the question could not be
//! answered.
//! Invariant: nothing is decided here; verdicts come from the oracle, records from the agent.

mod check;
mod endpoints;
mod explain;
mod facts;
mod flows;
mod identities;
mod manifests;
mod maps;
mod output;
mod problems;
mod socket;
mod status;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use output::Answer;
use std::io::{BufWriter, ErrorKind, Write};
use std::process::ExitCode;

/// Asks what reeve enforces: who may reach whom, which policy says so, and what was really let through or dropped.
#[derive(Debug, Parser)]
#[command(
    name = "reeve",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 yes (allowed, ready, nothing wrong), 1 no (denied, not ready, problems), 2 error.\n\
                  Colour is used on terminals only, and not where NO_COLOR is set."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Explain(explain::Args),
    #[command(subcommand)]
    Policy(Policy),
    Flows(flows::Args),
    Status(status::Args),
    Endpoints(endpoints::Args),
    Identities(identities::Args),
    Maps(maps::Args),
    Problems(problems::Args),
    Completion(Completion),
}

/// Looks at policies before they are applied.
#[derive(Debug, Subcommand)]
enum Policy {
    Check(check::Args),
}

/// Prints a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    reeve completion bash > /etc/bash_completion.d/reeve\n  \
    reeve completion fish > ~/.config/fish/completions/reeve.fish")]
struct Completion {
    /// The shell.
    shell: clap_complete::Shell,
}

const UNWRITTEN: &str = "cannot write the answer";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let answer = match &cli.command {
        Command::Flows(args) => read_enough(flows::run(args, &mut out), Answer::Yes),
        command => {
            // Told in one piece, so that the exit code holds even where nobody reads to the end.
            let mut text = Vec::new();
            run(command, &mut text).and_then(|answer| {
                let written = out.write_all(&text).context(UNWRITTEN);
                read_enough(written.map(|()| answer), answer)
            })
        }
    };
    // What was found before an error is shown too.
    let flushed = out.flush().context(UNWRITTEN);
    let answer = answer.and_then(|answer| read_enough(flushed.map(|()| answer), answer));
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) => {
            output::to_stderr(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command, out: &mut dyn Write) -> anyhow::Result<Answer> {
    match command {
        Command::Explain(args) => explain::run(args, out),
        Command::Policy(Policy::Check(args)) => check::run(args, out),
        Command::Flows(args) => flows::run(args, out),
        Command::Status(args) => status::run(args, out),
        Command::Endpoints(args) => endpoints::run(args, out),
        Command::Identities(args) => identities::run(args, out),
        Command::Maps(args) => maps::run(args, out),
        Command::Problems(args) => problems::run(args, out),
        Command::Completion(Completion { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "reeve", &mut script);
            out.write_all(&script)?;
            Ok(Answer::Yes)
        }
    }
}

/// Whoever reads and has had enough, as `head` has, makes no error: then this answer holds.
fn read_enough(result: anyhow::Result<Answer>, answer: Answer) -> anyhow::Result<Answer> {
    let is_closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    };
    // An agent that breaks off is another matter.
    let is_read_enough = |error: &anyhow::Error| !error.is::<socket::SocketError>() && error.chain().any(is_closed);
    result.or_else(|error| if is_read_enough(&error) { Ok(answer) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
