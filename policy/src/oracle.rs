//! Slow, obvious evaluator straight from the model: judge in tests, engine of `explain`.
//!
//! It is written in the order of the sentences that define the evaluation (docs/policy.md, "The model").
//! Invariant: it shares no code with the compiler.

mod matching;

use crate::model::{
    Action, Decider, Decision, DefaultDecider, Direction, Family, Outcome, Peers, Policy, PolicyKind, PolicyRef, Rule,
    RuleRef,
};
use crate::model::{Rules, Step, Tier, TierDefault, Tiers, TrafficMatch, Verdict, Workload, World};
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
    /// What the staged policies would change at each end.
    pub staged: Previews,
}

/// What would be decided at each end if every staged policy were applied; `None`: the same policies would be asked, or
/// none is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previews {
    /// At the source.
    pub egress: Option<Decision>,
    /// At the destination.
    pub ingress: Option<Decision>,
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
        || world.nodes.get(&world.node).is_some_and(|node| node.own_addresses().any(|own| own == address));
    let node = world.nodes.values().find(|node| node.own_addresses().any(|own| own == address));
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
    judge_by(world, &world.tiers, query)
}

/// What the policies would say if every staged one were applied; `None` if the same policies would be asked.
pub fn preview(world: &World, query: &Query) -> Option<Decision> {
    let staged = world.staged.as_ref()?;
    let asked = |tiers: &Tiers| -> Vec<(String, Vec<Arc<Policy>>)> {
        let of_tier = |(tier, policies): &(Tier, Vec<Arc<Policy>>)| {
            (tier.name.clone(), selecting(world, policies, query).into_iter().map(Arc::clone).collect())
        };
        tiers.iter().map(of_tier).filter(|(_, policies): &(_, Vec<_>)| !policies.is_empty()).collect()
    };
    (asked(staged) != asked(&world.tiers)).then(|| judge_by(world, staged, query))
}

fn judge_by(world: &World, tiers: &Tiers, query: &Query) -> Decision {
    let mut path = Vec::new();
    let taking_part: Vec<(&Tier, Vec<&Arc<Policy>>)> =
        tiers.iter().map(|(tier, policies)| (tier, selecting(world, policies, query))).collect();

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
/// of this node is taken to be made by a process of the node. What a pod sends to itself does not leave it.
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
    if let Some(pod) = itself(&from, &to) {
        let end = || Some((Arc::clone(&pod), by_default(Verdict::Allow, DefaultDecider::ToItself, Vec::new())));
        return Explanation { egress: end(), ingress: end(), verdict: Verdict::Allow, staged: Previews::default() };
    }
    let mut staged = Previews::default();
    let egress = match &from {
        Owner::Workload(subject) => {
            let query = query(subject, Direction::Egress, source, destination);
            staged.egress = preview(world, &query);
            Some((Arc::clone(subject), judge(world, &query)))
        }
        Owner::Contested => claimant(world, source).map(contested),
        _ => None,
    };
    let ingress = match &to {
        Owner::Workload(subject) if from_own_node(world, subject, &from) => {
            Some((Arc::clone(subject), by_default(Verdict::Allow, DefaultDecider::OwnNode, Vec::new())))
        }
        Owner::Workload(subject) => {
            let query = query(subject, Direction::Ingress, destination, source);
            staged.ingress = preview(world, &query);
            Some((Arc::clone(subject), judge(world, &query)))
        }
        Owner::Contested => claimant(world, destination).map(contested),
        _ => None,
    };
    let denied = [&egress, &ingress].into_iter().flatten().any(|(_, decision)| decision.verdict == Verdict::Deny);
    Explanation { egress, ingress, verdict: if denied { Verdict::Deny } else { Verdict::Allow }, staged }
}

/// The same for a flow to a Service that leads it to `backend`. Only for a pod that gets its own flow back it makes a
/// difference which way it took.
pub fn explain_through_service(world: &World, source: IpAddr, backend: IpAddr, protocol: u8, port: u16) -> Explanation {
    let Some(pod) = itself(&owner(world, source), &owner(world, backend)) else {
        return explain(world, source, backend, protocol, port);
    };
    let query = |direction, own, peer| Query { subject: Arc::clone(&pod), direction, own, peer, protocol, port };
    let (out, back) = (query(Direction::Egress, source, backend), query(Direction::Ingress, backend, source));
    let end = |query: &Query| (Arc::clone(&pod), to_itself(judge(world, query)));
    let (egress, ingress) = (end(&out), end(&back));
    let denied = [&egress, &ingress].into_iter().any(|(_, decision)| decision.verdict == Verdict::Deny);
    let [egress_staged, ingress_staged] = [out, back].map(|query| preview(world, &query).map(to_itself));
    Explanation {
        egress: Some(egress),
        ingress: Some(ingress),
        verdict: if denied { Verdict::Deny } else { Verdict::Allow },
        staged: Previews { egress: egress_staged, ingress: ingress_staged },
    }
}

/// The pod that both ends are.
fn itself(from: &Owner, to: &Owner) -> Option<Arc<Workload>> {
    match (from, to) {
        (Owner::Workload(from), Owner::Workload(to)) if from.uid == to.uid => Some(Arc::clone(from)),
        _ => None,
    }
}

/// What becomes of a decision about a pod and itself. Isolation does not keep a pod from itself, and a NetworkPolicy does
/// nothing but isolate; what a rule denies holds, and what a policy of another API denies because it is closed.
fn to_itself(decision: Decision) -> Decision {
    let stays = match (decision.verdict, &decision.decider) {
        (Verdict::Allow, _) | (_, Decider::Default(DefaultDecider::TierDefault)) => false,
        (Verdict::Deny, Decider::Rule(_)) => true,
        (Verdict::Deny, Decider::Default(_)) => {
            let last = decision.path.last().and_then(|step| step.policy.as_ref());
            last.is_none_or(|policy| {
                !matches!(policy.kind, PolicyKind::NetworkPolicy | PolicyKind::StagedKubernetesNetworkPolicy)
            })
        }
    };
    if stays { decision } else { by_default(Verdict::Allow, DefaultDecider::ToItself, Vec::new()) }
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
    all.filter(|policy| *policy.rules(direction) != Rules::NotApplied)
        .filter(|policy| matching::workload(world, &policy.subject, subject))
        .map(|policy| Arc::clone(&policy.reference))
        .collect()
}

/// The policies of a tier that select the subject for this direction.
fn selecting<'a>(world: &World, policies: &'a [Arc<Policy>], query: &Query) -> Vec<&'a Arc<Policy>> {
    let written = |policy: &'a Arc<Policy>| policy.written.as_ref().unwrap_or(policy);
    let applies = |policy: &&Arc<Policy>| *policy.rules(query.direction) != Rules::NotApplied;
    let selects = |policy: &&Arc<Policy>| matching::workload(world, &policy.subject, &query.subject);
    policies.iter().map(written).filter(applies).filter(selects).collect()
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
        let list = match policy.rules(query.direction) {
            Rules::NotApplied => continue,
            Rules::Closed(default) => {
                path.push(step(Outcome::Denied, None));
                return Some((at, End::Decides(Verdict::Deny, Decider::Default(*default))));
            }
            Rules::List(list) => list,
        };
        for rule in list {
            let Some(action) = matching_action(world, rule, query) else { continue };
            let index = rule.index;
            let decider = || {
                Decider::Rule(RuleRef {
                    policy: Arc::clone(&policy.reference),
                    tier: tier.name.clone(),
                    direction: query.direction,
                    rule: index,
                    rule_name: rule.name.clone(),
                })
            };
            let (outcome, end) = match action {
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
        let decides = match policy.rules(query.direction) {
            Rules::NotApplied => continue,
            Rules::Closed(_) => Action::Deny,
            Rules::List(list) => {
                let mut actions = list.iter().filter_map(|rule| matching_action(world, rule, query));
                let Some(action) = actions.find(|action| *action != Action::Log) else { continue };
                action
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

/// What a rule does with a flow, if it matches. Where it speaks of a network set, of backends or of nodes that could not be
/// read whole, it cannot be said whom it means: one that lets through then does so for what could be read, or, if it means
/// all but the set, for nobody; one that does not denies everyone.
fn matching_action(world: &World, rule: &Rule, query: &Query) -> Option<Action> {
    let lists = [&rule.peer, &rule.own];
    let (selected, excluded) = lists
        .into_iter()
        .map(|peers| matching::partial_lists(world, peers))
        .fold((false, false), |(selected, excluded), (more_selected, more_excluded)| {
            (selected || more_selected, excluded || more_excluded)
        });
    match rule.action {
        Action::Allow | Action::Log => (!excluded && rule_matches(world, rule, query)).then_some(rule.action),
        Action::Deny | Action::Pass | Action::DenyUnreadable if selected || excluded => Some(Action::DenyUnreadable),
        Action::Deny | Action::Pass | Action::DenyUnreadable => rule_matches(world, rule, query).then_some(rule.action),
    }
}

/// Positions in the lists of a rule, as far as it has lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alternatives {
    /// In `Peers::OneOf`.
    pub peer: Option<usize>,
    /// In `Traffic::any_of`.
    pub traffic: Option<usize>,
}

/// By which of its alternatives a rule matches a flow, the first where several do; `None`: it does not match.
pub fn alternatives(world: &World, rule: &Rule, query: &Query) -> Option<Alternatives> {
    if !rule_matches(world, rule, query) {
        return None;
    }
    let (address, of_peer) = (query.peer.to_canonical(), owner(world, query.peer));
    let destination = match query.direction {
        Direction::Ingress => Owner::Workload(Arc::clone(&query.subject)),
        Direction::Egress => of_peer.clone(),
    };
    let peer = match &rule.peer {
        Peers::OneOf(list) => list.iter().position(|one| matching::peer(world, one, &of_peer, address)),
        Peers::Anyone | Peers::Nobody | Peers::BackendsOf(_) => None,
    };
    let matches = |one: &TrafficMatch| matching::one_traffic(one, query.protocol, query.port, &destination);
    let traffic = rule.traffic.any_of.iter().flatten().position(matches);
    Some(Alternatives { peer, traffic })
}

/// A rule matches if everything that it says holds.
fn rule_matches(world: &World, rule: &Rule, query: &Query) -> bool {
    let family = if query.peer.to_canonical().is_ipv4() { Family::V4 } else { Family::V6 };
    let destination = match query.direction {
        Direction::Ingress => Owner::Workload(Arc::clone(&query.subject)),
        Direction::Egress => owner(world, query.peer),
    };
    rule.family.is_none_or(|only| only == family)
        && match &rule.peer {
            Peers::BackendsOf(service) if query.direction == Direction::Egress => {
                matching::serves(world, service, query.peer, query.protocol, query.port)
            }
            peers => matching::peers(world, peers, &owner(world, query.peer), query.peer),
        }
        && matching::peers(world, &rule.own, &Owner::Workload(Arc::clone(&query.subject)), query.own)
        && matching::traffic(&rule.traffic, query.protocol, query.port, &destination)
}
