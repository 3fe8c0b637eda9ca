//! Runs a chain of real CNI plugins for a pod, as a container runtime does through libcni.

use std::fs;
use std::io::Write;
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
        let conflist: Value = serde_json::from_str(conflist).context("the conflist is no JSON")?;
        if conflist["plugins"].as_array().is_none_or(Vec::is_empty) {
            bail!("the conflist has no plugins");
        }
        Ok(Self { conflist, folders: folders.iter().map(|folder| (*folder).to_owned()).collect() })
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
        if let Some(config) = config.as_object_mut() {
            // What the runtime can do is given as `runtimeConfig`, and this one has nothing to give.
            config.remove("capabilities");
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
    let Sandbox { namespace, name, uid, container } = sandbox;
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container};\
         K8S_POD_UID={uid}"
    )
}

/// A conflist of `ptp` and `host-local` for a node's pods, without the plugins that come behind.
pub fn point_to_point(node: &Node) -> anyhow::Result<Value> {
    let store = node.state_directory().join("host-local");
    fs::create_dir_all(&store).with_context(|| format!("cannot make {}", store.display()))?;
    let object = node.object();
    let ranges: Vec<Value> = object["spec"]["podCIDRs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|network| json!([{ "subnet": network }]))
        .collect();
    Ok(json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [{
            "type": "ptp", "ipMasq": false, "mtu": 1500,
            "ipam": {
                "type": "host-local", "ranges": ranges, "dataDir": store,
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    }))
}
