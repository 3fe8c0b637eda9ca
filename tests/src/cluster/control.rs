//! Starts the programs of a control plane, each with a log of its own.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use serde_json::json;

use super::Nodes;
use super::keys::Keys;
use super::programs::Programs;
use crate::lab::{Lab, Netns};

/// Every control plane has a namespace to itself, so ports are always the same.
const ETCD: &str = "http://127.0.0.1:2379";

const SERVICES: &str = "10.96.0.0/16,fd00:96::/112";

/// Who may tell the API server's key from others': tokens name it.
const ISSUER: &str = "https://kubernetes.default.svc";

/// Without controllers that would notice that no kubelet reports: they would take nodes that the lab plays for dead.
const CONTROLLERS: &str = "*,-node-lifecycle-controller,-taint-eviction-controller,-node-ipam-controller";

/// Those of nodes that report.
const ALL_CONTROLLERS: &str = "*,-node-ipam-controller";

/// The store.
pub(super) fn etcd(lab: &Lab, netns: &Netns, programs: &Programs, directory: &Path) -> anyhow::Result<Child> {
    let peers = "http://127.0.0.1:2380";
    let mut command = programs.command("etcd");
    command
        .arg("--data-dir")
        .arg(directory.join("etcd"))
        // What a machine that loses power would lose is gone with the lab anyway.
        .arg("--unsafe-no-fsync")
        .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
        .args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers])
        .args(["--initial-cluster", &format!("default={peers}")]);
    spawn(lab, netns, directory, "etcd", &mut command)
}

/// The API server, with what etcd has.
pub(super) fn api_server(
    lab: &Lab,
    netns: &Netns,
    programs: &Programs,
    directory: &Path,
    keys: &Keys,
    address: IpAddr,
) -> anyhow::Result<Child> {
    let policy = directory.join("audit-policy.json");
    let all = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        // A watch is told when it begins, too: it may not end before the test does.
        "omitStages": ["RequestReceived"], "rules": [{ "level": "Metadata" }],
    });
    fs::write(&policy, all.to_string()).with_context(|| format!("cannot write {}", policy.display()))?;
    let mut command = programs.command("kube-apiserver");
    command
        .args(["--etcd-servers", ETCD, "--bind-address", "0.0.0.0", "--secure-port", "6443"])
        .args(["--advertise-address", &address.to_string()])
        .args(["--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"])
        .args(["--allow-privileged", "--service-cluster-ip-range", SERVICES, "--service-account-issuer", ISSUER])
        .args(["--kubelet-preferred-address-types", "InternalIP"])
        .args(["--audit-log-mode", "blocking", "--profiling=false"]);
    for (option, file) in [
        ("--tls-cert-file", "apiserver.crt"),
        ("--tls-private-key-file", "apiserver.key"),
        ("--client-ca-file", "ca.crt"),
        ("--kubelet-client-certificate", "kubelet-client.crt"),
        ("--kubelet-client-key", "kubelet-client.key"),
        ("--service-account-key-file", "service-accounts.pub"),
        ("--service-account-signing-key-file", "service-accounts.key"),
    ] {
        command.arg(option).arg(keys.path(file));
    }
    command.arg("--audit-policy-file").arg(policy).arg("--audit-log-path").arg(directory.join("audit.log"));
    spawn(lab, netns, directory, "kube-apiserver", &mut command)
}

/// The controllers: service accounts, endpoint slices, and whatever else follows from objects.
pub(super) fn controller_manager(
    lab: &Lab,
    netns: &Netns,
    programs: &Programs,
    directory: &Path,
    keys: &Keys,
    nodes: Nodes,
) -> anyhow::Result<Child> {
    let mut command = programs.command("kube-controller-manager");
    for option in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
        command.arg(option).arg(keys.path("controller-manager.kubeconfig"));
    }
    for (option, file) in [
        ("--service-account-private-key-file", "service-accounts.key"),
        ("--root-ca-file", "ca.crt"),
        ("--cluster-signing-cert-file", "ca.crt"),
        ("--cluster-signing-key-file", "ca.key"),
    ] {
        command.arg(option).arg(keys.path(file));
    }
    command.args(["--use-service-account-credentials", "--leader-elect=false", "--bind-address", "127.0.0.1"]).args([
        "--controllers",
        match nodes {
            Nodes::Played => CONTROLLERS,
            Nodes::Real => ALL_CONTROLLERS,
        },
        "--profiling=false",
    ]);
    spawn(lab, netns, directory, "kube-controller-manager", &mut command)
}

/// The scheduler.
pub(super) fn scheduler(
    lab: &Lab,
    netns: &Netns,
    programs: &Programs,
    directory: &Path,
    keys: &Keys,
) -> anyhow::Result<Child> {
    let mut command = programs.command("kube-scheduler");
    for option in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
        command.arg(option).arg(keys.path("scheduler.kubeconfig"));
    }
    command.args(["--leader-elect=false", "--bind-address", "127.0.0.1", "--profiling=false"]);
    spawn(lab, netns, directory, "kube-scheduler", &mut command)
}

fn spawn(lab: &Lab, netns: &Netns, directory: &Path, name: &str, command: &mut Command) -> anyhow::Result<Child> {
    let path = directory.join(name).with_extension("log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot open {}", path.display()))?;
    lab.spawn(netns, command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
}
