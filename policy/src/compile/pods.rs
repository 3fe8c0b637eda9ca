//! Pods as policies see them, to be found by what an identity is made of.

use super::claims::claims;
use crate::identity::{Reading, Reads};
use crate::model::{Workload, World};
use crate::provenance::Identity;
use crate::shared::Shared;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Pods that have addresses of their own, by UID.
#[derive(Debug)]
pub(super) struct Pods {
    /// This node's name.
    node: String,
    all: HashMap<String, Pod>,
    by_namespace: HashMap<String, BTreeSet<String>>,
    /// Those on this node.
    local: BTreeSet<String>,
    /// Their identities.
    bare: Shared<Identity>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) workload: Arc<Workload>,
    /// Its identity, an address's prefixes apart.
    pub(super) bare: Arc<Identity>,
}

impl Pods {
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            all: HashMap::new(),
            by_namespace: HashMap::new(),
            local: BTreeSet::new(),
            bare: Shared::default(),
        }
    }

    /// UIDs of those on this node.
    pub(super) fn local(&self) -> impl Iterator<Item = &String> {
        self.local.iter()
    }

    pub(super) fn is_local(&self, pod: &Pod) -> bool {
        pod.workload.node == self.node
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Pod> {
        self.all.get(uid)
    }

    /// Takes a pod in place of what it was. Its identity is for [`Pods::identify`] to find.
    pub(super) fn replace(&mut self, uid: &str, after: Option<&Arc<Workload>>, reads: &Reads, world: &World) {
        let after = after.filter(|workload| claims(workload));
        let before = self.all.get(uid).map(|pod| pod.workload.namespace.clone());
        if let Some(namespace) = before
            && after.is_none_or(|after| after.namespace != namespace)
            && let Some(all) = self.by_namespace.get_mut(&namespace)
        {
            all.remove(uid);
            if all.is_empty() {
                self.by_namespace.remove(&namespace);
            }
        }
        let Some(after) = after else {
            self.all.remove(uid);
            self.local.remove(uid);
            return;
        };
        if after.node == self.node {
            self.local.insert(uid.to_owned());
        } else {
            self.local.remove(uid);
        }
        self.by_namespace.entry(after.namespace.clone()).or_default().insert(uid.to_owned());
        match self.all.get_mut(uid) {
            Some(pod) => pod.workload = Arc::clone(after),
            None => {
                let pod = Pod { workload: Arc::clone(after), bare: self.bare.of(reads.pod(world, after)) };
                self.all.insert(uid.to_owned(), pod);
            }
        }
    }

    /// Finds a pod's identity anew; whether it is another one.
    pub(super) fn identify(&mut self, uid: &str, reads: &Reads, world: &World) -> bool {
        let Some(pod) = self.all.get_mut(uid) else { return false };
        let bare = reads.pod(world, &pod.workload);
        if bare == *pod.bare {
            return false;
        }
        pod.bare = self.bare.of(bare);
        true
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &String> {
        self.by_namespace.get(namespace).into_iter().flatten()
    }

    pub(super) fn of_account<'a>(&'a self, namespace: &str, name: &'a str) -> impl Iterator<Item = &'a String> {
        self.in_namespace(namespace).filter(move |uid| self.all[*uid].workload.service_account == name)
    }

    /// Those that show anything of this.
    pub(super) fn showing<'a>(&'a self, read: &'a Reading) -> impl Iterator<Item = &'a String> {
        self.all.iter().filter(|(_, pod)| read.is_shown_by(&pod.workload)).map(|(uid, _)| uid)
    }
}
