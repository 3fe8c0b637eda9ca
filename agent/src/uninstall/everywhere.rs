//! Takes reeve off every node of a cluster: the DaemonSet's pods become uninstallations, and all of them are awaited.
//!
//! Invariant: it ends well only if each node for which the DaemonSet has a pod says that nothing is left there.

use crate::watch::kube::connect;
use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// The container of the DaemonSet's pods.
const CONTAINER: &str = "agent";

/// What a pod that uninstalls is told first; what the agent was told comes behind.
const WORDS: [&str; 2] = ["uninstall", "--stay"];

/// Does it for the DaemonSet of this namespace and name, `within` this time; an error names the nodes that are not done.
pub async fn everywhere(
    kubeconfig: Option<PathBuf>,
    namespace: &str,
    name: &str,
    within: Duration,
) -> anyhow::Result<()> {
    let end = Instant::now() + within;
    let client = connect(kubeconfig.as_ref(), None).await?;
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let what = format!("DaemonSet {namespace}/{name}");
    let Some(set) = sets.get_opt(name).await.with_context(|| format!("{what} cannot be read"))? else {
        bail!(
            "{what} is not there, so nothing can be taken off the nodes: make it again (`helm rollback`), or uninstall \
             with `--no-hooks` and run `reeve-agent uninstall` on each node"
        );
    };
    if let Some(patch) = patch(&serde_json::to_value(&set)?) {
        let done = sets.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        done.with_context(|| format!("{what} cannot be changed"))?;
    }
    let mut told = None;
    loop {
        let set = sets.get(name).await.with_context(|| format!("{what} cannot be read"));
        // A server that is away for a moment is asked again.
        let progress = set.as_ref().ok().map(progress);
        if progress != told {
            if let Some((done, of)) = progress.flatten() {
                println!("{done} of {of} nodes are done");
            }
            told = progress;
        }
        if let Some((done, of)) = progress.flatten()
            && done == of
        {
            if of == 0 {
                eprintln!(
                    "{what} is for no node now: where it had agents before, what they left goes on being enforced until \
                     `reeve-agent uninstall` runs there"
                );
            }
            return Ok(());
        }
        if Instant::now() >= end {
            let selector = set?.spec.selector.match_labels.unwrap_or_default();
            let selector: Vec<String> = selector.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
            let pods: Api<Pod> = Api::namespaced(client, namespace);
            let pods =
                pods.list(&ListParams::default().labels(&selector.join(","))).await.context("no list of pods")?;
            let pods: Vec<Value> = pods.items.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
            bail!(
                "after {} s reeve is not off these nodes: {}. See their pods in {namespace}; a node that will not come \
                 back can be deleted from the cluster. Then uninstall again, or with `--no-hooks`, and run \
                 `reeve-agent uninstall` there",
                within.as_secs(),
                unfinished(&pods).join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What turns agents into uninstallations, all at once; none, if that has been done.
fn patch(set: &Value) -> Option<Value> {
    let containers = set["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
    let agent = containers.into_iter().find(|container| container["name"] == CONTAINER);
    let given = agent.and_then(|agent| agent["args"].as_array()).cloned().unwrap_or_default();
    if given.first().is_some_and(|word| word == WORDS[0]) {
        return None;
    }
    let arguments: Vec<Value> = WORDS.iter().map(|word| json!(word)).chain(given).collect();
    Some(json!({ "spec": {
        // Nothing is gained by doing one after the other; and old and new never run together on a node.
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "100%", "maxSurge": 0 } },
        "template": { "spec": { "containers": [{ "name": CONTAINER, "args": arguments }] } },
    } }))
}

/// How many nodes are done, and of how many; none while the controller has not seen the change.
fn progress(set: &DaemonSet) -> Option<(i32, i32)> {
    let status = set.status.as_ref()?;
    if status.observed_generation < set.metadata.generation {
        return None;
    }
    let of = status.desired_number_scheduled;
    // Readiness of old pods does not count: there are as many new ones as there will be when it does.
    let updated = status.updated_number_scheduled.unwrap_or_default();
    Some((if updated == of { status.number_ready } else { status.number_ready.min(updated).min(of - 1) }, of))
}

/// Nodes whose pod does not say that it is done, each with what is known of it.
fn unfinished(pods: &[Value]) -> Vec<String> {
    let is_done = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
        ready && pod["spec"]["containers"][0]["args"][0] == WORDS[0]
    };
    let mut nodes: Vec<String> = pods
        .iter()
        .filter(|pod| !is_done(pod))
        .map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or("a node that is not known yet").to_owned())
        .collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(args: &Value, strategy: &str) -> Value {
        json!({ "spec": { "updateStrategy": { "type": strategy }, "template": { "spec": {
            "containers": [{ "name": "agent", "args": args }] } } } })
    }

    #[test]
    fn agents_become_uninstallations_once_and_keep_their_settings() {
        let made = patch(&set(&json!(["--config", "/a"]), "OnDelete")).expect("a patch");
        let args = &made["spec"]["template"]["spec"]["containers"][0]["args"];
        assert_eq!(args, &json!(["uninstall", "--stay", "--config", "/a"]));
        assert_eq!(made["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "100%");
        assert_eq!(patch(&set(args, "RollingUpdate")), None);
    }

    #[test]
    fn nodes_are_done_when_new_pods_are_ready_everywhere() {
        let check = |generation: i64, updated: i32, ready: i32, want: Option<(i32, i32)>| {
            let set: DaemonSet = serde_json::from_value(json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "generation": 2 },
                "status": {
                    "observedGeneration": generation, "desiredNumberScheduled": 3, "updatedNumberScheduled": updated,
                    "numberReady": ready, "currentNumberScheduled": 3, "numberMisscheduled": 0,
                },
            }))
            .expect("a DaemonSet");
            assert_eq!(progress(&set), want);
        };
        check(1, 3, 3, None);
        check(2, 0, 3, Some((0, 3)));
        check(2, 2, 3, Some((2, 3)));
        check(2, 3, 2, Some((2, 3)));
        check(2, 3, 3, Some((3, 3)));
    }

    #[test]
    fn nodes_that_are_not_done_are_named() {
        let pod = |node: &str, word: &str, ready: &str| {
            json!({
                "spec": { "nodeName": node, "containers": [{ "args": [word] }] },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            })
        };
        let pods = [pod("c", "uninstall", "False"), pod("a", "--config", "True"), pod("b", "uninstall", "True")];
        assert_eq!(unfinished(&pods), ["a", "c"]);
    }
}
