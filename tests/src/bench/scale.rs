//! What an agent costs in a cluster of 5,000 nodes, 150,000 pods and 5,000 policies, which a synthetic API server tells.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::Sheet;
use super::agent::{map_bytes, mib, processor_time};
use super::measure::Measure;
use super::synthetic::{Size, Synthetic};
use crate::lab::{Agent, AgentOptions, Facts, Lab, Mode, PodSpec, until};

/// The cluster.
const SIZE: Size = Size { nodes: 5_000, namespaces: 500, pods: 150_000, policies: 5_000 };
/// Pods that are really there.
const LOCAL: u32 = 30;
/// Changes of pods: between two of them, and how many.
const PACE: Duration = Duration::from_millis(10);
const CHANGES: u32 = 3_000;
/// Longest wait for an agent to have everything.
const PATIENCE: Duration = Duration::from_mins(5);

/// All of them.
pub fn measures() -> Vec<Measure> {
    let new = |name: &str, unit: &'static str, how: &str| {
        let how =
            format!("{how}; {} nodes, {} pods, {} policies, {LOCAL} pods local", SIZE.nodes, SIZE.pods, SIZE.policies);
        Measure::new(format!("scale/{name}"), unit, how)
    };
    vec![
        new("ready", "s", "from the agent's start until it is ready: everything listed, compiled and enforced"),
        new("listed", "MiB", "what the API server sends until then, uncompressed"),
        new("memory-peak", "MiB", "most that was resident until then"),
        new("memory", "MiB", "resident after 30 s of 100 changes a second"),
        new("processor", "%", "of one core, all threads, while 100 pods a second change"),
        new("sent", "KiB/s", "what the API server sends meanwhile, uncompressed"),
        new("behind", "ms", "from the last of these changes until the agent enforces it"),
        new("kernel-memory", "MiB", "what the kernel charges for its maps"),
        new("addresses", "rows", "of the map ADDRESSES"),
        new(
            "relist",
            "s",
            "from the server's word that it has forgotten where the watch of pods was (410) until all pods are known by a new list",
        ),
        new("memory-relist", "MiB", "most that was resident meanwhile"),
        new(
            "restart",
            "s",
            "from the start of the next agent until it is ready: everything listed and compared with the kernel",
        ),
        new("memory-restart", "MiB", "most that was resident until then"),
    ]
}

/// Measures all of them together.
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let lab = Lab::new("bench-scale")?;
    let node = lab.node("node-0", Mode::Routed)?;
    let mut pods = Vec::new();
    for number in 0..LOCAL {
        let namespace = format!("namespace-{}", number % SIZE.namespaces);
        let spec = PodSpec::new(&namespace, &format!("local-{number}")).label("app", &format!("app-{number}"));
        pods.push(node.pod(spec)?);
    }
    let objects = pods.iter().map(crate::lab::Pod::manifest).collect();
    let server = Synthetic::start(&node, SIZE, objects)?;
    let facts = Facts::Kubeconfig(Synthetic::kubeconfig(lab.directory())?);
    let begun = Instant::now();
    let mut agent = node.spawn_agent(AgentOptions { facts, ..AgentOptions::default() })?;
    agent.wait_ready_within(PATIENCE)?;
    sheet.put("scale/ready", vec![begun.elapsed().as_secs_f64()]);
    has(&agent, SIZE.pods)?;
    sheet.put("scale/listed", vec![mib(server.sent_bytes())]);
    sheet.put("scale/memory-peak", vec![peak(&agent)?]);

    let (sent, spent, begun) = (server.sent_bytes(), processor_time(agent.process_id())?, Instant::now());
    for number in 0..CHANGES {
        server.change(number)?;
        std::thread::sleep((begun + PACE * (number + 1)).saturating_duration_since(Instant::now())); // the pace
    }
    let took = begun.elapsed();
    let told = Instant::now();
    server.one_more()?;
    has(&agent, SIZE.pods + 1)?;
    sheet.put("scale/behind", vec![told.elapsed().as_secs_f64() * 1e3]);
    let spent = processor_time(agent.process_id())?.saturating_sub(spent);
    sheet.put("scale/processor", vec![spent.as_secs_f64() / took.as_secs_f64() * 100.0]);
    sheet.put("scale/sent", vec![mib(server.sent_bytes() - sent) * 1024.0 / took.as_secs_f64()]);
    sheet.put("scale/memory", vec![mib(agent.resident_bytes()?)]);
    sheet.put("scale/kernel-memory", vec![mib(map_bytes(agent.process_id())?)]);
    sheet.put("scale/addresses", vec![agent.metric("reeve_map_entries", &[("map", "ADDRESSES")])?]);

    forget_peak(&agent)?;
    let begun = Instant::now();
    server.forget()?;
    // The list has the pods of the beginning: the one that was told last is gone, and those that changed are as they were.
    has(&agent, SIZE.pods)?;
    sheet.put("scale/relist", vec![begun.elapsed().as_secs_f64()]);
    sheet.put("scale/memory-relist", vec![peak(&agent)?]);

    agent.terminate()?;
    let begun = Instant::now();
    agent.spawn_again()?;
    agent.wait_ready_within(PATIENCE)?;
    sheet.put("scale/restart", vec![begun.elapsed().as_secs_f64()]);
    has(&agent, SIZE.pods)?;
    sheet.put("scale/memory-restart", vec![peak(&agent)?]);
    Ok(())
}

/// Waits until an agent has heard of so many pods and enforces what it has compiled.
fn has(agent: &Agent, pods: u32) -> anyhow::Result<()> {
    until("the agent to have all pods", PATIENCE, || {
        let heard = agent.metric("reeve_watch_objects", &[("kind", "pods")])?;
        let [compiled, active] =
            ["compiled", "active"].map(|state| agent.metric("reeve_revision", &[("state", state)]));
        Ok((heard.to_bits() == f64::from(pods).to_bits() && compiled? <= active?).then_some(()))
    })
}

/// Lets what is resident now count as the most so far.
fn forget_peak(agent: &Agent) -> anyhow::Result<()> {
    fs::write(format!("/proc/{}/clear_refs", agent.process_id()), "5").context("the peak cannot be forgotten")
}

/// Most that a process had resident, in MiB.
fn peak(agent: &Agent) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process_id())).context("the agent has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes = line.split_whitespace().next().context("no number of kB")?;
    Ok(mib(kilobytes.parse::<u64>().context("no number of kB")? * 1024))
}
