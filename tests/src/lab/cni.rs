//! What a container runtime does to a pod's network: runs the plugins of a chain one after the other, with ours last.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::manifests::Labels;
use super::{Netns, Node, agent_program};

/// Where Debian has the reference plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// The kubelet's and the runtime's arguments, once per pod.
static CONTAINERS: AtomicU64 = AtomicU64::new(1);

/// A chain of two plugins on a node.
#[derive(Clone)]
pub struct Chain {
    node: Node,
    version: String,
    first: Value,
    /// Settings of `reeve-cni`.
    pub ours: Value,
}

/// A pod's container, before and after its network is made.
#[derive(Clone)]
pub struct Container {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// Its network namespace.
    pub netns: Netns,
    /// `namespace/name` of its pod is `shop/` and this.
    pub pod: String,
    /// The UID that the kubelet tells.
    pub uid: String,
}

/// What a plugin said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its standard output: nothing, a result or an error.
    pub output: Value,
    /// Whether its status was 0.
    pub succeeded: bool,
    /// How long it took.
    pub took: Duration,
}

impl Said {
    /// An error's number, 0 for success.
    pub fn code(&self) -> u64 {
        if self.succeeded { 0 } else { self.output["code"].as_u64().unwrap_or(u64::MAX) }
    }
}

impl Chain {
    /// `ptp` and ours.
    pub fn ptp(node: &Node, version: &str) -> Self {
        Self::of(node, version, json!({ "type": "ptp", "ipMasq": false }))
    }

    /// `bridge` with the node's bridge, and ours.
    pub fn bridge(node: &Node, version: &str) -> Self {
        Self::of(node, version, json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true }))
    }

    fn of(node: &Node, version: &str, mut first: Value) -> Self {
        let network = node.addressing().pod_v4(0);
        // Above those that the lab gives to pods that it wires itself.
        let range = json!({
            "subnet": format!("{network}/24"), "rangeStart": node.addressing().pod_v4(100),
            "rangeEnd": node.addressing().pod_v4(250), "gateway": node.addressing().pod_v4(1),
        });
        first["ipam"] = json!({
            "type": "host-local", "dataDir": node.run_directory().with_file_name("host-local"),
            "ranges": [[range]], "routes": [{ "dst": "0.0.0.0/0" }],
        });
        let ours = json!({ "type": "reeve-cni", "socket": node.run_directory().join("cni.sock") });
        Self { node: node.clone(), version: version.to_owned(), first, ours }
    }

    /// A container with a namespace of its own and nothing in it.
    pub fn container(&self, pod: &str) -> anyhow::Result<Container> {
        let number = CONTAINERS.fetch_add(1, Ordering::Relaxed);
        let id = format!("c{number}");
        let netns = Netns::create(self.node.lab().register(), &id, Some(self.node.cgroup()))?;
        let uid = format!("00000000-0000-4000-9000-{number:012x}");
        Ok(Container { id, netns, pod: pod.to_owned(), uid })
    }

    /// Makes the network as a runtime does; a plugin that fails ends it.
    pub fn add(&self, container: &Container) -> anyhow::Result<Said> {
        let made = self.make(container)?;
        self.announce(container, &made)
    }

    /// The first plugin's part of ADD.
    pub fn make(&self, container: &Container) -> anyhow::Result<Value> {
        let said =
            run(&self.node, &Path::new(PLUGINS).join(name(&self.first)), "ADD", container, &self.input(&self.first))?;
        if said.succeeded { Ok(said.output) } else { bail!("{} says {}", name(&self.first), said.output) }
    }

    /// Our part of ADD, with this result of the first.
    pub fn announce(&self, container: &Container, made: &Value) -> anyhow::Result<Said> {
        self.ours("ADD", container, json!({ "prevResult": made }))
    }

    /// Unmakes the network as a runtime does: ours first.
    pub fn del(&self, container: &Container) -> anyhow::Result<Said> {
        let said = self.ours("DEL", container, json!({}))?;
        let first =
            run(&self.node, &Path::new(PLUGINS).join(name(&self.first)), "DEL", container, &self.input(&self.first))?;
        if first.succeeded { Ok(said) } else { bail!("{} says {}", name(&self.first), first.output) }
    }

    /// One command of ours, with these fields beside its settings.
    pub fn ours(&self, command: &str, container: &Container, more: Value) -> anyhow::Result<Said> {
        let mut input = self.input(&self.ours);
        if let (Value::Object(input), Value::Object(more)) = (&mut input, more) {
            input.extend(more);
        }
        run(&self.node, &plugin_program()?, command, container, &input)
    }

    fn input(&self, plugin: &Value) -> Value {
        let mut input = plugin.clone();
        input["cniVersion"] = json!(self.version);
        input["name"] = json!("lab");
        input
    }

    /// Writes the manifest of a pod that has been scheduled: its status shows no address yet.
    pub fn schedule(&self, container: &Container, labels: &[(&str, &str)]) -> anyhow::Result<()> {
        self.write(container, labels, &json!({ "phase": "Pending" }))
    }

    /// Writes the manifest of a pod that runs.
    pub fn show(&self, container: &Container, labels: &[(&str, &str)], addresses: &[IpAddr]) -> anyhow::Result<()> {
        let ips: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        self.write(container, labels, &json!({ "phase": "Running", "podIPs": ips }))
    }

    fn write(&self, container: &Container, labels: &[(&str, &str)], status: &Value) -> anyhow::Result<()> {
        let labels: Labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": container.pod, "uid": container.uid, "labels": labels },
            "spec": { "nodeName": self.node.name() }, "status": status,
        });
        self.node.lab().manifests().write(&format!("pod-shop-{}", container.pod), &manifest)
    }
}

/// The addresses in a result.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let texts = result["ips"].as_array().into_iter().flatten().filter_map(|ip| ip["address"].as_str());
    texts.filter_map(|text| text.split('/').next()?.parse().ok()).collect()
}

/// Our plugin, beside the agent.
pub fn plugin_program() -> anyhow::Result<PathBuf> {
    let program = agent_program()?.with_file_name("reeve-cni");
    if program.is_file() { Ok(program) } else { bail!("reeve-cni is not built: `cargo xtask build` does it") }
}

fn name(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

/// Runs a plugin in the node's namespace, as a runtime does.
fn run(node: &Node, program: &Path, command: &str, container: &Container, input: &Value) -> anyhow::Result<Said> {
    let mut process = Command::new(program);
    process
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &container.id)
        .env("CNI_NETNS", Path::new("/run/netns").join(container.netns.name()))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                container.pod, container.id, container.uid
            ),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let begun = Instant::now();
    let output = node.netns().run(|| -> anyhow::Result<_> {
        let mut child = process.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        // One that reads nothing has ended already.
        let _ = child.stdin.take().context("its input is a pipe")?.write_all(input.to_string().as_bytes());
        Ok(child.wait_with_output()?)
    })??;
    let took = begun.elapsed();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said =
        if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).with_context(|| text.clone())? };
    Ok(Said { output: said, succeeded: output.status.success(), took })
}
