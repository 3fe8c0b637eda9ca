//! All judges on random worlds: the same verdict and the same decision, for each flow at each end.
//!
//! `REEVE_WORLDS` is the number of worlds (default 1000), `REEVE_SEED` the seed of the first one (default: random, printed).
#![allow(clippy::cast_precision_loss, reason = "counts of flows, shown in percent")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use fastrand::Rng;
use reeve_policy::engine::Engine;
use reeve_policy::model::{
    Decider, Decision, DefaultDecider, Direction, Outcome, Peer, Peers, PolicyKind, PortMatch, Rule, Rules,
    ServiceAccountMatch, TrafficMatch, Verdict, World,
};
use reeve_policy::oracle::{self, Owner};
use reeve_tests::judge::{Case, CompiledImage, InKernel, Judge, Oracle};
use reeve_tests::nat::{CHAINS, Way, translated};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::worlds::{Flow, NODE, RandomWorld, flows};

const FLOWS: usize = 50;
/// Flows of each world that go through a Service or a host port.
const TRANSLATED: usize = 15;

/// What must each decide at least 5 % of the judged flows.
const KINDS: [&str; 6] = [
    "Kubernetes rule",
    "GlobalNetworkPolicy rule",
    "Calico NetworkPolicy rule",
    "ClusterNetworkPolicy rule",
    "tier default",
    "no policy selects",
];

/// What must each be part of at least 5 % of the judged flows; of named ports: what the deciding rule names.
const FEATURES: [&str; 6] = ["Pass", "named port", "port range", "CIDR with except", "IPv4", "IPv6"];

/// What must each be part of at least 1 % of the judged flows: the rarer things that a rule may say.
const RARITIES: [&str; 10] = [
    "admin tier",
    "baseline tier",
    "network set",
    "node by labels",
    "service's backends",
    "service account",
    "ICMP type",
    "other protocol",
    "negated peer",
    "negated traffic",
];

fn number(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name)
        .map_or_else(|_| otherwise(), |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

fn engine(world: &RandomWorld) -> Engine {
    let mut engine = Engine::new(NODE, 0);
    engine.apply(world.changes());
    engine
}

/// The decision that all judges give, or what each gives.
fn agree(judges: &mut [Box<dyn Judge>], engine: &Engine, case: &Case) -> Result<Decision, String> {
    let given: Vec<_> = judges.iter_mut().map(|judge| (judge.name(), judge.decide(engine, case))).collect();
    if let Some(Ok(first)) = given.first().map(|(_, decision)| decision)
        && given.iter().all(|(_, decision)| decision.as_ref() == Ok(first))
    {
        return Ok(first.clone());
    }
    let mut text = format!("{:?} by {:?} at {:?} of {}:\n", case.flow, case.way, case.direction, case.subject.name);
    for (name, decision) in given {
        let shown = decision.map(|decision| serde_json::to_string(&decision).expect("plain data"));
        writeln!(text, "  {name}: {}", shown.unwrap_or_else(|why| why)).expect("text grows");
    }
    Err(text)
}

/// The cases of a flow. What its sender's egress denies never comes to the other end of a chain.
fn cases(engine: &Engine, flow: Flow, way: Way) -> Vec<Case> {
    let mut cases = Case::by(engine, flow, way);
    let refused = |case: &Case| {
        case.direction == Direction::Egress
            && Oracle.decide(engine, case).is_ok_and(|decision| decision.verdict == Verdict::Deny)
    };
    if way != Way::Direct && cases.first().is_some_and(refused) {
        cases.truncate(1);
    }
    cases
}

/// The first case of this world about which the judges disagree.
fn disagreement(judges: &mut [Box<dyn Judge>], world: &RandomWorld, (flow, way): (Flow, Way)) -> Option<String> {
    let engine = engine(world);
    judges.iter_mut().for_each(|judge| judge.prepare(&engine));
    cases(&engine, flow, way).iter().find_map(|case| agree(judges, &engine, case).err())
}

/// Runs the judges over random worlds and panics with the smallest world about which they disagree.
fn run(judges: &mut [Box<dyn Judge>]) {
    let worlds = number("REEVE_WORLDS", || 1000);
    let seed = number("REEVE_SEED", || fastrand::u64(..));
    let names: Vec<_> = judges.iter().map(|judge| judge.name()).collect();
    println!("{} on {worlds} worlds x {FLOWS} flows, REEVE_SEED={seed}", names.join(", "));
    let mut count = Count::default();
    for seed in (0..worlds).map(|nth| seed.wrapping_add(nth)) {
        let world = RandomWorld::new(seed);
        let engine = engine(&world);
        judges.iter_mut().for_each(|judge| judge.prepare(&engine));
        let mut rng = Rng::with_seed(!seed);
        let direct = flows(&mut rng, engine.world(), FLOWS).into_iter().map(|flow| (flow, Way::Direct));
        let all: Vec<_> = direct.chain(translated(&mut rng, engine.world(), TRANSLATED)).collect();
        for (flow, way) in all {
            for case in cases(&engine, flow, way) {
                match agree(judges, &engine, &case) {
                    Ok(decision) => count.add(engine.world(), &case, &decision),
                    Err(first) => {
                        let judges = std::cell::RefCell::new(judges);
                        let small =
                            world.shrink(|world| disagreement(&mut judges.borrow_mut(), world, (flow, way)).is_some());
                        let shown = disagreement(&mut judges.borrow_mut(), &small, (flow, way)).unwrap_or(first);
                        panic!("REEVE_SEED={seed} REEVE_WORLDS=1: {shown}in\n{}", small.manifests());
                    }
                }
            }
        }
    }
    count.check(worlds);
}

/// Who decided, and what rules of which form had a part in it.
#[derive(Default)]
struct Count {
    judged: usize,
    kinds: BTreeMap<&'static str, usize>,
    features: BTreeMap<&'static str, usize>,
    chains: BTreeMap<&'static str, usize>,
    ways: [usize; 2],
}

impl Count {
    fn add(&mut self, world: &World, case: &Case, decision: &Decision) {
        if let Some(chain) = case.way.chain(world, &case.flow) {
            *self.chains.entry(chain).or_default() += 1;
            self.ways[usize::from(case.direction == Direction::Egress)] += 1;
            return; // shares of what decides are those of flows that go straight
        }
        self.judged += 1;
        let kind = match &decision.decider {
            Decider::Rule(rule) => match rule.policy.kind {
                PolicyKind::NetworkPolicy => "Kubernetes rule",
                PolicyKind::GlobalNetworkPolicy => "GlobalNetworkPolicy rule",
                PolicyKind::CalicoNetworkPolicy => "Calico NetworkPolicy rule",
                PolicyKind::ClusterNetworkPolicy => "ClusterNetworkPolicy rule",
                staged => panic!("{staged:?} is not enforced"),
            },
            Decider::Default(DefaultDecider::TierDefault) => "tier default",
            Decider::Default(DefaultDecider::NoPolicySelects) => "no policy selects",
            Decider::Default(DefaultDecider::ContestedAddress) => "contested address",
            Decider::Default(_) => "another default",
        };
        *self.kinds.entry(kind).or_default() += 1;
        let rules = rules_on(world, case.direction, decision);
        let traffic = |rules: &[&Rule], wanted: fn(&PortMatch) -> bool| {
            rules.iter().flat_map(|rule| rule.traffic.any_of.iter().flatten()).any(|one| wanted(&one.ports))
        };
        let deciding = match (&decision.decider, rules.split_last()) {
            (Decider::Rule(_), Some((last, _))) => std::slice::from_ref(last),
            _ => &[],
        };
        let except = |rule: &&Rule| match &rule.peer {
            Peers::OneOf(list) => list.iter().any(|peer| peer.nets.is_some() && !peer.not_nets.is_empty()),
            Peers::Anyone | Peers::Nobody | Peers::BackendsOf(_) => false,
        };
        let holds = [
            decision.path.iter().any(|step| step.outcome == Outcome::Passed),
            traffic(deciding, |ports| matches!(ports, PortMatch::Named(_))),
            traffic(&rules, |ports| matches!(ports, PortMatch::Range(first, last) if first < last)),
            rules.iter().any(except),
            case.flow.source.is_ipv4(),
            case.flow.source.is_ipv6(),
        ];
        let peer = |wanted: fn(&Peer) -> bool| {
            rules.iter().any(|rule| if let Peers::OneOf(list) = &rule.peer { list.iter().any(wanted) } else { false })
        };
        let by_account =
            |one: &Peer| one.workload.as_ref().is_some_and(|one| one.service_account != ServiceAccountMatch::Any);
        let from_outside = !matches!(oracle::owner(world, case.peer()), Owner::Workload(_));
        let tier = |name: &str| decision.path.iter().any(|step| step.tier == name);
        let any_of = |wanted: fn(&TrafficMatch) -> bool| {
            rules.iter().flat_map(|rule| rule.traffic.any_of.iter().flatten()).any(wanted)
        };
        let rarities = [
            tier("admin"),
            tier("baseline"),
            from_outside && peer(|one| one.sets.is_some()),
            peer(|one| one.nodes.is_some()),
            rules.iter().any(|rule| matches!(rule.peer, Peers::BackendsOf(_))),
            peer(by_account),
            any_of(|one| matches!(one.ports, PortMatch::Icmp(..))),
            any_of(|one| one.protocol.is_some_and(|number| ![1, 6, 17, 58, 132].contains(&number))),
            peer(|one| !one.not_workloads.is_empty() || !one.not_nets.is_empty()),
            rules.iter().any(|rule| !rule.traffic.none_of.is_empty()),
        ];
        let rarities = RARITIES.iter().zip(rarities);
        for (feature, _) in FEATURES.iter().zip(holds).chain(rarities).filter(|(_, holds)| *holds) {
            *self.features.entry(feature).or_default() += 1;
        }
    }

    fn check(&self, worlds: u64) {
        let share = |count: usize| count as f64 * 100.0 / self.judged.max(1) as f64;
        println!("{} flows judged straight, {:?} by way of Services in and out", self.judged, self.ways);
        for (name, count) in self.kinds.iter().chain(&self.features).chain(&self.chains) {
            println!("  {name:<28}{count:>8}{:>7.1} %", share(*count));
        }
        // Few worlds are a sample too small to speak of shares.
        if worlds < 500 {
            return;
        }
        let part = |of: &BTreeMap<&'static str, usize>, name: &str| share(of.get(name).copied().unwrap_or(0));
        for (direction, count) in ["ingress", "egress"].iter().zip(self.ways) {
            let all = self.judged + self.ways[0] + self.ways[1];
            assert!(count * 20 >= all, "less than 5 % of the judged flows are {direction} by way of a Service");
        }
        for chain in CHAINS {
            assert!(self.chains.contains_key(chain), "no judged flow went {chain}");
        }
        for kind in KINDS {
            assert!(part(&self.kinds, kind) >= 5.0, "{kind} decides less than 5 % of the judged flows");
        }
        for feature in FEATURES {
            assert!(part(&self.features, feature) >= 5.0, "{feature} has a part in less than 5 % of the judged flows");
        }
        for rarity in RARITIES {
            assert!(part(&self.features, rarity) >= 1.0, "{rarity} has a part in less than 1 % of the judged flows");
        }
    }
}

/// The rules that a decision's path names.
fn rules_on<'a>(world: &'a World, direction: Direction, decision: &Decision) -> Vec<&'a Rule> {
    let policies = || world.tiers.iter().flat_map(|(_, policies)| policies);
    let steps = decision.path.iter().filter_map(|step| Some((step.policy.as_ref()?, step.rule?)));
    steps
        .filter_map(|(reference, index)| {
            let policy = policies().find(|policy| policy.reference == *reference)?;
            let policy = policy.written.as_ref().unwrap_or(policy);
            let rules = if direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
            let Rules::List(list) = rules else { return None };
            list.iter().find(|rule| rule.index == index)
        })
        .collect()
}

#[test]
fn oracle_and_image_agree() {
    run(&mut [Box::new(Oracle), Box::new(CompiledImage)]);
}

#[test]
fn oracle_image_and_kernel_agree() {
    if !skip_unless(&[Capability::Root, Capability::Bpf, Capability::Netns]) {
        let kernel = InKernel::load().expect("the programs load");
        run(&mut [Box::new(Oracle), Box::new(CompiledImage), Box::new(kernel)]);
    }
}
