//! `reeve explain` and `reeve policy check` as a person or a program calls them: whole outputs and exit codes.

mod command;

use command::{command, reeve, write};
use serde_json::json;
use std::process::Stdio;
use tempfile::TempDir;

const POLICY: &str = r#"
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: pci-isolation, uid: uid-pci, generation: 3}
spec:
  selector: PCI == "true"
  types: [Ingress, Egress]
  ingress: [{action: Allow, source: {selector: PCI == "true"}}]
  egress:  [{action: Allow, destination: {selector: PCI == "true"}}]
"#;

const PODS: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: node-1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: card-api, namespace: payments, uid: uid-api, labels: {app: card-api, PCI: "true"}}
spec: {nodeName: node-1}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: card-db, namespace: payments, uid: uid-db, labels: {app: card-db, PCI: "true"}}
spec: {nodeName: node-1, containers: [{name: db, ports: [{name: postgres, containerPort: 5432}]}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, uid: uid-web}, spec: {nodeName: node-1}, status: {phase: Running, podIPs: [{ip: 10.0.0.3}]}}
"#;

/// The PCI example: a directory with the policy below it, and what is no manifest beside it.
fn cluster() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), "pods.yaml", PODS);
    write(directory.path(), "policies/pci.yml", POLICY);
    write(directory.path(), ".draft.yaml", "{");
    write(directory.path(), "README.txt", "{");
    directory
}

#[track_caller]
fn explains(arguments: &[&str], code: i32, out: &str) {
    let cluster = cluster();
    let told = reeve(&[&["explain"], arguments, &["--manifests", cluster.path().to_str().expect("text")]].concat());
    assert_eq!((told.out.as_str(), told.err.as_str(), told.code), (out, "", code));
}

#[track_caller]
fn refused(arguments: &[&str], error: &str) {
    let cluster = cluster();
    let told = reeve(&[&["explain"], arguments, &["--manifests", cluster.path().to_str().expect("text")]].concat());
    assert_eq!((told.out.as_str(), told.err.lines().next(), told.code), ("", Some(error), 2));
}

#[test]
fn allowed_flow_names_the_rule_at_both_ends() {
    explains(
        &["payments/card-api", "payments/card-db:postgres/TCP"],
        0,
        "\
ALLOW  payments/card-api -> payments/card-db:5432/TCP

from payments/card-api (10.0.0.1, a pod on node-1)
  labels      PCI=true, app=card-api
  egress      allow
  decided by  GlobalNetworkPolicy pci-isolation egress rule 0
  path        tier default: allowed by GlobalNetworkPolicy pci-isolation rule 0

to payments/card-db (10.0.0.2, a pod on node-1)
  labels      PCI=true, app=card-db
  ingress     allow
  decided by  GlobalNetworkPolicy pci-isolation ingress rule 0
  path        tier default: allowed by GlobalNetworkPolicy pci-isolation rule 0
",
    );
}

#[test]
fn denied_flow_names_all_that_isolate() {
    explains(
        &["shop/web", "payments/card-db:5432/TCP"],
        1,
        "\
DENY  shop/web -> payments/card-db:5432/TCP

from shop/web (10.0.0.3, a pod on node-1)
  labels      none
  egress      allow
  decided by  no policy selects

to payments/card-db (10.0.0.2, a pod on node-1)
  labels      PCI=true, app=card-db
  ingress     deny
  decided by  tier default deny (isolated by GlobalNetworkPolicy pci-isolation)
  path        tier default: no rule matched, default deny
  isolating   GlobalNetworkPolicy pci-isolation
",
    );
}

#[test]
fn path_crosses_tiers_and_others_that_allow_are_named() {
    let cluster = cluster();
    let policies = "
{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: security}, spec: {order: 10, defaultAction: Deny}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: security.scan}
spec:
  tier: security
  selector: all()
  types: [Ingress]
  ingress: [{action: Deny, source: {nets: [203.0.113.0/24]}}, {action: Pass}]
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a, namespace: shop}, spec: {podSelector: {}, ingress: [{}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: b, namespace: shop}, spec: {podSelector: {}, ingress: [{}]}}
";
    write(cluster.path(), "tiers.yaml", policies);
    let directory = cluster.path().to_str().expect("text");
    let told = reeve(&["explain", "10.9.9.9", "shop/web:80/TCP", "--manifests", directory]);
    let out = "\
ALLOW  10.9.9.9 -> shop/web:80/TCP

from 10.9.9.9 (no pod and no node that is known)
  egress      no policy is asked: only pods have policies

to shop/web (10.0.0.3, a pod on node-1)
  labels      none
  ingress     allow
  decided by  NetworkPolicy shop/a ingress[0]
  path        tier security: passed on by GlobalNetworkPolicy security.scan rule 1
              tier default: allowed by NetworkPolicy shop/a rule 0
  also        NetworkPolicy shop/b
";
    assert_eq!((told.out.as_str(), told.err.as_str(), told.code), (out, "", 0));
}

#[test]
fn what_staged_policies_would_change_stands_below_what_is_enforced() {
    let cluster = cluster();
    let staged = "
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: pci-isolation, uid: uid-next}
spec: {selector: has(PCI), types: [Ingress], ingress: [{action: Deny}]}
";
    write(cluster.path(), "staged.yaml", staged);
    let directory = cluster.path().to_str().expect("text");
    let question = ["explain", "payments/card-api", "payments/card-db:5432/TCP", "--manifests", directory];
    let told = reeve(&question);
    let out = "\
ALLOW  payments/card-api -> payments/card-db:5432/TCP

from payments/card-api (10.0.0.1, a pod on node-1)
  labels      PCI=true, app=card-api
  egress      allow
  decided by  GlobalNetworkPolicy pci-isolation egress rule 0
  path        tier default: allowed by GlobalNetworkPolicy pci-isolation rule 0
  staged      allow
  decided by  no policy selects

to payments/card-db (10.0.0.2, a pod on node-1)
  labels      PCI=true, app=card-db
  ingress     allow
  decided by  GlobalNetworkPolicy pci-isolation ingress rule 0
  path        tier default: allowed by GlobalNetworkPolicy pci-isolation rule 0
  staged      deny
  decided by  StagedGlobalNetworkPolicy pci-isolation ingress rule 0
  path        tier default: denied by StagedGlobalNetworkPolicy pci-isolation rule 0
";
    assert_eq!((told.out.as_str(), told.err.as_str(), told.code), (out, "", 0), "the exit code is the enforced one's");
    let told = reeve(&[&question[..], &["--output", "json"]].concat()).json();
    assert_eq!(told["staged"]["egress"], json!({"verdict": "allow", "default": "noPolicySelects"}));
    assert_eq!((&told["verdict"], &told["staged"]["ingress"]["verdict"]), (&json!("allow"), &json!("deny")));
}

#[test]
fn own_node_is_let_in_and_pings_are_echo_requests() {
    explains(
        &["192.168.0.1", "payments/card-db/ICMP", "--node", "node-1"],
        0,
        "\
ALLOW  192.168.0.1 -> payments/card-db:8.0/ICMP

from 192.168.0.1 (an address of node node-1)
  egress      no policy is asked: only pods have policies

to payments/card-db (10.0.0.2, a pod on node-1)
  labels      PCI=true, app=card-db
  ingress     allow
  decided by  own node
",
    );
}

#[test]
fn family_can_be_chosen_and_addresses_of_nobody_are_asked_for() {
    explains(
        &["payments/card-api", "[2001:db8::1]:443/TCP", "--family", "6"],
        1,
        "\
DENY  payments/card-api -> [2001:db8::1]:443/TCP

from payments/card-api (fd00::1, a pod on node-1)
  labels      PCI=true, app=card-api
  egress      deny
  decided by  tier default deny (isolated by GlobalNetworkPolicy pci-isolation)
  path        tier default: no rule matched, default deny
  isolating   GlobalNetworkPolicy pci-isolation

to [2001:db8::1] (no pod and no node that is known)
  ingress     no policy is asked: only pods have policies
",
    );
}

#[test]
fn json_has_the_decisions_in_the_form_of_records() {
    let cluster = cluster();
    let directory = cluster.path().to_str().expect("text");
    let told = reeve(&["explain", "shop/web", "payments/card-db:5432/TCP", "--manifests", directory, "-o", "json"]);
    let want = json!({
        "verdict": "deny",
        "protocol": "TCP",
        "source": {
            "owner": "pod", "namespace": "shop", "pod": "web", "uid": "uid-web", "ip": "10.0.0.3", "node": "node-1"
        },
        "destination": {
            "owner": "pod", "namespace": "payments", "pod": "card-db", "uid": "uid-db", "ip": "10.0.0.2", "port": 5432,
            "node": "node-1", "labels": {"PCI": "true", "app": "card-db"}
        },
        "egress": {"verdict": "allow", "default": "noPolicySelects"},
        "ingress": {
            "verdict": "deny",
            "default": "tierDefault",
            "path": [{"tier": "default", "outcome": "defaultDenied"}],
            "isolating": [{"kind": "GlobalNetworkPolicy", "name": "pci-isolation", "uid": "uid-pci", "generation": 3}]
        }
    });
    assert_eq!((told.json(), told.err.as_str(), told.code), (want, "", 1));
}

#[test]
fn what_cannot_be_asked_is_named() {
    refused(
        &["web", "shop/web:80/TCP"],
        "error: invalid value 'web' for '<SRC>': \"web\" is neither namespace/pod nor an IP address",
    );
    refused(
        &["shop/web", "shop/web:80"],
        "error: invalid value 'shop/web:80' for '<DST:PORT/PROTO>': it does not end in a protocol, as shop/web:8080/TCP \
         and 10.0.0.1/ICMP do",
    );
    refused(
        &["payments/card", "shop/web:80/TCP"],
        "error: SRC: there is no pod \"card\" in namespace \"payments\"; known pods: card-api, card-db",
    );
    refused(
        &["pay/card", "shop/web:80/TCP"],
        "error: SRC: there are no pods in namespace \"pay\"; known namespaces: payments, shop",
    );
    refused(
        &["shop/web", "payments/card-db:mysql/TCP"],
        "error: DST: pod payments/card-db has no TCP port named \"mysql\"; known TCP ports: postgres",
    );
    refused(
        &["shop/web", "10.9.9.9:http/TCP"],
        "error: DST: port \"http\" is a name, and 10.9.9.9 is no pod's address that could give it a number",
    );
    refused(
        &["shop/web", "payments/card-db/ICMPv6"],
        "error: SRC and DST do not both have an IPv6 address: SRC has 10.0.0.3, DST has 10.0.0.2, fd00::2",
    );
    refused(&["shop/web", "10.0.0.1/ICMP", "--family", "6"], "error: ICMP is not sent over IPv6");
}

#[test]
fn facts_that_are_not_whole_give_no_answer() {
    let cluster = cluster();
    write(cluster.path(), "policies/broken.yaml", "kind: A\n---\nkind: [");
    let directory = cluster.path().to_str().expect("text");
    let told = reeve(&["explain", "shop/web", "payments/card-db:5432/TCP", "--manifests", directory]);
    let begin = format!("error: {directory}/policies/broken.yaml, document 2: cannot be read: ");
    assert!(told.err.starts_with(&begin), "{}", told.err);
    assert_eq!((told.out.as_str(), told.code), ("", 2));
}

#[test]
fn problems_in_the_facts_are_told_beside_the_answer() {
    let cluster = cluster();
    write(cluster.path(), "zz.yaml", PODS.split("---").nth(3).expect("the pod web"));
    let directory = cluster.path().to_str().expect("text");
    let told = reeve(&["explain", "shop/web", "10.9.9.9:80/TCP", "--manifests", directory]);
    let err = "\
note: 1 warning in these facts
  warning Pod/shop/web metadata.name: web: the object is in pods.yaml, document 4 and again in zz.yaml, document 1; \
the one in pods.yaml, document 4 holds
";
    assert_eq!((told.err.as_str(), told.code), (err, 0));
}

#[test]
fn pods_without_addresses_of_their_own_and_nodes_nobody_knows_are_named() {
    let cluster = cluster();
    let pod = |name: &str, rest: &str| {
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: kube-system}}, {rest}}}");
        write(cluster.path(), &format!("{name}.yaml"), &text);
    };
    pod("proxy", "spec: {nodeName: node-1, hostNetwork: true}, status: {podIPs: [{ip: 192.168.0.1}]}");
    pod("job", "spec: {nodeName: node-1}, status: {phase: Succeeded, podIPs: [{ip: 10.0.0.9}]}");
    pod("new", "status: {phase: Pending}");
    let directory = cluster.path().to_str().expect("text");
    let check = |source: &str, node: &str, error: &str| {
        let told = reeve(&["explain", source, "10.0.0.2:5432/TCP", "--manifests", directory, "--node", node]);
        let err = told.err.replace(directory, "DIR");
        assert_eq!((err.lines().find(|line| line.starts_with("error")), told.code), (Some(error), 2), "{err}");
    };
    check(
        "kube-system/proxy",
        "node-1",
        "error: SRC: pod kube-system/proxy uses the network of its node \"node-1\", whose addresses are 192.168.0.1: \
         ask for one of those",
    );
    check("kube-system/job", "node-1", "error: SRC: pod kube-system/job has ended and has no address");
    check("kube-system/new", "node-1", "error: SRC: pod kube-system/new has no address yet");
    check("shop/web", "node-7", "error: --node \"node-7\": there is no such node in DIR; known nodes: node-1");
}

#[test]
fn verdict_is_told_even_where_nobody_reads() {
    let cluster = cluster();
    let directory = cluster.path().to_str().expect("text");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = command(&["explain", "shop/web", "payments/card-db:5432/TCP", "--manifests", directory])
        .stdout(Stdio::from(writer))
        .status()
        .expect("it runs");
    assert_eq!(status.code(), Some(1));
}

const DRAFT: &str = r#"
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: pci-isolation, uid: uid-pci, generation: 4}
spec:
  selector: PCI == "true"
  types: [Ingress, Egress]
  ingress: [{action: Allow, source: {selector: PCI == "true"}}, {action: Allow, protocol: TCP, destination: {ports: [5432]}}]
  egress:  [{action: Allow, destination: {selector: PCI == "true"}}]
"#;

#[test]
fn drafts_are_answered_beside_what_holds_now() {
    let cluster = cluster();
    let drafts = tempfile::tempdir().expect("a directory");
    write(drafts.path(), "draft.yaml", DRAFT);
    let (facts, draft) = (cluster.path().to_str().expect("text"), drafts.path().join("draft.yaml"));
    let draft = draft.to_str().expect("text");
    let ask = |destination: &str, more: &[&str]| {
        reeve(&[&["explain", "shop/web", destination, "--manifests", facts, "--with", draft], more].concat())
    };
    let told = ask("payments/card-db:5432/TCP", &[]);
    assert_eq!((told.err.as_str(), told.code), ("", 0), "allowed with the draft\n{}", told.out);
    let (now, with) = told.out.split_once("with the drafts:\n").unwrap_or_else(|| panic!("{}", told.out));
    assert!(now.starts_with("now:\n") && now.contains("DENY") && with.contains("ALLOW"), "{}", told.out);
    assert!(with.contains("rule 1"), "the draft's rule is named\n{with}");

    let told = ask("payments/card-db:5433/TCP", &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&told.out).expect("JSON");
    assert_eq!((&json["now"]["verdict"], &json["with"]["verdict"]), (&json!("deny"), &json!("deny")), "{json}");
    assert_eq!((told.err.as_str(), told.code), ("", 1));

    write(drafts.path(), "draft.yaml", "kind: [");
    let told = ask("payments/card-db:5432/TCP", &[]);
    assert_eq!((told.out.as_str(), told.code), ("", 2));
    assert!(told.err.contains("draft.yaml"), "{}", told.err);
}

const SERVICE: &str = r"
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: payments, uid: uid-svc}, spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80, targetPort: 5432, protocol: TCP}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: payments, uid: uid-slice, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.0.0.2], conditions: {ready: true}, nodeName: node-1, targetRef: {kind: Pod, namespace: payments, name: card-db, uid: uid-db}}
- {addresses: [10.0.0.3], conditions: {ready: true}, nodeName: node-1, targetRef: {kind: Pod, namespace: shop, name: web, uid: uid-web}}
- {addresses: [10.0.0.1], conditions: {ready: false}, nodeName: node-1, targetRef: {kind: Pod, namespace: payments, name: card-api, uid: uid-api}}
";

#[test]
fn each_ready_backend_of_a_service_is_answered_and_one_that_is_denied_decides() {
    let cluster = cluster();
    write(cluster.path(), "service.yaml", SERVICE);
    let facts = cluster.path().to_str().expect("text");
    let ask = |destination: &str, more: &[&str]| {
        reeve(&[&["explain", "payments/card-api", destination, "--manifests", facts], more].concat())
    };
    let told = ask("service/payments/db:80/TCP", &[]);
    assert_eq!((told.err.as_str(), told.code), ("", 1), "{}", told.out);
    assert!(told.out.starts_with("service payments/db leads to 2 backends:\n"), "{}", told.out);
    assert!(told.out.contains("ALLOW  payments/card-api -> payments/card-db:5432/TCP"), "{}", told.out);
    assert!(told.out.contains("DENY  payments/card-api -> shop/web:5432/TCP"), "{}", told.out);

    let json: serde_json::Value =
        serde_json::from_str(&ask("service/payments/db:80/TCP", &["-o", "json"]).out).expect("JSON");
    assert_eq!((&json[0]["verdict"], &json[1]["verdict"]), (&json!("allow"), &json!("deny")), "{json}");

    // One of its addresses asks the same; at a port that it does not have it is an address like any other.
    assert_eq!(ask("10.96.0.9:80/TCP", &[]).out, told.out);
    assert!(ask("10.96.0.9:81/TCP", &[]).out.contains("-> 10.96.0.9:81/TCP"));

    let draft = cluster.path().join(".draft");
    write(
        &draft,
        "open.yaml",
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none, namespace: payments}, spec: {podSelector: {}, policyTypes: [Egress], egress: [{}]}}",
    );
    let told = ask("service/payments/db:80/TCP", &["--with", draft.to_str().expect("text"), "-o", "json"]);
    let verdicts = |form: &serde_json::Value| [form[0]["verdict"].clone(), form[1]["verdict"].clone()];
    let with = told.json();
    assert_eq!(verdicts(&with["now"]), [json!("allow"), json!("deny")], "{with}");
    assert_eq!(verdicts(&with["with"]), [json!("allow"), json!("allow")], "{with}");
    assert_eq!((&with["changes"], told.code), (&json!(true), 0), "{with}");

    for (destination, named) in [
        ("service/payments/gone:80/TCP", "there is no service payments/gone; known services: payments/db"),
        ("service/payments/db:81/TCP", "service payments/db has no such port of TCP; known ports: 80/TCP"),
    ] {
        let told = ask(destination, &[]);
        assert_eq!((told.out.as_str(), told.code), ("", 2), "{destination}");
        assert!(told.err.contains(named), "{destination}: {}", told.err);
    }
}

#[test]
fn pod_that_a_service_leads_back_to_itself_is_answered_for() {
    let cluster = cluster();
    write(cluster.path(), "service.yaml", SERVICE);
    let policy = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: none}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
";
    write(cluster.path(), "none.yaml", policy);
    let facts = cluster.path().to_str().expect("text");
    let ask = |destination: &str| {
        reeve(&["explain", "payments/card-db", destination, "--manifests", facts, "-o", "json"]).json()
    };
    let through = ask("service/payments/db:80/TCP");
    assert_eq!(through[0]["egress"], json!({"verdict": "allow", "default": "self"}), "{through}");
    assert_eq!(through[0]["ingress"]["decider"]["name"], json!("none"), "{through}");
    let direct = ask("payments/card-db:5432/TCP");
    assert_eq!((&direct["verdict"], &direct["ingress"]["default"]), (&json!("allow"), &json!("self")), "{direct}");
}

#[test]
fn directory_without_manifests_gives_no_answer() {
    let empty = tempfile::tempdir().expect("a directory");
    let told = reeve(&["explain", "10.0.0.1", "10.0.0.2:80/TCP", "--manifests", empty.path().to_str().expect("text")]);
    assert!(told.err.contains("holds no manifests"), "{}", told.err);
    assert_eq!((told.out.as_str(), told.code), ("", 2));
}

#[test]
fn what_manifests_call_things_cannot_write_to_the_terminal() {
    let cluster = cluster();
    let policy = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: none}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{name: \"a\\e[2Jb\", action: Deny, from: [{namespaces: {}}]}]}
";
    write(cluster.path(), "none.yaml", policy);
    let directory = cluster.path().to_str().expect("text");
    let told = reeve(&["explain", "shop/web", "payments/card-db:5432/TCP", "--manifests", directory]);
    assert!(told.out.contains("ingress rule 0 \"a\\u{1b}[2Jb\""), "{}", told.out);
}
