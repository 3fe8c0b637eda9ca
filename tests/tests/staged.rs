//! Staged policies in random worlds: they touch nothing that is enforced, and what they show is what would be, in
//! whatever order it was told.
//!
//! `REEVE_WORLDS` is the number of worlds (default 200), `REEVE_SEED` the seed of the first one (default: random, printed).

use fastrand::Rng;
use reeve_policy::engine::Engine;
use reeve_policy::model::Decision;
use reeve_policy::oracle;
use reeve_policy::store::{Change, Store};
use reeve_tests::judge::{self, Case, CompiledImage, Judge};
use reeve_tests::sequence::Sequence;
use reeve_tests::worlds::{NODE, RandomWorld, STAGED, flows};
use serde_json::{Value, json};

const FLOWS: usize = 30;

fn number(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name)
        .map_or_else(|_| otherwise(), |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// Random worlds in which something is staged.
fn worlds() -> impl Iterator<Item = RandomWorld> {
    let seed = number("REEVE_SEED", || fastrand::u64(..));
    let count = number("REEVE_WORLDS", || 200);
    println!("{count} worlds, REEVE_SEED={seed}");
    let worlds = (0..count).map(move |nth| RandomWorld::new(seed.wrapping_add(nth)));
    worlds.filter(|world| world.objects.iter().any(|object| staged(object).is_some()))
}

/// The kind and version that a staged object is a preview of.
fn staged(object: &Value) -> Option<(&'static str, &'static str)> {
    STAGED.iter().find(|(kind, _, _)| object["kind"] == *kind).map(|(_, kind, version)| (*kind, *version))
}

fn engine(world: &RandomWorld) -> Engine {
    let mut engine = Engine::new(NODE, 0);
    engine.apply(world.changes());
    engine
}

/// The world with all staged policies left out.
fn without(world: &RandomWorld) -> RandomWorld {
    let objects = world.objects.iter().filter(|object| staged(object).is_none()).cloned().collect();
    RandomWorld { objects, ..world.clone() }
}

/// The world with all staged policies put into force, by editing its objects as a person would.
fn applied(world: &RandomWorld) -> RandomWorld {
    let mut applied = without(world);
    for object in &world.objects {
        let Some((kind, version)) = staged(object) else { continue };
        let (name, namespace) = (&object["metadata"]["name"], &object["metadata"]["namespace"]);
        applied.objects.retain(|other| {
            let same = (&other["metadata"]["name"], &other["metadata"]["namespace"]) == (name, namespace);
            !(same && other["kind"] == kind && other["apiVersion"] == version)
        });
        if object["spec"]["stagedAction"] == "Delete" {
            continue;
        }
        let mut enforced = object.clone();
        (enforced["kind"], enforced["apiVersion"]) = (json!(kind), json!(version));
        if let Some(spec) = enforced["spec"].as_object_mut() {
            spec.remove("stagedAction");
        }
        applied.objects.push(enforced);
    }
    applied
}

/// The decision as text, with staged kinds by the names of what they are previews of.
fn told(decision: &Decision) -> String {
    let text = serde_json::to_string(decision).expect("plain data");
    text.replace("StagedKubernetesNetworkPolicy", "NetworkPolicy")
        .replace("StagedGlobalNetworkPolicy", "GlobalNetworkPolicy")
        .replace("StagedNetworkPolicy", "CalicoNetworkPolicy")
}

#[test]
fn staged_policies_touch_nothing_that_is_enforced() {
    let mut seen = 0;
    for world in worlds() {
        let (with, without) = (engine(&world), engine(&without(&world)));
        let seed = format!("REEVE_SEED={} REEVE_WORLDS=1", world.seed);
        for (id, endpoint) in &with.image().endpoints {
            assert_eq!(endpoint.policies, without.image().endpoints[id].policies, "{seed}: {id}");
        }
        for flow in flows(&mut Rng::with_seed(!world.seed), with.world(), FLOWS) {
            for case in Case::of(&with, flow) {
                let asked = |engine| CompiledImage.decide(engine, &case);
                assert_eq!(asked(&with), asked(&without), "{seed}: {flow:?}");
            }
        }
        seen += 1;
    }
    assert!(seen > 0, "no world has staged policies");
}

#[test]
fn every_telling_of_a_history_ends_in_the_same_world() {
    let seed = number("REEVE_SEED", || fastrand::u64(..));
    let mut staged = 0;
    for seed in (0..60).map(|nth| seed.wrapping_add(nth)) {
        let history = Sequence::new(seed, 25);
        let told = |changes: &[Change]| {
            let mut store = Store::new(NODE);
            for change in changes {
                store.apply(change.clone());
            }
            store
        };
        let last = history.last_words();
        let reversed: Vec<Change> = last.iter().rev().cloned().collect();
        let (forward, backward, fresh) = (told(&history.changes), told(&reversed), told(&last));
        for (how, store) in [("forward", &forward), ("backward", &backward)] {
            assert!(store.world() == fresh.world(), "REEVE_SEED={seed}: the world told {how} is another");
            assert_eq!(store.problems(), fresh.problems(), "REEVE_SEED={seed}: {how}");
        }
        staged += usize::from(fresh.world().staged.is_some());
    }
    assert!(staged > 0, "no history ends with staged policies");
}

#[test]
fn a_preview_is_what_would_be_if_it_were_applied() {
    let (mut changes, mut same) = (0, 0);
    for world in worlds() {
        let (now, then) = (engine(&world), engine(&applied(&world)));
        for flow in flows(&mut Rng::with_seed(!world.seed), now.world(), FLOWS) {
            for case in Case::of(&now, flow) {
                let preview = judge::preview(&now, &case);
                let preview = preview.unwrap_or_else(|why| panic!("REEVE_SEED={} REEVE_WORLDS=1: {why}", world.seed));
                *if preview.is_some() { &mut changes } else { &mut same } += 1;
                let shown = preview.unwrap_or_else(|| oracle::judge(now.world(), &case.query()));
                let real = oracle::judge(then.world(), &case.query());
                assert_eq!(told(&shown), told(&real), "REEVE_SEED={} REEVE_WORLDS=1: {flow:?}", world.seed);
            }
        }
    }
    assert!(changes > 0 && same > 0, "{changes} previews, {same} without");
}
