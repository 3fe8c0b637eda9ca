//! `v1` ServiceAccount: its labels, with the name that Calico adds.

use super::reader::{Field, Unreadable};
use super::{Lowered, labels};
use crate::store::ObjectKey;

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let root =
        root.with("the labels known before go on to hold; without any, no selector by label finds the service account");
    match labels::of(&root) {
        Ok(mut labels) => {
            labels.insert("projectcalico.org/name".to_owned(), key.name.clone());
            Lowered::ServiceAccount(labels)
        }
        Err(Unreadable) => Lowered::Unreadable,
    }
}
