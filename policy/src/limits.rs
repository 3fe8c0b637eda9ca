//! Room in the maps that policies fill, and which policies are refused where it does not suffice.
//!
//! Invariant: a policy is honoured whole or refused whole; one that is refused denies everything for its subjects, in
//! its directions. The last in evaluation order are refused first.

use crate::compile::Compiler;
use crate::image::Image;
use crate::model::{DefaultDecider, Level, Policy, Problem, Rules, World};
use crate::provenance::DictionaryEntry;
use std::sync::Arc;

/// How many rows each map may hold. A plan needs room for the old rows and the new ones at once, so these are less than
/// the maps' own sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Prefixes.
    pub networks: usize,
    /// Identities with a class.
    pub classes: usize,
    /// Rows of policies.
    pub peers: usize,
    /// Single ports.
    pub ports: usize,
    /// Ranges of ports.
    pub ranges: usize,
}

impl Limits {
    /// No limits.
    pub const NONE: Self =
        Self { networks: usize::MAX, classes: usize::MAX, peers: usize::MAX, ports: usize::MAX, ranges: usize::MAX };

    /// The first map that an image does not fit: its name, the rows needed and the room there is.
    fn exceeded(&self, image: &Image) -> Option<(&'static str, usize, usize)> {
        let maps = [
            ("NETWORKS", image.networks.len(), self.networks),
            ("CLASSES", image.classes.len(), self.classes),
            ("PEERS", image.peers.len(), self.peers),
            ("PORTS", image.ports.len(), self.ports),
            ("RANGES", image.ranges.len(), self.ranges),
        ];
        maps.into_iter().find(|(_, needed, room)| needed > room)
    }
}

/// What had to be refused so that the rest fits.
pub(crate) struct Refused {
    /// The world as it is honoured.
    pub(crate) honoured: World,
    /// Its compiler.
    pub(crate) compiler: Compiler,
    /// What there is to tell about it.
    pub(crate) entries: Vec<DictionaryEntry>,
    /// One for each policy that is refused.
    pub(crate) problems: Vec<Problem>,
}

/// Refuses policies until an image fits; `None` if it does already.
pub(crate) fn refuse(world: &World, image: &Image, limits: &Limits) -> Option<Refused> {
    let (map, needed, room) = limits.exceeded(image)?;
    // Previews go first: they must not cost a policy that is enforced its place.
    if let Some(staged) = &world.staged {
        let previewed = staged.iter().flat_map(|(_, policies)| policies);
        let previewed = previewed.filter(|policy| policy.reference.kind.enforced() != policy.reference.kind);
        let hidden = previewed.map(|policy| Problem {
            level: Level::Warning,
            object: policy.reference.to_string(),
            field: format!("map {map}"),
            value: room.to_string(),
            what: format!("with the staged policies {needed} rows are needed"),
            effect: "staged policies are not shown in records; what is enforced is as without them".to_owned(),
        });
        let hidden: Vec<Problem> = hidden.collect();
        let honoured = World { staged: None, ..world.clone() };
        let (compiler, entries) = Compiler::of(&honoured);
        return Some(match refuse(&honoured, &compiler.image, limits) {
            None => Refused { honoured, compiler, entries, problems: hidden },
            Some(mut refused) => {
                refused.problems.extend(hidden);
                refused
            }
        });
    }
    let candidates = world.tiers.iter().flat_map(|(_, policies)| policies).filter(|policy| has_rules(policy)).count();
    // The fewest that must be refused: the more are, the less room is needed.
    let (mut too_few, mut enough) = (0, candidates);
    while too_few + 1 < enough {
        let some = usize::midpoint(too_few, enough);
        let (compiler, _) = Compiler::of(&without(world, candidates - some).0);
        if limits.exceeded(&compiler.image).is_some() {
            too_few = some;
        } else {
            enough = some;
        }
    }
    let (honoured, policies) = without(world, candidates - enough);
    let (compiler, entries) = Compiler::of(&honoured);
    let problems = policies.iter().map(|policy| Problem {
        level: Level::Warning,
        object: policy.reference.to_string(),
        field: format!("map {map}"),
        value: room.to_string(),
        what: format!("all policies together need {needed} rows"),
        effect: "the policy is refused: it denies everything for the workloads it selects, in its directions"
            .to_owned(),
    });
    let problems = problems.collect();
    Some(Refused { honoured, compiler, entries, problems })
}

fn has_rules(policy: &Policy) -> bool {
    [&policy.ingress, &policy.egress].into_iter().any(|rules| matches!(rules, Rules::List(list) if !list.is_empty()))
}

/// The world without the rules of all but the first policies that have any, and those policies.
fn without(world: &World, honoured: usize) -> (World, Vec<Arc<Policy>>) {
    let mut world = world.clone();
    let mut refused = Vec::new();
    let with_rules =
        world.tiers.iter_mut().flat_map(|(_, policies)| policies).filter(|policy| has_rules(policy)).skip(honoured);
    for policy in with_rules {
        refused.push(Arc::clone(policy));
        let closed = |rules: &Rules| match rules {
            Rules::List(_) => Rules::Closed(DefaultDecider::RefusedPolicy),
            Rules::NotApplied | Rules::Closed(_) => rules.clone(),
        };
        let (ingress, egress) = (closed(&policy.ingress), closed(&policy.egress));
        *policy = Arc::new(Policy { ingress, egress, written: None, ..Policy::clone(policy) });
    }
    (world, refused)
}
