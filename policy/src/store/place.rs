//! Where tiers and policies stand in the evaluation, and what is undefined about it.

use super::Touched;
use super::resolve::Sources;
use crate::model::{
    DefaultDecider, Level, Order, Policy, PolicyKind, PolicyRef, Problem, Rules, StagedAction, StagedPolicy, Tier,
    TierDefault, Tiers,
};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The tier before all others, for the guards of regimes. No policy of another API stands in it.
pub(crate) const REGIME: &str = "regime";

/// Tiers that are always there. The numbers are those of Calico's own kube-admin, default and kube-baseline tiers.
pub(crate) const BUILT_IN: [(&str, f64, TierDefault); 4] = [
    (REGIME, 0.0, TierDefault::Pass),
    ("admin", 1_000.0, TierDefault::Pass),
    ("default", 1_000_000.0, TierDefault::Deny),
    ("baseline", 10_000_000.0, TierDefault::Pass),
];

/// Stands for a tier's name that could not be read; no tier can be called so.
pub(crate) const UNREAD: &str = "(unread)";

/// A tier that policies name but nobody has defined goes before all others: its rank is unknown, so is what it passes.
fn unknown_tier(name: &str) -> String {
    format!("unknown tier {name}")
}

fn rank(tier: &Tier) -> (bool, bool, bool, Option<Order>, &str) {
    (tier.name != REGIME, !tier.name.starts_with("unknown tier "), tier.order.is_none(), tier.order, &tier.name)
}

/// Policies without order come last. Ties go by name, as Calico says of its own; those between APIs, of which none says
/// anything, by API.
fn by_evaluation(a: &Policy, b: &Policy) -> Ordering {
    fn key(policy: &Policy) -> (bool, Option<Order>, Api, &str, Option<&str>, PolicyKind) {
        let PolicyRef { kind, namespace, name, .. } = &*policy.reference;
        (policy.order.is_none(), policy.order, Api::of(*kind), name, namespace.as_deref(), kind.enforced())
    }
    key(a).cmp(&key(b))
}

/// Whose kinds share a rule for ties. The order breaks ties between them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Api {
    Calico,
    Kubernetes,
    Cluster,
}

impl Api {
    const fn of(kind: PolicyKind) -> Self {
        match kind.enforced() {
            PolicyKind::NetworkPolicy | PolicyKind::StagedKubernetesNetworkPolicy => Self::Kubernetes,
            PolicyKind::ClusterNetworkPolicy => Self::Cluster,
            _ => Self::Calico,
        }
    }
}

/// The policy as it stands: one whose tier is not there is closed in its directions.
fn placed(policy: &Arc<Policy>, known: bool, sources: Sources<'_>) -> Arc<Policy> {
    if known {
        return sources.resolve(policy);
    }
    let close = |rules: &Rules| match rules {
        Rules::List(_) => Rules::Closed(DefaultDecider::UnreadablePolicy),
        other => other.clone(),
    };
    Arc::new(Policy {
        tier: unknown_tier(&policy.tier),
        ingress: close(&policy.ingress),
        egress: close(&policy.egress),
        ..Policy::clone(policy)
    })
}

/// All tiers and policies in evaluation order. A given tier of a built-in name changes nothing.
pub(super) fn arrange(
    tiers: impl Iterator<Item = Tier>,
    policies: impl Iterator<Item = Arc<Policy>>,
    sources: Sources<'_>,
) -> Tiers {
    let mut all: BTreeMap<String, Tier> = tiers.map(|tier| (tier.name.clone(), tier)).collect();
    for (name, order, default) in BUILT_IN {
        all.insert(name.to_owned(), Tier { name: name.to_owned(), order: Some(Order(order)), default });
    }
    let mut arranged: Tiers = all.into_values().map(|tier| (tier, Vec::new())).collect();
    arranged.sort_by(|(a, _), (b, _)| rank(a).cmp(&rank(b)));
    for policy in policies {
        insert(&mut arranged, &policy, sources);
    }
    arranged
}

fn position(tiers: &Tiers, name: &str) -> Option<usize> {
    tiers.iter().position(|(tier, _)| tier.name == name)
}

/// Puts a policy in its place; true if that made a tier.
fn insert(tiers: &mut Tiers, policy: &Arc<Policy>, sources: Sources<'_>) -> (Arc<Policy>, bool) {
    let known = position(tiers, &policy.tier).is_some();
    let policy = placed(policy, known, sources);
    let (at, made) = match position(tiers, &policy.tier) {
        Some(at) => (at, false),
        None => {
            let tier = Tier { name: policy.tier.clone(), order: None, default: TierDefault::Pass };
            let at = tiers.partition_point(|(other, _)| rank(other) < rank(&tier));
            tiers.insert(at, (tier, Vec::new()));
            (at, true)
        }
    };
    let list = &mut tiers[at].1;
    let place = list.partition_point(|other| by_evaluation(other, &policy) == Ordering::Less);
    list.insert(place, Arc::clone(&policy));
    (policy, made)
}

/// Takes a policy (as lowered) out of its place; true if that removed a tier.
fn remove(tiers: &mut Tiers, policy: &Policy) -> Option<(Arc<Policy>, bool)> {
    let unknown = unknown_tier(&policy.tier);
    for name in [&policy.tier, &unknown] {
        let Some(at) = position(tiers, name) else { continue };
        let list = &mut tiers[at].1;
        let place = list.partition_point(|other| by_evaluation(other, policy) == Ordering::Less);
        let found = list.get(place).is_some_and(|other| by_evaluation(other, policy) == Ordering::Equal);
        debug_assert!(found, "a policy that was placed is found again");
        if !found {
            continue;
        }
        let policy = list.remove(place);
        let emptied = list.is_empty() && *name == unknown;
        if emptied {
            tiers.remove(at);
        }
        return Some((policy, emptied));
    }
    None
}

/// Replaces one policy (both as lowered) and tells what that altered.
pub(super) fn replace(
    tiers: &mut Tiers,
    before: Option<&Policy>,
    after: Option<Arc<Policy>>,
    sources: Sources<'_>,
) -> Vec<Touched> {
    let removed = before.and_then(|before| remove(tiers, before));
    let inserted = after.map(|after| insert(tiers, &after, sources));
    let made = inserted.as_ref().is_some_and(|(_, made)| *made);
    let emptied = removed.as_ref().is_some_and(|(_, emptied)| *emptied);
    let before = removed.map(|(policy, _)| policy);
    let after = inserted.map(|(policy, _)| policy);
    let mut touched = Vec::new();
    let same_tier = before.as_ref().map(|policy| &policy.tier) == after.as_ref().map(|policy| &policy.tier);
    if (made || emptied) && !(made && emptied && same_tier) {
        touched.push(Touched::Tiers);
    }
    if before != after {
        touched.push(Touched::Policy { before, after });
    }
    touched
}

/// The tiers as they would be with these applied: each takes the place of the enforced policy of its name, or removes it.
pub(super) fn stage<'a>(
    enforced: &Tiers,
    staged: impl Iterator<Item = &'a Arc<StagedPolicy>> + Clone,
    sources: Sources<'_>,
) -> Tiers {
    let replaced: BTreeSet<_> = staged.clone().map(|staged| name(&staged.policy.reference)).collect();
    let mut tiers = enforced.clone();
    for (_, policies) in &mut tiers {
        policies.retain(|policy| !replaced.contains(&name(&policy.reference)));
    }
    for set in staged.filter(|staged| staged.action == StagedAction::Set) {
        insert(&mut tiers, &set.policy, sources);
    }
    tiers.retain(|(tier, policies)| !policies.is_empty() || !tier.name.starts_with("unknown tier "));
    tiers
}

/// What an object and its staged form share.
fn name(reference: &PolicyRef) -> (PolicyKind, Option<&str>, &str) {
    (reference.kind.enforced(), reference.namespace.as_deref(), &reference.name)
}

/// What is wrong with staged policies alone.
pub(super) fn staged_problems<'a>(
    tiers: &Tiers,
    enforced: &Tiers,
    staged: impl Iterator<Item = &'a Arc<StagedPolicy>>,
) -> Vec<Problem> {
    let mut found = problems(tiers);
    let (known, all) = (problems(enforced), || enforced.iter().flat_map(|(_, policies)| policies));
    let names: BTreeSet<_> = all().map(|policy| name(&policy.reference)).collect();
    found.retain(|problem| !known.contains(problem));
    for removal in staged.filter(|staged| staged.action == StagedAction::Delete) {
        let reference = &removal.policy.reference;
        if !names.contains(&name(reference)) {
            found.push(Problem {
                level: Level::Note,
                object: reference.to_string(),
                field: "spec.stagedAction".to_owned(),
                value: "Delete".to_owned(),
                what: "there is no policy of this name to remove".to_owned(),
                effect: "the preview shows nothing of it".to_owned(),
            });
        }
    }
    found
}

/// What differs between two arrangements.
pub(super) fn difference(before: &Tiers, after: &Tiers) -> Vec<Touched> {
    let mut touched = Vec::new();
    if !before.iter().map(|(tier, _)| tier).eq(after.iter().map(|(tier, _)| tier)) {
        touched.push(Touched::Tiers);
    }
    let index = |tiers: &Tiers| -> BTreeMap<_, Arc<Policy>> {
        let policies = tiers.iter().flat_map(|(_, policies)| policies);
        policies.map(|policy| (Arc::clone(&policy.reference), Arc::clone(policy))).collect()
    };
    let (before, after) = (index(before), index(after));
    // A change of tiers keeps the set of policies, so those of `after` are all.
    for (reference, policy) in &after {
        let before = before.get(reference);
        if before != Some(policy) {
            touched.push(Touched::Policy { before: before.cloned(), after: Some(Arc::clone(policy)) });
        }
    }
    touched
}

/// Ties that the APIs leave undefined, and policies whose tier is not there.
pub(super) fn problems(tiers: &Tiers) -> Vec<Problem> {
    let mut problems = Vec::new();
    // Calico's own go by name, as it says.
    let of_cluster_policies = |tier: &Tier| matches!(tier.name.as_str(), "admin" | "baseline");
    for pair in tiers.windows(2).filter(|pair| pair.iter().any(|(tier, _)| of_cluster_policies(tier))) {
        let (Some(order), true) = (pair[0].0.order, pair[0].0.order == pair[1].0.order) else { continue };
        problems.push(Problem {
            level: Level::Note,
            object: format!("Tier/{}", pair[1].0.name),
            field: "spec.order".to_owned(),
            value: order.0.to_string(),
            what: format!("tier {} has the same order, and no API says which goes first", pair[0].0.name),
            effect: format!("{} goes first, by name", pair[0].0.name),
        });
    }
    for (tier, policies) in tiers {
        for same in policies.chunk_by(|a, b| a.order.is_some_and(|order| order != Order::FIRST) && a.order == b.order) {
            for pair in same.windows(2) {
                let apis = [&pair[0], &pair[1]].map(|policy| Api::of(policy.reference.kind));
                if apis[0] == apis[1] && apis[0] != Api::Cluster {
                    continue;
                }
                let cluster = apis[1] == Api::Cluster;
                problems.push(Problem {
                    level: Level::Note,
                    object: pair[1].reference.to_string(),
                    field: if cluster { "spec.priority" } else { "spec.order" }.to_owned(),
                    value: pair[1].order.map(|order| order.0.to_string()).unwrap_or_default(),
                    what: format!(
                        "{} has the same order in tier {}, and the API does not say which goes first",
                        pair[0].reference, tier.name
                    ),
                    effect: format!(
                        "{} goes first, by {}",
                        pair[0].reference,
                        if apis[0] == apis[1] { "name" } else { "kind" }
                    ),
                });
            }
        }
        // What could not be read has been told.
        if let Some(name) = tier.name.strip_prefix("unknown tier ").filter(|name| *name != UNREAD) {
            problems.extend(policies.iter().map(|policy| Problem {
                level: Level::Warning,
                object: policy.reference.to_string(),
                field: "spec.tier".to_owned(),
                value: name.to_owned(),
                what: "there is no such tier".to_owned(),
                effect: "denies everything for its subjects in its directions, before all other tiers".to_owned(),
            }));
        }
    }
    problems
}
