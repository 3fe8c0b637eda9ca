//! Where facts come from: a directory of manifests, or a cluster's API server.
//!
//! Invariant: what cannot be read or heard is named, and what was known of it goes on to hold.

pub mod files;
pub mod kube;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::run::Wake;
use anyhow::Context;
use reeve_policy::model::{Problem, World};
use reeve_policy::store::Change;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// What a look found.
#[derive(Debug, Default, PartialEq)]
pub struct Scan {
    /// What differs from the last look, deletions last.
    pub changes: Vec<Change>,
    /// What of the input cannot be honoured, beside what is wrong with single objects.
    pub problems: Vec<Problem>,
    /// Why the facts are not whole, a clause each: nothing is changed in the kernel because of them alone.
    pub unread: Vec<String>,
    /// Why they may be old, a clause each: what is known stays in force.
    pub stale: Vec<String>,
}

/// Where facts come from.
#[derive(Debug)]
pub enum Source {
    /// A directory, and what tells when something in it changes.
    Files(files::Directory, notify::RecommendedWatcher),
    /// An API server.
    Cluster(kube::Cluster),
}

impl Source {
    /// Opens the one that settings name. `wake` hears when there is something to look at.
    pub(crate) async fn open(config: &Config, wake: mpsc::Sender<Wake>, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        match (&config.manifests, &config.kubeconfig) {
            (Some(manifests), Some(kubeconfig)) => anyhow::bail!(
                "--manifests {} and --kubeconfig {}: facts come from one place",
                manifests.display(),
                kubeconfig.display()
            ),
            (Some(manifests), None) => {
                let watcher = files::watch(manifests, wake)?;
                Ok(Self::Files(files::Directory::new(manifests), watcher))
            }
            (None, kubeconfig) => {
                let silence = Duration::from_secs(config.api_silence);
                let access = kube::Access::open(kubeconfig.clone(), silence).await.context(
                    "where are the facts? give --manifests DIR or --kubeconfig FILE, or run as a pod of the cluster",
                )?;
                Ok(Self::Cluster(kube::Cluster::watch(access, wake, metrics)))
            }
        }
    }

    /// What has changed since the last look. An error means that nothing could be looked at; what was told before still
    /// holds.
    pub(crate) fn scan(&mut self) -> anyhow::Result<Scan> {
        match self {
            Self::Files(directory, _) => {
                let root = directory.root().to_owned();
                directory.scan().with_context(|| format!("manifests directory {} cannot be listed", root.display()))
            }
            Self::Cluster(cluster) => Ok(cluster.scan()),
        }
    }

    /// The objects in force.
    pub(crate) fn objects(&self, world: &World) -> Vec<Value> {
        match self {
            Self::Files(directory, _) => directory.objects().map(|object| object.value.clone()).collect(),
            Self::Cluster(cluster) => cluster.objects(world),
        }
    }
}
