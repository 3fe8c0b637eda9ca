//! What the CNI plugin has announced: pods whose network stands before anybody else tells their addresses.
//!
//! Invariant: what was announced counts until the pod's status shows one of its addresses, then the status does; an
//! announcement ends with its container. On disk before it is answered.

use crate::cni::{Announcement, Attachment};
use reeve_abi::ids::WorkloadId;
use reeve_policy::provenance::workload_id;
use reeve_policy::store::{Change, Object, ObjectKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Announcements, and the pods of this node as they were last told.
#[derive(Debug)]
pub(crate) struct Announced {
    path: PathBuf,
    boot: String,
    node: String,
    held: BTreeMap<Attachment, Held>,
    pods: BTreeMap<ObjectKey, Object>,
    /// Pods to be told to the engine anew.
    again: BTreeSet<ObjectKey>,
    unwritten: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Held {
    announcement: Announcement,
    /// Whether the pod's status has shown the addresses.
    confirmed: bool,
}

#[derive(Serialize, Deserialize)]
struct File {
    boot: String,
    announcements: Vec<Held>,
}

/// How a pod is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known<'a> {
    /// By the name and the UID that were announced; with its own UID, if it has one.
    AsAnnounced(Option<&'a str>),
    /// By that name there is another one.
    Other(&'a str),
    /// Not.
    Unknown,
}

impl Announced {
    /// Reads what the last agent left. What cannot be read, or is of another boot, is nothing.
    pub(crate) fn open(path: &Path, boot: &str, node: &str) -> Self {
        let held = match read(path) {
            Ok(Some(file)) if file.boot == boot => file.announcements,
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what the CNI plugin announced before cannot be read");
                Vec::new()
            }
        };
        Self {
            path: path.to_owned(),
            boot: boot.to_owned(),
            node: node.to_owned(),
            held: held.into_iter().map(|held| (held.announcement.attachment.clone(), held)).collect(),
            pods: BTreeMap::new(),
            again: BTreeSet::new(),
            unwritten: false,
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Announcement> {
        self.held.values().map(|held| &held.announcement)
    }

    /// One of them.
    pub(crate) fn get(&self, attachment: &Attachment) -> Option<&Announcement> {
        self.held.get(attachment).map(|held| &held.announcement)
    }

    /// How many count for more than the pod's status.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.held.values().filter(|held| !held.confirmed).count()
    }

    /// Others who have the device or an address of this one; its own pod's earlier container is none of them.
    pub(crate) fn rivals<'a>(&'a self, new: &'a Announcement) -> impl Iterator<Item = &'a Announcement> {
        self.all().filter(|old| {
            let same_place = old.ifindex == new.ifindex && old.device == new.device;
            let shared = same_place || old.addresses.iter().any(|address| new.addresses.contains(address));
            shared && !same_pod(old, new) && old.attachment != new.attachment
        })
    }

    /// Takes an announcement in the place of those that its pod had.
    pub(crate) fn announce(&mut self, new: Announcement) {
        self.forget(|old| *old == new.attachment);
        let earlier: Vec<Attachment> =
            self.all().filter(|old| same_pod(old, &new)).map(|old| old.attachment.clone()).collect();
        for old in earlier {
            self.forget(|other| *other == old);
        }
        self.again.insert(key(&new));
        self.unwritten = true;
        self.held.insert(new.attachment.clone(), Held { announcement: new, confirmed: false });
    }

    /// Forgets these; whether there were any.
    pub(crate) fn forget(&mut self, which: impl Fn(&Attachment) -> bool) -> bool {
        let gone: Vec<Attachment> = self.held.keys().filter(|attachment| which(attachment)).cloned().collect();
        for held in gone.iter().filter_map(|attachment| self.held.remove(attachment)) {
            self.again.insert(key(&held.announcement));
        }
        self.unwritten |= !gone.is_empty();
        !gone.is_empty()
    }

    /// How the pod of an announcement is known.
    pub(crate) fn known(&self, announcement: &Announcement) -> Known<'_> {
        let Some(pod) = self.pods.get(&key(announcement)) else { return Known::Unknown };
        let uid = uid(&pod.value);
        match uid {
            Some(uid) if !is_of(announcement, &pod.value) => Known::Other(uid),
            _ => Known::AsAnnounced(uid),
        }
    }

    /// The pods that have UIDs, with what was announced of each.
    pub(crate) fn by_workload(&self) -> BTreeMap<WorkloadId, Announcement> {
        let with_workload = |one: &Announcement| match self.known(one) {
            Known::AsAnnounced(Some(uid)) => Some((workload_id(uid), one.clone())),
            _ => None,
        };
        self.all().filter_map(with_workload).collect()
    }

    /// Puts what was announced into pods that are told, and tells those anew of which something else is announced now.
    pub(crate) fn heed(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut heeded = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Apply(object) if is_pod(&object.value) => heeded.push(self.told(object)),
                Change::Delete(key) => {
                    self.pods.remove(&key);
                    heeded.push(Change::Delete(key));
                }
                other => heeded.push(other),
            }
        }
        for key in std::mem::take(&mut self.again) {
            heeded.extend(self.pods.get(&key).map(|pod| Change::Apply(self.patched(pod))));
        }
        heeded
    }

    fn told(&mut self, object: Object) -> Change {
        let Ok(key) = ObjectKey::of(&object.value) else { return Change::Apply(object) };
        self.again.remove(&key);
        if object.value["spec"]["nodeName"].as_str() != Some(&self.node) {
            self.pods.remove(&key);
            return Change::Apply(object);
        }
        let shown = shown(&object.value);
        for held in self.held.values_mut().filter(|held| !held.confirmed && is_of(&held.announcement, &object.value)) {
            held.confirmed = held.announcement.addresses.iter().any(|address| shown.contains(address));
            self.unwritten |= held.confirmed;
        }
        let patched = self.patched(&object);
        self.pods.insert(key, object);
        Change::Apply(patched)
    }

    /// The pod with the addresses that were announced, while its status does not show them.
    fn patched(&self, pod: &Object) -> Object {
        let mut pod = pod.clone();
        let counts = |held: &&Held| !held.confirmed && is_of(&held.announcement, &pod.value);
        if let Some(held) = self.held.values().find(counts) {
            let ips: Vec<Value> = held.announcement.addresses.iter().map(|address| json!({ "ip": address })).collect();
            match &mut pod.value["status"] {
                Value::Object(status) => drop(status.insert("podIPs".to_owned(), ips.into())),
                status => *status = json!({ "phase": "Pending", "podIPs": ips }),
            }
        }
        pod
    }

    /// Writes them down, unless that has been done.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        if !self.unwritten {
            return Ok(());
        }
        let announcements = self.held.values().cloned().collect();
        let text = serde_json::to_vec(&File { boot: self.boot.clone(), announcements }).expect("plain data");
        let beside = self.path.with_extension("new");
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        if let Some(directory) = self.path.parent() {
            std::fs::File::open(directory)?.sync_all()?;
        }
        self.unwritten = false;
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Option<File>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether both are of one pod, as far as they tell.
fn same_pod(one: &Announcement, other: &Announcement) -> bool {
    let same_uid = one.uid.is_none() || other.uid.is_none() || one.uid == other.uid;
    one.namespace == other.namespace && one.pod == other.pod && same_uid
}

/// Whether an announcement is of this pod.
fn is_of(announcement: &Announcement, pod: &Value) -> bool {
    let metadata = &pod["metadata"];
    let namespace = metadata["namespace"].as_str().filter(|text| !text.is_empty()).unwrap_or("default");
    let named = namespace == announcement.namespace && metadata["name"].as_str() == Some(&announcement.pod);
    // The kubelet gives a static pod's sandbox the UID that it has made itself; the API server knows that as a note.
    let mirrored = metadata["annotations"]["kubernetes.io/config.mirror"].as_str();
    let same_uid = match (&announcement.uid, uid(pod)) {
        (Some(announced), Some(uid)) => announced == uid || mirrored == Some(announced),
        _ => true,
    };
    named && same_uid
}

fn uid(pod: &Value) -> Option<&str> {
    pod["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty())
}

fn is_pod(value: &Value) -> bool {
    value["kind"] == "Pod" && value["apiVersion"] == "v1"
}

fn key(announcement: &Announcement) -> ObjectKey {
    ObjectKey {
        group: String::new(),
        kind: "Pod".to_owned(),
        namespace: Some(announcement.namespace.clone()),
        name: announcement.pod.clone(),
    }
}

/// The addresses that a pod's status shows; what cannot be read is the engine's to report.
fn shown(pod: &Value) -> Vec<IpAddr> {
    let status = &pod["status"];
    let all = status["podIPs"].as_array().into_iter().flatten().map(|one| &one["ip"]).chain([&status["podIP"]]);
    all.filter_map(|text| text.as_str()?.parse::<IpAddr>().ok()).map(|address| address.to_canonical()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(container: &str, pod: &str, uid: Option<&str>, address: &str, ifindex: u32) -> Announcement {
        Announcement {
            attachment: Attachment { container: container.to_owned(), interface: "eth0".to_owned() },
            netns: format!("/run/netns/{container}"),
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            uid: uid.map(str::to_owned),
            addresses: vec![address.parse().expect("an address")],
            device: format!("veth{ifindex}"),
            ifindex,
        }
    }

    fn pod(name: &str, uid: &str, addresses: &[&str]) -> Change {
        let ips: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        let value = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "uid": uid},
            "spec": {"nodeName": "one"}, "status": {"phase": "Pending", "podIPs": ips},
        });
        Change::Apply(Object { value, origin: "here".to_owned() })
    }

    fn told(changes: &[Change]) -> Vec<(String, Vec<String>)> {
        let of = |change: &Change| match change {
            Change::Apply(object) => {
                let name = object.value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                (name, shown(&object.value).iter().map(ToString::to_string).collect())
            }
            _ => ("-".to_owned(), Vec::new()),
        };
        changes.iter().map(of).collect()
    }

    fn open(directory: &Path) -> Announced {
        Announced::open(&directory.join("announced.json"), "boot", "one")
    }

    #[track_caller]
    fn check(announced: &mut Announced, changes: Vec<Change>, want: &[(&str, &[&str])]) {
        let want: Vec<(String, Vec<String>)> = want
            .iter()
            .map(|(name, all)| ((*name).to_owned(), all.iter().map(|text| (*text).to_owned()).collect()))
            .collect();
        assert_eq!(told(&announced.heed(changes)), want);
    }

    #[test]
    fn announced_addresses_count_until_the_status_shows_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut all = open(directory.path());
        check(&mut all, vec![pod("web", "u", &[])], &[("web", &[])]);
        let web = announcement("c", "web", Some("u"), "10.0.0.5", 7);
        assert_eq!(all.known(&web), Known::AsAnnounced(Some("u")));
        all.announce(web);
        check(&mut all, vec![], &[("web", &["10.0.0.5"])]);
        check(&mut all, vec![], &[]);
        // A sandbox that was made anew: the status shows the one before.
        check(&mut all, vec![pod("web", "u", &["10.0.0.4"])], &[("web", &["10.0.0.5"])]);
        check(&mut all, vec![pod("web", "u", &["10.0.0.5"])], &[("web", &["10.0.0.5"])]);
        assert_eq!(all.unconfirmed(), 0);
        check(&mut all, vec![pod("web", "u", &["10.0.0.6"])], &[("web", &["10.0.0.6"])]);
    }

    #[test]
    fn a_pod_that_comes_later_or_is_another_one_waits() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut all = open(directory.path());
        let web = announcement("c", "web", Some("new"), "10.0.0.5", 7);
        all.announce(web.clone());
        assert_eq!(all.known(&web), Known::Unknown);
        check(&mut all, vec![pod("web", "old", &[])], &[("web", &[])]);
        assert_eq!(all.known(&web), Known::Other("old"));
        check(&mut all, vec![pod("web", "new", &[])], &[("web", &["10.0.0.5"])]);
        assert_eq!(all.by_workload().into_keys().collect::<Vec<_>>(), [workload_id("new")]);
        assert!(all.forget(|one| one.container == "c") && !all.forget(|one| one.container == "c"));
        check(&mut all, vec![], &[("web", &[])]);
    }

    #[test]
    fn a_new_container_of_a_pod_takes_the_place_of_the_old_one_and_others_are_rivals() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut all = open(directory.path());
        all.announce(announcement("c1", "web", Some("u"), "10.0.0.5", 7));
        let again = announcement("c2", "web", Some("u"), "10.0.0.6", 9);
        assert_eq!(all.rivals(&again).count(), 0);
        all.announce(again);
        assert_eq!(all.all().map(|one| one.attachment.container.as_str()).collect::<Vec<_>>(), ["c2"]);
        for (other, rivals) in [
            (announcement("c3", "db", Some("v"), "10.0.0.6", 10), 1),
            (announcement("c3", "db", Some("v"), "10.0.0.7", 9), 1),
            (announcement("c3", "web", Some("v"), "10.0.0.6", 10), 1),
            (announcement("c3", "db", Some("v"), "10.0.0.5", 7), 0),
        ] {
            assert_eq!(all.rivals(&other).count(), rivals, "{other:?}");
        }
    }

    #[test]
    fn what_was_written_is_read_on_the_same_boot_and_damage_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut all = open(directory.path());
        all.announce(announcement("c", "web", None, "fd00::5", 7));
        all.write().expect("written");
        let mut next = open(directory.path());
        check(&mut next, vec![pod("web", "u", &[])], &[("web", &["fd00::5"])]);
        let path = directory.path().join("announced.json");
        assert_eq!(Announced::open(&path, "another boot", "one").all().count(), 0);
        for damage in ["", "{", "[]", "{\"boot\":\"boot\",\"announcements\":[{}]}"] {
            std::fs::write(&path, damage).expect("written");
            assert_eq!(open(directory.path()).all().count(), 0, "{damage}");
        }
    }

    #[test]
    fn a_static_pod_is_known_by_the_uid_that_the_kubelet_made() {
        let web = announcement("c", "web", Some("hash"), "10.0.0.5", 7);
        let mirror = json!({"metadata": {
            "namespace": "shop", "name": "web", "uid": "u", "annotations": {"kubernetes.io/config.mirror": "hash"},
        }});
        let other = json!({"metadata": {"namespace": "shop", "name": "web", "uid": "u"}});
        assert_eq!((is_of(&web, &mirror), is_of(&web, &other)), (true, false));
    }
}
