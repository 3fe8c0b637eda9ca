//! `projectcalico.org/v3` NetworkSet and GlobalNetworkSet: networks that selectors find by labels.

use super::calico::network;
use super::reader::{Field, Unreadable};
use super::{Lowered, labels};
use crate::model::{NetworkSet, Reading};
use crate::store::ObjectKey;
use std::collections::BTreeSet;

const KEPT: &str = "what was known of the set goes on to hold; without anything known no rule finds it by label";
const PARTIAL: &str = "rules that allow the set allow the rest of it; all other rules about it deny everyone";

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let Ok(labels) = labels::of(&root.with(KEPT)) else { return Lowered::Unreadable };
    let mut set = NetworkSet {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        labels,
        nets: BTreeSet::new(),
        reading: Reading::Whole,
    };
    if read(&root.with(PARTIAL), &mut set.nets).is_err() {
        set.reading = Reading::Partial;
    }
    Lowered::NetworkSet(set)
}

fn read(root: &Field<'_>, into: &mut BTreeSet<ipnet::IpNet>) -> Result<(), Unreadable> {
    let Some(spec) = root.find("spec") else { return Ok(()) };
    let mut fields = spec.fields()?;
    let nets = fields.take("nets").map(|list| list.list());
    let mut whole = fields.finish();
    for item in nets.transpose()?.unwrap_or_default() {
        match network(&item) {
            Ok(net) => {
                into.insert(net);
            }
            Err(Unreadable) => whole = Err(Unreadable),
        }
    }
    whole
}
