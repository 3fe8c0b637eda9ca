//! What was asked of the API server, by whom, as its audit log tells.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context;
use serde_json::Value;

use super::Cluster;

/// A request for a resource, and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// As in RBAC: `list`, `watch` and so on.
    pub verb: String,
    /// Empty for the core's.
    pub group: String,
    /// With the subresource, behind a slash, if it is one; empty for a path that is no resource.
    pub resource: String,
    /// The path, without its query.
    pub path: String,
    /// The answer's status.
    pub code: u64,
}

impl Cluster {
    /// What this service account has asked so far, and how often.
    pub fn calls_of(&self, namespace: &str, account: &str) -> anyhow::Result<BTreeMap<Call, usize>> {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let path = self.directory.join("audit.log");
        let log = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut calls = BTreeMap::new();
        // The last line may not be whole yet.
        for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let event: Value = serde_json::from_str(line).with_context(|| format!("no event: {line}"))?;
            if event["user"]["username"] == user.as_str() {
                *calls.entry(call(&event)).or_default() += 1;
            }
        }
        Ok(calls)
    }
}

fn call(event: &Value) -> Call {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = &event["objectRef"];
    let mut resource = text(&of["resource"]);
    if let Some(part) = of["subresource"].as_str() {
        resource = format!("{resource}/{part}");
    }
    let path = text(&event["requestURI"]);
    let path = path.split('?').next().unwrap_or_default().to_owned();
    let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
    Call { verb: text(&event["verb"]), group: text(&of["apiGroup"]), resource, path, code }
}
