//! `reeve status`: whether a node enforces what it should, and how full it is.

use crate::output::{self, Answer, Format, OutputArgs, painted, row, table};
use crate::socket::SocketArgs;
use reeve_flow::text::Colour;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write;

/// Shows whether a node enforces all that it has read, how full its maps are, and what it lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 0 if the agent is ready, 1 if it is not, 2 if it does not answer.\n\n\
    Examples:\n  \
    reeve status\n  \
    reeve status --socket /run/reeve/agent.sock -o json")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const PATH: &str = "/status";

/// The answer to `GET /status`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    node: String,
    version: String,
    /// Revision of the facts that the kernel enforces.
    revision: u64,
    ready: bool,
    reasons: Vec<String>,
    started_at: String,
    endpoints: Endpoints,
    identities: u64,
    policies: u64,
    problems: u64,
    maps: Vec<Map>,
    losses: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Endpoints {
    ready: u64,
    total: u64,
}

#[derive(Deserialize)]
struct Map {
    name: String,
    entries: u64,
    capacity: u64,
}

/// Asks the agent.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let agent = args.socket.agent();
    let value = agent.get(PATH)?;
    let status: Status = serde_json::from_value(value.clone()).map_err(|source| agent.form(PATH, source))?;
    match args.output.output {
        Format::Json => output::json(out, &value)?,
        Format::Text => status.lines(output::colour()).iter().try_for_each(|line| writeln!(out, "{line}"))?,
    }
    Ok(if status.ready { Answer::Yes } else { Answer::No })
}

impl Status {
    fn lines(&self, colour: Colour) -> Vec<String> {
        let state =
            if self.ready { painted(colour, Answer::Yes, "ready") } else { painted(colour, Answer::No, "NOT READY") };
        let mut lines = vec![format!("{}  {state}", self.node)];
        lines.extend(self.reasons.iter().map(|reason| format!("  because {reason}")));
        let problems =
            if self.problems == 0 { "none".to_owned() } else { format!("{}, see reeve problems", self.problems) };
        let lost: Vec<String> = self
            .losses
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let lost = if lost.is_empty() { "none".to_owned() } else { painted(colour, Answer::No, &lost.join(", ")) };
        for (name, value) in [
            ("version", format!("{}, started {}", self.version, self.started_at)),
            ("revision", self.revision.to_string()),
            ("endpoints", format!("{} of {} ready", self.endpoints.ready, self.endpoints.total)),
            ("identities", self.identities.to_string()),
            ("policies", self.policies.to_string()),
            ("problems", problems),
            ("losses", lost),
        ] {
            lines.push(format!("  {name:<11} {value}"));
        }
        if self.maps.is_empty() {
            return lines;
        }
        let mut rows = vec![row(["MAP", "ENTRIES", "CAPACITY", "USED"])];
        rows.extend(self.maps.iter().map(|map| {
            row([&map.name, &map.entries.to_string(), &map.capacity.to_string(), &used(map.entries, map.capacity)])
        }));
        lines.push(String::new());
        lines.extend(table(&rows).iter().map(|line| format!("  {line}")));
        lines
    }
}

/// How full, in whole per cent, rounded down.
fn used(entries: u64, capacity: u64) -> String {
    match u128::from(entries).saturating_mul(100).checked_div(u128::from(capacity)) {
        Some(percent) => format!("{percent} %"),
        None => "-".to_owned(),
    }
}
