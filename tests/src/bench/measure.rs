//! Measures: a name, a unit, perhaps a target, and the rounds that were measured.

use std::fmt;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
    /// More than this.
    Above(f64),
}

impl Target {
    /// Whether a figure is what it should be.
    pub fn reached(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Below(bound) => value < bound,
            Self::Above(bound) => value > bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::Below(bound) => write!(f, "< {bound}"),
            Self::Above(bound) => write!(f, "> {bound}"),
        }
    }
}

/// Something that can be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// `area/what`, unique.
    pub name: String,
    /// `ns`, `ms`, `s`, `MiB`, `ratio`, `%`, `1/s`, or what is counted.
    pub unit: &'static str,
    /// What it should be, if that is promised.
    pub target: Option<Target>,
    /// One sentence.
    pub how: String,
}

impl Measure {
    /// Without target.
    pub fn new(name: impl Into<String>, unit: &'static str, how: impl Into<String>) -> Self {
        Self { name: name.into(), unit, target: None, how: how.into() }
    }

    /// With a target.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }
}

/// One measure's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What was measured.
    pub measure: Measure,
    /// Each round's figure, in the measure's unit.
    pub rounds: Vec<f64>,
}

impl Measured {
    /// Median, least and most of the rounds.
    pub fn spread(&self) -> (f64, f64, f64) {
        let mut rounds = self.rounds.clone();
        rounds.sort_by(f64::total_cmp);
        (super::rounds::median(&mut rounds), rounds[0], rounds[rounds.len() - 1])
    }

    /// Whether the median is what it should be; none without a target.
    pub fn reached(&self) -> Option<bool> {
        self.measure.target.map(|target| target.reached(self.spread().0))
    }
}
