//! Exact counts in windows: the programs write into one bank of `EDGES` while the agent drains the other.
//!
//! Invariant: a row is deleted only when its record has been written, so an agent that dies tells it again rather than
//! never. Nothing waits for a sink: while one is slow, counts add up in the kernel.

use crate::continuity::{self, Missed};
use crate::datapath::grace::grace;
use crate::enforcer::Enforcer;
use crate::metrics::Metrics;
use crate::records::{Counts, Made, clock, monotonic_ns};
use reeve_abi::config::Config;
use reeve_abi::edge::{EDGE_BANK, EdgeKey, EdgeValue};
use reeve_abi::stats;
use reeve_flow::aggregate;
use reeve_flow::record::Flag;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// Why a window ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Its time was over.
    Time,
    /// The map was filling.
    Filling,
    /// The agent started, and what was counted before is told.
    Start,
    /// The agent stops.
    Stop,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Filling => "filling",
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

/// Rows whose records are being written.
struct Telling {
    edges: Vec<EdgeKey>,
    overflow: Vec<EdgeKey>,
    written: oneshot::Receiver<bool>,
    /// What was owed before, if its rows stay.
    owed: Vec<(EdgeKey, EdgeValue)>,
    /// Whether the bank was left over, so that the other one is still to be ended.
    again: Option<Cause>,
    cause: Cause,
}

/// The windows of one agent.
#[allow(missing_debug_implementations, reason = "holds channels only")]
pub struct Windows {
    every: Duration,
    begun: Instant,
    /// What is known of the time before this agent, until that has been told.
    missed: Option<Missed>,
    telling: Option<Telling>,
    owed: Vec<(EdgeKey, EdgeValue)>,
    /// Counts that had gone to a reserved row when the last window ended.
    overflowed: u64,
    made: UnboundedSender<Made>,
    metrics: Arc<Metrics>,
}

impl Windows {
    /// The first window tells what was counted before this agent.
    pub fn new(every: Duration, missed: Missed, made: UnboundedSender<Made>, metrics: Arc<Metrics>) -> Self {
        Self {
            every,
            begun: Instant::now(),
            missed: Some(missed),
            telling: None,
            owed: Vec::new(),
            overflowed: 0,
            made,
            metrics,
        }
    }

    /// Ends the window if it is time, or if the map that it counts in is filling.
    pub fn look(&mut self, enforcer: &mut Enforcer) -> anyhow::Result<()> {
        if self.telling.is_some() {
            return Ok(());
        }
        let cause = if self.missed.is_some() {
            if enforcer.upgrade.is_some() {
                return Ok(()); // what was counted before lies in the earlier agent's maps still
            }
            Cause::Start
        } else if self.begun.elapsed() >= self.every {
            Cause::Time
        } else if self.is_filling(enforcer)? {
            Cause::Filling
        } else {
            return Ok(());
        };
        self.end(enforcer, cause)
    }

    /// Ends the window because the agent stops.
    pub fn stop(&mut self, enforcer: &mut Enforcer) -> anyhow::Result<()> {
        if self.telling.is_some() { Ok(()) } else { self.end(enforcer, Cause::Stop) }
    }

    fn is_filling(&self, enforcer: &Enforcer) -> anyhow::Result<bool> {
        let half = |rows: &crate::datapath::maps::Occupancy| rows.name == "EDGES" && rows.entries > rows.capacity / 2;
        let counted = enforcer.counted_since(self.begun) && enforcer.traffic_rows.iter().any(half);
        Ok(counted || enforcer.loaded.maps.stats.sum(stats::EDGES_OVERFLOWED)? != self.overflowed)
    }

    /// Lets the programs write into the other bank, waits until none still writes into this one, and tells it. A bank
    /// that an earlier attempt left is told first, without turning to it again.
    fn end(&mut self, enforcer: &mut Enforcer, cause: Cause) -> anyhow::Result<()> {
        let maps = &enforcer.loaded.maps;
        let config = maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
        let idle = (config.edges_bank ^ 1) * EDGE_BANK;
        let bank_of = |key: &EdgeKey| key.kind & EDGE_BANK;
        let all = [maps.edges.read()?, maps.overflow.read()?];
        let left_over = all.iter().flatten().any(|(key, _)| bank_of(key) == idle);
        let (edges, overflow, bank) = if left_over {
            let [edges, overflow] = all;
            (edges, overflow, idle)
        } else {
            self.overflowed = maps.stats.sum(stats::EDGES_OVERFLOWED)?;
            maps.config.put(&0, &Config { edges_bank: config.edges_bank ^ 1, ..config })?;
            grace();
            self.begun = Instant::now();
            (maps.edges.read()?, maps.overflow.read()?, idle ^ EDGE_BANK)
        };
        let of_bank = |rows: Vec<(EdgeKey, EdgeValue)>| -> Vec<(EdgeKey, EdgeValue)> {
            rows.into_iter().filter(|(key, _)| bank_of(key) == bank).collect()
        };
        let (edges, overflow) = (of_bank(edges), of_bank(overflow));
        let mut owed = std::mem::take(&mut self.owed);
        let upgraded = !enforcer.unplaced.is_empty();
        owed.append(&mut enforcer.unplaced);
        let mut sums = aggregate::merged(edges.iter().chain(&overflow).chain(&owed).copied());
        self.owed = aggregate::owed(&mut sums);
        let mut telling = continuity::Telling { bank: bank / EDGE_BANK, end_ns: monotonic_ns(), clock: clock() };
        let interrupted = self.missed.as_ref().and_then(|missed| missed.telling);
        let again = match interrupted {
            // The same words as the first time, so that whoever reads both knows them for one.
            Some(first) if left_over && first.bank == telling.bank => {
                telling = first;
                true
            }
            // What another layout of maps had counted comes in one sum, whichever bank it was in.
            Some(_) => upgraded,
            None => false,
        };
        let flags =
            |key: &EdgeKey| self.missed.as_ref().map_or_else(Vec::new, |missed| missed.flags(key.subject, again));
        let rows: Vec<(EdgeKey, EdgeValue, Vec<Flag>)> =
            sums.into_iter().map(|(key, value)| (key, value, flags(&key))).collect();
        if !rows.is_empty()
            && let Err(error) = enforcer.checkpoint(Some(telling))
        {
            // Nothing of it is told: the rows stay, and so does what was owed. Not at once again.
            self.owed = owed;
            self.begun = Instant::now();
            return Err(error);
        }
        self.metrics.window_ended(cause.name(), &rows);
        let (told, written) = oneshot::channel();
        let counts = Counts { rows, end_ns: telling.end_ns, clock: telling.clock, written: told };
        // The recorder ends with the process: then nobody is there to be told, and the rows stay.
        let _ = self.made.send(Made::Window(counts));
        let keys = |rows: Vec<(EdgeKey, EdgeValue)>| rows.into_iter().map(|(key, _)| key).collect();
        self.telling = Some(Telling {
            edges: keys(edges),
            overflow: keys(overflow),
            written,
            owed,
            again: left_over.then_some(cause),
            cause,
        });
        Ok(())
    }

    /// Waits until the window that is being told is written, or cannot be; for ever if there is none.
    pub async fn written(&mut self) -> bool {
        match &mut self.telling {
            Some(telling) => (&mut telling.written).await.unwrap_or(false),
            None => std::future::pending().await,
        }
    }

    /// Deletes the rows that have been written. Those that could not be stay for the next window.
    pub fn finish(&mut self, enforcer: &mut Enforcer, written: bool) -> anyhow::Result<()> {
        let Some(telling) = self.telling.take() else { return Ok(()) };
        if !written {
            self.owed = telling.owed;
            self.begun = Instant::now(); // not at once again
            return Ok(());
        }
        let maps = &enforcer.loaded.maps;
        maps.edges.delete_many(&telling.edges)?;
        maps.overflow.delete_many(&telling.overflow)?;
        enforcer.checkpoint(None)?;
        match telling.again {
            Some(cause) => self.end(enforcer, cause),
            None => {
                if telling.cause == Cause::Start {
                    self.missed = None;
                }
                Ok(())
            }
        }
    }
}
