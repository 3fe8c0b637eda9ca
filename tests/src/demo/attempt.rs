//! One connection: what the socket saw, what the records say, what the oracle says, and whether they agree.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use reeve_flow::record::{EventKind, FlowRecord};
use reeve_flow::text::{decider_text, decision_text};
use reeve_policy::model::{Decision, Direction, Verdict};
use reeve_policy::oracle::{self, Explanation};
use reeve_policy::store::{Change, Store};
use serde_json::Value;

use crate::lab::{Pod, Records, until};
use crate::traffic::{self, Answer, PATIENCE, Tcp};

/// Longest wait for a record of something that has happened; behind a flood, on a busy machine, it takes its time.
const RECORD_PATIENCE: Duration = Duration::from_secs(15);

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connection with one exchange.
    Tcp(u16),
    /// A UDP exchange.
    Udp(u16),
    /// An echo request.
    Ping,
}

impl Probe {
    /// IP protocol number and judged port towards an address.
    pub fn judged(self, to: IpAddr) -> (u8, u16) {
        match (self, to) {
            (Self::Tcp(port), _) => (6, port),
            (Self::Udp(port), _) => (17, port),
            (Self::Ping, IpAddr::V4(_)) => (1, 8 << 8),
            (Self::Ping, IpAddr::V6(_)) => (58, 128 << 8),
        }
    }

    /// As people write it.
    pub fn text(self) -> String {
        match self {
            Self::Tcp(port) => format!("{port}/TCP"),
            Self::Udp(port) => format!("{port}/UDP"),
            Self::Ping => "ping".to_owned(),
        }
    }
}

/// One enforcement point's record, next to the oracle's decision.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was tried.
    pub probe: Probe,
    /// The record, and the line it came as.
    pub record: FlowRecord,
    /// As written by the agent.
    pub line: Value,
    /// What does not agree, if anything.
    pub disagreement: Option<String>,
}

/// The outcome of an attempt.
#[derive(Debug)]
pub struct Attempt {
    /// One row per enforcement point that judged.
    pub rows: Vec<Row>,
    /// What does not agree as a whole.
    pub disagreement: Option<String>,
    /// The connection, if it stands.
    pub connection: Option<Tcp>,
    /// `from -> to:port`.
    pub what: String,
}

impl Attempt {
    /// Every disagreement, in words.
    pub fn disagreements(&self) -> impl Iterator<Item = String> {
        let rows = self.rows.iter().filter_map(|row| row.disagreement.clone());
        rows.chain(self.disagreement.clone()).map(|text| format!("{}: {text}", self.what))
    }
}

/// The facts of a manifests directory, read anew, as the oracle sees them.
pub fn facts(directory: &Path, node: &str) -> anyhow::Result<Store> {
    let mut store = Store::new(node);
    let mut files: Vec<_> = std::fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        let path = file.path();
        let name = file.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        match reeve_policy::manifest::parse(&text, &name) {
            Ok(objects) => objects.into_iter().for_each(|object| {
                store.apply(Change::Apply(object));
            }),
            Err(problem) => bail!("{}: {}", problem.object, problem.what),
        }
    }
    Ok(store)
}

/// Tries a connection and gathers all three answers.
pub fn attempt(
    store: &Store,
    records: &mut Records,
    from: &Pod,
    to: &Pod,
    probe: Probe,
    v6: bool,
) -> anyhow::Result<Attempt> {
    attempt_between(store, std::slice::from_mut(records), from, to, probe, v6)
}

/// Tries a connection between pods of several nodes, whose agents write these records.
pub fn attempt_between(
    store: &Store,
    records: &mut [Records],
    from: &Pod,
    to: &Pod,
    probe: Probe,
    v6: bool,
) -> anyhow::Result<Attempt> {
    let address = super::cast::address(to, v6);
    let asked = match probe {
        Probe::Tcp(port) | Probe::Udp(port) => SocketAddr::new(address, port),
        Probe::Ping => SocketAddr::new(address, 0),
    };
    attempt_at(store, records, from, asked, to, probe, v6)
}

/// Tries a connection by asking for an address that leads to `to`; the probe's port is the one there.
pub fn attempt_at(
    store: &Store,
    records: &mut [Records],
    from: &Pod,
    asked: SocketAddr,
    to: &Pod,
    probe: Probe,
    v6: bool,
) -> anyhow::Result<Attempt> {
    let (source, destination) = (super::cast::address(from, v6), super::cast::address(to, v6));
    let (protocol, port) = probe.judged(destination);
    let told = oracle::explain(store.world(), source, destination, protocol, port);
    gather(records)?;
    let mut connection = None;
    let answer: Answer = match probe {
        Probe::Tcp(_) => traffic::connect(from.netns(), asked, PATIENCE).and_then(|mut open| {
            open.exchange(PATIENCE)?;
            connection = Some(open);
            Ok(())
        }),
        Probe::Udp(_) => traffic::udp_exchange(from.netns(), asked, PATIENCE),
        Probe::Ping => traffic::ping(from.netns(), asked.ip(), PATIENCE),
    };
    let what = format!("{} -> {} {}", from.full_name(), to.full_name(), probe.text());
    let mut found: Vec<(Value, FlowRecord)> = Vec::new();
    let wanted = ends(&told);
    let gathered = until("the records of a connection", RECORD_PATIENCE, || {
        for line in gather(records)? {
            let record: FlowRecord =
                serde_json::from_value(line.clone()).with_context(|| format!("not a record: {line}"))?;
            let about = record.source.ip == Some(source)
                && record.destination.ip == Some(destination)
                && record.protocol.0 == protocol
                && matches!(record.event, EventKind::Opened | EventKind::Denied)
                && (matches!(probe, Probe::Ping) || record.destination.port == Some(port));
            if about && !found.iter().any(|(_, other)| other.direction == record.direction) {
                found.push((line, record));
            }
        }
        let all = wanted.iter().all(|(direction, _)| found.iter().any(|(_, record)| record.direction == *direction));
        Ok(all.then_some(()))
    });
    found.sort_by_key(|(_, record)| std::cmp::Reverse(record.direction));
    let recorded_allow =
        !found.is_empty() && found.iter().all(|(_, record)| record.decision.verdict() == Verdict::Allow);
    let disagreement = if let Err(error) = gathered {
        Some(format!("the oracle expects a record that did not come ({error:#}); the socket saw {answer:?}"))
    } else if answer.is_ok() != recorded_allow {
        Some(format!("the records say {}, the socket saw {answer:?}", word(recorded_allow)))
    } else if answer.is_ok() != (told.verdict == Verdict::Allow) {
        Some(format!("the oracle says {:?}, the socket saw {answer:?}", told.verdict))
    } else {
        None
    };
    let rows = found
        .into_iter()
        .map(|(line, record)| {
            let expected =
                wanted.iter().find(|(direction, _)| *direction == record.direction).map(|(_, decision)| *decision);
            let disagreement = differs(&record, expected);
            Row { probe, record, line, disagreement }
        })
        .collect();
    Ok(Attempt { rows, disagreement, connection, what })
}

/// What all of them hold that is new.
fn gather(records: &mut [Records]) -> anyhow::Result<Vec<Value>> {
    let mut all = Vec::new();
    for of_node in records {
        all.extend(of_node.rest()?);
    }
    Ok(all)
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

/// The enforcement points that the oracle expects to speak: the receiver only if the sender's side lets the packet out.
pub fn ends(told: &Explanation) -> Vec<(Direction, &Decision)> {
    let mut ends = Vec::new();
    if let Some((_, decision)) = &told.egress {
        ends.push((Direction::Egress, decision));
        if decision.verdict == Verdict::Deny {
            return ends;
        }
    }
    if let Some((_, decision)) = &told.ingress {
        ends.push((Direction::Ingress, decision));
    }
    ends
}

/// How a record's decision differs from the oracle's; the whole decision counts, path and isolating policies included.
pub fn differs(record: &FlowRecord, expected: Option<&Decision>) -> Option<String> {
    let recorded = decision_text(&record.decision);
    match (record.decision.known(), expected) {
        (Some(known), Some(expected)) if known == expected => None,
        (_, Some(expected)) => {
            Some(format!("recorded: decided by {recorded}; the oracle: {} ({expected:?})", decider_text(expected)))
        }
        (_, None) => Some(format!("recorded: decided by {recorded}; the oracle expects no record there")),
    }
}
