//! What the agent says of itself: status, endpoints, identities, maps, problems, policies, facts.

use crate::cni::installer;
use crate::enforcer::{Enforcer, unmapped};
use reeve_abi::ids::IdentityId;
use reeve_abi::stats;
use reeve_flow::text::policy_text;
use reeve_policy::model::Level;
use reeve_policy::provenance::workload_id;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

/// What becomes of what a full map has no room for.
const WHEN_FULL: [(&str, &str); 15] = [
    ("ENDPOINTS", "the pod's device is closed, and the agent is not ready"),
    (
        "DEVICES",
        "pods' egress is judged by what it shows as well, pods behind the bridge are closed, and the agent is not ready",
    ),
    ("ADDRESSES", "unknown addresses are denied for every pod that a policy selects"),
    ("NETWORKS", "policies are refused, the last in evaluation order first"),
    ("CLASSES", "policies are refused, the last in evaluation order first"),
    ("PEERS", "policies are refused, the last in evaluation order first"),
    ("PORTS", "policies are refused, the last in evaluation order first"),
    ("RANGES", "policies are refused, the last in evaluation order first"),
    ("SERVICES", "the clients of the Service's packets from outside are not noted: they are seen as masqueraded"),
    ("FLOWS", "the least recently used flow makes room, and is judged again if it goes on"),
    ("BUDGETS", "the pod's device is closed, and the agent is not ready"),
    ("DENIED", "the least recently denied tuple makes room; its next packet is judged and told again"),
    ("FRAGMENTS", "the least recently seen packet makes room; what comes later of it is denied"),
    ("EDGES", "counts go to a row per pod, direction, verdict and decision"),
    ("OVERFLOW", "counts are lost, and the loss is counted and told"),
];

impl Enforcer {
    /// `GET /maps`: rows and capacity of each map, and what happens when it is full.
    pub(crate) fn told_maps(&self) -> Value {
        let maps = self.maps().into_iter().map(|(name, entries, capacity)| {
            let when_full = WHEN_FULL.iter().find(|(map, _)| *map == name).map(|(_, what)| *what);
            json!({ "name": name, "entries": entries, "capacity": capacity, "whenFull": when_full })
        });
        json!(maps.collect::<Vec<_>>())
    }

    /// `GET /identities`: what addresses are seen as, with the class that local policies put each in.
    pub(crate) fn identities(&self) -> Value {
        let image = self.engine.image();
        let mut shown: BTreeMap<IdentityId, (u64, u64)> = BTreeMap::new();
        for value in image.addresses.values() {
            shown.entry(value.identity).or_default().0 += 1;
        }
        for value in image.networks.values() {
            shown.entry(value.identity).or_default().1 += 1;
        }
        let rows = shown.into_iter().map(|(id, (addresses, prefixes))| {
            json!({
                "id": id.to_string(), "class": image.class_of(id).to_string(), "addresses": addresses,
                "prefixes": prefixes, "identity": self.engine.dictionary().get_identity(id),
            })
        });
        json!(rows.collect::<Vec<_>>())
    }

    /// Rows and capacity of each map.
    pub(crate) fn maps(&self) -> Vec<(&'static str, u64, u64)> {
        let (image, maps) = (self.engine.image(), &self.loaded.maps);
        let row = |name, entries: usize, capacity: u32| (name, entries as u64, u64::from(capacity));
        let mut rows = vec![
            row("ENDPOINTS", self.interfaces.len(), maps.endpoints.capacity()),
            row("ADDRESSES", image.addresses.len(), maps.addresses.capacity()),
            row("NETWORKS", image.networks.len(), maps.networks.capacity()),
            row("CLASSES", image.classes.len(), maps.classes.capacity()),
            row("PEERS", image.peers.len(), maps.peers.capacity()),
            row("PORTS", image.ports.len(), maps.ports.capacity()),
            row("RANGES", image.ranges.len(), maps.ranges.capacity()),
            row("DEVICES", self.device_rows.min(maps.devices.capacity() as usize), maps.devices.capacity()),
            row("SERVICES", self.service_rows.len().min(maps.services.capacity() as usize), maps.services.capacity()),
        ];
        rows.extend(self.traffic_rows.iter().map(|one| (one.name, one.entries, one.capacity)));
        rows
    }

    /// `GET /status`.
    pub(crate) fn status(&self, started_at: &str) -> Value {
        let image = self.engine.image();
        let maps: Vec<Value> = self
            .maps()
            .into_iter()
            .map(|(name, entries, capacity)| json!({ "name": name, "entries": entries, "capacity": capacity }))
            .collect();
        let lost: serde_json::Map<String, Value> = stats::ALL
            .iter()
            .filter(|(_, name)| name.ends_with("_lost"))
            .map(|(index, name)| ((*name).to_owned(), json!(self.loaded.maps.stats.sum(*index).unwrap_or_default())))
            .collect();
        json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "revision": self.active,
            "ready": self.ready(),
            "reasons": self.all_reasons(),
            "startedAt": started_at,
            "endpoints": { "ready": image.endpoints.len().saturating_sub(self.waiting.len()), "total": image.endpoints.len() },
            "identities": self.engine.identities_of_addresses(),
            "policies": self.engine.world().tiers.iter().map(|(_, policies)| policies.len()).sum::<usize>(),
            "problems": self.problem_count(Level::Warning) + self.problem_count(Level::Note),
            "maps": maps,
            "losses": lost,
        })
    }

    /// Whether everything is known, as far as anybody can tell, and enforced.
    pub(crate) fn ready(&self) -> bool {
        self.settled() && self.stale.is_empty() && installer::problems(&self.complaints).is_empty()
    }

    /// Whether everything that is known is enforced.
    pub(crate) fn settled(&self) -> bool {
        self.active > 0 && self.reasons.is_empty()
    }

    /// Why the agent is not ready.
    pub(crate) fn all_reasons(&self) -> Vec<String> {
        let plugin = installer::problems(&self.complaints);
        let plugin = plugin.iter().map(|problem| format!("CNI plugin: {}: {}", problem.object, problem.what));
        self.reasons.iter().chain(&self.stale).cloned().chain(plugin).collect()
    }

    /// `GET /endpoints`.
    pub(crate) fn endpoints(&self) -> Value {
        let world = self.engine.world();
        let rows: Vec<Value> = world
            .workloads
            .values()
            .filter_map(|workload| {
                let id = workload_id(&workload.uid);
                let image = self.engine.image().endpoints.get(&id)?;
                let device = self.interfaces.get(&id);
                let addresses: Vec<String> = [image.address_v4, image.address_v6]
                    .iter()
                    .filter(|a| a.0 != [0; 16])
                    .map(|a| unmapped(a.0).to_string())
                    .collect();
                let state = match device {
                    None => "unattached",
                    Some(device) if !self.attachments.is_attached(device.ifindex) => "unattached",
                    Some(_) if image.ready => "ready",
                    Some(_) => "notReady",
                };
                Some(json!({
                    "workload": id.to_string(), "namespace": workload.namespace, "pod": workload.name,
                    "uid": workload.uid, "interface": device.map(|d| &d.name), "ifindex": device.map(|d| d.ifindex),
                    "addresses": addresses, "identity": image.identity.to_string(), "labels": workload.labels,
                    "state": state, "revision": image.revision.0,
                    "policies": self.selecting(workload),
                }))
            })
            .collect();
        json!(rows)
    }

    /// The policies that select a pod, by direction, in evaluation order.
    fn selecting(&self, workload: &reeve_policy::model::Workload) -> Value {
        use reeve_policy::model::Direction;
        let names = |direction| -> Vec<String> {
            let selecting = reeve_policy::oracle::policies_of(self.engine.world(), workload, direction);
            selecting.iter().map(|reference| policy_text(reference)).collect()
        };
        json!({ "ingress": names(Direction::Ingress), "egress": names(Direction::Egress) })
    }

    /// `GET /problems`.
    pub(crate) fn told_problems(&self) -> Value {
        json!(self.all_problems().collect::<Vec<_>>())
    }

    /// `GET /policies`: what became of each policy that this node has heard of, as it was last written, in the order of
    /// group, kind, namespace and name. `state`: `accepted`, `narrowed` or `refused`. `observedAt`: when the agent took it
    /// up; `compiledAt` and `activeAt`, RFC 3339 as well: nothing before it is so, and `activeAt` never of a kind that is not
    /// enforced. `problems`: as in `GET /problems`.
    pub(crate) fn told_policies(&self) -> Value {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let standings = self.standings.look(&self.engine, &self.problems);
        json!(standings.iter().map(|standing| standing.told(now, wall)).collect::<Vec<_>>())
    }

    /// `GET /world`: the facts, for `reeve explain`.
    pub(crate) fn facts(&self) -> Value {
        let objects = self.source.objects(self.engine.world());
        json!({ "node": self.node, "objects": objects, "localAddresses": self.local_addresses })
    }
}
