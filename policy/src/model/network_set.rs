//! Named lists of networks, and which of them a selector means.

use super::{Labels, Selector};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Whose networks: a namespace's, or (without one) everybody's; and the name.
pub type SetName = (Option<String>, String);

/// Network sets by name.
pub type NetworkSets = BTreeMap<SetName, Arc<NetworkSet>>;

/// `projectcalico.org/v3` NetworkSet or, without a namespace, GlobalNetworkSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSet {
    /// Namespace; `None`: a global one.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Its networks, those that could be read.
    pub nets: BTreeSet<IpNet>,
    /// Whether that is all. If not, a rule that does more than allow the set denies everyone.
    pub reading: Reading,
}

/// Whether a list was understood whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It was.
    Whole,
    /// Some items could not be read.
    Partial,
}

impl NetworkSet {
    /// The labels that selectors see: its own, and the namespace's name.
    pub fn selector_labels(&self) -> Labels {
        let mut labels = self.labels.clone();
        if let Some(namespace) = &self.namespace {
            labels.insert("projectcalico.org/namespace".to_owned(), namespace.clone());
        }
        labels
    }
}

/// Among which network sets a selector selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetScope {
    /// All.
    Everywhere,
    /// Those without a namespace.
    Global,
    /// Those of any namespace.
    AnyNamespace,
    /// Those of this namespace.
    Namespace(String),
    /// Those of namespaces whose labels match. A namespace that is not known has no labels.
    Namespaces(Selector),
}

/// Which network sets: both parts must match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetSelector {
    /// Among which.
    pub scope: SetScope,
    /// Their labels, see [`NetworkSet::selector_labels`].
    pub labels: Selector,
}
