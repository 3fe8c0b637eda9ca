//! What slices say of pods, where it is not what the pods say of themselves.

use super::Touched;
use crate::holders::Holders;
use crate::identity::rule_list;
use crate::model::{
    Direction, Endpoint, EndpointSlice, Level, Peers, Policy, Problem, Service, ServiceName, TargetPod, Workload, World,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

const AS_GIVEN: &str = "the pod goes by its own status; behind the service the address stands as the slice has it";

/// Names a slice: its namespace and name.
type SliceName = (String, String);

/// Who a slice says that an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Uid(String),
    Name(String, String),
}

impl Target {
    fn of(target: &TargetPod) -> Self {
        match &target.uid {
            Some(uid) => Self::Uid(uid.clone()),
            None => Self::Name(target.namespace.clone(), target.name.clone()),
        }
    }
}

/// Contradictions between Services, their slices and the pods, looked at again where something about them changes.
#[derive(Debug, Default)]
pub(super) struct Contradictions {
    slices: BTreeMap<SliceName, Arc<EndpointSlice>>,
    /// Which slices speak of a pod.
    about: BTreeMap<Target, BTreeSet<SliceName>>,
    /// UIDs of pods by namespace and name.
    pods: BTreeMap<(String, String), String>,
    /// What was found, of slices with problems.
    found: BTreeMap<SliceName, Vec<Problem>>,
    /// Which Services have a cluster address.
    services: Holders<IpAddr, ServiceName>,
}

impl Contradictions {
    /// Looks again at what a change is about; the world has it already.
    pub(super) fn take(&mut self, world: &World, touch: &Touched) {
        match touch {
            Touched::Service { before, after } => {
                let Some(name) = before.as_ref().or(after.as_ref()).map(|service| &service.name) else { return };
                let addresses = |service: &Option<Arc<Service>>| {
                    service.as_ref().map(|service| service.cluster_addresses.clone()).unwrap_or_default()
                };
                self.services.replace(name, addresses(before), addresses(after));
            }
            Touched::EndpointSlice { before, after } => {
                before.iter().for_each(|slice| self.remove(slice));
                if let Some(slice) = after {
                    self.insert(slice);
                    self.review(world, &(slice.service.namespace.clone(), slice.name.clone()));
                }
            }
            Touched::Workload { before, after } => {
                let mut about = BTreeSet::new();
                for pod in before.iter().chain(after) {
                    let name = (pod.namespace.clone(), pod.name.clone());
                    for target in [Target::Uid(pod.uid.clone()), Target::Name(name.0.clone(), name.1.clone())] {
                        about.extend(self.about.get(&target).into_iter().flatten().cloned());
                    }
                    if self.pods.get(&name) == Some(&pod.uid) {
                        self.pods.remove(&name);
                    }
                }
                if let Some(pod) = after {
                    self.pods.insert((pod.namespace.clone(), pod.name.clone()), pod.uid.clone());
                }
                about.iter().for_each(|slice| self.review(world, slice));
            }
            _ => {}
        }
    }

    fn insert(&mut self, slice: &Arc<EndpointSlice>) {
        let name = (slice.service.namespace.clone(), slice.name.clone());
        for target in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
            self.about.entry(Target::of(target)).or_default().insert(name.clone());
        }
        self.slices.insert(name, Arc::clone(slice));
    }

    fn remove(&mut self, slice: &EndpointSlice) {
        let name = (slice.service.namespace.clone(), slice.name.clone());
        for target in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
            let target = Target::of(target);
            if let Some(about) = self.about.get_mut(&target) {
                about.remove(&name);
                if about.is_empty() {
                    self.about.remove(&target);
                }
            }
        }
        self.found.remove(&name);
        self.slices.remove(&name);
    }

    fn review(&mut self, world: &World, name: &SliceName) {
        let problems = self.slices.get(name).map(|slice| self.of_slice(world, slice)).unwrap_or_default();
        if problems.is_empty() {
            self.found.remove(name);
        } else {
            self.found.insert(name.clone(), problems);
        }
    }

    /// All that there are now.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        self.found.values().flatten().cloned().chain(self.shared_addresses())
    }

    /// Cluster addresses that several Services have.
    fn shared_addresses(&self) -> impl Iterator<Item = Problem> + '_ {
        self.services.shared().flat_map(|(address, services)| {
            let names: Vec<String> = services.iter().map(ToString::to_string).collect();
            services.iter().map(move |service| Problem {
                level: Level::Warning,
                object: format!("Service/{service}"),
                field: "spec.clusterIPs".to_owned(),
                value: address.to_string(),
                what: format!("several services have this address: {}", names.join(", ")),
                effect: "flows to it are judged at the backend that they reach".to_owned(),
            })
        })
    }

    fn of_slice(&self, world: &World, slice: &EndpointSlice) -> Vec<Problem> {
        let mut found: Vec<Problem> = Vec::new();
        for (index, endpoint) in slice.endpoints.iter().enumerate() {
            let Some(target) = &endpoint.pod else { continue };
            let by_name = || self.pods.get(&(target.namespace.clone(), target.name.clone()));
            let pod = target.uid.as_ref().or_else(by_name).and_then(|uid| world.workloads.get(uid));
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
        found
    }
}

/// Addresses of an endpoint that its pod does not have. Pods on the node's network have the node's.
fn foreign_addresses(pod: &Workload, endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let about = !pod.host_network && !pod.ended;
    endpoint.addresses.iter().filter(move |address| about && !pod.addresses.contains(address)).copied()
}

/// Rules about a Service that nothing is behind: they mean nobody, which is seldom what was meant.
pub(super) fn without_backends(world: &World, policy: &Policy) -> Vec<Problem> {
    let written = policy.written.as_deref().unwrap_or(policy);
    let sides = [(Direction::Ingress, "ingress", "source"), (Direction::Egress, "egress", "destination")];
    let rules = sides.into_iter().flat_map(|(direction, list, side)| {
        rule_list(written.rules(direction))
            .iter()
            .map(move |rule| (rule, format!("spec.{list}[{}].{side}", rule.index)))
    });
    let empty = rules.filter_map(|(rule, side)| match &rule.peer {
        Peers::BackendsOf(service) if world.backends(service).next().is_none() => Some((service, side)),
        _ => None,
    });
    let problem = |(service, side): (&ServiceName, String)| Problem {
        level: Level::Note,
        object: policy.reference.to_string(),
        field: format!("{side}.services"),
        value: service.to_string(),
        what: if world.services.contains_key(service) {
            "the service has no endpoints"
        } else {
            "there is no such service"
        }
        .to_owned(),
        effect: "the rule matches nobody".to_owned(),
    };
    empty.map(problem).collect()
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
