//! `reeve maps`: how full the kernel's maps are, and what happens when one is.

use crate::output::{self, Answer, Format, OutputArgs, row, table};
use crate::socket::SocketArgs;
use serde::Deserialize;
use std::io::Write;

/// Shows how full each of the kernel's maps is, and what becomes of what does not fit.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 0, or 2 if the agent does not answer.\n\n\
    Examples:\n  \
    reeve maps\n  \
    reeve maps -o json | jq '.[] | select(.entries * 2 > .capacity)'")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const PATH: &str = "/maps";

/// One row of the answer to `GET /maps`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Map {
    name: String,
    entries: u64,
    capacity: u64,
    #[serde(default)]
    when_full: Option<String>,
}

/// Asks the agent.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let agent = args.socket.agent();
    let value = agent.get(PATH)?;
    let maps: Vec<Map> = serde_json::from_value(value.clone()).map_err(|source| agent.form(PATH, source))?;
    match args.output.output {
        Format::Json => output::json(out, &value)?,
        Format::Text => {
            let mut rows = vec![row(["MAP", "ROWS", "CAPACITY", "FULL", "WHEN FULL"])];
            rows.extend(maps.iter().map(Map::row));
            table(&rows).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
    }
    Ok(Answer::Yes)
}

impl Map {
    fn row(&self) -> Vec<String> {
        // In tenths of a percent, rounded up: a single row is more than nothing.
        let share = (self.entries * 1_000).div_ceil(self.capacity.max(1));
        row([
            &self.name,
            &self.entries.to_string(),
            &self.capacity.to_string(),
            &format!("{}.{} %", share / 10, share % 10),
            self.when_full.as_deref().unwrap_or("-"),
        ])
    }
}
