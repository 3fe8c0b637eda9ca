//! What an agent holds in the kernel, to be compared: what is more afterwards than before has leaked.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use super::Node;

/// Counts of one node's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    /// Programs that use the node's pinned maps.
    pub programs: usize,
    /// Maps that those use.
    pub maps: usize,
    /// Links that hold those.
    pub links: usize,
    /// Paths of pins, in the node's bpffs.
    pub pins: BTreeSet<String>,
    /// Interfaces of the node.
    pub interfaces: BTreeSet<String>,
}

impl Node {
    /// What there is now. Other agents on this machine have maps of their own, so they are not counted.
    pub fn objects(&self) -> anyhow::Result<Objects> {
        let pinned = self.bpffs().join("reeve/v1/maps/ENDPOINTS");
        let ours = bpftool(&["map", "show", "pinned", &pinned.to_string_lossy()])?["id"].clone();
        let uses = |program: &&Value| list(&program["map_ids"]).contains(&ours);
        let all = bpftool(&["prog", "show"])?;
        let programs: Vec<&Value> = list(&all).iter().filter(uses).collect();
        let maps: BTreeSet<String> =
            programs.iter().flat_map(|program| list(&program["map_ids"])).map(ToString::to_string).collect();
        let held = |link: &&Value| programs.iter().any(|program| program["id"] == link["prog_id"]);
        let links = list(&bpftool(&["link", "show"])?).iter().filter(held).count();
        let mut pins = BTreeSet::new();
        walk(&self.bpffs(), &mut pins)?;
        let table = self.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        Ok(Objects { programs: programs.len(), maps: maps.len(), links, pins, interfaces: names.collect() })
    }
}

impl Node {
    /// How many rows a map has that the node's agent has pinned, such as `PEERS`.
    pub fn rows(&self, map: &str) -> anyhow::Result<usize> {
        let pin = self.bpffs().join("reeve/v1/maps").join(map);
        Ok(list(&bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()])?).len())
    }

    /// The names of the links that its agent has pinned, as [`Objects::pins`] has their paths.
    pub fn links(&self) -> anyhow::Result<BTreeSet<String>> {
        let directory = self.bpffs().join("reeve/v1/links");
        let name = |path: String| path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut pins = BTreeSet::new();
        if directory.exists() {
            walk(&directory, &mut pins)?;
        }
        Ok(pins.into_iter().map(name).collect())
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn walk(directory: &Path, found: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, found)?;
        } else {
            found.insert(path.display().to_string());
        }
    }
    Ok(())
}

/// What bpftool says, as JSON.
fn bpftool(arguments: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().context("bpftool cannot be run")?;
    if !output.status.success() {
        bail!("bpftool {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stdout).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("bpftool {} tells no JSON", arguments.join(" ")))
}
