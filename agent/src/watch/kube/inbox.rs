//! What watches have heard and nobody has taken yet.
//!
//! Invariant: an object that a new list lacks is deleted, once the list is whole; until then it holds.

use super::super::Scan;
use super::Told;
use super::resources::Resource;
use crate::status::Conditions;
use reeve_policy::model::{Level, Problem};
use reeve_policy::store::{Change, Object, ObjectKey};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::watch;

/// Where objects are found, as problems say it.
const ORIGIN: &str = "the API server";

/// Namespace, empty for none, and name.
type Place = (Box<str>, Box<str>);

/// All kinds, and what was heard of them.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    kinds: BTreeMap<String, Kind>,
    /// The last that was heard of each object since the last look; none: it is gone.
    heard: BTreeMap<ObjectKey, Option<Value>>,
    /// Objects in force, as text, but for pods: there are many, and the engine has what there is to know of them.
    kept: BTreeMap<ObjectKey, Box<str>>,
    /// Ours in the status of policies: no facts, and told to who writes them.
    conditions: watch::Sender<Conditions>,
    /// Whether everything that was served then was known at once.
    whole: bool,
    /// What keeps it from being known which kinds are served.
    pub(super) discovery: Discovery,
}

/// Whether it is known which kinds the server serves.
#[derive(Debug, Default)]
pub(super) enum Discovery {
    /// Not yet, for this reason if there is one.
    #[default]
    Awaited,
    /// It is not known, and never was.
    Failing(Failure),
    /// It is, and the server was asked not long ago.
    Known,
    /// It was, and the server cannot be asked now.
    Old(Failure),
}

/// Why something is not heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// In the words of who failed.
    pub(super) what: String,
    /// Since when, as text.
    pub(super) since: String,
    /// Whether the API server refuses it to whom we are.
    pub(super) forbidden: bool,
}

#[derive(Debug)]
struct Kind {
    resource: Resource,
    listed: bool,
    failure: Option<Failure>,
    known: BTreeSet<Place>,
    /// Of a list that is not whole yet.
    listing: BTreeSet<Place>,
}

impl Inbox {
    /// A kind is heard of from now on; nothing is known of it yet.
    pub(super) fn begin(&mut self, resource: Resource) {
        let (known, listing) = (BTreeSet::new(), BTreeSet::new());
        let name = resource.name();
        self.kinds.entry(name).or_insert(Kind { resource, listed: false, failure: None, known, listing });
    }

    /// A kind is served no longer, so none of its objects is there.
    pub(super) fn end(&mut self, name: &str) {
        if let Some(kind) = self.kinds.remove(name) {
            for place in kind.known.union(&kind.listing) {
                self.put(kind.resource.key(place), None);
            }
        }
    }

    /// A list begins: what was heard of one before it counts no longer.
    pub(super) fn list_begins(&mut self, name: &str) {
        if let Some(kind) = self.kinds.get_mut(name) {
            let unfinished = std::mem::take(&mut kind.listing);
            kind.known.extend(unfinished);
        }
    }

    /// An object is there; `listed`: as part of a list. Whether that is news.
    pub(super) fn apply(&mut self, name: &str, object: Told, listed: Listed) -> bool {
        let Some(kind) = self.kinds.get_mut(name) else { return false };
        let place = place(&object.value);
        let key = kind.resource.key(&place);
        match listed {
            Listed::InList => kind.listing.insert(place),
            Listed::Alone => kind.known.insert(place),
        };
        self.put(key, Some(object))
    }

    /// An object is gone.
    pub(super) fn delete(&mut self, name: &str, value: &Value) {
        let Some(kind) = self.kinds.get_mut(name) else { return };
        let place = place(value);
        kind.known.remove(&place);
        let key = kind.resource.key(&place);
        self.put(key, None);
    }

    /// The list is whole.
    pub(super) fn list_ends(&mut self, name: &str) {
        let Some(kind) = self.kinds.get_mut(name) else { return };
        let listing = std::mem::take(&mut kind.listing);
        let gone: Vec<ObjectKey> = kind.known.difference(&listing).map(|place| kind.resource.key(place)).collect();
        kind.known = listing;
        kind.listed = true;
        kind.failure = None;
        for key in gone {
            self.put(key, None);
        }
    }

    /// The watch stands, or does not.
    pub(super) fn stands(&mut self, name: &str, failure: Option<Failure>) {
        let Some(kind) = self.kinds.get_mut(name) else { return };
        kind.failure = match (failure, &kind.failure) {
            // It goes on failing: since when is the older news.
            (Some(new), Some(old)) => Some(Failure { since: old.since.clone(), ..new }),
            (failure, _) => failure,
        };
    }

    /// What an object is now; whether that is news. A status that changes is none, ours least of all: no agent of the cluster
    /// has to compile anything because one of them has written it.
    fn put(&mut self, key: ObjectKey, object: Option<Told>) -> bool {
        let (value, condition) = object.map_or((None, None), |object| (Some(object.value), object.condition));
        self.conditions.send_if_modified(|known| match condition {
            Some(condition) => known.insert(key.clone(), condition.clone()) != Some(condition),
            None => known.remove(&key).is_some(),
        });
        match &value {
            Some(value) if key.kind != "Pod" => {
                let text = Box::<str>::from(value.to_string());
                if self.kept.get(&key) == Some(&text) {
                    return false;
                }
                self.kept.insert(key.clone(), text);
            }
            Some(_) => {}
            None => drop(self.kept.remove(&key)),
        }
        self.heard.insert(key, value);
        true
    }

    /// Those who want to know of our conditions.
    pub(super) fn conditions(&self) -> watch::Receiver<Conditions> {
        self.conditions.subscribe()
    }

    /// What was heard since this was asked last.
    pub(super) fn take(&mut self) -> Scan {
        let mut scan = Scan::default();
        let (mut applied, mut deleted) = (Vec::new(), Vec::new());
        for (key, value) in std::mem::take(&mut self.heard) {
            match value {
                Some(value) => applied.push(Change::Apply(Object { value, origin: ORIGIN.to_owned() })),
                None => deleted.push(Change::Delete(key)),
            }
        }
        scan.changes = applied.into_iter().chain(deleted).collect();
        match &self.discovery {
            Discovery::Awaited => {
                scan.unread.push("the API server has not said yet which policies it serves".to_owned());
            }
            Discovery::Failing(why) => {
                scan.unread.push(format!("the API server does not say which policies it serves: {}", why.what));
            }
            Discovery::Known => {}
            Discovery::Old(why) => scan.stale.push(format!(
                "the API server has not said since {} which policies it serves: {}",
                why.since, why.what
            )),
        }
        for (name, kind) in &self.kinds {
            match (&kind.failure, kind.listed) {
                (None, true) => continue,
                (None, false) => scan.unread.push(format!("{name} have not been listed yet")),
                (Some(why), false) => scan.unread.push(format!("{name} cannot be listed: {}", why.what)),
                (Some(why), true) => {
                    scan.stale.push(format!("{name} have not been heard of since {}: {}", why.since, why.what));
                }
            }
            if let Some(why) = kind.failure.as_ref().filter(|why| why.forbidden) {
                scan.problems.push(forbidden(name, why, self.whole));
            }
        }
        // A kind that is served later keeps nothing back; that it is not known yet is told all the same.
        if self.whole {
            scan.stale.append(&mut scan.unread);
        }
        self.whole |= scan.unread.is_empty();
        scan
    }

    /// The objects in force, pods excepted.
    pub(super) fn kept(&self) -> impl Iterator<Item = Value> {
        self.kept.values().map(|text| serde_json::from_str(text).expect("it was written from a value"))
    }

    /// Kinds with the objects known of each, and whether the watch stands.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&str, usize, bool)> {
        self.kinds.iter().map(|(name, kind)| (name.as_str(), kind.known.len(), kind.listed && kind.failure.is_none()))
    }
}

/// How an object is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    /// As part of a list of all.
    InList,
    /// By itself.
    Alone,
}

fn place(value: &Value) -> Place {
    let text = |name: &str| value["metadata"][name].as_str().unwrap_or_default().into();
    (text("namespace"), text("name"))
}

impl Resource {
    fn key(&self, (namespace, name): &Place) -> ObjectKey {
        ObjectKey {
            group: self.api.group.clone(),
            kind: self.api.kind.clone(),
            namespace: (!namespace.is_empty()).then(|| namespace.as_ref().to_owned()),
            name: name.as_ref().to_owned(),
        }
    }
}

fn forbidden(name: &str, why: &Failure, whole: bool) -> Problem {
    let effect = if whole {
        "what was known of them stays in force; pods that start wait until it is allowed again"
    } else {
        "nothing is changed in the kernel, and pods that start wait, until it is allowed"
    };
    Problem {
        level: Level::Warning,
        object: name.to_owned(),
        field: "RBAC verbs list, watch".to_owned(),
        value: String::new(),
        what: why.what.clone(),
        effect: effect.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::resources::built_in;
    use super::*;
    use crate::status;
    use serde_json::json;

    const PODS: &str = "pods";

    fn inbox() -> Inbox {
        let mut inbox = Inbox { discovery: Discovery::Known, ..Inbox::default() };
        inbox.begin(built_in().swap_remove(0));
        inbox
    }

    fn pod(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}})
    }

    fn object(value: Value) -> Told {
        Told { value, condition: None }
    }

    fn told(scan: &Scan) -> Vec<String> {
        let name = |change: &Change| match change {
            Change::Apply(object) => format!("+{}", object.value["metadata"]["name"].as_str().unwrap_or_default()),
            Change::Delete(key) => format!("-{}", key.name),
            Change::LocalAddresses(_) => "addresses".to_owned(),
        };
        scan.changes.iter().map(name).collect()
    }

    fn list(inbox: &mut Inbox, names: &[&str]) {
        inbox.list_begins(PODS);
        for name in names {
            inbox.apply(PODS, object(pod(name)), Listed::InList);
        }
        inbox.list_ends(PODS);
    }

    #[test]
    fn an_object_that_a_new_list_lacks_is_deleted_when_the_list_is_whole() {
        let mut inbox = inbox();
        list(&mut inbox, &["a", "b"]);
        assert_eq!(told(&inbox.take()), ["+a", "+b"]);
        inbox.list_begins(PODS);
        inbox.apply(PODS, object(pod("b")), Listed::InList);
        assert_eq!(told(&inbox.take()), ["+b"]);
        inbox.list_ends(PODS);
        assert_eq!(told(&inbox.take()), ["-a"]);
    }

    #[test]
    fn a_list_that_breaks_off_deletes_nothing_and_what_it_told_is_not_forgotten() {
        let mut inbox = inbox();
        list(&mut inbox, &["a"]);
        inbox.take();
        inbox.list_begins(PODS);
        inbox.apply(PODS, object(pod("b")), Listed::InList);
        assert_eq!(told(&inbox.take()), ["+b"]);
        // The next one has neither: both are gone.
        list(&mut inbox, &[]);
        assert_eq!(told(&inbox.take()), ["-a", "-b"]);
    }

    #[test]
    fn only_the_last_that_was_heard_of_an_object_is_told() {
        let mut inbox = inbox();
        list(&mut inbox, &[]);
        inbox.apply(PODS, object(pod("a")), Listed::Alone);
        inbox.delete(PODS, &pod("a"));
        inbox.apply(PODS, object(pod("b")), Listed::Alone);
        inbox.delete(PODS, &pod("b"));
        inbox.apply(PODS, object(pod("b")), Listed::Alone);
        assert_eq!(told(&inbox.take()), ["+b", "-a"]);
    }

    #[test]
    fn facts_are_not_whole_before_each_kind_was_listed_and_old_while_one_cannot_be_heard() {
        let mut inbox = inbox();
        assert_eq!(inbox.take().unread, ["pods have not been listed yet"]);
        let failure = |since: &str| Failure { what: "no route".to_owned(), since: since.to_owned(), forbidden: false };
        inbox.stands(PODS, Some(failure("one")));
        assert_eq!(inbox.take().unread, ["pods cannot be listed: no route"]);
        list(&mut inbox, &["a"]);
        let scan = inbox.take();
        assert!(scan.unread.is_empty() && scan.stale.is_empty(), "{scan:?}");
        inbox.stands(PODS, Some(failure("two")));
        inbox.stands(PODS, Some(failure("three")));
        let scan = inbox.take();
        assert_eq!((scan.unread.len(), scan.changes.len()), (0, 0));
        assert_eq!(scan.stale, ["pods have not been heard of since two: no route"]);
        inbox.stands(PODS, None);
        assert_eq!(inbox.take(), Scan::default());
    }

    #[test]
    fn a_kind_that_is_served_later_keeps_nothing_back_and_is_told_until_it_is_known() {
        let mut inbox = inbox();
        list(&mut inbox, &["a"]);
        assert!(inbox.take().unread.is_empty());
        let later = Resource::new("projectcalico.org", "v3", "Tier", "tiers");
        inbox.begin(later);
        let scan = inbox.take();
        assert!(scan.unread.is_empty());
        assert_eq!(scan.stale, ["tiers.projectcalico.org have not been listed yet"]);
        inbox.list_begins("tiers.projectcalico.org");
        inbox.list_ends("tiers.projectcalico.org");
        assert_eq!(inbox.take(), Scan::default());
    }

    #[test]
    fn a_kind_that_is_refused_to_us_is_a_problem_that_names_it() {
        let mut inbox = inbox();
        let what = "pods is forbidden".to_owned();
        inbox.stands(PODS, Some(Failure { what, since: "one".to_owned(), forbidden: true }));
        let problem = inbox.take().problems.swap_remove(0);
        assert_eq!((problem.object.as_str(), problem.what.as_str()), ("pods", "pods is forbidden"));
    }

    #[test]
    fn a_kind_that_is_served_no_longer_takes_its_objects_with_it() {
        let mut inbox = inbox();
        list(&mut inbox, &["a"]);
        inbox.take();
        inbox.end(PODS);
        assert_eq!(told(&inbox.take()), ["-a"]);
        inbox.apply(PODS, object(pod("late")), Listed::Alone);
        assert_eq!(told(&inbox.take()), Vec::<String>::new());
    }

    #[test]
    fn a_status_that_changes_is_no_news_of_the_policy_and_ours_is_told_to_who_writes_it() {
        let name = "clusternetworkpolicies.policy.networking.k8s.io";
        let group = "policy.networking.k8s.io";
        let mut inbox = Inbox { discovery: Discovery::Known, ..Inbox::default() };
        inbox.begin(Resource::new(group, "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies"));
        let mut conditions = inbox.conditions();
        let policy = |generation: u32| {
            let metadata = json!({ "name": "admin", "generation": generation });
            json!({ "apiVersion": format!("{group}/v1alpha2"), "kind": "ClusterNetworkPolicy", "metadata": metadata })
        };
        let ours = |generation: u32| {
            let condition = json!({
                "type": "reeve/Accepted", "status": "True", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "Accepted", "message": "",
            });
            let condition = status::own(group, &json!({ "status": { "conditions": [condition] } }));
            Told { value: policy(generation), condition: Some(condition.expect("ours")) }
        };
        inbox.list_begins(name);
        assert!(inbox.apply(name, object(policy(1)), Listed::InList));
        inbox.list_ends(name);
        assert_eq!((told(&inbox.take()), conditions.has_changed().expect("there")), (vec!["+admin".to_owned()], false));

        assert!(!inbox.apply(name, ours(1), Listed::Alone), "only its status is another");
        assert_eq!(told(&inbox.take()), Vec::<String>::new());
        let known = |conditions: &mut watch::Receiver<Conditions>| {
            let changed = conditions.has_changed().expect("there");
            (changed, conditions.borrow_and_update().values().cloned().collect::<Vec<_>>())
        };
        assert_eq!(known(&mut conditions), (true, vec![ours(1).condition.expect("ours")]));
        assert!(!inbox.apply(name, ours(1), Listed::Alone));
        assert!(!known(&mut conditions).0, "the same again");
        assert!(inbox.apply(name, ours(2), Listed::Alone), "another generation is another policy");
        assert_eq!((told(&inbox.take()), known(&mut conditions).0), (vec!["+admin".to_owned()], true));

        assert!(!inbox.apply(name, object(policy(2)), Listed::Alone), "somebody has taken it away");
        assert_eq!(known(&mut conditions), (true, vec![]));
        inbox.delete(name, &policy(2));
        assert!(inbox.apply(name, object(policy(2)), Listed::Alone), "one that was deleted is news");
        assert_eq!(told(&inbox.take()), ["+admin"]);
    }
}
