//! `projectcalico.org/v3` StagedGlobalNetworkPolicy, StagedNetworkPolicy and StagedKubernetesNetworkPolicy: policies
//! that are looked at and not enforced.

use super::reader::{Field, Unreadable};
use super::{Lowered, calico, network_policy};
use crate::model::{Level, StagedAction, StagedPolicy};
use crate::store::ObjectKey;
use std::sync::Arc;

const AS_SET: &str = "the preview shows the policy as if it were set";

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let Some(action) = action(root) else { return Lowered::Nothing };
    if action == StagedAction::Delete {
        deletes_only(root);
    }
    let policy = if key.kind == "StagedKubernetesNetworkPolicy" {
        network_policy::policy(key, root)
    } else {
        calico::policy(key, root)
    };
    Lowered::Staged(StagedPolicy { action, policy: Arc::new(policy) })
}

/// `spec.stagedAction`; `None`: the policy is not to be shown.
fn action(root: &Field<'_>) -> Option<StagedAction> {
    let Some(field) = root.find("spec").and_then(|spec| spec.find("stagedAction")) else {
        return Some(StagedAction::Set);
    };
    let field = field.with(AS_SET);
    match field.text() {
        Ok("Delete") => return Some(StagedAction::Delete),
        Ok("Ignore") => {
            field.with("the preview leaves the policy out").problem(Level::Note, "the policy is to be ignored");
            return None;
        }
        // What is learnt is a proposal like any other. What is no text is reported.
        Ok("Set" | "Learn" | "") | Err(Unreadable) => {}
        Ok(_) => {
            field.bad("must be Set, Delete, Learn or Ignore");
        }
    }
    Some(StagedAction::Set)
}

/// The API wants nothing but the tier beside a removal.
fn deletes_only(root: &Field<'_>) {
    let Some(Ok(mut fields)) = root.find("spec").map(|spec| spec.with("not looked at").fields()) else { return };
    fields.ignore(&["stagedAction", "tier"]);
    fields.finish_with(Level::Note, "a policy that removes another one says nothing else");
}
