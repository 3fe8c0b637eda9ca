//! Where the facts of a question come from: a directory of manifests, or what an agent knows now.

use crate::manifests;
use crate::output::to_stderr;
use crate::problems;
use crate::socket::{Agent, SocketArgs, SocketError};
use anyhow::bail;
use reeve_policy::model::{self, Level, Problem};
use reeve_policy::store::{Change, Object, Store};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Which facts hold.
#[derive(Debug, clap::Args)]
pub(crate) struct FactsArgs {
    /// Takes the facts from a directory of manifests, rather than from the agent
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    manifests: Option<PathBuf>,
    /// The node to answer for, with --manifests
    #[arg(long, value_name = "NAME", requires = "manifests", conflicts_with = "socket")]
    node: Option<String>,
    #[command(flatten)]
    socket: SocketArgs,
}

/// The answer to `GET /world`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct World {
    node: String,
    objects: Vec<serde_json::Value>,
    #[serde(default)]
    local_addresses: BTreeSet<IpAddr>,
}

const WORLD: &str = "/world";

impl FactsArgs {
    /// The facts; what of them is not honoured is told on standard error.
    pub(crate) fn load(&self) -> anyhow::Result<Store> {
        let (store, mut problems) = match &self.manifests {
            Some(directory) => of_directory(directory, self.node.as_deref().unwrap_or_default())?,
            None => (of_agent(&self.socket.agent())?, Vec::new()),
        };
        problems.extend(store.problems());
        if !problems.is_empty() {
            to_stderr(&format!("note: {} in these facts", problems::summary(&problems)));
        }
        for warning in problems.iter().filter(|problem| problem.level == Level::Warning) {
            to_stderr(&format!("  {}", problems::line(warning)));
        }
        Ok(store)
    }
}

/// Adds the objects of these files to the facts; what of them is not honoured is told on standard error.
pub(crate) fn add_drafts(store: &mut Store, files: &[PathBuf]) -> anyhow::Result<()> {
    let mut texts = Vec::new();
    for file in files {
        texts.extend(manifests::of_argument(file)?);
    }
    let found = manifests::objects(&texts);
    if let Some(problem) = found.unreadable.first() {
        bail!("{}: {}", problem.object, problem.what);
    }
    let known = store.problems();
    for object in found.objects {
        store.apply(Change::Apply(object));
    }
    let told = found.duplicates.into_iter().chain(store.problems()).filter(|problem| !known.contains(problem));
    for problem in told {
        to_stderr(&format!("draft: {}", problems::line(&problem)));
    }
    Ok(())
}

fn of_directory(directory: &Path, node: &str) -> anyhow::Result<(Store, Vec<Problem>)> {
    let found = manifests::objects(&manifests::of_directory(directory)?);
    if let Some(problem) = found.unreadable.first() {
        // An answer without what this file says could be wider than what is enforced.
        let document = if problem.value.is_empty() { String::new() } else { format!(", {}", problem.value) };
        bail!("{}{document}: {}", directory.join(&problem.object).display(), problem.what);
    }
    let mut store = Store::new(node);
    for object in found.objects {
        store.apply(Change::Apply(object));
    }
    let known: BTreeSet<&str> = nodes(store.world()).collect();
    if !node.is_empty() && !known.contains(node) {
        let known: Vec<&str> = known.into_iter().collect();
        bail!("--node {node:?}: there is no such node in {}; {}", directory.display(), known_names("nodes", &known));
    }
    Ok((store, found.duplicates))
}

/// Nodes that have an object or a pod.
fn nodes(world: &model::World) -> impl Iterator<Item = &str> {
    let of_pods = world.workloads.values().map(|pod| pod.node.as_str()).filter(|node| !node.is_empty());
    world.nodes.keys().map(String::as_str).chain(of_pods)
}

fn of_agent(agent: &Agent) -> Result<Store, SocketError> {
    let world: World = serde_json::from_value(agent.get(WORLD)?).map_err(|source| agent.form(WORLD, source))?;
    let mut store = Store::new(&world.node);
    for (index, value) in world.objects.into_iter().enumerate() {
        store.apply(Change::Apply(Object { value, origin: format!("the agent's object {index}") }));
    }
    store.apply(Change::LocalAddresses(world.local_addresses));
    Ok(store)
}

/// Most names that are told.
const TOLD: usize = 20;

/// What there is instead of a name that is not there.
pub(crate) fn known_names(what: &str, names: &[&str]) -> String {
    match names {
        [] => format!("no {what} are known"),
        names if names.len() <= TOLD => format!("known {what}: {}", names.join(", ")),
        names => format!("known {what}: {} and {} more", names[..TOLD].join(", "), names.len() - TOLD),
    }
}
