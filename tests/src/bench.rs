//! What `cargo xtask bench` measures: costs as ratios or differences within one run, so that anyone can reproduce them.
//!
//! Invariant: variants alternate within each round, a figure is the median of the rounds, and whoever is compared has
//! shown before that it enforces.

pub mod agent;
pub mod bytecode;
pub mod cluster;
pub mod datapath;
pub mod dealer;
pub mod engine;
pub mod flows;
pub mod growth;
pub mod measure;
pub mod offload;
pub mod path;
pub mod policies;
pub mod propagation;
pub mod records;
pub mod report;
pub mod rounds;
pub mod rules;
pub mod side;
pub mod testbed;
pub mod traffic;

use std::time::Instant;

use anyhow::Context;

use measure::{Measure, Measured};
use report::Report;

/// Measures that share what has to be set up.
pub struct Area {
    /// The first part of its measures' names.
    pub name: &'static str,
    /// What it can measure.
    pub measures: fn() -> Vec<Measure>,
    /// Measures what is wanted.
    pub run: fn(&mut Sheet<'_>) -> anyhow::Result<()>,
}

/// All areas, in the order in which they run.
pub const AREAS: [Area; 9] = [
    Area { name: "program", measures: datapath::measures, run: datapath::run },
    Area { name: "flows", measures: flows::measures, run: flows::run },
    Area { name: "engine", measures: engine::measures, run: engine::run },
    Area { name: "path", measures: path::measures, run: path::run },
    Area { name: "rivals", measures: path::rivals, run: path::run_rivals },
    Area { name: "agent", measures: agent::measures, run: agent::run },
    Area { name: "records", measures: records::measures, run: records::run },
    Area { name: "propagation", measures: propagation::measures, run: propagation::run },
    Area { name: "growth", measures: growth::measures, run: growth::run },
];

/// What is wanted of an area, and where its results go.
pub struct Sheet<'a> {
    wanted: Vec<Measure>,
    rounds: usize,
    report: &'a mut Report,
}

impl Sheet<'_> {
    /// Whether a measure is wanted; work for others is not done.
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.iter().any(|measure| measure.name == name)
    }

    /// Whether any measure is wanted whose name begins so.
    pub fn wants_any(&self, beginning: &str) -> bool {
        self.wanted.iter().any(|measure| measure.name.starts_with(beginning))
    }

    /// How many rounds there are.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// A measure's rounds; they are reported if it is wanted.
    pub fn put(&mut self, name: &str, rounds: Vec<f64>) {
        if let Some(measure) = self.wanted.iter().find(|measure| measure.name == name) {
            self.report.row(&Measured { measure: measure.clone(), rounds });
        }
    }
}

/// All measures whose name contains one of these; all there are without names.
pub fn measures(names: &[String]) -> Vec<Measure> {
    AREAS.iter().flat_map(|area| chosen(area, names)).collect()
}

fn chosen(area: &Area, names: &[String]) -> Vec<Measure> {
    let is_chosen =
        |measure: &Measure| names.is_empty() || names.iter().any(|name| measure.name.contains(name.as_str()));
    (area.measures)().into_iter().filter(is_chosen).collect()
}

/// Measures what is named, and only that.
pub fn run(names: &[String], rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    if let Some(unknown) = names.iter().find(|name| measures(std::slice::from_ref(name)).is_empty()) {
        anyhow::bail!("no measure's name contains {unknown:?}: `--list` shows them");
    }
    report.begin();
    for area in &AREAS {
        let wanted = chosen(area, names);
        if wanted.is_empty() {
            continue;
        }
        let begun = Instant::now();
        let mut sheet = Sheet { wanted, rounds, report };
        // A thread of its own: areas move theirs into network namespaces and onto a CPU.
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || (area.run)(&mut sheet));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .with_context(|| format!("measures of {}", area.name))?;
        report.say(&format!("{}: {} s", area.name, begun.elapsed().as_secs()));
    }
    report.end();
    Ok(())
}
