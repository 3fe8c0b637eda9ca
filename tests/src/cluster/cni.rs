//! Runs a chain of real CNI plugins for a pod, as a container runtime does through libcni.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::lab::{Netns, Node};

/// What a runtime tells plugins of a pod.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The sandbox's, unique on the node.
    pub container: String,
    /// Ports of the node that lead to it, as in the capability `portMappings`.
    pub ports: Vec<Value>,
}

/// What a plugin answers when it fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plugin {plugin} answers {code}: {message} {details}")]
pub struct CniError {
    /// Its type in the configuration.
    pub plugin: String,
    /// From the specification, or the plugin's own from 100 on; 0: it answered nothing that can be read.
    pub code: u64,
    /// In one sentence.
    pub message: String,
    /// What else there is to say.
    pub details: String,
}

/// A network's plugins, in order, as in a conflist.
#[derive(Clone, Debug)]
pub struct Chain {
    conflist: Value,
    /// Where plugins are looked for, first wins.
    folders: Vec<PathBuf>,
}

impl Chain {
    /// Of a conflist's text; plugins are in these folders.
    pub fn read(conflist: &str, folders: &[&Path]) -> anyhow::Result<Self> {
        Self::of(serde_json::from_str(conflist).context("the conflist is no JSON")?, folders)
    }

    /// Of a conflist that is at hand.
    pub fn of(conflist: Value, folders: &[&Path]) -> anyhow::Result<Self> {
        if conflist["plugins"].as_array().is_none_or(Vec::is_empty) {
            bail!("the conflist has no plugins");
        }
        Ok(Self { conflist, folders: folders.iter().map(|folder| (*folder).to_owned()).collect() })
    }

    /// With one more plugin behind the others.
    #[must_use]
    pub fn then(mut self, plugin: Value) -> Self {
        if let Some(plugins) = self.conflist["plugins"].as_array_mut() {
            plugins.push(plugin);
        }
        self
    }

    /// With one more folder, in which plugins are looked for last.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folders.push(folder.to_owned());
        self
    }

    /// Attaches a pod's namespace to the network; what the last plugin says of it.
    pub fn add(&self, node: &Node, netns: &Netns, sandbox: &Sandbox) -> anyhow::Result<Value> {
        let mut result = Value::Null;
        for plugin in self.plugins() {
            result = self.run(node, netns, sandbox, "ADD", plugin, &result)?;
        }
        Ok(result)
    }

    /// Asks whether the attachment is still as `result`, the answer to [`Chain::add`], says.
    pub fn check(&self, node: &Node, netns: &Netns, sandbox: &Sandbox, result: &Value) -> anyhow::Result<()> {
        for plugin in self.plugins() {
            self.run(node, netns, sandbox, "CHECK", plugin, result)?;
        }
        Ok(())
    }

    /// Detaches it, last plugin first.
    pub fn delete(&self, node: &Node, netns: &Netns, sandbox: &Sandbox, result: &Value) -> anyhow::Result<()> {
        for plugin in self.plugins().iter().rev() {
            self.run(node, netns, sandbox, "DEL", plugin, result)?;
        }
        Ok(())
    }

    fn plugins(&self) -> &[Value] {
        self.conflist["plugins"].as_array().map_or(&[], Vec::as_slice)
    }

    fn run(
        &self,
        node: &Node,
        netns: &Netns,
        sandbox: &Sandbox,
        command: &str,
        plugin: &Value,
        previous: &Value,
    ) -> anyhow::Result<Value> {
        let kind = plugin["type"].as_str().context("a plugin without type")?;
        let program = self.folders.iter().map(|folder| folder.join(kind)).find(|path| path.is_file());
        let program = program.with_context(|| format!("no folder has the plugin {kind}"))?;
        let mut config = plugin.clone();
        for field in ["name", "cniVersion"] {
            config[field] = self.conflist[field].clone();
        }
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let capabilities = config.as_object_mut().and_then(|fields| fields.remove("capabilities")).unwrap_or_default();
        // What the runtime can do is given as `runtimeConfig`, to plugins that ask for it.
        if capabilities["portMappings"] == true && !sandbox.ports.is_empty() {
            config["runtimeConfig"] = json!({ "portMappings": sandbox.ports });
        }
        let folders = std::env::join_paths(&self.folders).context("a plugin folder has a colon in its name")?;
        let mut process = Command::new(program);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &sandbox.container)
            .env("CNI_NETNS", Path::new("/run/netns").join(netns.name()))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", folders)
            .env("CNI_ARGS", arguments(sandbox))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = node.spawn(&mut process)?;
        child.stdin.take().context("standard input was piped")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() {
            return Ok(answer);
        }
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(CniError {
            plugin: kind.to_owned(),
            code: answer["code"].as_u64().unwrap_or_default(),
            message: if answer.is_null() { said } else { text("msg") },
            details: text("details"),
        }
        .into())
    }
}

fn arguments(sandbox: &Sandbox) -> String {
    let Sandbox { namespace, name, uid, container, .. } = sandbox;
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container};\
         K8S_POD_UID={uid}"
    )
}

/// A conflist of `ptp` and `host-local` for a node's pods, without the plugins that come behind.
pub fn point_to_point(node: &Node) -> anyhow::Result<Value> {
    Ok(json!({
        "cniVersion": VERSION,
        "name": "lab",
        "plugins": [{ "type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": addresses_of(node)? }],
    }))
}

/// The same with `bridge`: pods are ports of the bridge `cni0`, which is their gateway.
pub fn bridged(node: &Node) -> anyhow::Result<Value> {
    // Else an answer between two ports would go around the translation of addresses, as Kubernetes' documents say.
    node.netns()
        .sysctls(&[("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")])?;
    Ok(json!({
        "cniVersion": VERSION,
        "name": "lab",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false, "mtu": 1500,
            "ipam": addresses_of(node)?,
        }],
    }))
}

/// The plugin that leads ports of the node to pods; it comes behind those that make the wire.
pub fn port_mapping() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true } })
}

/// The newest that the plugins of Debian 12 speak.
const VERSION: &str = "1.0.0";

/// The addresses that `host-local` gives: of the node's own networks, above those that pods of the lab's own wiring get.
fn addresses_of(node: &Node) -> anyhow::Result<Value> {
    let store = node.state_directory().join("host-local");
    fs::create_dir_all(&store).with_context(|| format!("cannot make {}", store.display()))?;
    let object = node.object();
    let networks = object["spec"]["podCIDRs"].as_array().context("a node has networks of pods")?.clone();
    let range = |network: &Value| -> anyhow::Result<Value> {
        let text = network.as_str().context("a network is text")?;
        let (first, _) = text.split_once('/').context("a network has a length")?;
        let base: IpAddr = first.parse().with_context(|| format!("{first} is no address"))?;
        let start = match base {
            IpAddr::V4(base) => IpAddr::from(Ipv4Addr::from(u32::from(base) + FIRST_HOST)),
            IpAddr::V6(base) => IpAddr::from(Ipv6Addr::from(u128::from(base) + u128::from(FIRST_HOST))),
        };
        Ok(json!([{ "subnet": text, "rangeStart": start }]))
    };
    let ranges: Vec<Value> = networks.iter().map(range).collect::<anyhow::Result<_>>()?;
    Ok(json!({
        "type": "host-local", "ranges": ranges, "dataDir": store,
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
    }))
}

/// Half of a node's IPv4 addresses are the lab's own to give.
const FIRST_HOST: u32 = 128;
