//! `projectcalico.org/v3` GlobalNetworkPolicy, NetworkPolicy and Tier.

mod rule;

use super::reader::{Field, Unreadable};
use super::{Lowered, closed, everything_in, reference};
use crate::identity;
use crate::model::{
    DefaultDecider, Direction, Level, NamespaceMatch, Order, Policy, Rules, Selector, ServiceAccountMatch, Tier,
    TierDefault,
};
use crate::selector::{self, SelectorError, Written};
use crate::store::{BUILT_IN_TIERS, ObjectKey, REGIME_TIER as REGIME, UNREAD_TIER};
use std::collections::BTreeSet;

pub(super) use rule::network;

const CLOSES: &str = "denies everything for the workloads it selects, in its directions";
const CLOSES_FIRST: &str = "denies everything for the workloads it selects, in its directions, before all other tiers";
const CLOSES_TIER: &str = "denies everything for the workloads it selects, in its directions, first in its tier";
const CLOSES_BOTH: &str = "denies everything for the workloads it selects, both ways";
const CLOSES_MORE: &str = "denies everything, in its directions, for every workload that the readable part selects";
/// What Calico puts before the labels that a workload has from its namespace and its service account.
const INHERITED: [&str; 2] = ["pcns.", "pcsa."];
const UNKNOWN_TIER: &str =
    "the tier is as it was before; without that, its policies deny everything for their subjects";

/// A policy of either kind, or what a staged one would be.
pub(super) fn policy(key: &ObjectKey, root: &Field<'_>) -> Policy {
    let mut policy = Policy { reference: reference(key, root), ..closed(key, root) };
    let empty = serde_json::Value::Object(serde_json::Map::new());
    let spec = match root.find("spec") {
        Some(spec) => spec.with(CLOSES_BOTH),
        None => root.at("spec").holding(&empty),
    };
    let Ok(mut fields) = spec.fields() else { return policy };
    (policy.tier, policy.order) = ("default".to_owned(), None);
    if policy.reference.kind != policy.reference.kind.enforced() {
        fields.ignore(&["stagedAction"]);
    }
    let mut readable = true;
    let mut note = |result: Result<(), Unreadable>| readable &= result.is_ok();

    if let Some(field) = fields.take("tier").map(|field| field.with(CLOSES_FIRST)) {
        let read = match field.text() {
            Ok(REGIME) => Err(field.bad("this tier is not for policies")),
            other => other,
        };
        match read {
            Ok("") => {}
            Ok(tier) => tier.clone_into(&mut policy.tier),
            Err(Unreadable) => UNREAD_TIER.clone_into(&mut policy.tier),
        }
        note(read.map(|_| ()));
    }
    if let Some(field) = fields.take("order") {
        let order = field.with(CLOSES_TIER).float().map(|order| Order(order + 0.0));
        policy.order = Some(order.unwrap_or(Order::FIRST));
        note(order.map(|_| ()));
    }
    let selector = fields.take("selector").map(|field| labels(&field.with(CLOSES_MORE))).transpose();
    note(selector.map(|selector| policy.subject.pod = selector.unwrap_or(Selector::Everything)));
    if let Some(field) = fields.take("namespaceSelector") {
        let field = field.with(CLOSES_MORE);
        if key.namespace.is_some() {
            note(Err(field.bad("a namespaced policy selects in its own namespace only")));
        } else {
            match namespaces(&field) {
                Ok(Some(Written::Global)) => {
                    note(Err(
                        field.bad("global() is for the other side of a rule: no pod is outside of all namespaces")
                    ));
                }
                Ok(Some(Written::Labels(Selector::Everything)) | None) => {}
                Ok(Some(Written::Labels(labels))) => policy.subject.namespace = NamespaceMatch::Labels(labels),
                Err(Unreadable) => note(Err(Unreadable)),
            }
        }
    }
    if let Some(field) = fields.take("serviceAccountSelector") {
        match labels(&field.with(CLOSES_MORE)) {
            Ok(Selector::Everything) => {}
            Ok(labels) => policy.subject.service_account = ServiceAccountMatch::Selected { names: None, labels },
            Err(Unreadable) => note(Err(Unreadable)),
        }
    }
    for name in ["doNotTrack", "preDNAT", "applyOnForward"] {
        let Some(field) = fields.take(name) else { continue };
        match field.with(CLOSES).boolean() {
            Ok(true) => note(Err(field
                .with(CLOSES)
                .bad("this policy is about hosts and forwarding, which are not enforced here"))),
            Ok(false) => {}
            Err(Unreadable) => note(Err(Unreadable)),
        }
    }
    if let Some(field) = fields.take("performanceHints") {
        field.with("no difference to enforcement").problem(Level::Note, "hints are not used");
    }
    let namespace = key.namespace.as_deref();
    let ingress = fields.take("ingress").map(|field| rules(&field.with(CLOSES), Direction::Ingress, namespace));
    let egress = fields.take("egress").map(|field| rules(&field.with(CLOSES), Direction::Egress, namespace));
    let types = fields.take("types").map(|field| types(&field)).transpose();
    note(fields.finish());

    let Ok(types) = types else { return policy };
    let given = |rules: &Option<Result<Vec<_>, Unreadable>>| {
        rules.as_ref().is_some_and(|rules| rules.as_ref().map_or(true, |list| !list.is_empty()))
    };
    let (has_ingress, has_egress) = (given(&ingress), given(&egress));
    // Without types: egress if there are egress rules, ingress unless there are only egress rules.
    let (to, from) = match types.filter(|types| !types.is_empty()) {
        Some(types) => (types.contains(&Direction::Ingress), types.contains(&Direction::Egress)),
        None => (has_ingress || !has_egress, has_egress),
    };
    for (name, applies, given) in [("ingress", to, has_ingress), ("egress", from, has_egress)] {
        if given && !applies {
            let effect = "the rules of this direction are not applied, as the API says";
            spec.at(name).with(effect).problem(Level::Note, "types leaves this direction out");
        }
    }
    let settle = |rules: Option<Result<Vec<_>, Unreadable>>, applies: bool| match rules {
        _ if !applies => Rules::NotApplied,
        Some(Ok(list)) if readable => Rules::List(list),
        None if readable => Rules::List(Vec::new()),
        _ => Rules::Closed(DefaultDecider::UnreadablePolicy),
    };
    policy.ingress = settle(ingress, to);
    policy.egress = settle(egress, from);
    policy
}

/// A tier. One with a built-in name must say what is built in.
pub(super) fn tier(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    match read_tier(key, &root.with(UNKNOWN_TIER)) {
        Ok(lowered) => lowered,
        Err(Unreadable) => Lowered::Unreadable,
    }
}

fn read_tier(key: &ObjectKey, root: &Field<'_>) -> Result<Lowered, Unreadable> {
    let mut tier = Tier { name: key.name.clone(), order: None, default: TierDefault::Deny };
    if let Some(spec) = root.find("spec") {
        let mut fields = spec.fields()?;
        let order = fields.take("order");
        let default = fields.take("defaultAction");
        fields.finish()?;
        tier.order = order.map(|field| field.float()).transpose()?.map(|order| Order(order + 0.0));
        tier.default = match &default {
            None => TierDefault::Deny,
            Some(field) => match field.text()? {
                "Deny" => TierDefault::Deny,
                "Pass" => TierDefault::Pass,
                _ => return Err(field.bad("must be Deny or Pass")),
            },
        };
    }
    if let Some((_, order, default)) = BUILT_IN_TIERS.iter().find(|(name, _, _)| *name == tier.name) {
        if tier.order != Some(Order(*order)) || tier.default != *default {
            let effect = "the built-in tier stays as it is";
            root.at("spec")
                .with(effect)
                .bad(format!("the tier {} is built in, with order {order} and default {default:?}", tier.name));
        }
        return Ok(Lowered::Nothing);
    }
    Ok(Lowered::Tier(tier))
}

fn types(field: &Field<'_>) -> Result<Vec<Direction>, Unreadable> {
    let read = |item: &Field<'_>| match item.text()? {
        "Ingress" => Ok(Direction::Ingress),
        "Egress" => Ok(Direction::Egress),
        _ => Err(item.bad("must be Ingress or Egress")),
    };
    let read: Vec<_> = field.list()?.iter().map(read).collect();
    read.into_iter().collect()
}

fn rules(
    field: &Field<'_>,
    direction: Direction,
    namespace: Option<&str>,
) -> Result<Vec<crate::model::Rule>, Unreadable> {
    let list = field.list()?;
    Ok((0_u32..).zip(&list).map(|(index, item)| rule::lower(item, index, direction, namespace)).collect())
}

fn labels(field: &Field<'_>) -> Result<Selector, Unreadable> {
    let parsed = selector::parse(field.text()?);
    let selector = parsed.map_err(|error: SelectorError| field.bad(format!("no selector: {error}")))?;
    let mut keys = BTreeSet::new();
    identity::keys(&selector, &mut keys);
    match keys.iter().find(|key| INHERITED.iter().any(|prefix| key.starts_with(prefix))) {
        Some(key) => Err(field.bad(format!(
            "{key}: labels of namespaces and service accounts are for namespaceSelector and serviceAccountSelector"
        ))),
        None => Ok(selector),
    }
}

/// A selector of namespaces; `None` if it is empty.
fn namespaces(field: &Field<'_>) -> Result<Option<Written>, Unreadable> {
    let text = field.text()?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    selector::parse_namespaces(text).map(Some).map_err(|error| field.bad(format!("no selector: {error}")))
}

/// What [`everything_in`] gives for a peer, narrowed by a rule's fields.
fn peer_base(namespace: Option<&str>) -> crate::model::WorkloadSelector {
    everything_in(namespace)
}
