//! `v1` Namespace: its labels, with those that Kubernetes and Calico always give it.

use super::reader::{Field, Unreadable};
use super::{Lowered, labels};
use crate::store::ObjectKey;

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let root = root.with("the labels known before go on to hold; without any, the namespace is not known and no selector by label finds it");
    match labels::of(&root) {
        Ok(mut labels) => {
            for name in ["kubernetes.io/metadata.name", "projectcalico.org/name"] {
                labels.insert(name.to_owned(), key.name.clone());
            }
            Lowered::Namespace(labels)
        }
        Err(Unreadable) => Lowered::Unreadable,
    }
}
