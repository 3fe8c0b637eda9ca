//! `reeve explain`: would one end reach the other, and who says so.

mod report;
mod resolve;
mod target;

use crate::facts::{self, FactsArgs};
use crate::output::{self, Answer, Format, OutputArgs};
use anyhow::Context;
use clap::ValueEnum;
use reeve_policy::model::{Family, ServiceName, Verdict, World};
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
    service/shop/web:80/TCP  a Service: each backend that it may lead to; so does one of its addresses\n  \
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

/// The answer as JSON: of a Service one report for each backend.
#[derive(Serialize)]
#[serde(untagged)]
enum Form<'a> {
    One(Box<Report<'a>>),
    Several(Vec<Report<'a>>),
}

/// The answer with drafts, as JSON.
#[derive(Serialize)]
struct WhatIf<'a> {
    now: Form<'a>,
    with: Form<'a>,
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

/// What the oracle says of a question.
#[derive(PartialEq)]
struct Asked {
    /// The Service that leads to the destinations.
    service: Option<ServiceName>,
    /// For each destination.
    answers: Vec<(Flow, Explanation)>,
}

/// Asks the oracle.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let mut store = args.facts.load()?;
    let now = Asked::of(args, store.world())?;
    if args.with.is_empty() {
        match args.output.output {
            Format::Json => output::json(out, &now.form(store.world()))?,
            Format::Text => now.lines(store.world()).iter().try_for_each(|line| writeln!(out, "{line}"))?,
        }
        return Ok(now.answer());
    }
    let before = store.world().clone();
    facts::add_drafts(&mut store, &args.with)?;
    let then = Asked::of(args, store.world()).context("with the drafts")?;
    let changes = !now.decides_as(&then);
    match args.output.output {
        Format::Json => {
            output::json(out, &WhatIf { now: now.form(&before), with: then.form(store.world()), changes })?;
        }
        Format::Text => {
            writeln!(out, "now:")?;
            now.lines(&before).iter().try_for_each(|line| writeln!(out, "{}", indented(line)))?;
            writeln!(out, "with the drafts{}:", if changes { "" } else { ", the same" })?;
            then.lines(store.world()).iter().try_for_each(|line| writeln!(out, "{}", indented(line)))?;
        }
    }
    Ok(then.answer())
}

impl Asked {
    fn of(args: &Args, world: &World) -> anyhow::Result<Self> {
        let family = args.family.map(|family| match family {
            FamilyArg::V4 => Family::V4,
            FamilyArg::V6 => Family::V6,
        });
        let Some(service) = resolve::service(world, &args.destination) else {
            let flow = resolve::flow(world, &args.source, &args.destination, family)?;
            let explained = oracle::explain(world, flow.source, flow.destination, flow.protocol.0, flow.port);
            return Ok(Self { service: None, answers: vec![(flow, explained)] });
        };
        let (mut answers, mut unreachable) = (Vec::new(), None);
        for backend in resolve::backends(world, &service, &args.destination).context("DST")? {
            match resolve::flow(world, &args.source, &backend, family) {
                Ok(flow) => {
                    let Flow { source, destination, protocol, port } = flow;
                    let explained = oracle::explain_through_service(world, source, destination, protocol.0, port);
                    answers.push((flow, explained));
                }
                // A backend of the family that the source does not have is none that it may reach.
                Err(error) => unreachable = Some(error),
            }
        }
        match unreachable {
            Some(error) if answers.is_empty() => Err(error),
            _ => Ok(Self { service: Some(service), answers }),
        }
    }

    fn reports<'a>(&'a self, world: &World) -> Vec<Report<'a>> {
        self.answers.iter().map(|(flow, explained)| Report::new(world, *flow, explained)).collect()
    }

    fn form(&self, world: &World) -> Form<'_> {
        let mut reports = self.reports(world);
        match reports.pop() {
            Some(only) if self.service.is_none() => Form::One(Box::new(only)),
            last => Form::Several(reports.into_iter().chain(last).collect()),
        }
    }

    fn lines(&self, world: &World) -> Vec<String> {
        let reports = self.reports(world);
        let mut lines = Vec::new();
        if let Some(service) = &self.service {
            let backends = output::counted(reports.len(), "backend", "backends");
            lines.push(format!("service {service} leads to {backends}:"));
        }
        for report in &reports {
            lines.extend(self.service.as_ref().map(|_| String::new()));
            lines.extend(report.text(output::colour()));
        }
        lines
    }

    /// Whether verdicts and deciders are the same, for the same destinations.
    fn decides_as(&self, other: &Self) -> bool {
        let told = |asked: &Self| -> Vec<_> {
            let each = |(flow, answer): &(Flow, Explanation)| (*flow, answer.egress.clone(), answer.ingress.clone());
            asked.answers.iter().map(each).collect()
        };
        told(self) == told(other)
    }

    /// Who reaches all of them is answered yes.
    fn answer(&self) -> Answer {
        let denied = self.answers.iter().any(|(_, explained)| explained.verdict == Verdict::Deny);
        if denied { Answer::No } else { Answer::Yes }
    }
}

fn indented(line: &str) -> String {
    if line.is_empty() { String::new() } else { format!("  {line}") }
}
