//! Asks the API server as `kubectl` does: objects, patches, tokens.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Cluster, Relay};

/// How long a token is good for: the shortest that the API server gives is ten minutes.
const TOKEN: &str = "--duration=1h";

impl Cluster {
    /// What `kubectl` prints with these arguments, as the cluster's administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(arguments, None)
    }

    /// The same, with something to read.
    pub fn kubectl_with(&self, arguments: &[&str], input: Option<&str>) -> anyhow::Result<String> {
        self.kubectl_as(&self.keys.path("admin.kubeconfig"), arguments, input)
    }

    /// The same, as whom a kubeconfig names.
    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str], input: Option<&str>) -> anyhow::Result<String> {
        let mut command = self.programs.command("kubectl");
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments);
        // Nothing of the user's: neither what it has cached of another server, nor proxies on the way to one.
        command.env_clear().env("HOME", &self.directory).env("KUBECACHEDIR", self.directory.join("kubectl"));
        self.netns.run(|| output(&mut command, input))?
    }

    /// Creates or changes objects.
    pub fn apply(&self, objects: &[Value]) -> anyhow::Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.apply_text(&list.to_string())
    }

    /// Creates or changes objects that are written as YAML or JSON.
    pub fn apply_text(&self, text: &str) -> anyhow::Result<()> {
        self.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], Some(text)).map(drop)
    }

    /// What the API server says of objects, without keeping them: an error if it would refuse them.
    pub fn dry_run(&self, text: &str) -> anyhow::Result<String> {
        self.kubectl_with(&["apply", "--server-side", "--dry-run=server", "-f", "-"], Some(text))
    }

    /// An object or a list of them, by the arguments of `kubectl get`.
    pub fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Merges into an object, by the arguments of `kubectl patch`.
    pub fn patch(&self, arguments: &[&str], patch: &Value) -> anyhow::Result<()> {
        let patch = patch.to_string();
        self.kubectl(&[&["patch", "--type=merge", "-p", &patch], arguments].concat()).map(drop)
    }

    /// Deletes objects, by the arguments of `kubectl delete`, and waits until they are gone.
    pub fn delete(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.kubectl(&[&["delete"], arguments].concat()).map(drop)
    }

    /// A namespace in which pods can be made: the controllers have given it its service account.
    pub fn namespace(&self, name: &str, labels: &Value) -> anyhow::Result<()> {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        self.apply(&[object])?;
        self.kubectl(&["wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=60s"]).map(drop)
    }

    /// A token of a service account.
    pub fn token(&self, namespace: &str, account: &str) -> anyhow::Result<String> {
        Ok(self.kubectl(&["create", "token", account, "-n", namespace, TOKEN])?.trim().to_owned())
    }

    /// Writes a kubeconfig with a token of a service account, in place of the one before.
    pub fn kubeconfig(&self, namespace: &str, account: &str) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(namespace, account, &format!("{namespace}-{account}"), None)
    }

    /// The same, with another way to the API server.
    pub fn kubeconfig_by(&self, namespace: &str, account: &str, relay: &Relay) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(namespace, account, &format!("{namespace}-{account}-relayed"), Some(relay))
    }

    fn write_kubeconfig(
        &self,
        namespace: &str,
        account: &str,
        file: &str,
        by: Option<&Relay>,
    ) -> anyhow::Result<PathBuf> {
        let mut config = self.keys.kubeconfig(&json!({ "token": self.token(namespace, account)? }));
        // A pod's credentials, too, are of its own namespace.
        config["contexts"][0]["context"]["namespace"] = json!(namespace);
        if let Some(relay) = by {
            config["clusters"][0]["cluster"]["server"] = json!(format!("https://{}", relay.address()));
        }
        let path = self.directory.join(format!("{file}.kubeconfig"));
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, config.to_string()).context("cannot write a kubeconfig")?;
        fs::rename(&unfinished, &path).context("cannot rename a kubeconfig")?;
        Ok(path)
    }
}

/// What a program prints; an error shows what it complains about.
pub(super) fn output(command: &mut Command, input: Option<&str>) -> anyhow::Result<String> {
    let name = command.get_program().display().to_string();
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // One that ends early says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} prints no UTF-8"))
}
