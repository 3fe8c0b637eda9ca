//! `reeve flows`: what was let through and what was dropped, from a file of records or live from the agent.

mod filter;
mod source;

use crate::output::{self, Answer, Format, OutputArgs, counted};
use crate::socket::SocketArgs;
use anyhow::bail;
use filter::FilterArgs;
use reeve_flow::filter::Filter;
use reeve_flow::record::FlowRecord;
use reeve_flow::text::{self, Columns, TimeForm};
use reeve_flow::wire::{self, Line};
use std::io::Write;
use std::path::PathBuf;

/// Shows flow records: who, to whom, verdict and decider, one line a flow.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    reeve flows --verdict deny                       # the agent's last records\n  \
    reeve flows --follow --pod shop/web              # live\n  \
    reeve flows --policy GlobalNetworkPolicy/pci-isolation --from 2026-01-31T12:00:00Z\n  \
    reeve flows --file flows.jsonl --namespace payments --label app=card-db --port 5432\n  \
    zcat flows.jsonl.gz | reeve flows --file - -o json --direction ingress")]
pub(crate) struct Args {
    /// Reads records from a file of JSON lines (- for standard input), rather than from the agent
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    file: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketArgs,
    /// Shows records as they come, until interrupted; a file is shown from its beginning
    #[arg(short, long)]
    follow: bool,
    /// Only the last N records that meet the filter
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    tail: Option<usize>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Unreadable lines that are named one by one.
const NAMED: usize = 5;

/// Shows the records that were asked for.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let mut reader = Reader { filter: args.filter.filter(), lines: 0, unreadable: 0 };
    if args.follow {
        let mut columns = Columns::new(output::colour(), TimeForm::TimeOfDay);
        let each = |text: &str| -> anyhow::Result<()> {
            let Some(line) = reader.read(text) else { return Ok(()) };
            match (args.output.output, &line) {
                (Format::Json, _) => writeln!(out, "{text}")?,
                (Format::Text, Line::Record(record)) => writeln!(out, "{}", columns.line(record))?,
                (Format::Text, Line::Missed(missed)) => writeln!(out, "{}", missed_text(*missed))?,
            }
            // Whoever follows wants to see it now.
            Ok(out.flush()?)
        };
        match &args.file {
            Some(file) => source::follow_file(file, each)?,
            None => {
                args.socket.agent().lines("/flows?follow=true", each)?;
                bail!("the agent has ended the stream");
            }
        }
    } else {
        let mut kept: Vec<(String, Line)> = Vec::new();
        let each = |text: &str| -> anyhow::Result<()> {
            kept.extend(reader.read(text).map(|line| (text.to_owned(), line)));
            Ok(())
        };
        match &args.file {
            Some(file) => source::read_file(file, each)?,
            None => args.socket.agent().lines("/flows", each)?,
        }
        let first = args.tail.map_or(0, |tail| kept.len().saturating_sub(tail));
        show(kept.split_off(first), args.output.output, out)?;
    }
    if reader.unreadable > 0 {
        bail!("{} of {} could not be read", reader.unreadable, counted(reader.lines, "line", "lines"));
    }
    Ok(Answer::Yes)
}

/// Reads lines and keeps those that were asked for.
struct Reader {
    filter: Filter,
    lines: usize,
    unreadable: usize,
}

impl Reader {
    fn read(&mut self, text: &str) -> Option<Line> {
        self.lines += 1;
        if text.trim().is_empty() {
            return None;
        }
        match wire::parse_line(self.lines, text) {
            Ok(Line::Record(record)) => self.filter.matches(&record).then_some(Line::Record(record)),
            Ok(missed) => Some(missed),
            Err(error) => {
                self.unreadable += 1;
                if self.unreadable <= NAMED {
                    output::to_stderr(&format!("warning: {error}"));
                }
                None
            }
        }
    }
}

/// All lines, aligned with each other.
fn show(kept: Vec<(String, Line)>, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    if format == Format::Json {
        return Ok(kept.iter().try_for_each(|(text, _)| writeln!(out, "{text}"))?);
    }
    // Where records were missed, by how many records are shown before.
    let mut gaps: Vec<(usize, u64)> = Vec::new();
    let mut records: Vec<FlowRecord> = Vec::new();
    for (_, line) in kept {
        match line {
            Line::Record(record) => records.push(*record),
            Line::Missed(missed) => gaps.push((records.len(), missed)),
        }
    }
    let lines = text::lines(&records, output::colour());
    let mut gaps = gaps.into_iter().peekable();
    for index in 0..=lines.len() {
        while let Some((_, missed)) = gaps.next_if(|(before, _)| *before == index) {
            writeln!(out, "{}", missed_text(missed))?;
        }
        if let Some(line) = lines.get(index) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn missed_text(missed: u64) -> String {
    let records = if missed == 1 { "record" } else { "records" };
    format!("-- {missed} {records} missed here: this reader was too slow --")
}
