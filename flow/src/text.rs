//! Records and deciders as people read them.

use crate::record::{EventKind, Flag, FlowRecord, Owner, Reason, RecordVerdict, RecordedDecision, Side, UnknownNumber};
use reeve_policy::model::{Decider, Decision, DefaultDecider, Direction, Outcome, PolicyKind, PolicyRef, Step};

/// Whether colour codes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Never,
    /// ANSI codes.
    Ansi,
}

impl Colour {
    /// Paints a verdict's word: green for an allow, red for a deny.
    pub fn verdict(self, allowed: Allowed, text: &str) -> String {
        match (self, allowed) {
            (Self::Never, _) => text.to_owned(),
            (Self::Ansi, Allowed::Yes) => format!("\x1b[32m{text}\x1b[0m"),
            (Self::Ansi, Allowed::No) => format!("\x1b[31m{text}\x1b[0m"),
        }
    }
}

/// Which of the two colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Let through.
    Yes,
    /// Dropped.
    No,
}

/// How much of a time is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeForm {
    /// `12:00:01.123`, UTC.
    TimeOfDay,
    /// `2026-01-31T12:00:01.123Z`.
    DateAndTime,
}

/// Writes records as lines, aligned with those before them.
#[derive(Clone, Debug)]
pub struct Columns {
    colour: Colour,
    time: TimeForm,
    verdict: usize,
    source: usize,
    destination: usize,
}

impl Columns {
    /// Columns that grow with the lines written.
    pub fn new(colour: Colour, time: TimeForm) -> Self {
        Self { colour, time, verdict: 5, source: 0, destination: 0 }
    }

    /// Makes room for a record that is to be written later.
    pub fn fit(&mut self, record: &FlowRecord) {
        self.verdict = self.verdict.max(record.verdict.name().len());
        self.source = self.source.max(side_text(&record.source).chars().count());
        self.destination = self.destination.max(destination_text(record).chars().count());
    }

    /// One record as one line, without its end.
    pub fn line(&mut self, record: &FlowRecord) -> String {
        self.fit(record);
        let time = match self.time {
            TimeForm::TimeOfDay => record.time.time_of_day(),
            TimeForm::DateAndTime => record.time.date_and_time(),
        };
        let verdict = format!("{:<1$}", record.verdict.name().to_uppercase(), self.verdict);
        let allowed = if record.verdict == RecordVerdict::Deny { Allowed::No } else { Allowed::Yes };
        let verdict = self.colour.verdict(allowed, &verdict);
        let direction = direction_name(record.direction);
        let (source, destination) = (side_text(&record.source), destination_text(record));
        let (source_width, destination_width) = (self.source, self.destination);
        let decider = decision_text(&record.decision);
        let notes = notes(record);
        format!(
            "{time} {verdict} {direction:<7} {source:<source_width$} -> {destination:<destination_width$}  by {decider}{notes}"
        )
    }
}

/// Records as aligned lines; dates are shown if the records are of several days.
pub fn lines(records: &[FlowRecord], colour: Colour) -> Vec<String> {
    let day = |record: &FlowRecord| record.time.date_and_time()[..10].to_owned();
    let several_days = records.windows(2).any(|pair| day(&pair[0]) != day(&pair[1]));
    let mut columns = Columns::new(colour, if several_days { TimeForm::DateAndTime } else { TimeForm::TimeOfDay });
    records.iter().for_each(|record| columns.fit(record));
    records.iter().map(|record| columns.line(record)).collect()
}

/// Text that others wrote, such as a rule's name: line ends and whatever else controls a terminal are shown escaped.
pub fn plain(text: &str) -> String {
    let escaped = |letter: char| if letter.is_control() { letter.escape_default().to_string() } else { letter.into() };
    text.chars().map(escaped).collect()
}

/// Names who decided: the one way in which reeve does so in text.
pub fn decider_text(decision: &Decision) -> String {
    plain(&written_decider(decision))
}

fn written_decider(decision: &Decision) -> String {
    match &decision.decider {
        Decider::Rule(rule) => {
            let policy = policy_text(&rule.policy);
            let direction = direction_name(rule.direction);
            let name = rule.rule_name.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
            match rule.policy.kind {
                PolicyKind::NetworkPolicy | PolicyKind::StagedKubernetesNetworkPolicy => {
                    format!("{policy} {direction}[{}]{name}", rule.rule)
                }
                PolicyKind::GlobalNetworkPolicy
                | PolicyKind::CalicoNetworkPolicy
                | PolicyKind::ClusterNetworkPolicy
                | PolicyKind::StagedGlobalNetworkPolicy
                | PolicyKind::StagedNetworkPolicy => format!("{policy} {direction} rule {}{name}", rule.rule),
            }
        }
        Decider::Default(DefaultDecider::TierDefault) => {
            let tier = decision.path.last().map_or("default", |step| step.tier.as_str());
            let tier = if tier == "default" { String::new() } else { format!(" of tier {tier}") };
            if decision.isolating.is_empty() {
                return format!("tier default deny{tier}");
            }
            let isolating: Vec<String> = decision.isolating.iter().map(|policy| policy_text(policy)).collect();
            format!("tier default deny{tier} (isolated by {})", isolating.join(", "))
        }
        Decider::Default(default @ (DefaultDecider::UnreadablePolicy | DefaultDecider::RefusedPolicy)) => {
            let policy = decision.path.last().and_then(|step| step.policy.as_ref());
            let policy = policy.map(|policy| format!(" ({})", policy_text(policy))).unwrap_or_default();
            format!("{}{policy}", default_name(*default))
        }
        Decider::Default(default) => default_name(*default).to_owned(),
    }
}

/// Names who decided, for a decision out of a record.
pub fn decision_text(decision: &RecordedDecision) -> String {
    match decision {
        RecordedDecision::Known(decision) => decider_text(decision),
        RecordedDecision::Unknown { unknown, .. } => format!("decision {unknown}, which the dictionary does not know"),
    }
}

/// A policy as `Kind name` or `Kind namespace/name`.
pub fn policy_text(policy: &PolicyRef) -> String {
    let kind = kind_name(policy.kind);
    plain(&match &policy.namespace {
        Some(namespace) => format!("{kind} {namespace}/{}", policy.name),
        None => format!("{kind} {}", policy.name),
    })
}

/// One step of a decision's path.
pub fn step_text(step: &Step) -> String {
    let outcome = match step.outcome {
        Outcome::Allowed => "allowed",
        Outcome::Denied => "denied",
        Outcome::Passed => "passed on",
        Outcome::DefaultDenied => "no rule matched, default deny",
        Outcome::DefaultPassed => "no rule matched, default pass",
        Outcome::Logged => "logged",
    };
    let by = match (&step.policy, step.rule) {
        (Some(policy), Some(rule)) => format!(" by {} rule {rule}", policy_text(policy)),
        (Some(policy), None) => format!(" by {}", policy_text(policy)),
        (None, _) => String::new(),
    };
    format!("tier {}: {outcome}{by}", plain(&step.tier))
}

/// A kind of policy, as in records.
pub const fn kind_name(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::GlobalNetworkPolicy => "GlobalNetworkPolicy",
        PolicyKind::CalicoNetworkPolicy => "CalicoNetworkPolicy",
        PolicyKind::NetworkPolicy => "NetworkPolicy",
        PolicyKind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        PolicyKind::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
        PolicyKind::StagedNetworkPolicy => "StagedNetworkPolicy",
        PolicyKind::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
    }
}

/// A direction, as in records.
pub const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

const fn default_name(default: DefaultDecider) -> &'static str {
    match default {
        DefaultDecider::NoPolicySelects => "no policy selects",
        DefaultDecider::TierDefault => "tier default deny",
        DefaultDecider::UnreadablePolicy => "unreadable policy",
        DefaultDecider::RefusedPolicy => "refused policy",
        DefaultDecider::ContestedAddress => "contested address",
        DefaultDecider::OwnNode => "own node",
        DefaultDecider::Reply => "reply",
        DefaultDecider::RelatedIcmp => "related ICMP",
        DefaultDecider::NeighbourDiscovery => "neighbour discovery",
        DefaultDecider::EstablishedBefore => "established before enforcement",
        DefaultDecider::MalformedPacket => "malformed packet",
        DefaultDecider::SpoofedSource => "spoofed source",
        DefaultDecider::NotReady => "not ready",
        DefaultDecider::UnknownFragment => "unknown fragment",
        DefaultDecider::NotIp => "not IP",
        DefaultDecider::ForgedNeighbour => "forged neighbour",
        DefaultDecider::InconsistentState => "inconsistent state",
        DefaultDecider::AddressesIncomplete => "addresses incomplete",
        DefaultDecider::FlowTableFull => "flow table full",
        DefaultDecider::ToItself => "self",
        DefaultDecider::MarkLost => "mark lost",
    }
}

/// One end, without its port: `namespace/pod`, or the address and what it belongs to.
pub fn side_text(side: &Side) -> String {
    if let (Some(namespace), Some(pod)) = (&side.namespace, &side.pod) {
        return plain(&format!("{namespace}/{pod}"));
    }
    let workload = side.unknown.iter().find_map(|unknown| match unknown {
        UnknownNumber::Workload(number) => Some(format!("pod#{number}")),
        UnknownNumber::Identity(_) => None,
    });
    let address = side.ip.map(|ip| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
    let owner = match side.owner {
        Owner::Pod => "pod",
        Owner::Host => "host",
        Owner::Node => "node",
        Owner::Contested => "contested",
        Owner::Masqueraded => "masqueraded",
        Owner::Network => "network",
        Owner::World => "world",
        Owner::Various => "various",
        Owner::Unknown => "unknown",
    };
    match (workload, address) {
        (Some(workload), _) => workload,
        (None, Some(address)) if matches!(side.owner, Owner::World | Owner::Network) => address,
        (None, Some(address)) => format!("{owner}({address})"),
        (None, None) => owner.to_owned(),
    }
}

fn destination_text(record: &FlowRecord) -> String {
    let destination = side_text(&record.destination);
    let protocol = record.protocol.name().map_or_else(|| format!("protocol {}", record.protocol.0), str::to_owned);
    match (record.destination.port, record.icmp) {
        (Some(port), _) => format!("{destination}:{port}/{protocol}"),
        (None, Some(icmp)) => format!("{destination}:{}.{}/{protocol}", icmp.kind, icmp.code),
        (None, None) => format!("{destination}/{protocol}"),
    }
}

/// What else a reader should see, in brackets.
fn notes(record: &FlowRecord) -> String {
    let mut notes: Vec<String> = Vec::new();
    match record.event {
        EventKind::Opened | EventKind::Denied => {}
        EventKind::Rejudged if record.reason == Reason::FlowCut => notes.push("live flow cut".to_owned()),
        EventKind::Rejudged => notes.push("live flow judged again".to_owned()),
        EventKind::Closed => {
            notes.push(format!(
                "closed, {}+{} packets, {}+{} bytes",
                record.packets.forward, record.packets.back, record.bytes.forward, record.bytes.back
            ));
        }
        EventKind::Window => notes.push(format!(
            "{} connections, {}+{} bytes",
            record.connections.unwrap_or_default(),
            record.bytes.forward,
            record.bytes.back
        )),
    }
    if let Some(service) = &record.service {
        let port = service.port.map(|port| format!(":{port}")).unwrap_or_default();
        let address = service.address;
        notes.push(if address.is_ipv6() { format!("via [{address}]{port}") } else { format!("via {address}{port}") });
    }
    if let Some(previous) = &record.previous {
        notes.push(format!("before: {}", decision_text(previous)));
    }
    if let Some(staged) = &record.staged {
        notes.push(format!("staged: {} by {}", RecordVerdict::from(staged.verdict()).name(), decision_text(staged)));
    }
    for flag in &record.flags {
        notes.push(match flag {
            Flag::PickedUp => "picked up in the middle".to_owned(),
            Flag::BeganUnseen => "answers what no program has seen".to_owned(),
            Flag::RateLimited(more) => format!("{more} more since the last record"),
            Flag::Backfilled => "backfilled".to_owned(),
            Flag::Unproven => "unproven".to_owned(),
            Flag::MayRepeat => "may have been told before".to_owned(),
            Flag::Overflowed => "peers not told apart".to_owned(),
            Flag::Truncated => "path truncated".to_owned(),
            Flag::StaleIdentity => "stale identity".to_owned(),
            Flag::MayBeMasqueraded => "the node may stand for somebody else".to_owned(),
        });
    }
    if notes.is_empty() { String::new() } else { format!(" [{}]", notes.join("; ")) }
}

#[cfg(test)]
mod tests;
