//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy: what the cluster's owner says, before and after namespaces.

mod rule;

use super::reader::{Field, Unreadable};
use super::{Lowered, closed, everything_in, labels, reference};
use crate::model::{
    DefaultDecider, Direction, Level, NamespaceMatch, Order, Policy, Rules, Selector, ServiceAccountMatch,
    WorkloadSelector,
};
use crate::store::ObjectKey;

const CLOSES: &str = "denies everything for the pods it selects, in the directions that it has rules for";
const CLOSES_BOTH: &str = "denies everything for the pods it selects, both ways, before all namespaces' policies";
const CLOSES_MORE: &str = "denies everything for every pod that the readable part selects, both ways";
const HONOURED: &str = "what is written is honoured";
const LAST_PRIORITY: i64 = 1_000;
const MOST: usize = 25;

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let mut policy = Policy { tier: "admin".to_owned(), reference: reference(key, root), ..closed(key, root) };
    let Ok(mut fields) = root.at("spec").with(CLOSES_BOTH).fields() else { return Lowered::Policy(policy) };
    let (tier, priority, subject) = (fields.take("tier"), fields.take("priority"), fields.take("subject"));
    let ingress = fields.take("ingress").map(|field| rules(&field.with(CLOSES), Direction::Ingress));
    let egress = fields.take("egress").map(|field| rules(&field.with(CLOSES), Direction::Egress));
    let mut readable = fields.finish();

    let spec = root.at("spec").with(CLOSES_BOTH);
    match read_tier(&spec, tier.as_ref()) {
        Ok(name) => name.clone_into(&mut policy.tier),
        Err(Unreadable) => readable = Err(Unreadable),
    }
    match read_priority(&spec, priority.as_ref()) {
        Ok(order) => policy.order = Some(order),
        // It stays before all others.
        Err(Unreadable) => readable = Err(Unreadable),
    }
    match subject.ok_or_else(|| spec.at("subject").bad("a policy needs a subject")) {
        Ok(field) => readable = readable.and(read_subject(&field.with(CLOSES_MORE), &mut policy.subject)),
        Err(Unreadable) => readable = Err(Unreadable),
    }
    if readable.is_err() {
        return Lowered::Policy(policy);
    }
    let settle = |rules: Option<Result<Vec<_>, Unreadable>>| match rules {
        None => Rules::NotApplied,
        Some(Err(Unreadable)) => Rules::Closed(DefaultDecider::UnreadablePolicy),
        // Without rules in a direction the policy does not affect it.
        Some(Ok(list)) if list.is_empty() => Rules::NotApplied,
        Some(Ok(list)) => Rules::List(list),
    };
    (policy.ingress, policy.egress) = (settle(ingress), settle(egress));
    Lowered::Policy(policy)
}

/// One of a version that is not known: closed, for the subject if that reads as in the version that is.
pub(super) fn unknown_version(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    root.at("apiVersion").with(CLOSES_BOTH).problem(Level::Warning, "this version of the kind is not known");
    let mut policy = Policy { tier: "admin".to_owned(), ..closed(key, root) };
    if let Some(subject) = root.find("spec").and_then(|spec| spec.find("subject")) {
        // reported; then it is everything that could be read
        let _: Result<(), Unreadable> = read_subject(&subject.with(CLOSES_MORE), &mut policy.subject);
    }
    Lowered::Policy(policy)
}

fn read_tier(spec: &Field<'_>, field: Option<&Field<'_>>) -> Result<&'static str, Unreadable> {
    let field = field.ok_or_else(|| spec.at("tier").bad("a policy needs a tier"))?;
    match field.text()? {
        "Admin" => Ok("admin"),
        "Baseline" => Ok("baseline"),
        _ => Err(field.bad("must be Admin or Baseline")),
    }
}

fn read_priority(spec: &Field<'_>, field: Option<&Field<'_>>) -> Result<Order, Unreadable> {
    let field = field.ok_or_else(|| spec.at("priority").bad("a policy needs a priority"))?;
    Ok(Order(f64::from(field.number::<u16>(LAST_PRIORITY)?)))
}

fn read_subject(field: &Field<'_>, subject: &mut WorkloadSelector) -> Result<(), Unreadable> {
    let mut fields = field.fields()?;
    let (namespaces, pods) = (fields.take("namespaces"), fields.take("pods"));
    let known = fields.finish();
    match (namespaces, pods) {
        (Some(namespaces), None) => *subject = in_namespaces(&namespaces)?,
        (None, Some(pods)) => *subject = namespaced_pods(&pods)?,
        _ => return Err(field.bad("needs exactly one of namespaces and pods")),
    }
    known
}

/// All pods of the namespaces that this selects.
fn in_namespaces(field: &Field<'_>) -> Result<WorkloadSelector, Unreadable> {
    Ok(match labels::selector(field)? {
        Selector::Everything => everything_in(None),
        labels => WorkloadSelector { namespace: NamespaceMatch::Labels(labels), ..everything_in(None) },
    })
}

/// Pods by namespace and labels; without a selector of namespaces, of all.
fn namespaced_pods(field: &Field<'_>) -> Result<WorkloadSelector, Unreadable> {
    let mut fields = field.fields()?;
    let (namespaces, pods) = (fields.take("namespaceSelector"), fields.take("podSelector"));
    let known = fields.finish();
    let namespace = namespaces.map_or_else(|| Ok(everything_in(None)), |field| in_namespaces(&field))?.namespace;
    let pods = pods.ok_or_else(|| field.at("podSelector").bad("pods need a podSelector"))?;
    let pod = labels::selector(&pods)?;
    known?;
    Ok(WorkloadSelector { namespace, pod, service_account: ServiceAccountMatch::Any })
}

fn rules(field: &Field<'_>, direction: Direction) -> Result<Vec<crate::model::Rule>, Unreadable> {
    let list = field.list()?;
    at_most(field, list.len());
    Ok((0_u32..).zip(&list).map(|(index, item)| rule::lower(item, index, direction)).collect())
}

/// Tells of a list that is longer than the API server takes.
fn at_most(field: &Field<'_>, length: usize) {
    if length > MOST {
        field.with(HONOURED).problem(Level::Note, format!("the API allows {MOST} items, here are {length}"));
    }
}
