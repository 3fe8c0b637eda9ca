//! What numbers stand for: decisions, identities and workloads, each numbered by its content.
//!
//! Invariant: entries are only added. A number keeps its meaning for as long as a record may carry it.

use crate::model::{Decider, Decision, DefaultDecider, Labels, PolicyKind, Verdict};
use ipnet::IpNet;
use reeve_abi::decision::HOLDS_TO_ITSELF;
use reeve_abi::ids::{
    DecisionId, FIRST_HASHED, IDENTITY_CONTESTED, IDENTITY_HOST, IDENTITY_MASQUERADED, IDENTITY_WORLD, IdentityId,
    WorkloadId,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What an identity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IdentityKind {
    /// A pod.
    Pod,
    /// Another node.
    Node,
    /// This node.
    Host,
    /// Addresses in a prefix that some policy names.
    Network,
    /// Every other address.
    World,
    /// An address that several pods claim.
    Contested,
    /// Somebody whom this node's own address stands for.
    Masqueraded,
}

/// A container port whose name some policy reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityPort {
    /// Name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
}

/// Everything that a policy can read of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// What it is.
    pub kind: IdentityKind,
    /// A pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// A pod's labels that some selector reads.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Its namespace's labels that some selector reads.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub namespace_labels: Labels,
    /// Its service account, where some policy reads names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Its service account's labels that some selector reads.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub service_account_labels: Labels,
    /// Policy-named prefixes that contain the address.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub networks: BTreeSet<IpNet>,
    /// Its container ports whose names some policy reads.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ports: BTreeSet<IdentityPort>,
}

impl Identity {
    /// An identity of a kind that has nothing but prefixes.
    pub fn bare(kind: IdentityKind, networks: BTreeSet<IpNet>) -> Self {
        Self {
            kind,
            namespace: None,
            labels: Labels::new(),
            namespace_labels: Labels::new(),
            service_account: None,
            service_account_labels: Labels::new(),
            networks,
            ports: BTreeSet::new(),
        }
    }

    /// Its number.
    pub fn id(&self) -> IdentityId {
        match self.kind {
            IdentityKind::World => IDENTITY_WORLD,
            IdentityKind::Contested => IDENTITY_CONTESTED,
            IdentityKind::Masqueraded => IDENTITY_MASQUERADED,
            IdentityKind::Host if self.networks.is_empty() => IDENTITY_HOST,
            _ => IdentityId(json_number("identity", self)),
        }
    }
}

/// A pod, for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadName {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its node, empty while unscheduled.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
}

/// The number of the pod with this UID.
pub fn workload_id(uid: &str) -> WorkloadId {
    WorkloadId(number("workload", uid.as_bytes()))
}

impl Decision {
    /// Its number: fixed for a default of the datapath without a path, else derived from the content.
    pub fn id(&self) -> DecisionId {
        if let Decider::Default(default) = &self.decider
            && self.path.is_empty()
            && self.isolating.is_empty()
            && self.also.is_empty()
            && let Some(id) = fixed_id(*default)
        {
            return id;
        }
        let number = (json_number("decision", self) >> 1).max(FIRST_HASHED);
        DecisionId(if self.holds_to_itself() { number | HOLDS_TO_ITSELF } else { number })
    }

    /// Whether it denies, and also denies a pod that reaches itself through a Service: by a rule, or because a policy is
    /// closed. What only isolates does not, nor anything of a NetworkPolicy, whose API has nothing but isolation.
    pub fn holds_to_itself(&self) -> bool {
        let closed_by = || self.path.last().and_then(|step| step.policy.as_ref()).map(|policy| policy.kind.enforced());
        self.verdict == Verdict::Deny
            && match &self.decider {
                Decider::Default(DefaultDecider::TierDefault) => false,
                Decider::Default(DefaultDecider::UnreadablePolicy | DefaultDecider::RefusedPolicy) => {
                    closed_by() != Some(PolicyKind::NetworkPolicy)
                }
                Decider::Rule(_) | Decider::Default(_) => true,
            }
    }

    /// A default without a path.
    pub fn bare(verdict: Verdict, default: DefaultDecider) -> Self {
        Self { verdict, decider: Decider::Default(default), path: Vec::new(), isolating: Vec::new(), also: Vec::new() }
    }
}

fn fixed_id(default: DefaultDecider) -> Option<DecisionId> {
    let label = serde_json::to_value(default).expect("a unit variant is a string");
    reeve_abi::decision::FIXED.iter().find(|(_, name)| label == *name).map(|(id, _)| *id)
}

fn fixed_decision(id: DecisionId) -> Option<Decision> {
    let (_, name) = reeve_abi::decision::FIXED.iter().find(|(fixed, _)| *fixed == id)?;
    let default =
        serde_json::from_value(serde_json::Value::from(*name)).expect("the labels are the same in abi and model");
    let verdict = if id < reeve_abi::decision::MALFORMED_PACKET { Verdict::Allow } else { Verdict::Deny };
    Some(Decision::bare(verdict, default))
}

fn json_number<T: Serialize>(domain: &str, content: &T) -> u64 {
    number(domain, &serde_json::to_vec(content).expect("plain data has a JSON form"))
}

/// The first eight bytes of SHA-256 over domain and content, never below [`FIRST_HASHED`].
pub(crate) fn number(domain: &str, content: &[u8]) -> u64 {
    for salt in 0_u64.. {
        let mut hash = Sha256::new();
        hash.update(domain.as_bytes());
        hash.update([0]);
        hash.update(salt.to_le_bytes());
        hash.update(content);
        let digest = hash.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        let value = u64::from_le_bytes(first);
        if value >= FIRST_HASHED {
            return value;
        }
    }
    unreachable!("some salt gives a large number")
}

/// Sixteen hexadecimal digits.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) trait Number: Copy {
        fn get(self) -> u64;
        fn new(value: u64) -> Self;
    }
    macro_rules! number { ($($t:ident),+) => { $(impl Number for super::$t {
        fn get(self) -> u64 { self.0 }
        fn new(value: u64) -> Self { Self(value) }
    })+ } }
    number!(DecisionId, IdentityId, WorkloadId);

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    pub(super) fn serialize<T: Number, S: Serializer>(id: &T, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&format!("{:016x}", id.get()))
    }
    pub(super) fn deserialize<'de, T: Number, D: Deserializer<'de>>(input: D) -> Result<T, D::Error> {
        let text = String::deserialize(input)?;
        u64::from_str_radix(&text, 16).map(T::new).map_err(|e| D::Error::custom(format!("id {text:?}: {e}")))
    }
}

/// One line of the dictionary: a number and what it stands for, which dictionaries share that took the entry in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DictionaryEntry {
    /// A decision.
    Decision {
        /// Number.
        #[serde(with = "hex")]
        id: DecisionId,
        /// Meaning.
        decision: Arc<Decision>,
    },
    /// An identity.
    Identity {
        /// Number.
        #[serde(with = "hex")]
        id: IdentityId,
        /// Meaning.
        identity: Arc<Identity>,
    },
    /// A pod.
    Workload {
        /// Number.
        #[serde(with = "hex")]
        id: WorkloadId,
        /// Meaning.
        workload: Arc<WorkloadName>,
    },
}

/// All entries so far, by number.
#[derive(Clone, Debug, Default)]
pub struct Dictionary {
    decisions: HashMap<DecisionId, Arc<Decision>>,
    identities: HashMap<IdentityId, Arc<Identity>>,
    workloads: HashMap<WorkloadId, Arc<WorkloadName>>,
}

impl Dictionary {
    /// Reads entries that were written earlier.
    pub fn load(entries: impl IntoIterator<Item = DictionaryEntry>) -> Self {
        let mut dictionary = Self::default();
        for entry in entries {
            dictionary.insert(&entry);
        }
        dictionary
    }

    /// Adds an entry; says whether it told something new. A pod's entry is told again once its node is known.
    pub fn insert(&mut self, entry: &DictionaryEntry) -> bool {
        match entry {
            DictionaryEntry::Decision { id, decision } => {
                self.get_decision(*id).is_none() && self.decisions.insert(*id, Arc::clone(decision)).is_none()
            }
            DictionaryEntry::Identity { id, identity } => {
                self.get_identity(*id).is_none() && self.identities.insert(*id, Arc::clone(identity)).is_none()
            }
            DictionaryEntry::Workload { id, workload } => {
                self.workloads.insert(*id, Arc::clone(workload)).as_ref() != Some(workload)
            }
        }
    }

    /// What a decision's number stands for.
    pub fn get_decision(&self, id: DecisionId) -> Option<Arc<Decision>> {
        fixed_decision(id).map(Arc::new).or_else(|| self.decisions.get(&id).cloned())
    }

    /// What an identity's number stands for.
    pub fn get_identity(&self, id: IdentityId) -> Option<Arc<Identity>> {
        let kind = match id {
            IDENTITY_WORLD => IdentityKind::World,
            IDENTITY_HOST => IdentityKind::Host,
            IDENTITY_CONTESTED => IdentityKind::Contested,
            IDENTITY_MASQUERADED => IdentityKind::Masqueraded,
            _ => return self.identities.get(&id).cloned(),
        };
        Some(Arc::new(Identity::bare(kind, BTreeSet::new())))
    }

    /// Which pod a workload's number stands for.
    pub fn get_workload(&self, id: WorkloadId) -> Option<&Arc<WorkloadName>> {
        self.workloads.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixed_decision_has_its_own_number() {
        for (id, name) in reeve_abi::decision::FIXED {
            let decision = Dictionary::default().get_decision(*id).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(decision.id(), *id, "{name}");
        }
    }

    #[test]
    fn an_entry_survives_its_line() {
        let decision = Decision::bare(Verdict::Deny, DefaultDecider::ContestedAddress);
        let entry = DictionaryEntry::Decision { id: decision.id(), decision: Arc::new(decision) };
        let line = serde_json::to_string(&entry).expect("writes");
        assert_eq!(serde_json::from_str::<DictionaryEntry>(&line).expect("reads"), entry);
    }
}
