//! What slices say of pods, where it is not what the pods say of themselves.

use crate::model::{Endpoint, EndpointSlice, Level, Problem, ServiceName, Workload, World};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

const AS_GIVEN: &str = "the pod goes by its own status; behind the service the address stands as the slice has it";

/// Contradictions between Services, their slices and the pods.
pub(super) fn problems(world: &World) -> Vec<Problem> {
    let mut found: Vec<Problem> = Vec::new();
    let by_name: BTreeMap<(&str, &str), &Arc<Workload>> =
        world.workloads.values().map(|pod| ((pod.namespace.as_str(), pod.name.as_str()), pod)).collect();
    for slice in world.endpoint_slices.values().flat_map(BTreeMap::values) {
        for (index, endpoint) in slice.endpoints.iter().enumerate() {
            let Some(target) = &endpoint.pod else { continue };
            let named = || by_name.get(&(target.namespace.as_str(), target.name.as_str())).copied();
            let pod = match &target.uid {
                Some(uid) => world.workloads.get(uid),
                None => named(),
            };
            let of = |field: &str, value: &str, what: String| Problem {
                level: Level::Warning,
                object: format!("EndpointSlice/{}/{}", slice.service.namespace, slice.name),
                field: format!("endpoints[{index}].{field}"),
                value: value.to_owned(),
                what,
                effect: AS_GIVEN.to_owned(),
            };
            let Some(pod) = pod else {
                let value = target.uid.as_deref().unwrap_or(&target.name);
                let what = format!("no pod {}/{} with this UID is known", target.namespace, target.name);
                // A slice is often told of before its pod, or after it.
                found.push(Problem { level: Level::Note, ..of("targetRef", value, what) });
                continue;
            };
            let known = format!("Pod/{}/{}", pod.namespace, pod.name);
            found.extend(
                foreign_addresses(pod, endpoint).map(|address| {
                    of("addresses", &address.to_string(), format!("{known} does not have this address"))
                }),
            );
            let node = endpoint.node.as_deref().filter(|node| *node != pod.node && !pod.node.is_empty());
            found.extend(node.map(|node| of("nodeName", node, format!("{known} is on node {}", pod.node))));
        }
    }
    found.extend(shared_addresses(world));
    found
}

/// Addresses of an endpoint that its pod does not have. Pods on the node's network have the node's.
fn foreign_addresses(pod: &Workload, endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let about = !pod.host_network && !pod.ended;
    endpoint.addresses.iter().filter(move |address| about && !pod.addresses.contains(address)).copied()
}

/// Cluster addresses that several Services have.
fn shared_addresses(world: &World) -> Vec<Problem> {
    let mut holders: BTreeMap<IpAddr, Vec<&ServiceName>> = BTreeMap::new();
    for service in world.services.values() {
        for address in &service.cluster_addresses {
            holders.entry(*address).or_default().push(&service.name);
        }
    }
    let shared = holders.into_iter().filter(|(_, services)| services.len() > 1);
    shared
        .flat_map(|(address, services)| {
            let names: Vec<String> = services.iter().map(ToString::to_string).collect();
            services.into_iter().map(move |service| Problem {
                level: Level::Warning,
                object: format!("Service/{service}"),
                field: "spec.clusterIPs".to_owned(),
                value: address.to_string(),
                what: format!("several services have this address: {}", names.join(", ")),
                effect: "flows to it are judged at the backend that they reach".to_owned(),
            })
        })
        .collect()
}

/// Puts a slice in the place of another one of the same name, which may have been another Service's.
pub(super) fn replace(world: &mut World, before: Option<&EndpointSlice>, after: Option<&Arc<EndpointSlice>>) {
    if let Some(before) = before
        && let Some(slices) = world.endpoint_slices.get_mut(&before.service)
    {
        slices.remove(&before.name);
        if slices.is_empty() {
            world.endpoint_slices.remove(&before.service);
        }
    }
    if let Some(after) = after {
        let slices = world.endpoint_slices.entry(after.service.clone()).or_default();
        slices.insert(after.name.clone(), Arc::clone(after));
    }
}
