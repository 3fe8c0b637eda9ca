//! How soon the kernel enforces what the API server has answered: real API server, real watch, packets that are judged.
//!
//! A pod sends to another all the time. What is timed is the moment at which the last packet passed that should not have,
//! or at which the first one passed that should, counted from the API server's answer to the change.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::Sheet;
use super::agent::mib;
use super::measure::{Measure, Target};
use crate::cluster::{Administrator, Cluster};
use crate::lab::cni::{Chain, Container};
use crate::lab::{Agent, AgentOptions, Facts, Mode, Node, Pod, PodSpec, until};

/// Pods that the agent knows, in the order in which they come.
const KNOWN: [u32; 3] = [100, 1_000, 10_000];
/// Policies that are there beside the one that changes.
const POLICIES: u32 = 100;
/// Pods of a node that has no agent.
const PER_NODE: u32 = 100;
/// Changes of each kind.
const CHANGES: u32 = 100;
/// Pods that come one by one, and together.
const NEW: usize = 20;
/// Between two packets: what a moment is told to.
const PACE: Duration = Duration::from_micros(250);
/// So long nothing has to pass for nothing to pass any more.
const SILENCE: Duration = Duration::from_millis(60);
/// Longest wait for a verdict to change, and for pods to be known.
const PATIENCE: Duration = Duration::from_secs(30);
const KNOWN_PATIENCE: Duration = Duration::from_mins(3);
/// The lab's chain is one of this namespace.
const NAMESPACE: &str = "shop";

/// All of them.
pub fn measures() -> Vec<Measure> {
    let mut all = Vec::new();
    let at_most = |bound| Some(Target::AtMost(bound));
    for known in KNOWN {
        let target = if known == 10_000 { at_most(50.0) } else { None };
        for (what, how) in [
            ("policy", "a policy is patched: from the API server's answer until a live flow's verdict has changed"),
            ("label", "a pod is relabelled: from the API server's answer until a live flow's verdict has changed"),
            (
                "pod",
                "a pod is created and the CNI plugin called at once: from the API server's answer until ADD returns",
            ),
        ] {
            all.push(Measure::new(format!("propagation/{what}-{known}"), "ms", format!("{how}; {known} pods known")));
            let most = if what == "pod" { "the slowest of 20" } else { "99 of 100 took no longer" };
            let mut worst = Measure::new(format!("propagation/{what}-{known}-p99"), "ms", format!("the same, {most}"));
            worst.target = if what == "pod" { None } else { target };
            all.push(worst);
        }
        all.push(Measure::new(
            format!("propagation/memory-{known}"),
            "MiB",
            format!("resident memory of the agent; {known} pods known, {POLICIES} policies"),
        ));
        for (what, how, bound) in [
            ("add", "ADD of reeve-cni for a pod that the agent knows, after that of ptp, one at a time", at_most(40.0)),
            ("add-p99", "the same, the slowest of 20", at_most(100.0)),
            ("chain", "the ADDs of ptp and of reeve-cni behind it", None),
            ("chain-ptp", "that of ptp of these two", None),
            ("add-20", "20 such chains at once: the slowest ADD of reeve-cni", at_most(1_000.0)),
            ("chain-20", "the same, until the last chain has ended", None),
        ] {
            let mut measure =
                Measure::new(format!("propagation/{what}-{known}"), "ms", format!("{how}; {known} pods known"));
            measure.target = bound;
            all.push(measure);
        }
    }
    all
}

/// Measures what is wanted.
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let cluster = Cluster::start("bench-spread")?;
    cluster.namespace(NAMESPACE, &json!({}))?;
    let node = cluster.node("spread", Mode::Routed)?;
    cluster.grant(NAMESPACE, "agent")?;
    let web = cluster.pod(&node, PodSpec::new(NAMESPACE, "web").label("app", "web"))?;
    let client = cluster.pod(&node, PodSpec::new(NAMESPACE, "client").label("role", "client"))?;
    cluster.apply(&(0..POLICIES).map(bystander).chain([policy("client")]).collect::<Vec<_>>())?;
    let facts = Facts::Kubeconfig(cluster.kubeconfig(NAMESPACE, "agent")?);
    let agent = node.start_agent(AgentOptions { facts, ..AgentOptions::default() })?;
    let mut bench = Bench { chain: Chain::ptp(&node, "1.0.0"), node, agent, web, client, pods: 0, far: 0 };
    cluster.ask(|administrator| {
        for known in KNOWN {
            let ending = format!("-{known}");
            if measures().iter().any(|one| sheet.wants(&one.name) && one.name.replace("-p99", "").ends_with(&ending)) {
                bench.grow(&cluster, administrator, known)?;
                bench.measure(sheet, administrator, known)?;
            }
        }
        Ok(())
    })
}

struct Bench {
    chain: Chain,
    node: Node,
    agent: Agent,
    web: Pod,
    client: Pod,
    /// Pods that came by the plugin so far.
    pods: usize,
    /// Pods of other nodes so far.
    far: u32,
}

impl Bench {
    /// More pods on nodes that are elsewhere, until there are so many, and the agent knows them.
    fn grow(&mut self, cluster: &Cluster, administrator: &Administrator, known: u32) -> anyhow::Result<()> {
        let nodes: Vec<Value> = (self.far.div_ceil(PER_NODE)..known.div_ceil(PER_NODE)).map(far_node).collect();
        if !nodes.is_empty() {
            cluster.apply(&nodes)?;
        }
        administrator.create_running(NAMESPACE, (self.far..known).map(far_pod).collect())?;
        self.far = known;
        let agent = &mut self.agent;
        let all = until("the agent to know all pods", KNOWN_PATIENCE, || {
            let objects = agent.metric("reeve_watch_objects", &[("kind", "pods")])?;
            Ok((objects >= f64::from(known)).then_some(()))
        });
        all?;
        agent.wait_ready()
    }

    fn measure(&mut self, sheet: &mut Sheet<'_>, administrator: &Administrator, known: u32) -> anyhow::Result<()> {
        sheet.put(&format!("propagation/memory-{known}"), vec![mib(self.agent.resident_bytes()?)]);
        let policy = |role: &str| {
            administrator.patch_policy(NAMESPACE, "web-clients", &json!({ "spec": policy(role)["spec"] })).map(drop)
        };
        let label = |role: &str| {
            administrator.patch_pod(NAMESPACE, "client", &json!({ "metadata": { "labels": { "role": role } } }))
        };
        for (what, change) in [("policy", &policy as &dyn Fn(&str) -> anyhow::Result<()>), ("label", &label)] {
            if sheet.wants_any(&format!("propagation/{what}-{known}")) {
                let taken = self.changes(change).with_context(|| format!("{what}, {known} pods known"))?;
                put(sheet, &format!("propagation/{what}-{known}"), taken);
            }
        }
        if sheet.wants_any("propagation/pod-") || sheet.wants_any("propagation/add-") {
            self.newcomers(sheet, administrator, known)?;
        }
        Ok(())
    }

    /// Closes and opens the way again and again; ms until each took effect.
    fn changes(&self, change: &dyn Fn(&str) -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
        let stream = Stream::start(&self.client, &self.web)?;
        stream.passes_since(Instant::now())?;
        let mut taken = Vec::new();
        for nth in 0..CHANGES {
            let closes = nth % 2 == 0;
            change(if closes { "nobody" } else { "client" })?;
            let answered = Instant::now();
            let at = if closes { stream.ends()? } else { stream.passes_since(answered)? };
            taken.push(at.saturating_duration_since(answered).as_secs_f64() * 1e3);
        }
        stream.stop()?;
        Ok(taken)
    }

    fn newcomers(&mut self, sheet: &mut Sheet<'_>, administrator: &Administrator, known: u32) -> anyhow::Result<()> {
        let mut created = Vec::new();
        for _ in 0..NEW {
            let mut container = self.container()?;
            let made = self.chain.make(&container)?;
            container.uid = administrator.create_pod(NAMESPACE, &self.object(&container))?;
            let answered = Instant::now();
            let said = self.chain.announce(&container, &made)?;
            anyhow::ensure!(said.succeeded, "ADD says {}", said.output);
            created.push(answered.elapsed().as_secs_f64() * 1e3);
            self.end(administrator, &container)?;
        }
        put(sheet, &format!("propagation/pod-{known}"), created);
        let (mut added, mut first, mut chained) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..NEW {
            let container = self.known_container(administrator)?;
            let took = chain(&self.chain, &container)?;
            added.push(took.ours);
            first.push(took.first);
            chained.push(took.first + took.ours);
            self.end(administrator, &container)?;
        }
        let worst = percentile(&mut added, 99);
        sheet.put(&format!("propagation/add-{known}"), added);
        sheet.put(&format!("propagation/add-p99-{known}"), vec![worst]);
        sheet.put(&format!("propagation/chain-{known}"), chained);
        sheet.put(&format!("propagation/chain-ptp-{known}"), first);
        let together =
            (0..NEW).map(|_| self.known_container(administrator)).collect::<anyhow::Result<Vec<Container>>>()?;
        let begun = Instant::now();
        let slowest = std::thread::scope(|scope| {
            let chained: Vec<_> =
                together.iter().map(|container| scope.spawn(|| chain(&self.chain, container))).collect();
            chained.into_iter().try_fold(0.0, |slowest: f64, one| {
                let took = one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                anyhow::Ok(slowest.max(took.ours))
            })
        })?;
        sheet.put(&format!("propagation/add-20-{known}"), vec![slowest]);
        sheet.put(&format!("propagation/chain-20-{known}"), vec![begun.elapsed().as_secs_f64() * 1e3]);
        together.iter().try_for_each(|container| self.end(administrator, container))
    }

    /// One of a pod that the agent has heard of.
    fn known_container(&mut self, administrator: &Administrator) -> anyhow::Result<Container> {
        let mut container = self.container()?;
        container.uid = administrator.create_pod(NAMESPACE, &self.object(&container))?;
        self.knows(&container)?;
        Ok(container)
    }

    fn container(&mut self) -> anyhow::Result<Container> {
        self.pods += 1;
        self.chain.container(&format!("new-{}", self.pods))
    }

    /// Gives a pod's network back and deletes it: the next one takes its address.
    fn end(&self, administrator: &Administrator, container: &Container) -> anyhow::Result<()> {
        self.chain.del(container)?;
        administrator.delete_pod(NAMESPACE, &container.pod)
    }

    fn object(&self, container: &Container) -> Value {
        PodSpec::new(NAMESPACE, &container.pod).label("app", "web").object(self.node.name())
    }

    /// Waits until the agent has heard of a pod.
    fn knows(&self, container: &Container) -> anyhow::Result<()> {
        self.agent.heard_of(&container.uid)
    }
}

/// What the plugins of a chain took, in ms.
struct Took {
    first: f64,
    ours: f64,
}

/// One plugin after the other at once, as a runtime calls them.
fn chain(chain: &Chain, container: &Container) -> anyhow::Result<Took> {
    let begun = Instant::now();
    let made = chain.make(container)?;
    let first = begun.elapsed().as_secs_f64() * 1e3;
    let said = chain.announce(container, &made)?;
    anyhow::ensure!(said.succeeded, "ADD says {}", said.output);
    Ok(Took { first, ours: said.took.as_secs_f64() * 1e3 })
}

fn put(sheet: &mut Sheet<'_>, name: &str, mut taken: Vec<f64>) {
    let worst = percentile(&mut taken, 99);
    sheet.put(name, taken);
    sheet.put(&format!("{name}-p99"), vec![worst]);
}

/// The least figure that so many percent of them do not exceed.
fn percentile(taken: &mut [f64], percent: usize) -> f64 {
    taken.sort_by(f64::total_cmp);
    taken[(taken.len() * percent).div_ceil(100).saturating_sub(1)]
}

/// Packets that one pod sends another without end, on one flow.
struct Stream {
    stop: Arc<AtomicBool>,
    /// When each packet that came was sent.
    came: Arc<Mutex<Vec<Instant>>>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Stream {
    fn start(from: &Pod, to: &Pod) -> anyhow::Result<Self> {
        let address = SocketAddr::new(to.v4(), 9_000);
        let receiver = to.netns().run(|| UdpSocket::bind(address))??;
        receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
        let local = from.v4();
        let sender = from.netns().run(|| UdpSocket::bind((local, 0)))??;
        let (stop, came) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let epoch = Instant::now();
        let (ends, heard) = (Arc::clone(&stop), Arc::clone(&came));
        let receiving = std::thread::spawn(move || -> anyhow::Result<()> {
            let mut buffer = [0; 8];
            while !ends.load(Ordering::Relaxed) {
                match receiver.recv(&mut buffer) {
                    Ok(8) => {
                        let sent = epoch + Duration::from_nanos(u64::from_ne_bytes(buffer));
                        heard.lock().expect("nobody panics while it holds this").push(sent);
                    }
                    Ok(length) => anyhow::bail!("{length} bytes came instead of 8"),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        });
        let ends = Arc::clone(&stop);
        let sending = std::thread::spawn(move || -> anyhow::Result<()> {
            while !ends.load(Ordering::Relaxed) {
                let now = u64::try_from(epoch.elapsed().as_nanos())?;
                sender.send_to(&now.to_ne_bytes(), address)?;
                std::thread::sleep(PACE); // the pace is the resolution
            }
            Ok(())
        });
        Ok(Self { stop, came, threads: vec![receiving, sending] })
    }

    fn last(&self) -> Option<Instant> {
        self.came.lock().expect("nobody panics while it holds this").last().copied()
    }

    /// When the last packet was sent that came, once none has come for a while.
    fn ends(&self) -> anyhow::Result<Instant> {
        until("the way to be closed", PATIENCE, || Ok(self.last().filter(|last| last.elapsed() > SILENCE)))
    }

    /// When the first packet was sent that came, of those that were sent after the way had been closed.
    fn passes_since(&self, since: Instant) -> anyhow::Result<Instant> {
        let first = || {
            let came = self.came.lock().expect("nobody panics while it holds this");
            // The way opens between two answers at the earliest: what came before was sent long before.
            came.iter().rev().take_while(|sent| **sent + SILENCE / 2 > since).last().copied()
        };
        until("the way to be open", PATIENCE, || Ok(first()))
    }

    fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }
}

/// Lets pods of this role send to `web`, and nobody else.
fn policy(role: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "web-clients", "namespace": NAMESPACE },
        "spec": { "podSelector": { "matchLabels": { "app": "web" } },
                  "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": role } } }] }] },
    })
}

/// One that concerns pods of other nodes, and whom they let in.
fn bystander(number: u32) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": format!("street-{number}"), "namespace": NAMESPACE },
        "spec": { "podSelector": { "matchLabels": { "street": format!("street-{number}") } },
                  "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "street": format!("street-{}", (number + 1) % POLICIES) } } }] }] },
    })
}

fn far_node(number: u32) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("far-{number}") } })
}

/// A pod of another node, and its status.
fn far_pod(number: u32) -> (Value, Value) {
    let street = format!("street-{}", number % POLICIES);
    let pod = PodSpec::new(NAMESPACE, &format!("far-{number}")).label("street", &street);
    let address = format!("10.{}.{}.{}", 200 + number / 60_000, number / 250 % 240, number % 250 + 1);
    let status = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
    (pod.object(&format!("far-{}", number / PER_NODE)), status)
}
