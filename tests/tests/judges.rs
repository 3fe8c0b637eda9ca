//! All judges on random worlds: the same verdict and the same decision, for each flow at each end.
//!
//! `REEVE_WORLDS` is the number of worlds (default 500), `REEVE_SEED` the seed of the first one (default: random, printed).

use std::fmt::Write as _;
use std::time::Instant;

use fastrand::Rng;
use reeve_policy::engine::Engine;
use reeve_policy::limits::Limits;
use reeve_policy::model::{Decision, Direction, Verdict};
use reeve_tests::judge::{self, Case, CompiledImage, Coverage, InKernel, Judge, Oracle};
use reeve_tests::nat::{Way, of_own_processes, translated};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::worlds::{Flow, NODE, RandomWorld, flows};

const FLOWS: usize = 50;
/// Flows of each world that go through a Service or a host port.
const TRANSLATED: usize = 15;
/// And so many of processes of the node.
const OWN: usize = 1;
/// One of so many worlds does not fit the maps.
const SCARCE: u64 = 40;

fn number(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name)
        .map_or_else(|_| otherwise(), |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// The engine of a world; in one of so many the maps have no room for all its policies.
fn engine(world: &RandomWorld) -> Engine {
    let mut engine = Engine::new(NODE, 0);
    engine.apply(world.changes());
    if world.seed.is_multiple_of(SCARCE) {
        let peers = engine.image().peers.len() * 3 / 4;
        engine = Engine::with_limits(NODE, 0, Limits { peers, ..Limits::NONE });
        engine.apply(world.changes());
    }
    engine
}

/// The decision that all judges give, or what each gives.
fn agree(judges: &mut [Box<dyn Judge>], engine: &Engine, case: &Case) -> Result<Decision, String> {
    let given: Vec<_> = judges.iter_mut().map(|judge| (judge.name(), judge.decide(engine, case))).collect();
    if let Some(Ok(first)) = given.first().map(|(_, decision)| decision)
        && given.iter().all(|(_, decision)| decision.as_ref() == Ok(first))
    {
        return judge::preview(engine, case).map(|_| first.clone());
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

/// Runs the judges over random worlds and panics with the smallest world about which they disagree, or if something
/// that policies or packets can be was not reached.
fn run(judges: impl Fn() -> Vec<Box<dyn Judge>> + Sync) {
    let worlds = number("REEVE_WORLDS", || 500);
    let seed = number("REEVE_SEED", || fastrand::u64(..));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{worlds} worlds x {} flows, REEVE_SEED={seed}", FLOWS + TRANSLATED + OWN);
    let (judges, begun) = (&judges, Instant::now());
    let mut reached = Coverage::default();
    std::thread::scope(|scope| {
        let part = |first: usize| (0..worlds).skip(first).step_by(threads).map(move |nth| seed.wrapping_add(nth));
        let threads: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || judged(&mut judges(), part(first)))).collect();
        for thread in threads {
            reached.merge(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    println!("{}in {:.1} s", reached.table(), begun.elapsed().as_secs_f64());
    assert_eq!(reached.missing(), Vec::<String>::new(), "REEVE_SEED={seed} REEVE_WORLDS={worlds}");
}

/// What the worlds of these seeds have reached, if all judges agree about them.
fn judged(judges: &mut [Box<dyn Judge>], seeds: impl Iterator<Item = u64>) -> Coverage {
    let mut reached = Coverage::default();
    for seed in seeds {
        let world = RandomWorld::new(seed);
        let engine = engine(&world);
        judges.iter_mut().for_each(|judge| judge.prepare(&engine));
        let mut rng = Rng::with_seed(!seed);
        let direct = flows(&mut rng, engine.world(), FLOWS).into_iter().map(|flow| (flow, Way::Direct));
        let mut all: Vec<_> = direct.chain(translated(&mut rng, engine.world(), TRANSLATED)).collect();
        all.extend(of_own_processes(&mut rng, engine.world(), OWN));
        for (flow, way) in all {
            for case in cases(&engine, flow, way) {
                match agree(judges, &engine, &case) {
                    Ok(decision) => {
                        let preview = judge::preview(&engine, &case).expect("the judges agree");
                        reached.add(engine.world(), &case, &decision, preview.as_ref());
                    }
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
    reached
}

#[test]
fn oracle_and_image_agree() {
    run(|| vec![Box::new(Oracle), Box::new(CompiledImage)]);
}

#[test]
fn oracle_image_and_kernel_agree() {
    if !skip_unless(&[Capability::Root, Capability::Bpf, Capability::Netns]) {
        run(|| {
            let kernel = InKernel::load().expect("the programs load");
            vec![Box::new(Oracle), Box::new(CompiledImage), Box::new(kernel)]
        });
    }
}
