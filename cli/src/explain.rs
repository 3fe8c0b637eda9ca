//! `reeve explain`: would one end reach the other, and who says so.

mod report;
mod resolve;
mod target;

use crate::facts::{self, FactsArgs};
use crate::output::{self, Answer, Format, OutputArgs};
use anyhow::{Context, bail};
use clap::ValueEnum;
use reeve_policy::model::{Family, Verdict, World};
use reeve_policy::oracle::{self, Explanation};
use report::Report;
use resolve::Flow;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use target::{Destination, Place};

/// Says whether SRC would reach DST, which policy decides at each end, and the whole path to that decision.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0 if allowed (with drafts: with them), 1 if denied, 2 if the question cannot be answered.\n\n\
    SRC is namespace/pod or an address. DST has port and protocol after it:\n  \
    shop/web:8080/TCP  10.0.0.1:53/UDP  [fd00::1]:443/TCP\n  \
    shop/web:http/TCP  a port by name, which the pod gives a number\n  \
    service/shop/web:80/TCP  a Service: each backend that it may lead to\n  \
    shop/web/ICMP      an echo request; shop/web:3.1/ICMP is type 3, code 1\n  \
    10.0.0.1/47        a protocol by number\n\n\
    Examples:\n  \
    reeve explain shop/web payments/card-db:5432/TCP\n  \
    reeve explain shop/web payments/card-db:5432/TCP --manifests ./cluster\n  \
    reeve explain 10.0.0.9 shop/web:http/TCP --manifests ./cluster --node node-1\n  \
    reeve explain shop/web payments/card-db:5432/TCP --with draft.yaml\n  \
    reeve explain shop/web payments/card-db/ICMPv6 -o json"
)]
pub(crate) struct Args {
    /// Who sends: namespace/pod or an address
    #[arg(value_name = "SRC")]
    source: Place,
    /// To whom and what: namespace/pod, service/namespace/name or an address, with :PORT/PROTO
    #[arg(value_name = "DST:PORT/PROTO")]
    destination: Destination,
    #[command(flatten)]
    facts: FactsArgs,
    /// The address family, where both ends have both [default: IPv4 before IPv6]
    #[arg(long, value_enum)]
    family: Option<FamilyArg>,
    /// Adds drafts (a file, a directory, - for standard input): the answer with them is shown beside the one of now
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The answer with drafts, as JSON.
#[derive(Serialize)]
struct WhatIf<'a> {
    now: Report<'a>,
    with: Report<'a>,
    /// Whether verdict or decider of either end differ.
    changes: bool,
}

/// `4` or `6`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FamilyArg {
    /// IPv4.
    #[value(name = "4")]
    V4,
    /// IPv6.
    #[value(name = "6")]
    V6,
}

/// Asks the oracle.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let mut store = args.facts.load()?;
    let family = args.family.map(|family| match family {
        FamilyArg::V4 => Family::V4,
        FamilyArg::V6 => Family::V6,
    });
    if let Place::Service(namespace, name) = &args.destination.place {
        if !args.with.is_empty() {
            bail!("--with: DST is a service; ask for one of its pods or addresses");
        }
        return service(args, store.world(), (namespace, name), family, out);
    }
    let ask = |world: &World| -> anyhow::Result<(Flow, Explanation)> {
        let flow = resolve::flow(world, &args.source, &args.destination, family)?;
        Ok((flow, oracle::explain(world, flow.source, flow.destination, flow.protocol.0, flow.port)))
    };
    let (flow, now) = ask(store.world())?;
    let report = Report::new(store.world(), flow, &now);
    if args.with.is_empty() {
        match args.output.output {
            Format::Json => output::json(out, &report)?,
            Format::Text => report.text(output::colour()).iter().try_for_each(|line| writeln!(out, "{line}"))?,
        }
        return Ok(answer(&now));
    }
    facts::add_drafts(&mut store, &args.with)?;
    let (flow, then) = ask(store.world()).context("with the drafts")?;
    let with = Report::new(store.world(), flow, &then);
    let changes = (&now.egress, &now.ingress) != (&then.egress, &then.ingress);
    match args.output.output {
        Format::Json => output::json(out, &WhatIf { now: report, with, changes })?,
        Format::Text => {
            let colour = output::colour();
            writeln!(out, "now:")?;
            report.text(colour).iter().try_for_each(|line| writeln!(out, "{}", indented(line)))?;
            writeln!(out, "with the drafts{}:", if changes { "" } else { ", the same" })?;
            with.text(colour).iter().try_for_each(|line| writeln!(out, "{}", indented(line)))?;
        }
    }
    Ok(answer(&then))
}

/// Each backend that a Service may lead to: who reaches all of them is answered yes.
fn service(
    args: &Args,
    world: &World,
    (namespace, name): (&str, &str),
    family: Option<Family>,
    out: &mut dyn Write,
) -> anyhow::Result<Answer> {
    let mut asked: Vec<(Flow, Explanation)> = Vec::new();
    let mut unreachable = None;
    for backend in resolve::backends(world, namespace, name, &args.destination).context("DST")? {
        match resolve::flow(world, &args.source, &backend, family) {
            Ok(flow) => {
                asked.push((flow, oracle::explain(world, flow.source, flow.destination, flow.protocol.0, flow.port)));
            }
            // A backend of the family that the source does not have is none that it may reach.
            Err(error) => unreachable = Some(error),
        }
    }
    if let (true, Some(error)) = (asked.is_empty(), unreachable) {
        return Err(error);
    }
    let reports: Vec<Report<'_>> = asked.iter().map(|(flow, explained)| Report::new(world, *flow, explained)).collect();
    match args.output.output {
        Format::Json => output::json(out, &reports)?,
        Format::Text => {
            let backends = output::counted(reports.len(), "backend", "backends");
            writeln!(out, "service {namespace}/{name} leads to {backends}:")?;
            for report in &reports {
                writeln!(out)?;
                report.text(output::colour()).iter().try_for_each(|line| writeln!(out, "{line}"))?;
            }
        }
    }
    let denied = asked.iter().any(|(_, explained)| explained.verdict == Verdict::Deny);
    Ok(if denied { Answer::No } else { Answer::Yes })
}

fn indented(line: &str) -> String {
    if line.is_empty() { String::new() } else { format!("  {line}") }
}

fn answer(explanation: &Explanation) -> Answer {
    match explanation.verdict {
        Verdict::Allow => Answer::Yes,
        Verdict::Deny => Answer::No,
    }
}
