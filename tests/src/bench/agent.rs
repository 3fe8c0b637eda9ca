//! What the agent itself costs a node: attaching to many pods, coming back, idling, and how soon a new pod is enforced.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::Sheet;
use super::measure::{Measure, Target};
use super::rounds::median;
use crate::lab::{Agent, AgentOptions, Lab, Mode, Netns, Node};

/// Pods of a usual and of a crowded node.
const USUAL: u32 = 100;
const CROWDED: u32 = 1_000;
/// Policies, each of which selects a tenth of the pods.
const POLICIES: u32 = 10;
/// How long an idle agent is watched in each round.
const IDLE: Duration = Duration::from_secs(5);
/// New pods in each round.
const NEW: u32 = 10;
/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// All of them.
pub fn measures() -> Vec<Measure> {
    let most = |name: &str, unit, bound, how: &str| Measure::new(name, unit, how).target(Target::AtMost(bound));
    vec![
        most(
            "agent/pod-enforced",
            "ms",
            40.0,
            "a pod's manifest is written (its device is there, policies select it): until both of its programs are attached",
        ),
        most("agent/idle-100", "%", 0.5, "of one core, all threads of an agent with 100 pods and no traffic"),
        most("agent/memory-100", "MiB", 40.0, "resident, with 100 pods"),
        Measure::new("agent/kernel-memory-100", "MiB", "what the kernel charges for its maps, with 100 pods"),
        most(
            "agent/restart-1000",
            "s",
            0.5,
            "from the start of an agent on a node with 1,000 pods until all of their links lead to its programs",
        ),
        Measure::new("agent/restart-1000-ready", "s", "the same until it is ready"),
        most(
            "agent/attach-1000",
            "s",
            30.0,
            "from the start of the first agent there until all pods are enforced (once)",
        ),
        Measure::new("agent/memory-1000", "MiB", "resident, with 1,000 pods"),
        Measure::new("agent/kernel-memory-1000", "MiB", "what the kernel charges for its maps, with 1,000 pods"),
    ]
}

/// Measures what is wanted.
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let usual = ["agent/pod-enforced", "agent/idle-100", "agent/memory-100", "agent/kernel-memory-100"];
    if usual.iter().any(|name| sheet.wants(name)) {
        usual_node(sheet)?;
    }
    let crowded = measures().into_iter().any(|measure| measure.name.contains("1000") && sheet.wants(&measure.name));
    if crowded { crowded_node(sheet) } else { Ok(()) }
}

fn usual_node(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let town = Town::new("bench-usual", USUAL)?;
    let agent = town.node.start_agent(AgentOptions::default())?;
    town.all_attached(USUAL)?;
    if sheet.wants("agent/idle-100") {
        let rounds = (0..sheet.rounds()).map(|_| idle(&agent)).collect::<anyhow::Result<_>>()?;
        sheet.put("agent/idle-100", rounds);
    }
    sheet.put("agent/memory-100", vec![mib(agent.resident_bytes()?)]);
    sheet.put("agent/kernel-memory-100", vec![mib(map_bytes(agent.process_id())?)]);
    if sheet.wants("agent/pod-enforced") {
        let mut rounds = Vec::new();
        for round in 0..sheet.rounds() {
            let first = USUAL + u32::try_from(round)? * NEW;
            let mut taken =
                (first..first + NEW).map(|number| town.enforced(number)).collect::<anyhow::Result<Vec<_>>>()?;
            rounds.push(median(&mut taken));
        }
        sheet.put("agent/pod-enforced", rounds);
    }
    drop(agent);
    Ok(())
}

fn crowded_node(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let town = Town::new("bench-crowd", CROWDED)?;
    let begun = Instant::now();
    let mut agent = town.node.start_agent(AgentOptions::default())?;
    town.all_attached(CROWDED)?;
    sheet.put("agent/attach-1000", vec![begun.elapsed().as_secs_f64()]);
    sheet.put("agent/memory-1000", vec![mib(agent.resident_bytes()?)]);
    sheet.put("agent/kernel-memory-1000", vec![mib(map_bytes(agent.process_id())?)]);
    if sheet.wants_any("agent/restart-1000") {
        let (mut adopted, mut ready) = (Vec::new(), Vec::new());
        for _ in 0..sheet.rounds() {
            agent.terminate()?;
            let said = |agent: &Agent| agent.log().matches("links adopted").count();
            let before = said(&agent);
            let begun = Instant::now();
            agent.spawn_again()?;
            until("the links to be adopted", || Ok(said(&agent) > before))?;
            adopted.push(begun.elapsed().as_secs_f64());
            agent.wait_ready()?;
            ready.push(begun.elapsed().as_secs_f64());
            let replaced = agent.metric("reeve_adopted_links", &[])?;
            anyhow::ensure!(replaced >= f64::from(CROWDED), "{replaced} interfaces were taken over");
        }
        sheet.put("agent/restart-1000", adopted);
        sheet.put("agent/restart-1000-ready", ready);
    }
    Ok(())
}

/// A node with devices of pods that send nothing.
struct Town {
    node: Node,
    /// Where the pods' own ends are.
    ends: Netns,
    /// Goes last.
    _lab: Lab,
}

impl Town {
    fn new(name: &str, pods: u32) -> anyhow::Result<Self> {
        let lab = Lab::new(name)?;
        lab.manifests().namespace("town", &[])?;
        let node = lab.node("node", Mode::Routed)?;
        let town = Self { node, ends: lab.outside("ends")?, _lab: lab };
        town.devices(0..pods)?;
        town.list("pods.json", &(0..pods).map(|number| town.pod(number)).collect::<Vec<_>>())?;
        town.list("policies.json", &(0..POLICIES).map(policy).collect::<Vec<_>>())?;
        Ok(town)
    }

    /// The device of each pod, the way to it, and an end at which nobody is.
    fn devices(&self, numbers: impl Iterator<Item = u32>) -> anyhow::Result<()> {
        let (mut commands, mut up) = (Vec::new(), Vec::new());
        for number in numbers {
            let (device, ends) = (device(number), self.ends.name());
            up.push(format!("link set {device} up"));
            commands.extend([
                format!("link add {device} type veth peer name {device} netns {ends}"),
                format!("link set {device} up"),
                format!("route add {}/32 dev {device}", address(number)),
            ]);
        }
        self.node.netns().ip(&commands)?;
        self.ends.ip(&up)
    }

    fn pod(&self, number: u32) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("pod-{number}"), "namespace": "town", "uid": format!("town-{number}"),
                          "labels": { "street": format!("street-{}", number % POLICIES) } },
            "spec": { "nodeName": self.node.name(), "containers": [] },
            "status": { "phase": "Running", "podIPs": [{ "ip": address(number) }] }
        })
    }

    fn list(&self, file: &str, items: &[Value]) -> anyhow::Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.node.manifests().write_text(file, &list.to_string())
    }

    fn links(&self) -> std::path::PathBuf {
        self.node.bpffs().join("reeve/v1/links")
    }

    fn all_attached(&self, pods: u32) -> anyhow::Result<()> {
        let wanted = usize::try_from(pods)?;
        until("all pods to be attached", || {
            Ok(pinned(&self.links(), "-to") >= wanted && pinned(&self.links(), "-from") >= wanted)
        })
    }

    /// Writes a new pod's manifest; ms until both of its programs are attached.
    fn enforced(&self, number: u32) -> anyhow::Result<f64> {
        self.devices(std::iter::once(number))?;
        let ifindex = self.node.netns().run(|| {
            rustix::net::netdevice::name_to_index(
                &rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?,
                &device(number),
            )
        })?;
        let ifindex = ifindex.with_context(|| format!("device {} has no number", device(number)))?;
        let links = ["to", "from"].map(|side| self.links().join(format!("{ifindex}-{side}")));
        let begun = Instant::now();
        self.node.manifests().write(&format!("pod-{number}"), &self.pod(number))?;
        until("the new pod to be attached", || Ok(links.iter().all(|link| link.exists())))?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}

fn device(number: u32) -> String {
    format!("t{number}")
}

fn address(number: u32) -> String {
    format!("10.250.{}.{}", number / 250, number % 250 + 1)
}

fn policy(number: u32) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": format!("policy-{number}"), "namespace": "town", "uid": format!("policy-{number}") },
        "spec": { "podSelector": { "matchLabels": { "street": format!("street-{number}") } },
                  "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "street": format!("street-{}", (number + 1) % POLICIES) } } }],
                                "ports": [{ "port": 8000 + number, "protocol": "TCP" }] }] }
    })
}

fn pinned(links: &Path, ending: &str) -> usize {
    fs::read_dir(links).map_or(0, |all| {
        all.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().ends_with(ending)).count()
    })
}

/// Asks again at once: what is waited for is being timed.
fn until(what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !done()? {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::yield_now();
    }
    Ok(())
}

/// Percent of one core that all threads of the agent take.
fn idle(agent: &Agent) -> anyhow::Result<f64> {
    let (before, begun) = (processor_time(agent.process_id())?, Instant::now());
    std::thread::sleep(IDLE); // the time is what is measured by
    let taken = processor_time(agent.process_id())?.saturating_sub(before);
    Ok(taken.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0)
}

/// Time on a processor of all threads of a process so far.
pub(super) fn processor_time(process: u32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        sum += text.split(' ').next().context("no number")?.parse::<u64>().with_context(|| text.clone())?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Bytes that the kernel charges for the maps that a process holds open, each once.
fn map_bytes(process: u32) -> anyhow::Result<u64> {
    let (mut seen, mut sum) = (BTreeSet::new(), 0);
    for file in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        let text = fs::read_to_string(file?.path()).unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:"))
            && seen.insert(id)
        {
            sum += bytes;
        }
    }
    anyhow::ensure!(sum > 0, "the kernel tells of no maps of process {process}");
    Ok(sum)
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
