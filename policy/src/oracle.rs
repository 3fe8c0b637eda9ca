//! Slow, obvious evaluator straight from the model: judge in tests, engine of `explain`.
//!
//! It is written in the order of the sentences that define the evaluation (docs/policy.md, "The model").
//! Invariant: it shares no code with the compiler.

mod matching;

use crate::model::{
    Action, Decider, Decision, DefaultDecider, Direction, Family, Outcome, Policy, PolicyRef, Rule, RuleRef,
};
use crate::model::{Rules, Step, Tier, TierDefault, Verdict, Workload, World};
use std::net::IpAddr;
use std::sync::Arc;

/// One new flow, as its subject sees it.
#[derive(Clone, Debug)]
pub struct Query {
    /// The workload whose policies are asked.
    pub subject: Arc<Workload>,
    /// Direction.
    pub direction: Direction,
    /// The subject's address.
    pub own: IpAddr,
    /// The other side's address.
    pub peer: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port in host order; ICMP: type << 8 | code; other protocols: 0.
    pub port: u16,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod's.
    Workload(Arc<Workload>),
    /// Several claim it with the same right, so it is nobody's.
    Contested,
    /// This node's.
    ThisNode,
    /// Another node's.
    Node(String),
    /// Nobody's that is known.
    None,
}

/// What becomes of a flow, and who says so at each end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The sending pod and its decision; `None`: the source is no pod.
    pub egress: Option<(Arc<Workload>, Decision)>,
    /// The receiving pod and its decision; `None`: the destination is no pod.
    pub ingress: Option<(Arc<Workload>, Decision)>,
    /// Allowed only if both ends allow it.
    pub verdict: Verdict,
}

/// Whose an address is. Pods that have ended or use the node's network own none; where pods that stay and pods that go
/// claim the same address, those that stay have it; a claim that is not alone is contested, a node's included.
pub fn owner(world: &World, address: IpAddr) -> Owner {
    let address = address.to_canonical();
    let claims =
        |workload: &&Arc<Workload>| !workload.ended && !workload.host_network && workload.addresses.contains(&address);
    let pods: Vec<_> = world.workloads.values().filter(claims).collect();
    let staying: Vec<_> = pods.iter().copied().filter(|workload| !workload.terminating).collect();
    let pods = if staying.is_empty() { pods } else { staying };
    let here = world.local_addresses.contains(&address)
        || world.nodes.get(&world.node).is_some_and(|node| node.addresses.contains(&address));
    let node = world.nodes.values().find(|node| node.addresses.contains(&address));
    match (pods.as_slice(), here, node) {
        ([], true, _) => Owner::ThisNode,
        ([], false, Some(node)) => Owner::Node(node.name.clone()),
        ([], false, None) => Owner::None,
        ([only], false, None) => Owner::Workload(Arc::clone(only)),
        _ => Owner::Contested,
    }
}

/// What the policies say of one flow in one direction. Where a flow was made by a process of the pod's own node, no
/// policy is asked; that cannot be told from addresses, so only [`explain`] speaks of it.
pub fn judge(world: &World, query: &Query) -> Decision {
    let mut path = Vec::new();
    let taking_part: Vec<(&Tier, Vec<&Arc<Policy>>)> =
        world.tiers.iter().map(|(tier, policies)| (tier, selecting(world, policies, query))).collect();

    // An address that several claim is nobody's: closed for whoever is selected at all.
    let selected = taking_part.iter().any(|(_, policies)| !policies.is_empty());
    if selected && owner(world, query.peer) == Owner::Contested {
        return by_default(Verdict::Deny, DefaultDecider::ContestedAddress, path);
    }

    // 1. Tiers in order; those of which no policy selects the subject in this direction are not crossed.
    for (tier, policies) in taking_part {
        if policies.is_empty() {
            continue;
        }
        // 2. Their rules in order; the first Allow, Deny or Pass that matches ends the tier.
        match first_end(world, query, tier, &policies, &mut path) {
            Some((at, End::Decides(verdict, decider))) => {
                let also = also(world, query, &policies[at + 1..], verdict);
                return Decision { verdict, decider, path, isolating: Vec::new(), also };
            }
            Some((_, End::Passes)) => {}
            // 3. No rule matched: the tier's default.
            None => match tier.default {
                TierDefault::Deny => {
                    path.push(Step {
                        tier: tier.name.clone(),
                        outcome: Outcome::DefaultDenied,
                        policy: None,
                        rule: None,
                    });
                    let isolating = policies.iter().map(|policy| Arc::clone(&policy.reference)).collect();
                    let decision = by_default(Verdict::Deny, DefaultDecider::TierDefault, path);
                    return Decision { isolating, ..decision };
                }
                TierDefault::Pass => {
                    path.push(Step {
                        tier: tier.name.clone(),
                        outcome: Outcome::DefaultPassed,
                        policy: None,
                        rule: None,
                    });
                }
            },
        }
    }
    // 4. After the last tier: allow.
    by_default(Verdict::Allow, DefaultDecider::NoPolicySelects, path)
}

/// Would `source` reach `destination`, and who says so. `port` as in [`Query`]. What this node's address sends to a pod
/// of this node is taken to be made by a process of the node.
pub fn explain(world: &World, source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> Explanation {
    let (from, to) = (owner(world, source), owner(world, destination));
    let query = |subject: &Arc<Workload>, direction, own, peer| Query {
        subject: Arc::clone(subject),
        direction,
        own,
        peer,
        protocol,
        port,
    };
    let egress = match &from {
        Owner::Workload(subject) => {
            Some((Arc::clone(subject), judge(world, &query(subject, Direction::Egress, source, destination))))
        }
        Owner::Contested => claimant(world, source).map(contested),
        _ => None,
    };
    let ingress = match &to {
        Owner::Workload(subject) if from_own_node(world, subject, &from) => {
            Some((Arc::clone(subject), by_default(Verdict::Allow, DefaultDecider::OwnNode, Vec::new())))
        }
        Owner::Workload(subject) => {
            Some((Arc::clone(subject), judge(world, &query(subject, Direction::Ingress, destination, source))))
        }
        Owner::Contested => claimant(world, destination).map(contested),
        _ => None,
    };
    let denied = [&egress, &ingress].into_iter().flatten().any(|(_, decision)| decision.verdict == Verdict::Deny);
    Explanation { egress, ingress, verdict: if denied { Verdict::Deny } else { Verdict::Allow } }
}

/// The first of the pods that claim an address.
fn claimant(world: &World, address: IpAddr) -> Option<Arc<Workload>> {
    let address = address.to_canonical();
    let claims = |pod: &&Arc<Workload>| !pod.ended && !pod.host_network && pod.addresses.contains(&address);
    world.workloads.values().find(claims).map(Arc::clone)
}

/// What becomes of a pod whose address others claim too: it neither sends nor receives by it.
fn contested(pod: Arc<Workload>) -> (Arc<Workload>, Decision) {
    (pod, by_default(Verdict::Deny, DefaultDecider::ContestedAddress, Vec::new()))
}

fn from_own_node(world: &World, subject: &Workload, from: &Owner) -> bool {
    match from {
        Owner::ThisNode => subject.node == world.node,
        Owner::Node(name) => subject.node == *name,
        _ => false,
    }
}

fn by_default(verdict: Verdict, default: DefaultDecider, path: Vec<Step>) -> Decision {
    Decision { verdict, decider: Decider::Default(default), path, isolating: Vec::new(), also: Vec::new() }
}

/// The policies that select a workload in a direction, in evaluation order.
pub fn policies_of(world: &World, subject: &Workload, direction: Direction) -> Vec<Arc<PolicyRef>> {
    let all = world.tiers.iter().flat_map(|(_, policies)| policies);
    all.filter(|policy| *rules(policy, direction) != Rules::NotApplied)
        .filter(|policy| matching::workload(world, &policy.subject, subject))
        .map(|policy| Arc::clone(&policy.reference))
        .collect()
}

/// The policies of a tier that select the subject for this direction.
fn selecting<'a>(world: &World, policies: &'a [Arc<Policy>], query: &Query) -> Vec<&'a Arc<Policy>> {
    let applies = |policy: &&Arc<Policy>| *rules(policy, query.direction) != Rules::NotApplied;
    let selects = |policy: &&Arc<Policy>| matching::workload(world, &policy.subject, &query.subject);
    policies.iter().filter(applies).filter(selects).collect()
}

fn rules(policy: &Policy, direction: Direction) -> &Rules {
    match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    }
}

/// How a rule ends a tier.
enum End {
    Decides(Verdict, Decider),
    Passes,
}

/// The first of these policies whose rules end the tier, and how; what happened on the way is put on the path.
fn first_end(
    world: &World,
    query: &Query,
    tier: &Tier,
    policies: &[&Arc<Policy>],
    path: &mut Vec<Step>,
) -> Option<(usize, End)> {
    for (at, policy) in policies.iter().enumerate() {
        let step = |outcome, rule| Step {
            tier: tier.name.clone(),
            outcome,
            policy: Some(Arc::clone(&policy.reference)),
            rule,
        };
        let list = match rules(policy, query.direction) {
            Rules::NotApplied => continue,
            Rules::Closed(default) => {
                path.push(step(Outcome::Denied, None));
                return Some((at, End::Decides(Verdict::Deny, Decider::Default(*default))));
            }
            Rules::List(list) => list,
        };
        for (index, rule) in (0_u32..).zip(list) {
            if !rule_matches(world, rule, query) {
                continue;
            }
            let decider = || {
                Decider::Rule(RuleRef {
                    policy: Arc::clone(&policy.reference),
                    tier: tier.name.clone(),
                    direction: query.direction,
                    rule: index,
                    rule_name: rule.name.clone(),
                })
            };
            let (outcome, end) = match rule.action {
                Action::Log => (Outcome::Logged, None),
                Action::Allow => (Outcome::Allowed, Some(End::Decides(Verdict::Allow, decider()))),
                Action::Deny => (Outcome::Denied, Some(End::Decides(Verdict::Deny, decider()))),
                Action::DenyUnreadable => {
                    let decider = Decider::Default(DefaultDecider::UnreadablePolicy);
                    (Outcome::Denied, Some(End::Decides(Verdict::Deny, decider)))
                }
                Action::Pass => (Outcome::Passed, Some(End::Passes)),
            };
            path.push(step(outcome, Some(index)));
            if let Some(end) = end {
                return Some((at, end));
            }
        }
    }
    None
}

/// Which of the policies after the decider's would have decided the same way next. What is closed or unreadable counts
/// as a deny.
fn also(world: &World, query: &Query, later: &[&Arc<Policy>], verdict: Verdict) -> Vec<Arc<PolicyRef>> {
    let mut also = Vec::new();
    for policy in later {
        let decides = match rules(policy, query.direction) {
            Rules::NotApplied => continue,
            Rules::Closed(_) => Action::Deny,
            Rules::List(list) => {
                let first = list.iter().find(|rule| rule.action != Action::Log && rule_matches(world, rule, query));
                let Some(rule) = first else { continue };
                rule.action
            }
        };
        let same = match decides {
            Action::Allow => verdict == Verdict::Allow,
            Action::Deny | Action::DenyUnreadable => verdict == Verdict::Deny,
            Action::Pass | Action::Log => false,
        };
        if !same {
            break;
        }
        also.push(Arc::clone(&policy.reference));
    }
    also
}

/// A rule matches if everything that it says holds.
fn rule_matches(world: &World, rule: &Rule, query: &Query) -> bool {
    let family = if query.peer.to_canonical().is_ipv4() { Family::V4 } else { Family::V6 };
    let destination = match query.direction {
        Direction::Ingress => Owner::Workload(Arc::clone(&query.subject)),
        Direction::Egress => owner(world, query.peer),
    };
    rule.family.is_none_or(|only| only == family)
        && matching::peers(world, &rule.peer, &owner(world, query.peer), query.peer)
        && matching::peers(world, &rule.own, &Owner::Workload(Arc::clone(&query.subject)), query.own)
        && matching::traffic(&rule.traffic, query.protocol, query.port, &destination)
}
