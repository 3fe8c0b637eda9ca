//! Objects that are almost right, from JSON to verdicts: a scenario's, some of whose fields are replaced, left out, doubled
//! or moved. Nothing panics, and whatever they then mean, the compiled image decides as the oracle does.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::manifest;
use reeve_policy::model::{Direction, Family};
use reeve_policy::oracle::{self, Owner, Query};
use reeve_policy::provenance::workload_id;
use reeve_policy::store::{Change, Object};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

/// At most so many fields are edited.
const EDITS: usize = 8;
/// At most so many flows are judged.
const FLOWS: usize = 200;
/// Protocol and port, some of which scenarios speak of.
const ASKED: [(u8, u16); 5] = [(6, 80), (6, 443), (17, 53), (1, 0x0800), (132, 9_000)];

struct Material {
    scenarios: Vec<Vec<Value>>,
    keys: Vec<String>,
    scalars: Vec<Value>,
}

static MATERIAL: LazyLock<Material> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/scenarios");
    let entries = std::fs::read_dir(folder).expect("the scenarios are there");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("the folder is readable").path()).collect();
    paths.sort();
    let (mut keys, mut scalars) = (BTreeSet::new(), BTreeSet::new());
    let mut scenarios = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a scenario is text");
        let (manifests, _) = text.split_once("\n=== ").expect("a scenario has a table");
        let objects = manifest::parse(manifests, "scenario").expect("the manifests are readable");
        let objects: Vec<Value> = objects.into_iter().map(|object| object.value).collect();
        objects.iter().for_each(|object| collect(object, &mut keys, &mut scalars));
        scenarios.push(objects);
    }
    let odd = json!([
        null,
        true,
        "",
        [],
        {},
        -1,
        0,
        1,
        255,
        256,
        65_535,
        65_536,
        u64::MAX,
        1.5,
        "all()",
        "!all()",
        "has(",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.1/33",
        "::ffff:10.0.0.1",
        "10.0.0.0/31",
        "fe80::1",
        "80:90",
        "90:80",
        "\u{0}"
    ]);
    let mut scalars: Vec<Value> =
        scalars.iter().map(|text| serde_json::from_str(text).expect("it was written")).collect();
    scalars.extend(odd.as_array().expect("a list").iter().cloned());
    Material { scenarios, keys: keys.into_iter().collect(), scalars }
});

fn collect(value: &Value, keys: &mut BTreeSet<String>, scalars: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            keys.extend(fields.keys().cloned());
            fields.values().for_each(|value| collect(value, keys, scalars));
        }
        Value::Array(elements) => elements.iter().for_each(|value| collect(value, keys, scalars)),
        scalar => drop(scalars.insert(scalar.to_string())),
    }
}

/// Some place in a value, itself included.
fn place<'a>(mut at: &'a mut Value, input: &mut Unstructured<'_>) -> Result<&'a mut Value> {
    loop {
        let inside = match at {
            Value::Object(fields) => fields.len(),
            Value::Array(elements) => elements.len(),
            _ => 0,
        };
        if inside == 0 || input.ratio(1, 5)? {
            return Ok(at);
        }
        let index = input.choose_index(inside)?;
        at = match at {
            Value::Object(fields) => fields.values_mut().nth(index).expect("it has so many"),
            Value::Array(elements) => &mut elements[index],
            _ => unreachable!("nothing is inside of others"),
        };
    }
}

fn edit(at: &mut Value, input: &mut Unstructured<'_>) -> Result<()> {
    let material = &*MATERIAL;
    match (input.int_in_range(0..=5)?, &mut *at) {
        (0, Value::Object(fields)) if !fields.is_empty() => {
            let index = input.choose_index(fields.len())?;
            let key = fields.keys().nth(index).expect("it has so many").clone();
            fields.remove(&key);
        }
        (0, Value::Array(elements)) if !elements.is_empty() => {
            elements.remove(input.choose_index(elements.len())?);
        }
        (1, Value::Object(fields)) => {
            fields.insert(input.choose(&material.keys)?.clone(), input.choose(&material.scalars)?.clone());
        }
        (1, Value::Array(elements)) => elements.push(input.choose(&material.scalars)?.clone()),
        (2, Value::Array(elements)) if !elements.is_empty() => {
            let element = elements[input.choose_index(elements.len())?].clone();
            elements.push(element);
        }
        (3, at) => {
            let scenario = input.choose(&material.scenarios)?;
            let mut other = input.choose(scenario)?.clone();
            *at = place(&mut other, input)?.clone();
        }
        (4, at) => *at = json!([at.take()]),
        (_, at) => *at = input.choose(&material.scalars)?.clone(),
    }
    Ok(())
}

fn objects(input: &mut Unstructured<'_>) -> Result<Vec<Value>> {
    let mut objects = input.choose(&MATERIAL.scenarios)?.clone();
    for _ in 0..EDITS {
        if input.is_empty() {
            break;
        }
        let index = input.choose_index(objects.len())?;
        edit(place(&mut objects[index], input)?, input)?;
    }
    Ok(objects)
}

/// Flows between pods, and from and to the world, at the pods of this node: both judges give the same decision.
fn judge(engine: &Engine) {
    let world = engine.world();
    let pods: BTreeSet<IpAddr> = world.workloads.values().flat_map(|pod| pod.addresses.iter().copied()).collect();
    let outside = ["192.0.2.9", "10.0.0.99", "2001:db8::9"].map(|text| text.parse::<IpAddr>().expect("an address"));
    let peers: Vec<IpAddr> = pods.iter().copied().chain(outside).collect();
    let mut judged = 0;
    for own in &pods {
        let Owner::Workload(subject) = oracle::owner(world, *own) else { continue };
        if subject.node != world.node {
            continue;
        }
        for peer in peers.iter().filter(|peer| **peer != *own && peer.is_ipv4() == own.is_ipv4()) {
            for direction in [Direction::Ingress, Direction::Egress] {
                let (protocol, port) = ASKED[judged % ASKED.len()];
                judged += 1;
                let (subject, own, peer) = (Arc::clone(&subject), *own, *peer);
                let query = Query { subject, direction, own, peer, protocol, port };
                let family = if own.is_ipv4() { Family::V4 } else { Family::V6 };
                let uid = workload_id(&query.subject.uid);
                let id = engine.image().lookup(uid, direction, family, mapped(peer), protocol, port);
                let found = engine.dictionary().get_decision(id.expect("it has an endpoint"));
                assert_eq!(found.as_deref(), Some(&oracle::judge(world, &query)), "{query:?}");
                if judged == FLOWS {
                    return;
                }
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(objects) = objects(&mut Unstructured::new(input)) else { return };
    let object = |(nth, value)| Change::Apply(Object { value, origin: format!("object {nth}") });
    let changes: Vec<Change> = objects.into_iter().enumerate().map(object).collect();
    let mut engine = Engine::new("node-1", 0);
    engine.apply(changes.clone());
    judge(&engine);
    let image = engine.image().canonical();
    engine.apply(changes);
    assert_eq!(engine.image().canonical(), image, "the same again is no change");
});
