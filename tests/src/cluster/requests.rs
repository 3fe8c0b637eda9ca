//! Asks the API server from this process: where the moment of an answer matters, or there are thousands of them.

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::Cluster;

/// Requests that are on their way together.
const TOGETHER: usize = 32;

/// The cluster's administrator, without `kubectl`.
pub struct Administrator {
    runtime: Runtime,
    client: Client,
}

impl Cluster {
    /// Runs code on a thread beside the API server, which can ask it.
    pub fn ask<T: Send>(&self, code: impl FnOnce(&Administrator) -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let path = self.keys.path("admin.kubeconfig");
        self.netns.run(|| {
            // One thread: all sockets are made in the namespace that it is in.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let client = runtime.block_on(async {
                let file = Kubeconfig::read_from(&path)?;
                let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
                anyhow::Ok(Client::try_from(config)?)
            })?;
            code(&Administrator { runtime, client })
        })?
    }
}

impl Administrator {
    /// Merges into a pod.
    pub fn patch_pod(&self, namespace: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let done = self.runtime.block_on(pods.patch(name, &PatchParams::default(), &Patch::Merge(patch)));
        done.with_context(|| format!("cannot patch pod {namespace}/{name}")).map(drop)
    }

    /// Merges into a policy.
    pub fn patch_policy(&self, namespace: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
        let policies: Api<NetworkPolicy> = Api::namespaced(self.client.clone(), namespace);
        let done = self.runtime.block_on(policies.patch(name, &PatchParams::default(), &Patch::Merge(patch)));
        done.with_context(|| format!("cannot patch policy {namespace}/{name}")).map(drop)
    }

    /// Creates a pod by its object; its UID.
    pub fn create_pod(&self, namespace: &str, pod: &Value) -> anyhow::Result<String> {
        self.runtime.block_on(created(&self.client, namespace, pod))?.metadata.uid.context("a pod has a UID")
    }

    /// Deletes a pod as its kubelet does at the end: at once.
    pub fn delete_pod(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let done = self.runtime.block_on(pods.delete(name, &DeleteParams::default().grace_period(0)));
        done.with_context(|| format!("cannot delete pod {namespace}/{name}")).map(drop)
    }

    /// Creates pods that run already: each with its object and its status.
    pub fn create_running(&self, namespace: &str, pods: Vec<(Value, Value)>) -> anyhow::Result<()> {
        let one = |(pod, status): (Value, Value)| async move {
            let made = created(&self.client, namespace, &pod).await?;
            let name = made.metadata.name.context("a pod has a name")?;
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let patch = Patch::Merge(serde_json::json!({ "status": status }));
            api.patch_status(&name, &PatchParams::default(), &patch).await?;
            anyhow::Ok(())
        };
        let all = stream::iter(pods.into_iter().map(one)).buffer_unordered(TOGETHER).try_collect::<Vec<()>>();
        self.runtime.block_on(all).map(drop)
    }
}

async fn created(client: &Client, namespace: &str, pod: &Value) -> anyhow::Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod: Pod = serde_json::from_value(pod.clone()).context("no pod")?;
    pods.create(&PostParams::default(), &pod).await.context("cannot create a pod")
}
