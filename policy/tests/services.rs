//! Services and their backends as facts: read whole, kept when an edit cannot be read, and compared with the pods.

use reeve_policy::manifest;
use reeve_policy::model::{
    Affinity, BackendScope, Endpoint, EndpointPort, Level, Reading, ServiceKind, ServiceName, ServicePort, TargetPod,
    TargetPort,
};
use reeve_policy::store::{Change, ObjectKey, Store, Touched};
use std::collections::BTreeSet;
use std::net::IpAddr;

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, uid: s-1}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  externalIPs: [203.0.113.7]
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  externalTrafficPolicy: Local
  healthCheckNodePort: 30099
  publishNotReadyAddresses: true
  selector: {app: web}
status:
  loadBalancer: {ingress: [{ip: 198.51.100.5}, {ip: 198.51.100.6, ipMode: Proxy}, {hostname: lb.example.com}]}
"#;

const SLICE: &str = r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [10.0.0.1]
  conditions: {ready: true}
  nodeName: node-1
  zone: a
  targetRef: {kind: Pod, namespace: shop, name: web, uid: p-1}
- addresses: [192.0.2.1]
  conditions: {ready: false, terminating: true}
";

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: p-1, labels: {app: web}}
spec: {nodeName: node-1, containers: []}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn apply(store: &mut Store, text: &str) -> Vec<Touched> {
    let objects = manifest::parse(text, "here").expect("the manifests are readable");
    objects.into_iter().flat_map(|object| store.apply(Change::Apply(object))).collect()
}

fn store(texts: &[&str]) -> Store {
    let mut store = Store::new("node-1");
    for text in texts {
        apply(&mut store, text);
    }
    store
}

fn web() -> ServiceName {
    ServiceName { namespace: "shop".to_owned(), name: "web".to_owned() }
}

fn key(kind: &str, version: &str, name: &str) -> ObjectKey {
    let object =
        serde_json::json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}});
    ObjectKey::of(&object).expect("a name")
}

#[test]
fn a_service_is_read_whole() {
    let store = store(&[SERVICE]);
    let service = &store.world().services[&web()];
    assert_eq!((service.uid.as_str(), service.kind), ("s-1", ServiceKind::LoadBalancer));
    assert_eq!(service.cluster_addresses, BTreeSet::from([ip("10.96.0.10"), ip("fd00:96::10")]));
    assert_eq!(service.external_addresses, BTreeSet::from([ip("203.0.113.7")]));
    assert_eq!(service.balancer_addresses, BTreeSet::from([ip("198.51.100.5")]), "a proxy's address never gets here");
    assert_eq!(service.addresses().count(), 4);
    let port = |name: &str, protocol, port, target, node_port| ServicePort {
        name: name.to_owned(),
        protocol,
        port,
        target,
        node_port,
    };
    let http = port("http", 6, 80, TargetPort::Named("http".to_owned()), Some(30_080));
    assert_eq!(service.ports, [http, port("dns", 17, 53, TargetPort::Number(53), None)]);
    assert_eq!(service.affinity, Affinity::ClientIp(60));
    assert_eq!((service.external_scope, service.internal_scope), (BackendScope::Local, BackendScope::Cluster));
    assert_eq!((service.health_check_port, service.publishes_not_ready), (Some(30_099), true));
    assert_eq!(store.problems(), [], "without endpoints it is told of only where a rule names it");
}

#[test]
fn headless_services_and_other_names_have_no_addresses() {
    for (spec, kind) in [
        ("{clusterIP: None, clusterIPs: [None]}", ServiceKind::Headless),
        ("{type: ExternalName, externalName: db.example.com}", ServiceKind::ExternalName),
        ("{ports: [{port: 1}]}", ServiceKind::ClusterIp),
    ] {
        let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: {spec}}}");
        let store = store(&[&text]);
        let service = &store.world().services[&web()];
        assert_eq!((service.kind, service.addresses().count()), (kind, 0), "{spec}");
    }
}

#[test]
fn backends_come_with_the_ports_and_conditions_of_their_slice() {
    let store = store(&[SLICE, POD]);
    let ports = BTreeSet::from([EndpointPort { name: "http".to_owned(), protocol: 6, port: Some(8080) }]);
    let found: Vec<_> = store.world().backends(&web()).map(|backend| (backend.address, backend.ports)).collect();
    assert_eq!(found, [(ip("10.0.0.1"), &ports), (ip("192.0.2.1"), &ports)]);
    let endpoints: Vec<Endpoint> = store.world().backends(&web()).map(|backend| backend.endpoint.clone()).collect();
    let pod = TargetPod { namespace: "shop".to_owned(), name: "web".to_owned(), uid: Some("p-1".to_owned()) };
    assert_eq!((endpoints[0].ready, endpoints[0].serving, endpoints[0].terminating), (true, true, false));
    assert_eq!((endpoints[0].node.as_deref(), endpoints[0].pod.as_ref()), (Some("node-1"), Some(&pod)));
    assert_eq!((endpoints[1].ready, endpoints[1].serving, endpoints[1].terminating), (false, false, true));
    assert_eq!(store.problems(), []);
}

#[test]
fn a_slice_moves_between_services_and_goes() {
    let mut store = store(&[SLICE]);
    let moved = SLICE.replace("service-name: web", "service-name: other");
    let touched = apply(&mut store, &moved);
    assert!(matches!(touched[..], [Touched::EndpointSlice { before: Some(_), after: Some(_) }]), "{touched:?}");
    let other = ServiceName { name: "other".to_owned(), ..web() };
    assert_eq!((store.world().backends(&web()).count(), store.world().backends(&other).count()), (0, 2));
    apply(&mut store, &moved.replace("service-name: other", "app: x"));
    assert_eq!(store.world().endpoint_slices.len(), 0, "a slice without a service is nobody's");
    apply(&mut store, SLICE);
    store.apply(Change::Delete(key("EndpointSlice", "discovery.k8s.io/v1", "web-1")));
    assert_eq!(store.world().endpoint_slices.len(), 0);
}

#[test]
fn what_was_known_stays_when_an_edit_cannot_be_read() {
    let mut store = store(&[SERVICE, SLICE, POD]);
    let before = store.world().clone();
    for (text, from, to, field) in [
        (
            SLICE,
            "{kubernetes.io/service-name: web}",
            "{kubernetes.io/service-name: 1}",
            "metadata.labels.kubernetes.io/service-name",
        ),
        (SERVICE, "10.96.0.10, \"fd00", "10.96.0.1000, \"fd00", "spec.clusterIPs[0]"),
        (SERVICE, "protocol: UDP", "protocol: DCCP", "spec.ports[1].protocol"),
        (SERVICE, "ClientIP\n", "Client\n", "spec.sessionAffinity"),
    ] {
        let broken = text.replacen(from, to, 1);
        assert_ne!(broken, text, "{field}");
        assert_eq!(apply(&mut store, &broken), [], "{field}");
        assert_eq!(*store.world(), before, "{field}");
        let fields: Vec<String> = store.problems().into_iter().map(|problem| problem.field).collect();
        assert_eq!(fields, [field]);
        apply(&mut store, text);
    }
    assert_eq!(store.problems(), []);
}

#[test]
fn a_slice_that_cannot_be_read_whole_is_marked_and_the_rest_holds() {
    for (from, to, field, left) in [
        ("addresses: [10.0.0.1]", "addresses: [x]", "endpoints[0].addresses[0]", 1),
        ("port: 8080", "port: 0", "ports[0].port", 2),
        ("ready: false", "ready: no-idea", "endpoints[1].conditions.ready", 1),
        ("addressType: IPv4", "addressType: IPv5", "addressType", 0),
        ("addresses: [10.0.0.1]", "addresses: [\"fd00::1\"]", "endpoints[0].addresses[0]", 1),
    ] {
        let broken = SLICE.replacen(from, to, 1);
        assert_ne!(broken, SLICE, "{field}");
        let store = store(&[&broken, POD]);
        let fields: Vec<String> = store.problems().into_iter().map(|problem| problem.field).collect();
        assert_eq!(fields, [field]);
        let slice = &store.world().endpoint_slices[&web()]["web-1"];
        assert_eq!((slice.reading, store.world().backends(&web()).count()), (Reading::Partial, left), "{field}");
    }
}

#[test]
fn a_field_of_a_later_version_is_told_of_and_the_rest_holds() {
    let later = SERVICE.replace("  externalTrafficPolicy", "  tomorrow: 1\n  externalTrafficPolicy");
    let store = store(&[&later]);
    let problems: Vec<_> = store.problems().into_iter().map(|problem| (problem.field, problem.level)).collect();
    assert_eq!(problems, [("spec.tomorrow".to_owned(), Level::Note)]);
    assert_eq!(store.world().services.len(), 1);
}

#[test]
fn slices_that_contradict_the_pods_are_problems() {
    for (text, field, value, level) in [
        (SLICE.replace("[10.0.0.1]", "[10.0.0.2]"), "endpoints[0].addresses", "10.0.0.2", Level::Warning),
        (SLICE.replace("nodeName: node-1", "nodeName: node-2"), "endpoints[0].nodeName", "node-2", Level::Warning),
        (SLICE.replace("uid: p-1", "uid: p-2"), "endpoints[0].targetRef", "p-2", Level::Note),
        (SLICE.replace("[192.0.2.1]", "[\"fd00::1\"]"), "endpoints[1].addresses[0]", "fd00::1", Level::Warning),
    ] {
        let problems = store(&[SERVICE, &text, POD]).problems();
        let found: Vec<_> = problems.iter().map(|p| (p.field.as_str(), p.value.as_str(), p.level)).collect();
        assert_eq!(found, [(field, value, level)]);
    }
    let twin = SERVICE.replace("name: web", "name: twin");
    let problems = store(&[SERVICE, &twin]).problems();
    let found: Vec<_> = problems.iter().map(|p| (p.object.as_str(), p.value.as_str())).collect();
    let (one, other) = ("Service/shop/twin", "Service/shop/web");
    assert_eq!(found, [(one, "10.96.0.10"), (one, "fd00:96::10"), (other, "10.96.0.10"), (other, "fd00:96::10")]);
}
