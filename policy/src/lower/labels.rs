//! Labels and `LabelSelector`s, shared by the Kubernetes kinds.

use super::reader::{Field, Unreadable};
use crate::identity;
use crate::model::{Labels, Selector};
use std::collections::BTreeSet;

/// Labels that every pod and namespace has for Calico's selectors, see `Workload::selector_labels`.
const OF_CALICO: [&str; 4] = [
    "projectcalico.org/name",
    "projectcalico.org/namespace",
    "projectcalico.org/orchestrator",
    "projectcalico.org/serviceaccount",
];

/// `metadata.labels`; absent means none.
pub(super) fn of(root: &Field<'_>) -> Result<Labels, Unreadable> {
    let Some(metadata) = root.find("metadata") else { return Ok(Labels::new()) };
    let Some(labels) = metadata.find("labels") else { return Ok(Labels::new()) };
    Ok(labels.text_map()?.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// A `LabelSelector`: all of `matchLabels` and `matchExpressions` hold; an empty one selects everything.
pub(super) fn selector(field: &Field<'_>) -> Result<Selector, Unreadable> {
    let mut fields = field.fields()?;
    let labels = fields.take("matchLabels").map(|labels| labels.text_map());
    let expressions = fields.take("matchExpressions").map(|expressions| expressions.list());
    let known = fields.finish();
    let mut all = Vec::new();
    for (key, value) in labels.transpose()?.unwrap_or_default() {
        all.push(Selector::Equals(key.to_owned(), value.to_owned()));
    }
    let expressions: Vec<_> = expressions.transpose()?.unwrap_or_default().iter().map(expression).collect();
    for expression in expressions {
        all.push(expression?);
    }
    known?;
    let selector = match all.len() {
        0 => Selector::Everything,
        1 => all.remove(0),
        _ => Selector::And(all),
    };
    let mut read = BTreeSet::new();
    identity::keys(&selector, &mut read);
    // The Kubernetes APIs know of no such labels, and whoever carries one of that name shows Calico's in its place.
    match read.iter().find(|key| OF_CALICO.contains(&key.as_str())) {
        Some(key) => Err(field.bad(format!("{key} is a label that only Calico's selectors see"))),
        None => Ok(selector),
    }
}

fn expression(field: &Field<'_>) -> Result<Selector, Unreadable> {
    let mut fields = field.fields()?;
    let key = fields.take("key");
    let operator = fields.take("operator");
    let values = fields.take("values");
    fields.finish()?;
    let key = key.ok_or_else(|| field.at("key").bad("an expression needs a key"))?.text()?.to_owned();
    if key.is_empty() {
        return Err(field.at("key").bad("an expression needs a key"));
    }
    let operator = operator.ok_or_else(|| field.at("operator").bad("an expression needs an operator"))?;
    let list: BTreeSet<String> = match &values {
        Some(values) => values.texts()?.into_iter().map(str::to_owned).collect(),
        None => BTreeSet::new(),
    };
    let not = |selector| Selector::Not(Box::new(selector));
    match (operator.text()?, list.is_empty()) {
        ("In", false) => Ok(Selector::In(key, list)),
        ("NotIn", false) => Ok(not(Selector::In(key, list))),
        ("Exists", true) => Ok(Selector::Has(key)),
        ("DoesNotExist", true) => Ok(not(Selector::Has(key))),
        ("In" | "NotIn", true) => Err(field.at("values").bad("In and NotIn need at least one value")),
        ("Exists" | "DoesNotExist", false) => Err(field.at("values").bad("Exists and DoesNotExist take no values")),
        _ => Err(operator.bad("must be In, NotIn, Exists or DoesNotExist")),
    }
}
