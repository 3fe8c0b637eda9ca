//! The conditions of `reeve flows`, as typed.

use clap::ValueEnum;
use reeve_flow::filter::Filter;
use reeve_flow::record::RecordVerdict;
use reeve_flow::time::Timestamp;
use reeve_policy::model::Direction;

/// All conditions must hold; without any, every record is shown.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filter")]
pub(super) struct FilterArgs {
    /// What became of the packets
    #[arg(long, value_enum)]
    verdict: Option<VerdictArg>,
    /// The policy that decided, or isolates: name, namespace/name, Kind/name or Kind/namespace/name, with the kinds of
    /// records (Calico's own is CalicoNetworkPolicy)
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// A label of either end that some policy reads (records have no others), repeatable; the same end must have all, and
    /// the namespace and pod asked for
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// The namespace of either end
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The pod of either end: name or namespace/name
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// The destination port
    #[arg(long, value_name = "NUMBER")]
    port: Option<u16>,
    /// The node that enforced
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// As the pod that was judged for sees it
    #[arg(long, value_enum)]
    direction: Option<DirectionArg>,
    /// Not before this time, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
}

/// The verdicts by the names that records have.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum VerdictArg {
    /// Let through.
    Allow,
    /// Dropped.
    Deny,
    /// Let through, though the decision is a deny: it is only watched.
    AuditDeny,
    /// Let through for a while, as the flow was established.
    EstablishedGrace,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DirectionArg {
    /// Towards the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl FilterArgs {
    /// The filter.
    pub(super) fn filter(&self) -> Filter {
        Filter {
            verdict: self.verdict.map(|verdict| match verdict {
                VerdictArg::Allow => RecordVerdict::Allow,
                VerdictArg::Deny => RecordVerdict::Deny,
                VerdictArg::AuditDeny => RecordVerdict::AuditDeny,
                VerdictArg::EstablishedGrace => RecordVerdict::EstablishedGrace,
            }),
            policy: self.policy.clone(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            labels: self.labels.clone(),
            port: self.port,
            node: self.node.clone(),
            direction: self.direction.map(|direction| match direction {
                DirectionArg::Ingress => Direction::Ingress,
                DirectionArg::Egress => Direction::Egress,
            }),
            from: self.from,
            to: self.to,
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written KEY=VALUE".to_owned()),
    }
}
