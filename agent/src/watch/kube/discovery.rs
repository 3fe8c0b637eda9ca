//! Which kinds of policies the API server serves: asked at start, when a definition changes, and now and then.

use super::Shared;
use super::access::Access;
use super::inbox::{Discovery, Failure};
use super::resources::{CALICO, OPTIONAL, Optional, Resource, built_in, service_accounts};
use super::stream::{self, words};
use ::kube::api::{Api, ApiResource, DynamicObject, WatchParams};
use ::kube::{Client, Error};
use futures_util::TryStreamExt;
use reeve_flow::time::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;

/// Between two questions, at most, and as much again by chance: servers of other groups are announced by no definition.
const ASK_ANYWAY: Duration = Duration::from_mins(5);
/// Between two attempts of a question that fails, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A definition is served a moment after it is there.
const SERVED_WITHIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(900), Duration::from_secs(4)];

/// A watch that ends with its handle.
struct Watching(JoinHandle<()>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches what is served, for as long as the task runs.
pub(super) async fn follow(access: Arc<Access>, shared: Arc<Shared>) {
    let mut watches: BTreeMap<String, Watching> = BTreeMap::new();
    let begin = |watches: &mut BTreeMap<String, Watching>, resource: Resource| {
        shared.lock().begin(resource.clone());
        let (access, shared, name) = (Arc::clone(&access), Arc::clone(&shared), resource.name());
        let watch = tokio::spawn(async move { stream::watch(&access, &resource, &shared).await });
        watches.insert(name, Watching(watch));
    };
    let always = built_in();
    for resource in &always {
        begin(&mut watches, resource.clone());
    }
    let mut pause = FIRST_PAUSE;
    let mut once = false;
    let mut looks = SERVED_WITHIN.iter();
    loop {
        match served(&access.client()).await {
            Ok(resources) => {
                let names: Vec<String> = resources.iter().chain(&always).map(Resource::name).collect();
                for name in watches.keys().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>() {
                    tracing::info!(kind = name, "no longer served");
                    watches.remove(&name);
                    shared.lock().end(&name);
                }
                for resource in resources {
                    if !watches.contains_key(&resource.name()) {
                        tracing::info!(kind = resource.name(), version = resource.api.version, "watched");
                        begin(&mut watches, resource);
                    }
                }
                shared.discovered(Discovery::Known);
                (once, pause) = (true, FIRST_PAUSE);
            }
            Err(error) => {
                let since = Timestamp::from_system(SystemTime::now()).to_string();
                let failure = Failure { what: words(&error), since, forbidden: false };
                tracing::warn!(error = failure.what, "the API server does not say what it serves");
                shared.discovered(if once { Discovery::Old(failure) } else { Discovery::Failing(failure) });
                access.renew_if_unknown(&error).await;
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        }
        match looks.next() {
            Some(wait) => tokio::time::sleep(*wait).await,
            None => {
                let patience = ASK_ANYWAY.mul_f64(1.0 + fastrand::f64());
                if tokio::time::timeout(patience, definition_changes(&access.client())).await.is_ok() {
                    looks = SERVED_WITHIN.iter();
                }
            }
        }
    }
}

/// The kinds that are served, of those that are looked for.
async fn served(client: &Client) -> Result<Vec<Resource>, Error> {
    let groups = client.list_api_groups().await?.groups;
    let mut found = Vec::new();
    for optional in &OPTIONAL {
        let Some(group) = groups.iter().find(|group| group.name == optional.group) else { continue };
        let versions: Vec<&str> = group.versions.iter().map(|version| version.version.as_str()).collect();
        let Some(version) = best(optional, &versions) else { continue };
        let resources = client.list_api_group_resources(&format!("{}/{version}", optional.group)).await?.resources;
        for one in resources {
            let watched = one.verbs.iter().any(|verb| verb == "watch");
            // Those with a slash are parts of others.
            if watched && !one.name.contains('/') && optional.concerns(&one.kind) {
                found.push(Resource::new(optional.group, version, &one.kind, &one.name));
            }
        }
        if optional.group == CALICO && !found.is_empty() {
            found.push(service_accounts());
        }
    }
    Ok(found)
}

/// A version that is understood, or else the server's first: what is not understood is told, and closed.
fn best<'a>(optional: &Optional, versions: &[&'a str]) -> Option<&'a str> {
    let understood = optional.versions.iter().find_map(|known| versions.iter().find(|version| *version == known));
    understood.or(versions.first()).copied()
}

/// Ends when a definition of a kind that is looked for comes, changes or goes; never, if definitions may not be watched.
async fn definition_changes(client: &Client) {
    let definitions = ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    };
    let api = Api::<DynamicObject>::all_with(client.clone(), &definitions);
    loop {
        let outcome = async {
            let list = api.list_metadata(&::kube::api::ListParams::default()).await?;
            let version = list.metadata.resource_version.unwrap_or_default();
            let mut events = std::pin::pin!(api.watch_metadata(&WatchParams::default(), &version).await?);
            while let Some(event) = events.try_next().await? {
                use ::kube::api::WatchEvent::{Added, Deleted, Modified};
                if let Added(definition) | Modified(definition) | Deleted(definition) = event {
                    let name = definition.metadata.name.unwrap_or_default();
                    if OPTIONAL.iter().any(|optional| name.ends_with(&format!(".{}", optional.group))) {
                        return Ok(true);
                    }
                }
            }
            Ok::<_, Error>(false)
        };
        match outcome.await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(error = words(&error), "definitions cannot be watched");
                tokio::time::sleep(LONGEST_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_is_understood_is_asked_for_and_else_the_first() {
        let optional = &OPTIONAL[0];
        assert_eq!(best(optional, &["v1beta1", "v1alpha2"]), Some("v1alpha2"));
        assert_eq!(best(optional, &["v1", "v1beta1"]), Some("v1"));
        assert_eq!(best(optional, &[]), None);
    }

    #[test]
    fn policies_of_kinds_that_are_not_understood_are_watched_too() {
        let [cluster, calico] = &OPTIONAL;
        assert!(cluster.concerns("ClusterNetworkPolicy") && cluster.concerns("AdminNetworkPolicy"));
        assert!(calico.concerns("StagedGlobalNetworkPolicy") && calico.concerns("Tier"));
        assert!(!calico.concerns("IPPool") && !cluster.concerns("Tier"));
    }
}
