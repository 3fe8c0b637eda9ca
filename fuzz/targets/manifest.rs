//! Manifests from text to an image: nothing panics, and the same again is no change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reeve_policy::engine::Engine;
use reeve_policy::manifest;
use reeve_policy::store::Change;

fuzz_target!(|text: &str| {
    let Ok(objects) = manifest::parse(text, "fuzzed") else { return };
    let changes: Vec<Change> = objects.into_iter().map(Change::Apply).collect();
    let mut engine = Engine::new("node-1", 0);
    engine.apply(changes.clone());
    let image = engine.image().canonical();
    let again = engine.apply(changes);
    // Several documents of one name replace each other, so that a second telling may pass through the first ones again.
    assert_eq!(engine.image().canonical(), image, "{:?}", again.plan);
});
