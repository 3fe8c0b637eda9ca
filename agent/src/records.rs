//! Flow records: drained from the kernel, named, written and streamed.
//!
//! Invariant: telling never delays enforcing. What a slow reader or a full disk loses is counted.

use crate::enforcer::Meanings;
use crate::metrics::{Metrics, StateLabels, VerdictLabels};
use aya::maps::{MapData, RingBuf};
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::event::Event;
use reeve_flow::aggregate;
use reeve_flow::decode::{self, DecodeError};
use reeve_flow::names::Namer;
use reeve_flow::record::{EventKind, Flag, FlowRecord, RecordedDecision};
use reeve_flow::staged;
use reeve_flow::time::{Clock, Timestamp};
use reeve_flow::wire;
use reeve_policy::model::{Decider, Direction, Verdict};
use rustix::fs::FallocateFlags;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{broadcast, mpsc, oneshot};

/// Between two looks at the ring buffer: waking a reader per event would cost 200 times the event.
const DRAIN_EVERY: Duration = Duration::from_millis(10);
/// The same at most, after a while in which nothing came: looking costs more than anything else that an idle agent does.
/// Until then a ring of 4 MiB holds what some 200,000 new flows a second tell; what comes beyond is counted as lost detail.
const DRAIN_AT_LEAST_EVERY: Duration = Duration::from_millis(80);
/// Events read before what they tell is written: a flood that never ends must not keep the rest waiting.
const EVENTS_AT_ONCE: usize = 4_096;
/// More than the ring buffer holds.
const EVENTS_AT_LAST: usize = 32_768;
/// Lines kept for `tail`.
const TAIL_LINES: usize = 10_000;
/// Lines that a live reader may lag behind before it loses some.
const LIVE_LINES: usize = 16_384;

/// Where lines go besides the sink: live readers, and those who ask for the last ones.
#[derive(Clone, Debug)]
pub struct Live {
    sender: broadcast::Sender<Arc<str>>,
    tail: Arc<Mutex<VecDeque<Arc<str>>>>,
}

impl Default for Live {
    fn default() -> Self {
        Self { sender: broadcast::channel(LIVE_LINES).0, tail: Arc::default() }
    }
}

impl Live {
    /// Lines from now on.
    pub fn follow(&self) -> broadcast::Receiver<Arc<str>> {
        self.sender.subscribe()
    }

    /// The last `lines` lines.
    pub fn tail(&self, lines: usize) -> Vec<Arc<str>> {
        let tail = self.tail.lock().expect("nobody panics while holding the tail");
        tail.iter().skip(tail.len().saturating_sub(lines)).cloned().collect()
    }

    fn tell(&self, line: &Arc<str>) {
        let mut tail = self.tail.lock().expect("nobody panics while holding the tail");
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(Arc::clone(line));
        drop(tail);
        // Without readers there is nobody to tell.
        let _ = self.sender.send(Arc::clone(line));
    }
}

/// Where records are written.
enum Sink {
    Stdout(io::Stdout),
    File(File),
}

impl Sink {
    fn open(target: &str) -> io::Result<Self> {
        if target == "stdout" {
            return Ok(Self::Stdout(io::stdout()));
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(target)?;
        cut_torn_line(&mut file)?;
        Ok(Self::File(file))
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.write_all(text.as_bytes()).and_then(|()| out.flush()),
            Self::File(file) => append(file, text.as_bytes()),
        }
    }
}

/// How far back the end of the last whole line is looked for: many times the longest record.
const LONGEST_LINE: u64 = 1 << 20;

/// Cuts off a last line without its end, which an agent left that was killed while it wrote: the next record would be
/// joined to it, and neither could be read.
fn cut_torn_line(file: &mut File) -> io::Result<()> {
    let found = file.metadata()?;
    if !found.is_file() {
        return Ok(());
    }
    let begin = found.len().saturating_sub(LONGEST_LINE);
    file.seek(SeekFrom::Start(begin))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    // A file of other things, without any end of a line, is left as it is.
    if whole < end.len() && (whole > 0 || begin == 0 && end.starts_with(b"{")) {
        file.set_len(begin + whole as u64)?;
    }
    Ok(())
}

/// Appends all of it or nothing: what is counted as lost, and told again where it can be, is not to stand there in part.
fn append(file: &mut File, text: &[u8]) -> io::Result<()> {
    let found = file.metadata()?;
    if !found.is_file() {
        return file.write_all(text);
    }
    // Room first: a disk that is full says so before anything is written. Not every file system can be asked.
    match rustix::fs::fallocate(&*file, FallocateFlags::KEEP_SIZE, found.len(), text.len() as u64) {
        Err(error) if error != rustix::io::Errno::OPNOTSUPP => return Err(error.into()),
        _ => {}
    }
    let written = file.write_all(text);
    if written.is_err() {
        file.set_len(found.len())?;
    }
    written
}

/// What the enforcer has to tell.
#[derive(Debug)]
pub enum Made {
    /// A flow expired.
    Closed(Event),
    /// Exact counts of a flow that `EDGES` never had.
    Rest(EdgeKey, EdgeValue),
    /// Exact counts of a window that has ended.
    Window(Counts),
}

/// Exact counts of a window.
#[derive(Debug)]
pub struct Counts {
    /// Each edge with what a reader must know of its counts.
    pub rows: Vec<(EdgeKey, EdgeValue, Vec<Flag>)>,
    /// When the window ended, `CLOCK_MONOTONIC` ns.
    pub end_ns: u64,
    /// What turns its times into moments.
    pub clock: Clock,
    /// Told once the records are written, with whether they were.
    pub written: oneshot::Sender<bool>,
}

/// Turns events into lines.
#[allow(missing_debug_implementations, reason = "aya's ring buffer has none")]
pub struct Recorder {
    events: RingBuf<MapData>,
    made: mpsc::UnboundedReceiver<Made>,
    meanings: Meanings,
    node: String,
    sink: Sink,
    live: Live,
    metrics: Arc<Metrics>,
    failing: bool,
}

impl Recorder {
    /// Opens the sink; one that cannot be opened stops the start.
    pub fn new(
        events: RingBuf<MapData>,
        made: mpsc::UnboundedReceiver<Made>,
        meanings: Meanings,
        node: String,
        target: &str,
        live: Live,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let sink =
            Sink::open(target).map_err(|error| anyhow::anyhow!("records cannot be written to {target}: {error}"))?;
        Ok(Self { events, made, meanings, node, sink, live, metrics, failing: false })
    }

    /// Drains until told to stop, or left alone, and then once more.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut wait = DRAIN_EVERY;
        loop {
            let stopped = tokio::select! {
                () = tokio::time::sleep(wait) => false,
                _ = &mut stop => true,
            };
            if stopped {
                self.drain(EVENTS_AT_LAST);
                return;
            }
            wait = if self.drain(EVENTS_AT_ONCE) == 0 { (wait * 2).min(DRAIN_AT_LEAST_EVERY) } else { DRAIN_EVERY };
        }
    }

    /// Reads what has come so far, at most so many events, and writes it; returns how many records that were.
    pub fn drain(&mut self, at_most: usize) -> u64 {
        let mut text = String::new();
        let mut lines = 0_u64;
        let mut windows = Vec::new();
        let clock = clock();
        let names = self.meanings.dictionary.read().expect("nobody panics while writing the dictionary");
        let preview = self.meanings.preview.read().expect("nobody panics while writing the preview");
        let namer = Namer { names: &*names, node: &self.node, clock };
        let mut tell = |record: Result<FlowRecord, DecodeError>| match record {
            Ok(record) => {
                count(&record, &self.metrics);
                let line: Arc<str> = wire::encode(&record).trim_end().into();
                text.push_str(&line);
                text.push('\n');
                self.live.tell(&line);
                lines += 1;
            }
            Err(error) => {
                self.metrics.records_lost.inc();
                tracing::error!(%error, "what the kernel tells cannot be read");
            }
        };
        for _ in 0..at_most {
            let Some(event) = self.events.next() else { break };
            tell(decode::event(&event).map(|event| FlowRecord {
                staged: staged::decision(&preview, &*names, &event),
                ..namer.record(&event)
            }));
        }
        while let Ok(made) = self.made.try_recv() {
            match made {
                Made::Closed(event) => tell(decode::typed(event).map(|event| namer.record(&event))),
                Made::Rest(key, value) => {
                    tell(aggregate::window(&namer, &key, &value, clock.moment(monotonic_ns()), &[]));
                }
                Made::Window(counts) => {
                    let namer = Namer { clock: counts.clock, ..namer };
                    let end = counts.clock.moment(counts.end_ns);
                    for (key, value, flags) in &counts.rows {
                        tell(aggregate::window(&namer, key, value, end, flags));
                    }
                    windows.push(counts.written);
                }
            }
        }
        drop((names, preview));
        let written = if text.is_empty() { Ok(()) } else { self.sink.write(&text) };
        let is_written = written.is_ok();
        match written {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.metrics.records_lost.inc_by(lines);
                if !self.failing {
                    tracing::error!(%error, "records cannot be written; they are counted as lost");
                }
                self.failing = true;
            }
        }
        for window in windows {
            // Nobody waits for it when the agent is ending.
            let _ = window.send(is_written);
        }
        lines
    }
}

fn count(record: &FlowRecord, metrics: &Metrics) {
    metrics.flow_events.get_or_create(&StateLabels { state: record.event.name().to_owned() }).inc();
    if matches!(record.event, EventKind::Closed | EventKind::Window) {
        return; // not verdicts of their own
    }
    let verdict = if record.decision.verdict() == Verdict::Allow { "allow" } else { "deny" };
    let labels = VerdictLabels {
        direction: if record.direction == Direction::Egress { "egress" } else { "ingress" }.to_owned(),
        verdict: verdict.to_owned(),
        policy: decider_label(&record.decision),
    };
    metrics.verdicts.get_or_create(&labels).inc();
}

/// `Kind/namespace/name`, `Kind/name`, or `default:NAME`.
fn decider_label(decision: &RecordedDecision) -> String {
    match decision.known().map(|decision| &decision.decider) {
        Some(Decider::Rule(rule)) => rule.policy.to_string(),
        Some(Decider::Default(default)) => {
            let name = serde_json::to_value(default).expect("a plain name");
            format!("default:{}", name.as_str().unwrap_or_default())
        }
        None => "unknown".to_owned(),
    }
}

/// From the kernel's clock to the wall's, as both stand now.
pub fn clock() -> Clock {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clock::from_readings(monotonic_ns(), Timestamp { unix_ns: i64::try_from(wall.as_nanos()).unwrap_or(i64::MAX) })
}

/// The kernel's monotonic clock in ns, as the programs read it: they know of no time namespace.
pub fn monotonic_ns() -> u64 {
    static OFFSET_NS: LazyLock<i64> = LazyLock::new(|| {
        let offsets = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        let offset = namespace_offset_ns(&offsets);
        if offset != 0 {
            tracing::info!(
                offset_ns = offset,
                "this process is in a time namespace of its own; its offset is taken off"
            );
        }
        offset
    });
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec - *OFFSET_NS).unwrap_or_default()
}

/// What a time namespace adds to the kernel's monotonic clock, from its `timens_offsets`; 0 where there is no such file.
fn namespace_offset_ns(offsets: &str) -> i64 {
    let line = offsets.lines().find_map(|line| line.strip_prefix("monotonic"));
    let mut numbers = line.unwrap_or_default().split_whitespace().map(|word| word.parse::<i64>().unwrap_or_default());
    let (seconds, ns) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    seconds.saturating_mul(1_000_000_000).saturating_add(ns)
}

#[cfg(test)]
mod tests {
    use super::{Sink, namespace_offset_ns};

    #[test]
    fn a_line_that_was_torn_is_cut_off_before_another_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("records.jsonl");
        for (before, after) in
            [("", "{}\n"), ("{\"a\":1}\n", "{\"a\":1}\n{}\n"), ("{\"a\":1}\n{\"b", "{\"a\":1}\n{}\n")]
        {
            std::fs::write(&path, before).expect("written");
            let mut sink = Sink::open(path.to_str().expect("text")).expect("opened");
            sink.write("{}\n").expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), after);
        }
    }

    #[test]
    fn a_time_namespace_says_what_it_adds() {
        assert_eq!(namespace_offset_ns("monotonic           0         0\nboottime            5         0\n"), 0);
        assert_eq!(namespace_offset_ns("monotonic       -3       7\nboottime 0 0\n"), -2_999_999_993);
        assert_eq!(namespace_offset_ns(""), 0);
    }
}
