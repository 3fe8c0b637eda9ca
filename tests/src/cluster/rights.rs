//! The chart as Helm renders it, and what it grants the agent.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::Cluster;
use super::client::output;
use super::programs::chart;

/// One resource that a role grants, and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Empty for the core's.
    pub group: String,
    /// In the plural.
    pub resource: String,
    /// `list`, `watch`.
    pub verbs: Vec<String>,
}

impl Cluster {
    /// The objects of the chart's rights, for a release of this name: a service account, a role and its binding.
    pub fn rights(&self, namespace: &str, release: &str) -> anyhow::Result<Vec<Value>> {
        self.rendered(namespace, release, &["--show-only", "templates/rbac.yaml"])
    }

    /// The chart's objects, as `helm install` would make them with these arguments.
    pub fn rendered(&self, namespace: &str, release: &str, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let version: Value = serde_json::from_str(&self.kubectl(&["get", "--raw", "/version"])?)?;
        let version = version["gitVersion"].as_str().context("the API server tells no version")?;
        let chart = self.chart();
        let chart = chart.to_str().context("the checkout's path is no text")?;
        let template = ["template", release, chart, "--namespace", namespace, "--kube-version", version];
        let text = self.helm(&[&template, arguments].concat())?;
        let mut objects = Vec::new();
        for document in serde_norway::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).context("Helm renders no YAML")?;
            // A document may be a comment only.
            if !object.is_null() {
                objects.push(object);
            }
        }
        Ok(objects)
    }

    /// The chart's directory.
    pub fn chart(&self) -> PathBuf {
        chart()
    }

    /// What Helm prints with these arguments, as the cluster's administrator.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command: Command = self.programs.command("helm");
        command.args(arguments).env_clear().env("HOME", &self.directory);
        command.env("KUBECONFIG", self.keys.path("admin.kubeconfig"));
        self.netns.run(|| output(&mut command, None))?
    }

    /// Gives a service account of this name, which is made, what the chart grants.
    pub fn grant(&self, namespace: &str, account: &str) -> anyhow::Result<()> {
        self.apply(&self.rights(namespace, account)?)
    }

    /// What the chart's roles grant, a resource each.
    pub fn granted(&self) -> anyhow::Result<Vec<Rule>> {
        let objects = self.rights("any", "any")?;
        let words = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut rules = Vec::new();
        for kind in ["ClusterRole", "Role"] {
            let role = objects.iter().find(|object| object["kind"] == kind).with_context(|| format!("no {kind}"))?;
            for rule in role["rules"].as_array().with_context(|| format!("the {kind} has no rules"))? {
                for group in words(&rule["apiGroups"]) {
                    for resource in words(&rule["resources"]) {
                        rules.push(Rule { group: group.clone(), resource, verbs: words(&rule["verbs"]) });
                    }
                }
            }
        }
        Ok(rules)
    }
}
