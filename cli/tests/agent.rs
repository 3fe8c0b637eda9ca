//! What is asked of an agent: a server of this test listens where an agent would, with the answers that agents give.

mod command;
mod records;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use command::{Told, command, reeve};
use records::{MISSED, asked, denied, opened};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Answers on a socket for as long as it lives.
struct Listener {
    directory: TempDir,
    _runtime: Runtime,
}

impl Listener {
    /// Answers each request with what `answer` says to its path and query.
    fn new(answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = Runtime::new().expect("a runtime");
        let guard = runtime.enter();
        let socket = tokio::net::UnixListener::bind(directory.path().join("agent.sock")).expect("a socket");
        drop(guard);
        let answers = axum::Router::new().fallback(move |uri: Uri| {
            let response = answer(&uri.to_string());
            async move { response }
        });
        runtime.spawn(async move { axum::serve(socket, answers).await });
        Self { directory, _runtime: runtime }
    }

    /// Answers this path with this value, any other with 404.
    fn of(path: &'static str, value: Value) -> Self {
        Self::new(move |asked| {
            if asked == path {
                axum::Json(value.clone()).into_response()
            } else {
                (StatusCode::NOT_FOUND, format!("no such question: {asked}\n")).into_response()
            }
        })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn ask(&self, arguments: &[&str]) -> Told {
        let socket = self.socket();
        let told = reeve(&[arguments, &["--socket", socket.to_str().expect("text")]].concat());
        Told { err: told.err.replace(socket.to_str().expect("text"), "SOCKET"), ..told }
    }
}

#[track_caller]
fn says(told: &Told, out: &str, err: &str, code: i32) {
    assert_eq!((told.out.as_str(), told.err.as_str(), told.code), (out, err, code));
}

fn status() -> Value {
    json!({
        "node": "node-1", "version": "0.1.0", "revision": 12, "ready": true, "reasons": [],
        "startedAt": "2026-01-31T11:59:00Z", "endpoints": {"ready": 5, "total": 5}, "identities": 7, "policies": 2,
        "problems": 0, "losses": {"events_lost": 0, "edges_lost": 0},
        "maps": [
            {"name": "ENDPOINTS", "entries": 5, "capacity": 1024},
            {"name": "PEERS", "entries": 49_999, "capacity": 50_000}
        ]
    })
}

#[test]
fn status_of_a_ready_node() {
    let out = "\
node-1  ready
  version     0.1.0, started 2026-01-31T11:59:00Z
  revision    12
  endpoints   5 of 5 ready
  identities  7
  policies    2
  problems    none
  losses      none

  MAP        ENTRIES  CAPACITY  USED
  ENDPOINTS  5        1024      0 %
  PEERS      49999    50000     99 %
";
    says(&Listener::of("/status", status()).ask(&["status"]), out, "", 0);
}

#[test]
fn status_of_a_node_that_is_not_ready_says_why_and_what_was_lost() {
    let mut status = status();
    status["ready"] = json!(false);
    status["reasons"] = json!(["payments/card-db has no interface yet"]);
    status["endpoints"]["ready"] = json!(4);
    status["problems"] = json!(3);
    status["losses"]["edges_lost"] = json!(17);
    status["maps"] = json!([]);
    let out = "\
node-1  NOT READY
  because payments/card-db has no interface yet
  version     0.1.0, started 2026-01-31T11:59:00Z
  revision    12
  endpoints   4 of 5 ready
  identities  7
  policies    2
  problems    3, see reeve problems
  losses      edges_lost 17
";
    let listener = Listener::of("/status", status.clone());
    says(&listener.ask(&["status"]), out, "", 1);
    let told = listener.ask(&["status", "-o", "json"]);
    assert_eq!((told.json(), told.code), (status, 1));
}

#[test]
fn socket_can_be_named_by_the_environment() {
    let listener = Listener::of("/status", status());
    let output = command(&["status", "-o", "json"]).env("REEVE_SOCKET", listener.socket()).output().expect("it runs");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((told, output.status.code()), (status(), Some(0)));
}

#[test]
fn identities_are_told_with_what_policies_read_of_them() {
    let identities = json!([
        {"id": "0000000000000001", "class": "0000000000000000", "addresses": 0, "prefixes": 1, "identity": {"kind": "world"}},
        {"id": "0000000000001001", "class": "0000000000003001", "addresses": 4, "prefixes": 0, "identity": {
            "kind": "pod", "namespace": "shop", "labels": {"app": "web"}, "namespaceLabels": {"team": "a"},
            "ports": [{"name": "http", "protocol": 6, "port": 8080}], "networks": ["10.0.0.0/8"]
        }},
        {"id": "0000000000001002", "class": "0000000000000000", "addresses": 1, "prefixes": 0, "identity": null}
    ]);
    let out = "\
IDENTITY          KIND     NAMESPACE  ADDRESSES       CLASS             READ BY POLICIES
0000000000000001  world    -          0 + 1 prefixes  0000000000000000  -
0000000000001001  pod      shop       4               0000000000003001  app=web namespace:team=a port:http=8080 10.0.0.0/8
0000000000001002  unknown  -          1               0000000000000000
";
    says(&Listener::of("/identities", identities).ask(&["identities"]), out, "", 0);
    says(&Listener::of("/identities", json!([])).ask(&["identities"]), "no identities\n", "", 0);
}

#[test]
fn maps_are_told_with_their_share_and_what_happens_when_full() {
    let maps = json!([
        {"name": "FLOWS", "entries": 1, "capacity": 131_072, "whenFull": "the oldest makes room"},
        {"name": "STATS", "entries": 25, "capacity": 25, "whenFull": null}
    ]);
    let out = "\
MAP    ROWS  CAPACITY  FULL     WHEN FULL
FLOWS  1     131072    0.1 %    the oldest makes room
STATS  25    25        100.0 %  -
";
    says(&Listener::of("/maps", maps).ask(&["maps"]), out, "", 0);
}

#[test]
fn endpoints_are_listed_by_name_with_what_selects_them() {
    let endpoints = json!([
        {
            "workload": "0000000000002001", "namespace": "shop", "pod": "web", "uid": "uid-web", "interface": null,
            "ifindex": null, "addresses": ["10.0.0.3"], "identity": "0000000000001001", "labels": {"app": "web"},
            "state": "unattached", "revision": 11, "policies": {"ingress": [], "egress": []}
        },
        {
            "workload": "0000000000002002", "namespace": "payments", "pod": "card-db", "uid": "uid-db",
            "interface": "veth1", "ifindex": 7, "addresses": ["10.0.0.2", "fd00::2"], "identity": "0000000000001002",
            "labels": {"PCI": "true"}, "state": "ready", "revision": 12, "policies": {
                "ingress": ["GlobalNetworkPolicy pci-isolation", "NetworkPolicy payments/db"],
                "egress": ["GlobalNetworkPolicy pci-isolation"]
            }
        }
    ]);
    let out = "\
POD               STATE       INTERFACE  ADDRESSES          IDENTITY          REVISION  INGRESS                                                       EGRESS
payments/card-db  ready       veth1      10.0.0.2, fd00::2  0000000000001002  12        GlobalNetworkPolicy pci-isolation, NetworkPolicy payments/db  GlobalNetworkPolicy pci-isolation
shop/web          unattached  -          10.0.0.3           0000000000001001  11        -                                                             -
";
    says(&Listener::of("/endpoints", endpoints).ask(&["endpoints"]), out, "", 0);
    says(&Listener::of("/endpoints", json!([])).ask(&["endpoints"]), "no endpoints\n", "", 0);
}

#[test]
fn problems_of_level_warning_are_a_no() {
    let problem = json!({
        "level": "warning", "object": "NetworkPolicy/shop/db", "field": "spec.ingress[0].ports[0].port",
        "value": "70000", "what": "must be a whole number from 0 to 65535", "effect": "this port matches nothing"
    });
    let out = "\
warning  NetworkPolicy/shop/db spec.ingress[0].ports[0].port: 70000
         must be a whole number from 0 to 65535
         effect: this port matches nothing

1 warning
";
    says(&Listener::of("/problems", json!([problem])).ask(&["problems"]), out, "", 1);
    says(&Listener::of("/problems", json!([])).ask(&["problems"]), "no problems\n", "", 0);
}

#[test]
fn explain_takes_the_agents_facts_and_node() {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web"},
        "spec": {"nodeName": "node-1"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.3"}]}
    });
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "none", "namespace": "shop"},
        "spec": {"podSelector": {}}
    });
    let world = json!({"node": "node-1", "objects": [node, pod, policy], "localAddresses": ["10.0.0.254"]});
    let listener = Listener::of("/world", world);
    let own_node = "\
ALLOW  10.0.0.254 -> shop/web:80/TCP

from 10.0.0.254 (an address of node node-1)
  egress      no policy is asked: only pods have policies

to shop/web (10.0.0.3, a pod on node-1)
  labels      none
  ingress     allow
  decided by  own node
";
    says(&listener.ask(&["explain", "10.0.0.254", "shop/web:80/TCP"]), own_node, "", 0);
    let world = "\
DENY  10.9.9.9 -> shop/web:80/TCP

from 10.9.9.9 (no pod and no node that is known)
  egress      no policy is asked: only pods have policies

to shop/web (10.0.0.3, a pod on node-1)
  labels      none
  ingress     deny
  decided by  tier default deny (isolated by NetworkPolicy shop/none)
  path        tier default: no rule matched, default deny
  isolating   NetworkPolicy shop/none
";
    says(&listener.ask(&["explain", "10.9.9.9", "shop/web:80/TCP"]), world, "", 1);
}

#[test]
fn last_flows_are_filtered_here() {
    let listener = Listener::new(|asked_for| match asked_for {
        "/flows" => format!("{}\n{}\n{}\n", denied(), opened(), asked()).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    });
    let out = "12:00:02.000 ALLOW egress  payments/card-api -> payments/card-db:5432/TCP  \
        by GlobalNetworkPolicy pci-isolation egress rule 0\n";
    says(&listener.ask(&["flows", "--pod", "card-api"]), out, "", 0);
}

#[test]
fn flows_are_shown_as_they_come_with_what_was_missed() {
    let (sender, receiver) = mpsc::channel::<String>(8);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let listener = Listener::new(move |asked_for| {
        assert_eq!(asked_for, "/flows?follow=true");
        let receiver = receiver.lock().expect("whole").take().expect("asked once");
        let lines = futures_util::stream::unfold(receiver, |mut receiver| async {
            let text = receiver.recv().await?;
            Some((Ok::<_, Infallible>(text), receiver))
        });
        Body::from_stream(lines).into_response()
    });
    let socket = listener.socket();
    let mut child = command(&["flows", "--follow", "--socket", socket.to_str().expect("text")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    let mut shown = |text: String| {
        sender.blocking_send(text).expect("it listens");
        out.next().expect("a line for each")
    };
    assert_eq!(
        shown(format!("{}\n", denied())),
        "12:00:01.123 DENY  ingress shop/web -> payments/card-db:5432/TCP  \
         by tier default deny (isolated by GlobalNetworkPolicy pci-isolation)"
    );
    assert_eq!(shown(format!("{MISSED}\n")), "-- 7 records missed here: this reader was too slow --");
    // Lines may be cut anywhere on their way.
    let record = format!("{}\n", opened());
    sender.blocking_send(record[..50].to_owned()).expect("it listens");
    let mut shown = |text: String| {
        sender.blocking_send(text).expect("it listens");
        out.next().expect("a line for each")
    };
    assert_eq!(
        shown(record[50..].to_owned()),
        "12:00:02.000 ALLOW egress  payments/card-api -> payments/card-db:5432/TCP  \
         by GlobalNetworkPolicy pci-isolation egress rule 0"
    );
    drop(sender);
    let mut err = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut err).expect("text");
    assert_eq!(
        (err.as_str(), child.wait().expect("it ends").code()),
        ("error: the agent has ended the stream\n", Some(2))
    );
}

#[test]
fn agents_that_do_not_answer_as_they_should_are_named() {
    let told = reeve(&["status", "--socket", "/nowhere/agent.sock"]);
    let err = "error: no agent answers at /nowhere/agent.sock (is reeve-agent running on this node? --socket names \
        another path): No such file or directory (os error 2)\n";
    says(&told, "", err, 2);
    let mut status = status();
    status.as_object_mut().expect("an object").remove("revision");
    let listener = Listener::of("/status", status);
    let err = "error: the agent at SOCKET answers GET /status with something that is not understood: \
        missing field `revision`\n";
    says(&listener.ask(&["status"]), "", err, 2);
    let err = "error: the agent at SOCKET answers GET /endpoints with 404 Not Found: no such question: /endpoints\n";
    says(&listener.ask(&["endpoints"]), "", err, 2);
}

#[test]
fn readers_that_have_had_enough_are_no_error() {
    let listener = Listener::new(|_| format!("{}\n", denied()).repeat(10_000).into_response());
    let socket = listener.socket();
    let mut child = command(&["flows", "--socket", socket.to_str().expect("text")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut first).expect("text");
    assert!(first.starts_with("12:00:01.123 DENY"), "{first}");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((String::from_utf8_lossy(&output.stderr).as_ref(), output.status.code()), ("", Some(0)));
}
