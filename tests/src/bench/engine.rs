//! What the engine costs: a compile from nothing in a process of its own, and a label that changes, up to the last map
//! write. Both in time of the CPU: nothing in them waits.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use reeve_policy::engine::Engine;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::Sheet;
use super::cluster::{Cluster, NODE};
use super::measure::{Measure, Target};
use super::rounds::quantile;
use super::testbed::Testbed;

/// Labels that change in one round: the 99th percentile is none of the two slowest.
const RELABELS: u32 = 300;

const SMALL: Cluster = Cluster { pods: 10_000, policies: 1_000, peers: 250 };
const LARGE: Cluster = Cluster { pods: 100_000, policies: 5_000, peers: 250 };

fn relabel(cluster: &Cluster) -> String {
    format!("engine/relabel-{}-p99", cluster.pods)
}

fn compile(cluster: &Cluster) -> String {
    format!("engine/compile-{}", cluster.pods)
}

/// What of a process's memory is told: most of it at any time, and what the engine has allocated in the end.
const MEMORY: [&str; 2] = ["most", "held"];

fn memory(cluster: &Cluster, part: &str) -> String {
    format!("engine/compile-{}-memory-{part}", cluster.pods)
}

/// What this area measures.
pub fn measures() -> Vec<Measure> {
    let mut all = Vec::new();
    let targets = [(SMALL, 5.0, 1.0, None), (LARGE, 10.0, 10.0, Some(400.0))];
    for (cluster, relabel_ms, compile_s, memory_mib) in targets {
        let world = format!("{} pods, {} policies, 100 local pods", cluster.pods, cluster.policies);
        all.push(
            Measure::new(
                relabel(&cluster),
                "ms",
                format!("a label that 100 policies read changes: engine and maps; {world}"),
            )
            .target(Target::AtMost(relabel_ms)),
        );
        all.push(
            Measure::new(compile(&cluster), "s", format!("everything from nothing; {world}"))
                .target(Target::AtMost(compile_s)),
        );
        for (part, what) in MEMORY
            .into_iter()
            .zip(["most memory of the process at any time", "what the engine has allocated in the end"])
        {
            let measure = Measure::new(memory(&cluster, part), "MiB", format!("{what}; {world}"));
            all.push(match memory_mib {
                Some(most) if part == MEMORY[0] => measure.target(Target::AtMost(most)),
                _ => measure,
            });
        }
    }
    all
}

/// See [`measures`].
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    for cluster in [SMALL, LARGE] {
        let names = MEMORY.map(|part| memory(&cluster, part));
        if sheet.wants(&compile(&cluster)) || names.iter().any(|name| sheet.wants(name)) {
            let rounds = (0..sheet.rounds()).map(|_| in_child(&cluster)).collect::<anyhow::Result<Vec<_>>>()?;
            sheet.put(&compile(&cluster), rounds.iter().map(|round| round.0).collect());
            for (nth, name) in names.iter().enumerate() {
                sheet.put(name, rounds.iter().map(|round| round.1[nth]).collect());
            }
        }
        if sheet.wants(&relabel(&cluster)) {
            let mut bed = Testbed::new(cluster)?;
            let mut rounds = Vec::new();
            for round in 0..sheet.rounds() {
                let mut all = relabels(&mut bed, u32::try_from(round)?, RELABELS)?;
                rounds.push(quantile(&mut all, 0.99));
            }
            sheet.put(&relabel(&cluster), rounds);
        }
    }
    Ok(())
}

/// Changes the role of so many pods of other nodes, one after the other: ms each, up to the last map write.
pub(super) fn relabels(bed: &mut Testbed, round: u32, count: u32) -> anyhow::Result<Vec<f64>> {
    // No pod twice: it would have the role already that it is to get.
    let stride = bed.cluster.pods_elsewhere() / count.max(1);
    (0..count).map(|nth| relabel_one(bed, nth * stride.max(1), round)).collect()
}

fn relabel_one(bed: &mut Testbed, number: u32, round: u32) -> anyhow::Result<f64> {
    let change = bed.cluster.relabelled(number, round);
    let begun = own_time()?;
    let update = bed.engine.apply(vec![change]);
    let Testbed { kernel, devices, .. } = bed;
    update.plan.iter().try_for_each(|op| kernel.execute(op, devices))?;
    let taken = own_time()?.saturating_sub(begun);
    anyhow::ensure!(update.changed, "the relabelled pod changed nothing");
    Ok(taken.as_secs_f64() * 1e3)
}

/// Seconds and [`MEMORY`] in MiB of a compile from nothing in a child process.
fn in_child(cluster: &Cluster) -> anyhow::Result<(f64, [f64; 2])> {
    let own = std::env::current_exe().context("this program has no path")?;
    let size = format!("{},{},{}", cluster.pods, cluster.policies, cluster.peers);
    let output = Command::new(own).args(["--compile", &size]).output().context("cannot start a child")?;
    anyhow::ensure!(output.status.success(), "the child: {}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).context("what the child says")?;
    let number = |key: &str| told[key].as_f64().with_context(|| format!("no {key} in {told}"));
    Ok((number("seconds")?, [number(MEMORY[0])?, number(MEMORY[1])?]))
}

/// What the child does: compiles a cluster of `PODS,POLICIES,PEERS` and prints what it took.
pub fn compile_alone(size: &str) -> anyhow::Result<()> {
    let numbers: Vec<u32> = size.split(',').map(str::parse).collect::<Result<_, _>>().context(size.to_owned())?;
    let [pods, policies, peers] = numbers[..] else { anyhow::bail!("{size:?} is not three numbers") };
    let before = memory_kib("VmRSS:")?;
    let cluster = Cluster { pods, policies, peers };
    let mut engine = Engine::new(NODE, 0);
    let begun = own_time()?;
    let mut making = Duration::ZERO;
    let mut objects = cluster.changes();
    // One object after the other, as a watch hands them over; making them is not the engine's work.
    let update = engine.apply(std::iter::from_fn(|| {
        let begun = own_time().ok()?;
        let object = objects.next();
        making += own_time().ok()?.saturating_sub(begun);
        object
    }));
    let seconds = own_time()?.saturating_sub(begun).saturating_sub(making).as_secs_f64();
    let most = memory_kib("VmHWM:")?.saturating_sub(before);
    anyhow::ensure!(update.changed && update.problems.is_empty(), "problems: {:?}", update.problems.first());
    drop(update);
    // SAFETY: reads counters.
    let held = unsafe { libc::mallinfo2() };
    let held = u64::try_from(held.uordblks + held.hblkhd)? / 1024;
    let mib = |kib: u64| kib / 1024;
    println!("{}", json!({ "seconds": seconds, "most": mib(most), "held": mib(held) }));
    drop(engine);
    Ok(())
}

/// Time that this thread has had a CPU for.
fn own_time() -> anyhow::Result<Duration> {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).context("the thread's clock")
}

fn memory_kib(line: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.split_whitespace().next()?.parse().ok());
    found.with_context(|| format!("/proc/self/status has no {line}"))
}
