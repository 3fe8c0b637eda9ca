//! Which records a person asked for.

use crate::record::{FlowRecord, RecordVerdict, Side};
use crate::time::Timestamp;
use reeve_policy::model::{Decider, DefaultDecider, Direction, PolicyRef};

/// Conditions that all must hold; one that is absent holds for every record.
///
/// Namespace, pod and labels speak of one end, whichever it is: the same end must meet all three.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// What became of the packets.
    pub verdict: Option<RecordVerdict>,
    /// The policy that decided (a closed one too), or one of those that isolate for a default deny: `name`, `namespace/name`,
    /// `Kind/name` or `Kind/namespace/name`.
    pub policy: Option<String>,
    /// An end's namespace.
    pub namespace: Option<String>,
    /// An end's pod, `name` or `namespace/name`.
    pub pod: Option<String>,
    /// An end's labels, as key and value. Records have those that some policy reads.
    pub labels: Vec<(String, String)>,
    /// Destination port.
    pub port: Option<u16>,
    /// The node that enforced.
    pub node: Option<String>,
    /// Direction.
    pub direction: Option<Direction>,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
}

impl Filter {
    /// Whether the record meets all conditions.
    pub fn matches(&self, record: &FlowRecord) -> bool {
        self.verdict.is_none_or(|verdict| record.verdict == verdict)
            && self.policy.as_ref().is_none_or(|policy| decided_by(record, policy))
            && self.port.is_none_or(|port| record.destination.port == Some(port))
            && self.node.as_ref().is_none_or(|node| record.node == *node)
            && self.direction.is_none_or(|direction| record.direction == direction)
            && self.from.is_none_or(|from| record.time >= from)
            && self.to.is_none_or(|to| record.time < to)
            && (self.end_matches(&record.source) || self.end_matches(&record.destination))
    }

    fn end_matches(&self, side: &Side) -> bool {
        let text = |have: &Option<String>, want: &str| have.as_deref() == Some(want);
        self.namespace.as_ref().is_none_or(|namespace| text(&side.namespace, namespace))
            && self.pod.as_ref().is_none_or(|pod| match pod.split_once('/') {
                Some((namespace, name)) => text(&side.namespace, namespace) && text(&side.pod, name),
                None => text(&side.pod, pod),
            })
            && self.labels.iter().all(|(key, value)| side.labels.get(key) == Some(value))
    }
}

fn decided_by(record: &FlowRecord, wanted: &str) -> bool {
    let Some(decision) = record.decision.known() else { return false };
    let decided = match &decision.decider {
        Decider::Rule(rule) => Some(&rule.policy),
        // The last step is the closed policy's.
        Decider::Default(DefaultDecider::UnreadablePolicy | DefaultDecider::RefusedPolicy) => {
            decision.path.last().and_then(|step| step.policy.as_ref())
        }
        Decider::Default(_) => None,
    };
    decided.into_iter().chain(&decision.isolating).any(|policy| is_named(policy, wanted))
}

fn is_named(policy: &PolicyRef, wanted: &str) -> bool {
    let kind = crate::text::kind_name(policy.kind);
    let name = &policy.name;
    match &policy.namespace {
        Some(namespace) => [
            name.clone(),
            format!("{namespace}/{name}"),
            format!("{kind}/{name}"),
            format!("{kind}/{namespace}/{name}"),
        ]
        .iter()
        .any(|form| form == wanted),
        None => [name.clone(), format!("{kind}/{name}")].iter().any(|form| form == wanted),
    }
}

#[cfg(test)]
mod tests;
