//! `projectcalico.org/v3`.
use super::reader::Field;
use super::{Lowered, closed};
use crate::store::ObjectKey;

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    Lowered::Policy(closed(key, root))
}

pub(super) fn tier(_key: &ObjectKey, _root: &Field<'_>) -> Lowered {
    Lowered::Unreadable
}
