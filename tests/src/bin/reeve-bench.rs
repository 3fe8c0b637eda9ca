//! `cargo xtask bench`: measures what reeve costs, as ratios and differences within one run.

use std::process::ExitCode;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use reeve_tests::bench::report::{Form, Report};
use reeve_tests::bench::{self, engine};

/// Measure what reeve costs: all measures, or those whose names contain one of the words.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Words of names; only these measures run.
    names: Vec<String>,
    /// Print the names, the targets and how each is measured.
    #[arg(long)]
    list: bool,
    /// One JSON object a line.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Rows for docs/benchmarks.md.
    #[arg(long)]
    markdown: bool,
    /// Rounds of each measure; the median is told.
    #[arg(long, default_value_t = 9, value_parser = RangedU64ValueParser::<usize>::new().range(7..=99))]
    rounds: usize,
    /// Compile a cluster of PODS,POLICIES,PEERS and print what it took: a run starts itself so.
    #[arg(long, hide = true)]
    compile: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(size) = &arguments.compile {
        return engine::compile_alone(size);
    }
    if arguments.list {
        for measure in bench::measures(&arguments.names) {
            let target = measure.target.map(|target| target.to_string()).unwrap_or_default();
            println!("{:<42} {target:<8} {:<6} {}", measure.name, measure.unit, measure.how);
        }
        return Ok(());
    }
    let form = match (arguments.json, arguments.markdown) {
        (true, _) => Form::Json,
        (_, true) => Form::Markdown,
        _ => Form::Table,
    };
    bench::run(&arguments.names, arguments.rounds, &mut Report::new(form))
}
