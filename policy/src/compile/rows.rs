//! One row per policy and class: a decision, or a table of ports where ports matter.

use super::subject::{Applied, AppliedRule, AppliedRules, content_number, named_resolved};
use crate::image::range_key;
use crate::model::{
    Action, Decider, Decision, DefaultDecider, Outcome, PortMatch, RuleRef, Step, TierDefault, Traffic, TrafficMatch,
    Verdict,
};
use crate::provenance::Identity;
use reeve_abi::ids::{DecisionId, TableId};
use reeve_abi::policy::{
    ANY_PORT, PEER_RANGES, PEER_TABLE, PeerValue, PortKey, PortValue, RangeKey, VERDICT_ALLOW, VERDICT_DENY,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

const WITH_PORTS: [u8; 3] = [6, 17, 132];
const WITH_TYPES: [u8; 2] = [1, 58];

/// A row with its table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) value: PeerValue,
    pub(crate) ports: Vec<(PortKey, PortValue)>,
    pub(crate) ranges: Vec<(RangeKey, PortValue)>,
    pub(crate) decisions: Vec<Arc<Decision>>,
}

/// First and last port, inclusive.
type Span = (u16, u16);

/// What an answer looks like in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Answer {
    decision: DecisionId,
    verdict: u32,
}

impl Answer {
    fn value(self) -> PortValue {
        PortValue { decision: self.decision, verdict: self.verdict, reserved: 0 }
    }
}

/// The verdict as the maps hold it.
pub(crate) fn verdict_number(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Allow => VERDICT_ALLOW,
        Verdict::Deny => VERDICT_DENY,
    }
}

/// A row that says the same for every port.
pub(crate) fn single(decision: Decision) -> Row {
    let value =
        PeerValue { decision: decision.id(), table: TableId(0), verdict: verdict_number(decision.verdict), flags: 0 };
    Row { value, decisions: vec![Arc::new(decision)], ..Row::default() }
}

/// Compiles the row for peers that match exactly these rules' peers. `rules` are positions in `Applied::rules`;
/// `peer` has the ports that names stand for.
pub(crate) fn compile(applied: &Applied, rules: &[usize], peer: &Identity) -> Row {
    let all: Vec<&AppliedRule> = applied.rules().collect();
    let traffic: BTreeMap<usize, Traffic> =
        rules.iter().map(|at| (*at, named_resolved(&all[*at].traffic, peer))).collect();
    let mut judge = Judge { applied, traffic: &traffic, seen: HashMap::new(), decisions: BTreeMap::new() };

    let base = judge.at(None, 0);
    let mut tables: BTreeMap<u8, (Answer, Vec<(Span, Answer)>)> = BTreeMap::new();
    for protocol in protocols(&traffic) {
        let mut spans: Vec<(Span, Answer)> = Vec::new();
        for span in elementary(&traffic, protocol) {
            let answer = judge.at(Some(protocol), span.0);
            match spans.last_mut() {
                Some((last, same)) if *same == answer => last.1 = span.1,
                _ => spans.push((span, answer)),
            }
        }
        let mut widths: BTreeMap<Answer, u32> = BTreeMap::new();
        for ((first, last), answer) in &spans {
            *widths.entry(*answer).or_default() += u32::from(*last) - u32::from(*first) + 1;
        }
        let most = widths.iter().max_by_key(|(_, width)| **width).map_or(base, |(answer, _)| *answer);
        spans.retain(|(_, answer)| *answer != most);
        if most != base || !spans.is_empty() {
            tables.insert(protocol, (most, spans));
        }
    }

    let mut row = Row {
        value: PeerValue { decision: base.decision, table: TableId(0), verdict: base.verdict, flags: 0 },
        ..Row::default()
    };
    row.decisions = judge.decisions.into_values().collect();
    if tables.is_empty() {
        return row;
    }
    // Tables with the same content share a number; where the row's own decision holds, no table row stands.
    let content: Vec<_> =
        tables.iter().map(|(p, (most, spans))| (*p, (*most != base).then_some(*most), spans)).collect();
    let table = TableId(content_number("table", &content));
    row.value.table = table;
    row.value.flags = PEER_TABLE;
    for (protocol, most, spans) in content {
        let key = |port: u32| PortKey { table, protocol: u32::from(protocol), port };
        if let Some(most) = most {
            row.ports.push((key(ANY_PORT), most.value()));
        }
        for ((first, last), answer) in spans {
            if first == last {
                row.ports.push((key(u32::from(*first)), answer.value()));
                continue;
            }
            row.value.flags |= PEER_RANGES;
            for (port, bits) in prefixes(*first, *last) {
                row.ranges.push((range_key(table.0, protocol, port, bits), answer.value()));
            }
        }
    }
    row
}

/// Splits a span into aligned blocks: their first port and the number of leading bits that count.
pub(crate) fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    let mut blocks = Vec::new();
    while at < end {
        let aligned = if at == 0 { 16 } else { at.trailing_zeros() };
        let fits = (end - at).ilog2();
        let bits = aligned.min(fits);
        blocks.push((u16::try_from(at).expect("below the end of the port space"), 16 - bits));
        at += 1 << bits;
    }
    blocks
}

fn matches(traffic: &Traffic) -> impl Iterator<Item = &TrafficMatch> {
    traffic.any_of.iter().flatten().chain(&traffic.none_of)
}

/// Protocols that some rule treats apart.
fn protocols(traffic: &BTreeMap<usize, Traffic>) -> BTreeSet<u8> {
    let mut found = BTreeSet::new();
    for one in traffic.values().flat_map(matches) {
        match (one.protocol, &one.ports) {
            (Some(protocol), _) => {
                found.insert(protocol);
            }
            (None, PortMatch::Any | PortMatch::Named(_)) => {}
            (None, PortMatch::Range(..)) => found.extend(WITH_PORTS),
            (None, PortMatch::Icmp(..)) => found.extend(WITH_TYPES),
        }
    }
    found
}

fn span_of(ports: &PortMatch, protocol: u8) -> Option<Span> {
    match ports {
        PortMatch::Any => Some((0, u16::MAX)),
        PortMatch::Range(first, last) => (WITH_PORTS.contains(&protocol) && first <= last).then_some((*first, *last)),
        PortMatch::Named(_) => None,
        PortMatch::Icmp(kind, code) => WITH_TYPES.contains(&protocol).then(|| {
            (u16::from_be_bytes([*kind, code.unwrap_or(0)]), u16::from_be_bytes([*kind, code.unwrap_or(u8::MAX)]))
        }),
    }
}

/// The spans between which nothing changes.
fn elementary(traffic: &BTreeMap<usize, Traffic>, protocol: u8) -> Vec<Span> {
    let mut starts = BTreeSet::from([0_u16]);
    for one in traffic.values().flat_map(matches).filter(|one| one.protocol.is_none_or(|p| p == protocol)) {
        if let Some((first, last)) = span_of(&one.ports, protocol) {
            starts.insert(first);
            starts.extend(last.checked_add(1));
        }
    }
    let starts: Vec<u16> = starts.into_iter().collect();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    starts.iter().copied().zip(ends).collect()
}

pub(super) fn includes(traffic: &Traffic, protocol: Option<u8>, port: u16) -> bool {
    let one_includes = |one: &TrafficMatch| match protocol {
        // A protocol that no rule treats apart: only what names neither protocol nor port speaks of it.
        None => one.protocol.is_none() && one.ports == PortMatch::Any,
        Some(protocol) => {
            one.protocol.is_none_or(|only| only == protocol)
                && span_of(&one.ports, protocol).is_some_and(|(first, last)| (first..=last).contains(&port))
        }
    };
    traffic.any_of.as_ref().is_none_or(|any| any.iter().any(one_includes)) && !traffic.none_of.iter().any(one_includes)
}

/// Judges points; points that match the same rules have the same answer.
struct Judge<'a> {
    applied: &'a Applied,
    traffic: &'a BTreeMap<usize, Traffic>,
    seen: HashMap<BTreeSet<usize>, Answer>,
    decisions: BTreeMap<DecisionId, Arc<Decision>>,
}

impl Judge<'_> {
    fn at(&mut self, protocol: Option<u8>, port: u16) -> Answer {
        let matching: BTreeSet<usize> =
            self.traffic.iter().filter(|(_, traffic)| includes(traffic, protocol, port)).map(|(at, _)| *at).collect();
        if let Some(answer) = self.seen.get(&matching) {
            return *answer;
        }
        let decision = decide(self.applied, &matching);
        let answer = Answer { decision: decision.id(), verdict: verdict_number(decision.verdict) };
        self.decisions.insert(answer.decision, Arc::new(decision));
        self.seen.insert(matching, answer);
        answer
    }
}

/// What a policy does on its own: the positions of its matching rules in order, or closed.
enum Says<'a> {
    Closed(DefaultDecider),
    Rules(Vec<&'a AppliedRule>),
}

/// The evaluation, given the rules that match.
pub(super) fn decide(applied: &Applied, matching: &BTreeSet<usize>) -> Decision {
    let mut path = Vec::new();
    let mut position = 0;
    for tier in &applied.tiers {
        let says: Vec<Says<'_>> = tier
            .policies
            .iter()
            .map(|policy| match &policy.rules {
                AppliedRules::Closed(default) => Says::Closed(*default),
                AppliedRules::List(list) => {
                    let from = position;
                    position += list.len();
                    Says::Rules(
                        list.iter().zip(from..).filter(|(_, at)| matching.contains(at)).map(|(rule, _)| rule).collect(),
                    )
                }
            })
            .collect();
        let mut ended = false;
        'policies: for (at, (policy, said)) in tier.policies.iter().zip(&says).enumerate() {
            let step = |outcome, rule| Step {
                tier: tier.name.clone(),
                outcome,
                policy: Some(Arc::clone(&policy.reference)),
                rule,
            };
            let rules = match said {
                Says::Closed(default) => {
                    path.push(step(Outcome::Denied, None));
                    return decided(tier, &says, at, Verdict::Deny, Decider::Default(*default), path);
                }
                Says::Rules(rules) => rules,
            };
            for rule in rules {
                let by_rule = || {
                    Decider::Rule(RuleRef {
                        policy: Arc::clone(&policy.reference),
                        tier: tier.name.clone(),
                        direction: applied.direction,
                        rule: rule.index,
                        rule_name: rule.name.clone(),
                    })
                };
                let (outcome, end) = match rule.action {
                    Action::Log => (Outcome::Logged, None),
                    Action::Pass => (Outcome::Passed, None),
                    Action::Allow => (Outcome::Allowed, Some((Verdict::Allow, by_rule()))),
                    Action::Deny => (Outcome::Denied, Some((Verdict::Deny, by_rule()))),
                    Action::DenyUnreadable => {
                        (Outcome::Denied, Some((Verdict::Deny, Decider::Default(DefaultDecider::UnreadablePolicy))))
                    }
                };
                path.push(step(outcome, Some(rule.index)));
                if let Some((verdict, decider)) = end {
                    return decided(tier, &says, at, verdict, decider, path);
                }
                if rule.action == Action::Pass {
                    ended = true;
                    break 'policies;
                }
            }
        }
        if ended {
            continue;
        }
        let step = |outcome| Step { tier: tier.name.clone(), outcome, policy: None, rule: None };
        match tier.default {
            TierDefault::Pass => path.push(step(Outcome::DefaultPassed)),
            TierDefault::Deny => {
                path.push(step(Outcome::DefaultDenied));
                let isolating = tier.policies.iter().map(|policy| Arc::clone(&policy.reference)).collect();
                return Decision { path, isolating, ..Decision::bare(Verdict::Deny, DefaultDecider::TierDefault) };
            }
        }
    }
    Decision { path, ..Decision::bare(Verdict::Allow, DefaultDecider::NoPolicySelects) }
}

fn decided(
    tier: &super::subject::AppliedTier,
    says: &[Says<'_>],
    at: usize,
    verdict: Verdict,
    decider: Decider,
    path: Vec<Step>,
) -> Decision {
    let mut also = Vec::new();
    for (policy, said) in tier.policies.iter().zip(says).skip(at + 1) {
        let theirs = match said {
            Says::Closed(_) => Verdict::Deny,
            Says::Rules(rules) => match rules.iter().map(|rule| rule.action).find(|action| *action != Action::Log) {
                None => continue,
                Some(Action::Allow) => Verdict::Allow,
                Some(Action::Deny | Action::DenyUnreadable) => Verdict::Deny,
                Some(Action::Pass | Action::Log) => break,
            },
        };
        if theirs != verdict {
            break;
        }
        also.push(Arc::clone(&policy.reference));
    }
    Decision { verdict, decider, path, isolating: Vec::new(), also }
}
