//! Random small worlds: manifests that a person could have written, and flows that try them.
//!
//! A world is a list of Kubernetes objects, so that a failure can be printed, shrunk object by object and kept as a
//! scenario. Everything follows from the seed.

mod calico;
mod cluster;
mod facts;
mod flows;
mod policies;
mod staged;

use std::net::IpAddr;

use fastrand::Rng;
use reeve_policy::store::{Change, Object, Store};
use serde_json::{Value, json};

pub use flows::{Flow, flows};
pub use staged::STAGED;

/// The node whose endpoints are judged.
pub const NODE: &str = "node-1";

/// Addresses outside the cluster that flows come from and go to; policies name networks around some of them.
pub const OUTSIDE: [&str; 6] =
    ["198.51.100.7", "198.51.100.130", "203.0.113.9", "2001:db8:1::7", "2001:db8:2::7", "2001:db8:1:ff::7"];

/// Addresses of the two nodes: IPv4 of the one whose endpoints are judged and of the other, then IPv6 likewise.
pub const NODES: [&str; 4] = ["192.168.7.1", "192.168.7.2", "fd00:7::1", "fd00:7::2"];

const NAMESPACES: [&str; 3] = ["red", "green", "blue"];

/// One random world.
#[derive(Clone, Debug)]
pub struct RandomWorld {
    /// What it was made from.
    pub seed: u64,
    /// Its objects, in the order in which they are applied.
    pub objects: Vec<Value>,
}

impl RandomWorld {
    /// The world of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut objects = Vec::new();
        for name in NAMESPACES {
            let labels = json!({ "kubernetes.io/metadata.name": name, "team": pick(&mut rng, &["a", "b"]) });
            objects.push(
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } }),
            );
        }
        for (name, address, v6) in [(NODE, NODES[0], NODES[2]), ("node-2", NODES[1], NODES[3])] {
            let addresses = [address, v6].map(|address| json!({ "type": "InternalIP", "address": address }));
            objects.push(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "zone": pick(&mut rng, &["a", "b"]) } }, "status": { "addresses": addresses } }));
        }
        let account = json!({ "name": "robot", "namespace": NAMESPACES[0], "labels": { "role": "batch" } });
        objects.push(json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": account }));
        for number in 1..=rng.u8(4..=7) {
            objects.push(pod(&mut rng, number));
        }
        facts::add(&mut rng, &mut objects);
        policies::add(&mut rng, &mut objects);
        Self { seed, objects }
    }

    /// The facts as the store has them.
    pub fn store(&self) -> Store {
        let mut store = Store::new(NODE);
        for change in self.changes() {
            store.apply(change);
        }
        store
    }

    /// The objects as changes.
    pub fn changes(&self) -> Vec<Change> {
        let object = |value: &Value| Object { value: value.clone(), origin: format!("seed {}", self.seed) };
        self.objects.iter().map(|value| Change::Apply(object(value))).collect()
    }

    /// The objects as one YAML text.
    pub fn manifests(&self) -> String {
        let documents: Vec<String> =
            self.objects.iter().map(|object| serde_norway::to_string(object).expect("JSON is YAML")).collect();
        documents.join("---\n")
    }

    /// The smallest world found, by leaving objects out and emptying rule lists one at a time, that still fails.
    #[must_use]
    pub fn shrink(mut self, fails: impl Fn(&Self) -> bool) -> Self {
        loop {
            let smaller = smaller(&self).into_iter().find(|world| fails(world));
            match smaller {
                Some(world) => self = world,
                None => return self,
            }
        }
    }
}

/// Every world that is smaller by one object, or by one element of a rule list.
fn smaller(world: &RandomWorld) -> Vec<RandomWorld> {
    let mut found = Vec::new();
    for index in 0..world.objects.len() {
        let mut less = world.clone();
        less.objects.remove(index);
        found.push(less);
    }
    for (index, object) in world.objects.iter().enumerate() {
        for list in ["ingress", "egress"] {
            for rule in 0..object["spec"][list].as_array().map_or(0, Vec::len) {
                let mut less = world.clone();
                if let Some(rules) = less.objects[index]["spec"][list].as_array_mut() {
                    rules.remove(rule);
                }
                found.push(less);
            }
        }
    }
    found
}

/// One of a list.
pub(crate) fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

/// Whether something that happens `percent` of the time happens.
pub(crate) fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(..100) < percent
}

fn pod(rng: &mut Rng, number: u8) -> Value {
    let mut labels = serde_json::Map::new();
    for (key, values) in [("app", &["web", "db", "api"][..]), ("tier", &["front", "back"]), ("PCI", &["true", "false"])]
    {
        if chance(rng, 70) {
            labels.insert(key.to_owned(), json!(pick(rng, values)));
        }
    }
    // Now and then an address that another pod has too.
    let shared = if number > 1 && chance(rng, 5) { number - 1 } else { number };
    let mut addresses = vec![json!({ "ip": format!("10.244.1.{}", shared * 10) })];
    if chance(rng, 70) {
        addresses.push(json!({ "ip": format!("fd00:244:1::{}", number * 10) }));
    }
    let ports = json!([
        { "name": "http", "containerPort": *rng.choice(&[80, 8080]).expect("not empty"), "protocol": "TCP" },
        { "name": "dns", "containerPort": 53, "protocol": "UDP" }
    ]);
    let namespace = pick(rng, &NAMESPACES);
    let mut metadata = json!({ "name": format!("pod-{number}"), "namespace": namespace, "uid": format!("uid-{number}"), "labels": labels });
    if chance(rng, 4) {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": metadata,
        "spec": {
            // Most are on the node whose endpoints are judged.
            "nodeName": if chance(rng, 80) { NODE } else { "node-2" },
            "serviceAccountName": pick(rng, &["default", "robot"]),
            "containers": [{ "name": "main", "ports": ports }]
        },
        "status": { "phase": if chance(rng, 4) { "Succeeded" } else { "Running" }, "podIPs": addresses }
    })
}

/// The addresses of no pod as such.
pub(crate) fn outside() -> Vec<IpAddr> {
    OUTSIDE.iter().chain(&NODES).map(|text| text.parse().expect("an address")).collect()
}
