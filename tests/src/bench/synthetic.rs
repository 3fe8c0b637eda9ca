//! A cluster that is too large for this machine, as its API server would tell it: lists as streams, then changes.
//!
//! It answers what agents ask and nothing else. Objects have the size of real ones, with what agents leave out.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::{broadcast, oneshot};

use crate::lab::Node;

/// Where it listens, in its node's namespace.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
/// Events that a watch may be behind.
const BEHIND: usize = 10_000;
/// Objects in one piece of an answer.
const TOGETHER: u32 = 100;

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) nodes: u32,
    pub(super) namespaces: u32,
    pub(super) pods: u32,
    /// As many as applications: each selects one, and lets the next one in.
    pub(super) policies: u32,
}

/// The server; it ends when dropped.
pub(super) struct Synthetic {
    world: Arc<World>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

struct World {
    size: Size,
    /// Objects of the node that is real, and of its pods; they stand for the first of those that are made up.
    node: Value,
    pods: Vec<Value>,
    pod: Template,
    changes: broadcast::Sender<Bytes>,
    sent_bytes: AtomicU64,
}

impl Synthetic {
    /// For the agent of a node that has these pods.
    pub(super) fn start(node: &Node, size: Size, pods: Vec<Value>) -> anyhow::Result<Self> {
        let listener = node.netns().run(|| TcpListener::bind(LISTEN))?.context("cannot listen as an API server")?;
        listener.set_nonblocking(true)?;
        let world = Arc::new(World {
            size,
            node: node.object(),
            pods,
            pod: Template::of(&pod_object()),
            changes: broadcast::Sender::new(BEHIND),
            sent_bytes: AtomicU64::new(0),
        });
        let router = axum::Router::new().fallback(answer).with_state(Arc::clone(&world));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                tokio::select! {
                    served = axum::serve(listener, router) => served.context("the API server"),
                    _ = stopped => Ok(()), // watches have no end of their own
                }
            })
        });
        Ok(Self { world, stop: Some(stop), thread: Some(thread) })
    }

    /// Writes a kubeconfig that leads to it.
    pub(super) fn kubeconfig(directory: &Path) -> anyhow::Result<PathBuf> {
        let path = directory.join("synthetic.kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "synthetic",
            "clusters": [{ "name": "synthetic", "cluster": { "server": format!("http://{LISTEN}") } }],
            "users": [{ "name": "agent", "user": {} }],
            "contexts": [{ "name": "synthetic", "context": { "cluster": "synthetic", "user": "agent" } }],
        });
        std::fs::write(&path, text.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Bytes of bodies sent so far.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.world.sent_bytes.load(Ordering::Relaxed)
    }

    /// Tells the change with this number, from 0: of three, a pod is deleted, another one takes its place, and that gets
    /// its address.
    pub(super) fn change(&self, number: u32) -> anyhow::Result<()> {
        let world = &self.world;
        let first = u32::try_from(world.pods.len())?;
        let turn = number / 3;
        // A prime's multiples come by all of them, one far from the one before.
        let which = first + turn.wrapping_mul(7919) % (world.size.pods - first);
        let generation = turn / (world.size.pods - first) + 1;
        let (kind, pod) = match number % 3 {
            0 => ("DELETED", world.made_up(which, generation - 1, Told::Running)),
            1 => ("ADDED", world.made_up(which, generation, Told::Pending)),
            _ => ("MODIFIED", world.made_up(which, generation, Told::Running)),
        };
        self.tell(kind, &pod)
    }

    /// Tells of one pod more than there were.
    pub(super) fn one_more(&self) -> anyhow::Result<()> {
        self.tell("ADDED", &self.world.made_up(self.world.size.pods, 0, Told::Running))
    }

    /// Ends the watch of pods with the word that its place is forgotten.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
            "message": "too old resource version",
        });
        self.tell("ERROR", &status.to_string())
    }

    fn tell(&self, kind: &str, pod: &str) -> anyhow::Result<()> {
        self.world.changes.send(event(kind, pod).into()).ok().context("nobody watches pods").map(drop)
    }
}

impl Drop for Synthetic {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(error)) = self.thread.take().and_then(|thread| thread.join().ok()) {
            eprintln!("the synthetic API server: {error:#}");
        }
    }
}

/// What of a pod is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Pending,
    Running,
}

impl World {
    fn pod(&self, number: u32) -> String {
        match self.pods.get(number as usize) {
            Some(real) => real.to_string(),
            None => self.made_up(number, 0, Told::Running),
        }
    }

    fn made_up(&self, number: u32, generation: u32, told: Told) -> String {
        let app = number % self.size.policies;
        // Whoever takes a pod's place has another address.
        let address = Ipv4Addr::from(0x0a10_0000 + number + generation * (self.size.pods + 1));
        let status = match told {
            Told::Pending => r#""phase":"Pending""#.to_owned(),
            Told::Running => format!(r#""phase":"Running","podIP":"{address}","podIPs":[{{"ip":"{address}"}}]"#),
        };
        self.pod.fill(&[
            ("@name@", &format!("app-{app}-{number}-{generation}")),
            ("@uid@", &format!("{number:08x}-0000-4000-8000-{generation:012x}")),
            ("@namespace@", &format!("namespace-{}", app % self.size.namespaces)),
            ("@app@", &format!("app-{app}")),
            ("@node@", &format!("node-{}", number / (self.size.pods / self.size.nodes))),
            ("\"@status@\":\"\"", &status),
        ])
    }

    fn policy(&self, number: u32) -> String {
        let app = |number: u32| json!({ "matchLabels": { "app": format!("app-{}", number % self.size.policies) } });
        let port = json!([{ "protocol": "TCP", "port": 8080 }]);
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {
                "name": format!("app-{number}"), "namespace": format!("namespace-{}", number % self.size.namespaces),
                "uid": format!("{number:08x}-0000-4000-9000-000000000000"), "generation": 1, "resourceVersion": "1",
            },
            "spec": {
                "podSelector": app(number), "policyTypes": ["Ingress", "Egress"],
                "ingress": [{ "from": [{ "namespaceSelector": {}, "podSelector": app(number + 1) }], "ports": port }],
                "egress": [{ "to": [{ "namespaceSelector": {}, "podSelector": app(number + self.size.policies - 1) }] }],
            },
        })
        .to_string()
    }

    fn node(&self, number: u32) -> String {
        if number == 0 {
            return self.node.to_string();
        }
        let [_, _, high, low] = number.to_be_bytes();
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": format!("node-{number}"), "resourceVersion": "1" },
            "spec": { "podCIDRs": [] },
            "status": { "addresses": [{ "type": "InternalIP", "address": format!("10.10.{high}.{low}") }] },
        })
        .to_string()
    }

    fn namespace(number: u32) -> String {
        let name = format!("namespace-{number}");
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name }, "resourceVersion": "1" },
        })
        .to_string()
    }
}

/// What an agent asks for.
async fn answer(State(world): State<Arc<World>>, uri: Uri) -> Response {
    let Size { nodes, namespaces, pods, policies } = world.size;
    let count = match uri.path() {
        "/api/v1/pods" => pods,
        "/api/v1/nodes" => nodes,
        "/api/v1/namespaces" => namespaces,
        "/apis/networking.k8s.io/v1/networkpolicies" => policies,
        "/api/v1/services"
        | "/api/v1/serviceaccounts"
        | "/apis/discovery.k8s.io/v1/endpointslices"
        | "/apis/apiextensions.k8s.io/v1/customresourcedefinitions" => 0,
        "/apis" => return json_text(&json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let query = uri.query().unwrap_or_default();
    let path = uri.path().to_owned();
    if !query.contains("watch=true") {
        // Only definitions are asked for so, and there are none.
        let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": [] });
        return json_text(&list);
    }
    let changes = world.changes.subscribe();
    let listed = if query.contains("sendInitialEvents=true") { count } else { 0 };
    let bookmark = json!({ "type": "BOOKMARK", "object": {
        "apiVersion": "v1", "kind": "Bookmark",
        "metadata": { "resourceVersion": "1", "annotations": { "k8s.io/initial-events-end": "true" } },
    } });
    let bookmark = format!("{bookmark}\n");
    let of_pods = path.ends_with("/pods");
    let lister = Arc::clone(&world);
    let list = stream::iter((0..listed.div_ceil(TOGETHER)).map(move |piece| {
        let numbers = piece * TOGETHER..(piece * TOGETHER + TOGETHER).min(listed);
        let object = |number| match &*path {
            "/api/v1/pods" => lister.pod(number),
            "/api/v1/nodes" => lister.node(number),
            "/api/v1/namespaces" => World::namespace(number),
            _ => lister.policy(number),
        };
        Bytes::from(numbers.map(|number| event("ADDED", &object(number))).collect::<String>())
    }));
    let rest = if of_pods { told(changes).boxed() } else { stream::pending().boxed() };
    let all = list.chain(stream::once(async { Bytes::from(bookmark) })).chain(rest);
    let body = all.map(move |bytes| {
        world.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok::<_, Infallible>(bytes)
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response()
}

fn json_text(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

/// Changes until a watch has missed some, which ends it.
fn told(changes: broadcast::Receiver<Bytes>) -> impl Stream<Item = Bytes> {
    stream::unfold(changes, |mut changes| async move { Some((changes.recv().await.ok()?, changes)) })
}

/// A text with places to be filled.
struct Template {
    /// Each with what stands in the place after it.
    pieces: Vec<(String, String)>,
}

impl Template {
    fn of(object: &Value) -> Self {
        let text = object.to_string();
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while let Some(begin) = rest.find('@') {
            let end = begin + 1 + rest[begin + 1..].find('@').map_or(rest.len() - begin - 1, |length| length + 1);
            let (mut from, mut to) = (begin, end);
            if &rest[begin..end] == "@status@" {
                (from, to) = (begin - 1, end + "\":\"\"".len());
            }
            pieces.push((rest[..from].to_owned(), rest[from..to].to_owned()));
            rest = &rest[to..];
        }
        pieces.push((rest.to_owned(), String::new()));
        Self { pieces }
    }

    fn fill(&self, values: &[(&str, &str)]) -> String {
        let mut text = String::with_capacity(5_000);
        for (piece, place) in &self.pieces {
            text.push_str(piece);
            text.push_str(values.iter().find(|(name, _)| name == place).map_or("", |(_, value)| value));
        }
        text
    }
}

/// A pod of a Deployment with two containers, as an API server tells it.
fn pod_object() -> Value {
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example/{name}:v1.2.3"), "imagePullPolicy": "IfNotPresent",
            "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
            "env": [
                { "name": "POD_NAME", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } },
                { "name": "LOG_LEVEL", "value": "info" },
            ],
            "resources": { "limits": { "memory": "256Mi" }, "requests": { "cpu": "100m", "memory": "128Mi" } },
            "livenessProbe": { "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" },
                               "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 },
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "volumeMounts": [{ "name": "kube-api-access", "readOnly": true,
                               "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }],
        })
    };
    let started = "2026-01-01T00:00:00Z";
    let status = |name: &str| {
        json!({
            "name": name, "ready": true, "started": true, "restartCount": 0, "lastState": {},
            "image": format!("registry.example/{name}:v1.2.3"), "state": { "running": { "startedAt": started } },
            "imageID": format!("sha256:{}", "0".repeat(64)), "containerID": format!("containerd://{}", "0".repeat(64)),
        })
    };
    let condition =
        |kind: &str| json!({ "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": started });
    let conditions =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    let fields = json!({
        "f:metadata": { "f:generateName": {}, "f:labels": { ".": {}, "f:app": {}, "f:pod-template-hash": {}, "f:tier": {} },
                        "f:ownerReferences": { ".": {}, "k:{\"uid\":\"0\"}": {} } },
        "f:spec": { "f:containers": { "k:{\"name\":\"main\"}": { ".": {}, "f:image": {}, "f:name": {}, "f:ports": {}, "f:resources": {} } },
                    "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {} },
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "@name@", "namespace": "@namespace@", "uid": "@uid@", "generateName": "app-", "resourceVersion": "2",
            "creationTimestamp": started, "labels": { "app": "@app@", "tier": "backend", "pod-template-hash": "5d4f8c7b9" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "app-5d4f8c7b9", "uid": "0",
                                  "controller": true, "blockOwnerDeletion": true }],
            "managedFields": [
                { "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": started,
                  "fieldsType": "FieldsV1", "fieldsV1": fields },
                { "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": started, "subresource": "status",
                  "fieldsType": "FieldsV1", "fieldsV1": { "f:status": { "f:conditions": {}, "f:containerStatuses": {},
                  "f:hostIP": {}, "f:phase": {}, "f:podIP": {}, "f:podIPs": {}, "f:startTime": {} } } },
            ],
        },
        "spec": {
            "nodeName": "@node@", "serviceAccountName": "default", "serviceAccount": "default", "restartPolicy": "Always",
            "containers": [container("main"), container("sidecar")], "dnsPolicy": "ClusterFirst", "priority": 0,
            "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority", "schedulerName": "default-scheduler",
            "securityContext": {}, "terminationGracePeriodSeconds": 30,
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            ],
            "volumes": [{ "name": "kube-api-access", "projected": { "defaultMode": 420, "sources": [
                { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            ] } }],
        },
        "status": {
            "@status@": "", "hostIP": "10.10.0.1", "qosClass": "Burstable", "startTime": started,
            "conditions": conditions,
            "containerStatuses": [status("main"), status("sidecar")],
        },
    })
}
