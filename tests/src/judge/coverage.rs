//! What a run of the judges has reached: which kind of rule, default and way was the one that decided, and how often.
//!
//! Invariant: every name that can be counted stands in [`ROWS`], with how often it must come; what a judged flow shows
//! and is not listed there fails the run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use reeve_policy::model::{
    Action, Decider, Decision, Direction, NamespaceMatch, Outcome, Peer, Peers, Policy, PolicyRef, PortMatch, Rule,
    Rules, Selector, ServiceAccountMatch, Tiers, TrafficMatch, WorkloadSelector, World,
};
use reeve_policy::oracle::{self, Alternatives, Owner};

use super::Case;
use crate::nat::{self, Way};

/// Fewer than so many expected flows are a sample too small to ask for any.
const ENOUGH: u64 = 20;

/// Group, name, and of how many judged flows one must show it.
const ROWS: &[(&str, &str, u64)] = &[
    ("way", "by Service to a pod here", 100),
    ("way", "by Service to a pod of another node", 2_000),
    ("way", "by Service to a pod of another node, masqueraded", 2_000),
    ("way", "by Service to a process here", 1_000),
    ("way", "by Service to another machine", 200),
    ("way", "by Service to another machine, masqueraded", 200),
    ("way", "by Service to itself, masqueraded", 200),
    ("way", "by hostPort to a pod here", 100),
    ("way", "by hostPort to itself, masqueraded", 200),
    ("way", "by node port to a pod here", 100),
    ("way", "by node port to a pod of another node", 2_000),
    ("way", "by node port to a pod of another node, masqueraded", 2_000),
    ("way", "by node port to a process here", 1_000),
    ("way", "by node port to another machine", 200),
    ("way", "by node port to another machine, masqueraded", 200),
    ("way", "by node port to itself, masqueraded", 200),
    ("way", "from a pod here", 10),
    ("way", "from a pod of another node", 50),
    ("way", "from a process here", 200),
    ("way", "from an address that several claim", 1_000),
    ("way", "from another machine", 50),
    ("way", "from another node", 100),
    ("way", "from behind this node's address", 100),
    ("way", "from outside by Service to a pod here", 1_000),
    ("way", "from outside by Service to a pod here, masqueraded", 1_000),
    ("way", "from outside by hostPort to a pod here", 200),
    ("way", "from outside by node port to a pod here", 1_000),
    ("way", "from outside by node port to a pod here, masqueraded", 1_000),
    ("way", "to a pod here", 10),
    ("way", "to a pod of another node", 50),
    ("way", "to a process here", 100),
    ("way", "to an address that several claim", 1_000),
    ("way", "to another machine", 50),
    ("way", "to another node", 200),
    ("direction", "egress ipv4", 10),
    ("direction", "egress ipv6", 20),
    ("direction", "ingress ipv4", 10),
    ("direction", "ingress ipv6", 20),
    ("protocol", "ICMP", 20),
    ("protocol", "ICMPv6", 50),
    ("protocol", "SCTP", 200),
    ("protocol", "TCP", 5),
    ("protocol", "UDP", 10),
    ("protocol", "another", 50),
    ("decided by", "CalicoNetworkPolicy Allow", 50),
    ("decided by", "CalicoNetworkPolicy Deny", 50),
    ("decided by", "ClusterNetworkPolicy Allow", 100),
    ("decided by", "ClusterNetworkPolicy Deny", 50),
    ("decided by", "ContestedAddress", 200),
    ("decided by", "GlobalNetworkPolicy Allow", 50),
    ("decided by", "GlobalNetworkPolicy Deny", 50),
    ("decided by", "NetworkPolicy Allow", 50),
    ("decided by", "NoPolicySelects", 20),
    ("decided by", "OwnNode", 200),
    ("decided by", "RefusedPolicy", 1_000),
    ("decided by", "TierDefault", 10),
    ("decided by", "ToItself", 100),
    ("decided by", "UnreadablePolicy", 100),
    ("on the path", "CalicoNetworkPolicy Log", 200),
    ("on the path", "CalicoNetworkPolicy Pass", 50),
    ("on the path", "ClusterNetworkPolicy Pass", 100),
    ("on the path", "GlobalNetworkPolicy Log", 100),
    ("on the path", "GlobalNetworkPolicy Pass", 50),
    ("on the path", "tier passes on", 10),
    ("tier", "admin", 50),
    ("tier", "baseline", 50),
    ("tier", "default", 20),
    ("tier", "one of the cluster's own", 10),
    ("subject", "every namespace", 10),
    ("subject", "every pod", 10),
    ("subject", "its namespace", 10),
    ("subject", "namespaces by labels", 50),
    ("subject", "pods by labels", 10),
    ("subject", "pods by service account", 1_000),
    ("peer", "all but a network", 5_000),
    ("peer", "all but a network set", 1_000),
    ("peer", "all but pods by labels, a pod", 2_000),
    ("peer", "all but pods by labels, no pod", 2_000),
    ("peer", "anyone", 10),
    ("peer", "backends of a Service, from", 1_000),
    ("peer", "backends of a Service, to", 1_000),
    ("peer", "network", 100),
    ("peer", "network set", 200),
    ("peer", "network with exceptions", 50),
    ("peer", "nodes by labels", 1_000),
    ("peer", "of one IP version", 100),
    ("peer", "pods by labels", 50),
    ("peer", "pods by service account's labels", 1_000),
    ("peer", "pods by service account's name", 200),
    ("peer", "pods of every namespace", 50),
    ("peer", "pods of namespaces by labels", 50),
    ("peer", "pods of one namespace", 1_000),
    ("peer", "pods within a network", 2_000),
    ("peer", "with a condition on the pod itself", 100),
    ("traffic", "ICMP type", 200),
    ("traffic", "ICMP type and code", 2_000),
    ("traffic", "all", 10),
    ("traffic", "all but a protocol", 100),
    ("traffic", "all but an ICMP type", 5_000),
    ("traffic", "all but named ports", 5_000),
    ("traffic", "all but ports", 1_000),
    ("traffic", "named port", 50),
    ("traffic", "one port", 200),
    ("traffic", "protocol by name", 100),
    ("traffic", "protocol by number", 1_000),
    ("traffic", "range of ports", 50),
    ("staged policy would decide", "CalicoNetworkPolicy Allow", 5_000),
    ("staged policy would decide", "CalicoNetworkPolicy Deny", 5_000),
    ("staged policy would decide", "ClusterNetworkPolicy Allow", 5_000),
    ("staged policy would decide", "ClusterNetworkPolicy Deny", 5_000),
    ("staged policy would decide", "ContestedAddress", 10_000),
    ("staged policy would decide", "GlobalNetworkPolicy Allow", 5_000),
    ("staged policy would decide", "GlobalNetworkPolicy Deny", 5_000),
    ("staged policy would decide", "NetworkPolicy Allow", 5_000),
    ("staged policy would decide", "NoPolicySelects", 1_000),
    ("staged policy would decide", "StagedGlobalNetworkPolicy Allow", 5_000),
    ("staged policy would decide", "StagedGlobalNetworkPolicy Deny", 5_000),
    ("staged policy would decide", "StagedKubernetesNetworkPolicy Allow", 5_000),
    ("staged policy would decide", "StagedNetworkPolicy Allow", 5_000),
    ("staged policy would decide", "StagedNetworkPolicy Deny", 10_000),
    ("staged policy would decide", "TierDefault", 500),
    ("staged policy would decide", "ToItself", 5_000),
    ("staged policy would decide", "UnreadablePolicy", 5_000),
];

/// Counts of one run.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    judged: u64,
    counts: BTreeMap<(&'static str, String), u64>,
}

impl Coverage {
    /// Counts one case that all judges decided alike; `preview` is what staged policies would decide.
    pub fn add(&mut self, world: &World, case: &Case, decision: &Decision, preview: Option<&Decision>) {
        self.judged += 1;
        self.count("way", way(world, case));
        let family = if case.flow.source.is_ipv4() { "IPv4" } else { "IPv6" };
        self.count("direction", format!("{:?} {family}", case.direction).to_lowercase());
        self.count("protocol", protocol(case.flow.protocol));
        self.count("decided by", decider(decision));
        if let Some(preview) = preview {
            self.count("staged policy would decide", decider(preview));
        }
        for step in &decision.path {
            let kind = step.policy.as_ref().map(|policy| format!("{:?}", policy.kind));
            match (step.outcome, kind) {
                (Outcome::Passed, Some(kind)) => self.count("on the path", format!("{kind} Pass")),
                (Outcome::Logged, Some(kind)) => self.count("on the path", format!("{kind} Log")),
                (Outcome::DefaultPassed, _) => self.count("on the path", "tier passes on".to_owned()),
                _ => {}
            }
        }
        let steps = decision.path.iter().filter_map(|step| Some((step.policy.as_deref()?, step.rule?, step)));
        // A Pass decides of its tier as an Allow does; a Log decides of nothing.
        for (policy, index, step) in steps.filter(|(_, _, step)| step.outcome != Outcome::Logged) {
            self.count("tier", tier(&step.tier).to_owned());
            let Some((policy, rule, by)) = matching(world, &world.tiers, policy, index, case) else { continue };
            for name in subjects(&policy.subject) {
                self.count("subject", name.to_owned());
            }
            for name in peers(world, case, rule, by) {
                self.count("peer", name.to_owned());
            }
            for name in traffic(rule, by) {
                self.count("traffic", name.to_owned());
            }
        }
    }

    /// Takes in what another run has reached.
    pub fn merge(&mut self, other: Self) {
        self.judged += other.judged;
        for (row, count) in other.counts {
            *self.counts.entry(row).or_default() += count;
        }
    }

    /// How many flows were judged.
    pub fn judged(&self) -> u64 {
        self.judged
    }

    /// A line for each thing that can be reached.
    pub fn table(&self) -> String {
        let mut text = format!("{} flows judged; what decided how often, and how often it must\n", self.judged);
        for (group, name, one_in) in ROWS {
            let (count, wanted) = (self.of(group, name), self.wanted(*one_in));
            let wanted = wanted.map_or_else(String::new, |wanted| wanted.to_string());
            writeln!(text, "  {group:<28}{name:<44}{count:>9}{wanted:>9}").expect("text grows");
        }
        text
    }

    /// What was not reached often enough for a run of this size, and what is not listed; empty if all is well.
    pub fn missing(&self) -> Vec<String> {
        let rare = ROWS.iter().filter_map(|(group, name, one_in)| {
            let (count, wanted) = (self.of(group, name), self.wanted(*one_in)?);
            (count < wanted).then(|| format!("{group}: {name} decided {count} flows, {wanted} are wanted"))
        });
        let listed = |group: &str, name: &str| ROWS.iter().any(|row| (row.0, row.1) == (group, name));
        let unlisted = self.counts.iter().filter(|((group, name), _)| !listed(group, name));
        let unlisted =
            unlisted.map(|((group, name), count)| format!("{group}: {name} is no row of the table ({count})"));
        rare.chain(unlisted).collect()
    }

    fn count(&mut self, group: &'static str, name: String) {
        *self.counts.entry((group, name)).or_default() += 1;
    }

    fn of(&self, group: &'static str, name: &str) -> u64 {
        self.counts.get(&(group, name.to_owned())).copied().unwrap_or_default()
    }

    /// How often something must come in a run of this size; `None`: the run is too small to say.
    fn wanted(&self, one_in: u64) -> Option<u64> {
        Some(self.judged / one_in).filter(|wanted| *wanted >= ENOUGH)
    }
}

fn decider(decision: &Decision) -> String {
    match &decision.decider {
        Decider::Rule(rule) => format!("{:?} {:?}", rule.policy.kind, decision.verdict),
        Decider::Default(default) => format!("{default:?}"),
    }
}

fn protocol(number: u8) -> String {
    let name = match number {
        1 => "ICMP",
        6 => "TCP",
        17 => "UDP",
        58 => "ICMPv6",
        132 => "SCTP",
        _ => "another",
    };
    name.to_owned()
}

fn tier(name: &str) -> &str {
    if ["admin", "default", "baseline"].contains(&name) { name } else { "one of the cluster's own" }
}

/// How the flow comes to whom.
fn way(world: &World, case: &Case) -> String {
    if let Some(chain) = case.way.chain(world, &case.flow) {
        return chain;
    }
    let peer = case.peer();
    let other = match oracle::owner(world, peer) {
        Owner::Workload(_) if nat::here(world, peer) => "a pod here",
        Owner::Workload(_) => "a pod of another node",
        Owner::Contested => "an address that several claim",
        Owner::ThisNode if case.way == Way::OwnProcess || case.direction == Direction::Egress => "a process here",
        Owner::ThisNode => "behind this node's address",
        Owner::Node(_) => "another node",
        Owner::None => "another machine",
    };
    format!("{} {other}", if case.direction == Direction::Ingress { "from" } else { "to" })
}

/// A policy as it was written, and which rule of this index decided about the flow by which of its alternatives.
fn matching<'a>(
    world: &World,
    tiers: &'a Tiers,
    reference: &PolicyRef,
    index: u32,
    case: &Case,
) -> Option<(&'a Policy, &'a Rule, Alternatives)> {
    let policy = tiers.iter().flat_map(|(_, policies)| policies).find(|policy| *policy.reference == *reference)?;
    let policy = policy.written.as_ref().unwrap_or(policy);
    let Rules::List(list) = policy.rules(case.direction) else { return None };
    let query = case.query();
    list.iter()
        .filter(|rule| rule.index == index && rule.action != Action::Log)
        .find_map(|rule| Some((&**policy, rule, oracle::alternatives(world, rule, &query)?)))
}

fn subjects(selector: &WorkloadSelector) -> Vec<&'static str> {
    let mut names = Vec::new();
    names.push(match selector.namespace {
        NamespaceMatch::Any => "every namespace",
        NamespaceMatch::Named(_) => "its namespace",
        NamespaceMatch::Labels(_) => "namespaces by labels",
    });
    names.push(if selector.pod == Selector::Everything { "every pod" } else { "pods by labels" });
    if selector.service_account != ServiceAccountMatch::Any {
        names.push("pods by service account");
    }
    names
}

fn peers(world: &World, case: &Case, rule: &Rule, by: Alternatives) -> Vec<&'static str> {
    let mut names = Vec::new();
    if rule.own != Peers::Anyone {
        names.push("with a condition on the pod itself");
    }
    if rule.family.is_some() {
        names.push("of one IP version");
    }
    match (&rule.peer, by.peer) {
        (Peers::Anyone, _) => names.push("anyone"),
        (Peers::BackendsOf(_), _) if case.direction == Direction::Ingress => names.push("backends of a Service, from"),
        (Peers::BackendsOf(_), _) => names.push("backends of a Service, to"),
        (Peers::OneOf(list), Some(at)) => {
            names.extend(one_peer(&list[at], matches!(oracle::owner(world, case.peer()), Owner::Workload(_))));
        }
        (Peers::OneOf(_) | Peers::Nobody, _) => {}
    }
    names
}

/// What an alternative says of the other side, which is a pod or not.
fn one_peer(peer: &Peer, is_pod: bool) -> Vec<&'static str> {
    let mut names = Vec::new();
    if let (Some(pods), true) = (&peer.workload, is_pod) {
        names.push(match pods.namespace {
            NamespaceMatch::Any => "pods of every namespace",
            NamespaceMatch::Named(_) => "pods of one namespace",
            NamespaceMatch::Labels(_) => "pods of namespaces by labels",
        });
        if pods.pod != Selector::Everything {
            names.push("pods by labels");
        }
        if let ServiceAccountMatch::Selected { names: accounts, labels } = &pods.service_account {
            if accounts.is_some() {
                names.push("pods by service account's name");
            }
            if *labels != Selector::Everything {
                names.push("pods by service account's labels");
            }
        }
        if peer.nets.is_some() {
            names.push("pods within a network");
        }
    }
    if peer.sets.is_some() && !is_pod {
        names.push("network set");
    }
    if peer.nodes.is_some() {
        names.push("nodes by labels");
    }
    if peer.nets.is_some() && peer.workload.is_none() {
        names.push(if peer.not_nets.is_empty() { "network" } else { "network with exceptions" });
    }
    if peer.nets.is_none() && !peer.not_nets.is_empty() {
        names.push("all but a network");
    }
    if !peer.not_workloads.is_empty() {
        names.push(if is_pod { "all but pods by labels, a pod" } else { "all but pods by labels, no pod" });
    }
    if !peer.not_sets.is_empty() {
        names.push("all but a network set");
    }
    names
}

fn traffic(rule: &Rule, by: Alternatives) -> Vec<&'static str> {
    let mut names = Vec::new();
    match (&rule.traffic.any_of, by.traffic) {
        (None, _) => names.push("all"),
        (Some(list), Some(at)) => names.push(match (&list[at].ports, list[at].protocol) {
            (PortMatch::Any, Some(1 | 6 | 17 | 58 | 132)) => "protocol by name",
            (PortMatch::Any, Some(_)) => "protocol by number",
            (PortMatch::Any, None) => "every protocol",
            (PortMatch::Range(first, last), _) if first == last => "one port",
            (PortMatch::Range(..), _) => "range of ports",
            (PortMatch::Named(_), _) => "named port",
            (PortMatch::Icmp(_, None), _) => "ICMP type",
            (PortMatch::Icmp(_, Some(_)), _) => "ICMP type and code",
        }),
        (Some(_), None) => {}
    }
    let excluded = |one: &TrafficMatch| match one.ports {
        PortMatch::Any => "all but a protocol",
        PortMatch::Range(..) => "all but ports",
        PortMatch::Named(_) => "all but named ports",
        PortMatch::Icmp(..) => "all but an ICMP type",
    };
    let mut excluded: Vec<_> = rule.traffic.none_of.iter().map(excluded).collect();
    excluded.dedup();
    names.extend(excluded);
    names
}
