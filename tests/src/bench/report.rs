//! What a run prints: a table to read, JSON lines, or rows for docs/benchmarks.md, with the machine it ran on.

use std::fs;
use std::thread::available_parallelism;

use serde_json::json;

use super::measure::Measured;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Aligned columns.
    Table,
    /// One JSON object a line.
    Json,
    /// Rows of a Markdown table.
    Markdown,
}

/// Prints results as they come, and counts targets.
pub struct Report {
    form: Form,
    reached: usize,
    missed: Vec<String>,
}

impl Report {
    /// Nothing printed yet.
    pub fn new(form: Form) -> Self {
        Self { form, reached: 0, missed: Vec::new() }
    }

    pub(super) fn begin(&self) {
        match self.form {
            Form::Json => {}
            Form::Table => {
                println!("{}", Machine::of_now());
                println!(
                    "{:<42} {:>12} {:<6} {:>12} {:>12}  {:<9} reached",
                    "measure", "median", "unit", "least", "most", "target"
                );
            }
            Form::Markdown => {
                println!("{}\n", Machine::of_now());
                println!("| measure | median | least | most | target | reached |");
                println!("|---|---|---|---|---|---|");
            }
        }
    }

    pub(super) fn row(&mut self, measured: &Measured) {
        let (median, least, most) = measured.spread();
        let measure = &measured.measure;
        let reached = measured.reached();
        match reached {
            Some(true) => self.reached += 1,
            Some(false) => self.missed.push(measure.name.clone()),
            None => {}
        }
        let target = measure.target.map(|target| target.to_string());
        let shown = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
        let word = match reached {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        match self.form {
            Form::Json => println!(
                "{}",
                json!({ "measure": measure.name, "value": median, "unit": measure.unit, "target": target,
                        "reached": reached, "least": least, "most": most })
            ),
            Form::Table => println!(
                "{:<42} {:>12} {:<6} {:>12} {:>12}  {:<9} {word}",
                measure.name,
                shown(median),
                measure.unit,
                shown(least),
                shown(most),
                target.unwrap_or_default(),
            ),
            Form::Markdown => println!(
                "| `{}` | {} {} | {} | {} | {} | {} |",
                measure.name,
                shown(median),
                measure.unit,
                shown(least),
                shown(most),
                target.unwrap_or_default(),
                if reached == Some(false) { "**no**" } else { word },
            ),
        }
    }

    /// News about the run itself.
    pub fn say(&self, what: &str) {
        eprintln!("{what}");
    }

    pub(super) fn end(&self) {
        if !self.missed.is_empty() {
            eprintln!("{} targets reached, {} missed: {}", self.reached, self.missed.len(), self.missed.join(", "));
        } else if self.reached > 0 {
            eprintln!("{} targets reached, none missed", self.reached);
        }
    }
}

/// What the figures depend on.
struct Machine {
    cores: usize,
    model: String,
    kernel: String,
    day: String,
}

impl Machine {
    fn of_now() -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let now = jiff::Timestamp::now().to_string();
        Self {
            cores: available_parallelism().map_or(0, usize::from),
            model: model.map_or("CPU of an unknown model".to_owned(), |(_, model)| model.trim().to_owned()),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            day: now.split('T').next().unwrap_or_default().to_owned(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cores, model, kernel, day } = self;
        write!(f, "{day}, {cores} cores of {model}, Linux {kernel}")
    }
}
