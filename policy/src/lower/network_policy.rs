//! `networking.k8s.io/v1` NetworkPolicy.
use super::reader::Field;
use super::{Lowered, closed};
use crate::store::ObjectKey;

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    Lowered::Policy(closed(key, root))
}
