//! The rules that apply to one endpoint in one direction and family, as content that can be numbered.

use crate::identity::rule_list;
use crate::model::{
    Action, DefaultDecider, Direction, Family, Peer, Peers, Policy, PolicyRef, PortMatch, Rules, Tier, TierDefault,
    Traffic, TrafficMatch,
};
use crate::provenance::{Identity, number};
use reeve_abi::ids::PolicyNumber;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Everything that decides for a subject in one direction and family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Applied {
    pub(crate) direction: Direction,
    pub(crate) tiers: Vec<AppliedTier>,
}

/// A tier that selects the subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AppliedTier {
    pub(crate) name: String,
    pub(crate) default: TierDefault,
    pub(crate) policies: Vec<Arc<AppliedPolicy>>,
}

/// A policy that selects the subject.
#[derive(Clone, Debug)]
pub(crate) struct AppliedPolicy {
    pub(crate) reference: Arc<PolicyRef>,
    pub(crate) rules: AppliedRules,
    /// Number of what stands above.
    digest: u64,
}

impl AppliedPolicy {
    fn new(reference: &Arc<PolicyRef>, rules: AppliedRules) -> Arc<Self> {
        let digest = content_number("applied policy", &(reference, &rules));
        Arc::new(Self { reference: Arc::clone(reference), rules, digest })
    }
}

impl PartialEq for AppliedPolicy {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.reference == other.reference && self.rules == other.rules
    }
}
impl Eq for AppliedPolicy {}
impl Hash for AppliedPolicy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// Policies applied before whose rules are the same for every subject, until they change.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    policies: HashMap<(Arc<PolicyRef>, Direction, Family), Arc<AppliedPolicy>>,
}

impl Prepared {
    /// Forgets a policy that changes.
    pub(crate) fn forget(&mut self, policy: &Policy) {
        for direction in [Direction::Ingress, Direction::Egress] {
            for family in [Family::V4, Family::V6] {
                self.policies.remove(&(Arc::clone(&policy.reference), direction, family));
            }
        }
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.policies.clear();
    }

    fn get(&mut self, policy: &Policy, own: &Identity, direction: Direction, family: Family) -> Arc<AppliedPolicy> {
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let apply = || AppliedPolicy::new(&policy.reference, applied_rules(rules, own, direction, family));
        if reads_subject(rules, direction) {
            return apply();
        }
        Arc::clone(self.policies.entry((Arc::clone(&policy.reference), direction, family)).or_insert_with(apply))
    }
}

/// Whether what applies depends on more of a subject than its being selected.
fn reads_subject(rules: &Rules, direction: Direction) -> bool {
    rule_list(rules).iter().any(|rule| {
        let mut traffic = rule.traffic.any_of.iter().flatten().chain(&rule.traffic.none_of);
        let named = traffic.any(|one| matches!(one.ports, PortMatch::Named(_)));
        rule.own != Peers::Anyone || direction == Direction::Ingress && named
    })
}

/// Its rules that can match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AppliedRules {
    List(Vec<AppliedRule>),
    Closed(DefaultDecider),
}

/// A rule whose conditions on the subject hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AppliedRule {
    pub(crate) index: u32,
    pub(crate) action: Action,
    pub(crate) name: Option<String>,
    /// `None`: anyone.
    pub(crate) peers: Option<Vec<Peer>>,
    pub(crate) traffic: Traffic,
}

impl Applied {
    /// Collects what applies to a subject; `own` is its identity at its address of that family. `None`: nothing selects it.
    pub(crate) fn of(
        all: &[(Tier, Vec<Arc<Policy>>)],
        own: &Identity,
        direction: Direction,
        family: Family,
        prepared: &mut Prepared,
    ) -> Option<Self> {
        let mut tiers = Vec::new();
        for (tier, policies) in all {
            let selecting = policies.iter().filter(|policy| {
                let rules = match direction {
                    Direction::Ingress => &policy.ingress,
                    Direction::Egress => &policy.egress,
                };
                !matches!(rules, Rules::NotApplied) && own.is_selected(&policy.subject)
            });
            let policies: Vec<_> = selecting.map(|policy| prepared.get(policy, own, direction, family)).collect();
            if !policies.is_empty() {
                tiers.push(AppliedTier { name: tier.name.clone(), default: tier.default, policies });
            }
        }
        (!tiers.is_empty()).then_some(Self { direction, tiers })
    }

    /// Its number.
    pub(crate) fn number(&self) -> PolicyNumber {
        PolicyNumber(content_number("policy", self))
    }

    /// All its rules.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &AppliedRule> {
        self.tiers.iter().flat_map(|tier| &tier.policies).flat_map(|policy| match &policy.rules {
            AppliedRules::List(list) => list.as_slice(),
            AppliedRules::Closed(_) => &[],
        })
    }
}

fn applied_rules(rules: &Rules, own: &Identity, direction: Direction, family: Family) -> AppliedRules {
    let list = match rules {
        Rules::NotApplied => &[],
        Rules::Closed(default) => return AppliedRules::Closed(*default),
        Rules::List(list) => list.as_slice(),
    };
    let active = list.iter().filter(|rule| {
        rule.family.is_none_or(|only| only == family) && own.is_among(&rule.own) && rule.peer != Peers::Nobody
    });
    AppliedRules::List(
        active
            .map(|rule| AppliedRule {
                index: rule.index,
                action: rule.action,
                name: rule.name.clone(),
                peers: match &rule.peer {
                    Peers::Anyone => None,
                    Peers::Nobody | Peers::BackendsOf(_) => Some(Vec::new()),
                    Peers::OneOf(list) => Some(list.clone()),
                },
                traffic: match direction {
                    Direction::Ingress => named_resolved(&rule.traffic, own),
                    Direction::Egress => rule.traffic.clone(),
                },
            })
            .collect(),
    )
}

/// The same traffic with the ports of `owner` in place of names.
pub(crate) fn named_resolved(traffic: &Traffic, owner: &Identity) -> Traffic {
    let resolve = |list: &[TrafficMatch]| -> Vec<TrafficMatch> {
        list.iter()
            .flat_map(|one| match &one.ports {
                PortMatch::Named(name) => owner
                    .ports
                    .iter()
                    .filter(|port| port.name == *name && one.protocol.is_none_or(|p| p == port.protocol))
                    .map(|port| TrafficMatch {
                        protocol: Some(port.protocol),
                        ports: PortMatch::Range(port.port, port.port),
                    })
                    .collect(),
                _ => vec![one.clone()],
            })
            .collect()
    };
    Traffic { any_of: traffic.any_of.as_deref().map(resolve), none_of: resolve(&traffic.none_of) }
}

/// Numbers content by its canonical walk. Nothing that is numbered holds a pointer or a map without order, so the number
/// is the same in every process of one build; another compiler may walk otherwise, and a restart with it replaces rows.
pub(crate) fn content_number<T: Hash>(domain: &str, content: &T) -> u64 {
    let mut bytes = Bytes(Vec::new());
    content.hash(&mut bytes);
    number(domain, &bytes.0)
}

/// Collects what `Hash` walks over: every field in order, lengths included.
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        number("bytes", &self.0)
    }
}
