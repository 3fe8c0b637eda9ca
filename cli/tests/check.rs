//! `reeve policy check`: whole outputs and exit codes.

mod command;

use command::{command, reeve, write};
use serde_json::json;
use std::io::Write;
use std::process::Stdio;

const GOOD: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}}
";

const BAD: &str = "\
# two faults
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {}
  ingress: [{ports: [{protocol: TCP, port: 70000}], from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]
";

/// A tier of the same order as that of ClusterNetworkPolicies: honoured, but no API says which goes first.
const TIED: &str = "\
{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: a}, spec: {order: 5}}
---
{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: b}, spec: {order: 1000}}
";

#[track_caller]
fn checks(files: &[(&str, &str)], arguments: &[&str], code: i32, out: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    files.iter().for_each(|(name, text)| write(directory.path(), name, text));
    let root = directory.path().to_str().expect("text");
    let told = reeve(&[&["policy", "check", root], arguments].concat());
    assert_eq!((told.out.replace(root, "DIR").as_str(), told.err.as_str(), told.code), (out, "", code));
}

#[test]
fn policies_that_are_honoured_are_counted() {
    checks(&[("a.yaml", GOOD)], &[], 0, "1 file, 1 object, 1 policy: no problems\n");
}

#[test]
fn faults_name_object_field_value_place_and_effect() {
    checks(
        &[("a.yaml", GOOD), ("deep/er/b.yaml", BAD), ("deep/.c.yaml", "{")],
        &[],
        1,
        "\
warning  NetworkPolicy/shop/db spec.ingress[0].from[0].ipBlock.cidr: 10.0.0.0/33  (DIR/deep/er/b.yaml, document 1)
         must be a network such as 10.0.0.0/8 or fd00::/8
         effect: this peer matches nobody

warning  NetworkPolicy/shop/db spec.ingress[0].ports[0].port: 70000  (DIR/deep/er/b.yaml, document 1)
         must be a whole number from 0 to 65535
         effect: this port matches nothing

2 files, 2 objects, 2 policies: 2 warnings
",
    );
}

#[test]
fn notes_fail_only_the_strict() {
    let out = "\
note     Tier/b spec.order: 1000  (DIR/tiers.yaml, document 2)
         tier admin has the same order, and no API says which goes first
         effect: admin goes first, by name

1 file, 2 objects, 0 policies: 1 note
";
    checks(&[("tiers.yaml", TIED)], &[], 0, out);
    checks(&[("tiers.yaml", TIED)], &["--strict"], 1, out);
}

#[test]
fn unreadable_empty_and_repeated_texts_are_problems() {
    checks(
        &[("a.yaml", GOOD), ("b.yaml", GOOD), ("c.yaml", "  \n"), ("d.json", "{\"kind\":")],
        &[],
        1,
        "\
warning  DIR/c.yaml
         the file is empty
         effect: what it said before, if anything, goes on to hold

warning  DIR/d.json document 1
         cannot be read: EOF while parsing a value at line 1 column 8
         effect: nothing of this text is taken; what it said before, if anything, goes on to hold

warning  NetworkPolicy/shop/web metadata.name: web  (DIR/a.yaml, document 1)
         the object is in DIR/a.yaml, document 1 and again in DIR/b.yaml, document 1
         effect: the one in DIR/a.yaml, document 1 holds

4 files, 1 object, 1 policy: 3 warnings
",
    );
}

#[test]
fn standard_input_is_read_and_programs_get_json() {
    let mut child = command(&["policy", "check", "-", "-o", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    child.stdin.take().expect("a pipe").write_all(TIED.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let want = json!({"files": 1, "objects": 2, "policies": 0, "problems": [{
        "level": "note", "object": "Tier/b", "field": "spec.order", "value": "1000",
        "what": "tier admin has the same order, and no API says which goes first",
        "effect": "admin goes first, by name", "origin": "standard input, document 2"
    }]});
    assert_eq!((told, output.status.code()), (want, Some(0)));
}

#[test]
fn files_that_are_not_there_are_errors() {
    let told = reeve(&["policy", "check", "/nowhere/p.yaml"]);
    let err = "error: cannot read /nowhere/p.yaml: No such file or directory (os error 2)\n";
    assert_eq!((told.out.as_str(), told.err.as_str(), told.code), ("", err, 2));
}
