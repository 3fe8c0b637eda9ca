//! The agent as a process of a node: started, asked, stopped and killed as an operator would.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::Value;

use super::admin::{self, Response};
use super::records::Records;
use super::{Node, metrics, wait};

/// Longest time for anything the agent answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest time until it is ready: the verifier reads its programs first, which takes long on a busy machine.
const START_PATIENCE: Duration = Duration::from_mins(1);

/// Longest time until it has ended: it tells what it has counted first.
const END_PATIENCE: Duration = Duration::from_mins(1);

const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Where an agent has its facts from.
#[derive(Clone, Debug, Default)]
pub enum Facts {
    /// The node's directory of manifests.
    #[default]
    Manifests,
    /// The API server that this kubeconfig leads to.
    Kubeconfig(PathBuf),
}

/// All that an agent may do, as the DaemonSet grants it.
const GRANTED: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN).union(CapabilitySet::PERFMON);

/// How to start an agent.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Where it has its facts from.
    pub facts: Facts,
    /// After those that name the node's directories.
    pub arguments: Vec<String>,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
    /// A program with its arguments that starts the agent's, which comes last, with all that this process may do; empty:
    /// it is started as it is, with what the DaemonSet grants.
    pub through: Vec<String>,
    /// Another build of the program than the one at hand.
    pub program: Option<PathBuf>,
}

/// A running agent; killed when dropped, what it pinned stays until the lab goes.
pub struct Agent {
    node: Node,
    options: AgentOptions,
    child: Child,
}

/// Where the agent's program is: `REEVE_AGENT`, else where cargo leaves it beside the running test.
pub fn agent_program() -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os("REEVE_AGENT").map(PathBuf::from) {
        return if path.is_file() { Ok(path) } else { bail!("REEVE_AGENT names no file: {}", path.display()) };
    }
    let here = env::current_exe().context("this program has no path")?;
    let found = here.ancestors().skip(1).take(2).map(|directory| directory.join("reeve-agent")).find(|p| p.is_file());
    found.context("reeve-agent is not built: `cargo xtask build` does it, or set REEVE_AGENT")
}

impl Agent {
    pub(super) fn spawn(node: &Node, options: AgentOptions) -> anyhow::Result<Self> {
        let child = spawn(node, &options)?;
        Ok(Self { node: node.clone(), options, child })
    }

    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `GET /readyz` answers 200; fails at once if the process ends.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.wait_ready_within(START_PATIENCE)
    }

    /// The same, where there is more to do than usual.
    pub fn wait_ready_within(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut last = String::from("its socket is not there");
        let node = self.node.clone();
        let ready = wait::until("the agent to be ready", patience, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended before it was ready ({status})");
            }
            match get(&node, "GET", "/readyz") {
                Ok(response) if response.status == 200 => return Ok(Some(())),
                Ok(response) => last = format!("{} {}", response.status, response.body.trim()),
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        });
        ready.with_context(|| format!("last answer: {last}\nits log ends:\n{}", self.log_end()))
    }

    /// A request to the admin socket, such as `("GET", "/status")`.
    pub fn request(&self, method: &str, path: &str) -> anyhow::Result<Response> {
        get(&self.node, method, path).with_context(|| format!("the agent's log ends:\n{}", self.log_end()))
    }

    /// What `GET /status` says.
    pub fn status(&self) -> anyhow::Result<Value> {
        self.request("GET", "/status")?.json()
    }

    /// Makes the agent read its manifests now and returns the revision that the kernel enforces from then on.
    pub fn settled(&self) -> anyhow::Result<u64> {
        let answer = self.request("POST", "/sync")?.json()?;
        answer["revision"].as_u64().with_context(|| format!("no revision in {answer}"))
    }

    /// Waits until the facts that its kernel goes by name this, such as a pod's UID.
    pub fn heard_of(&self, what: &str) -> anyhow::Result<()> {
        wait::until("the agent to have heard of it", PATIENCE, || {
            Ok(self.request("GET", "/world")?.body.contains(what).then_some(()))
        })
        .with_context(|| format!("it is {what}"))
    }

    /// The sum of a metric's samples that carry these labels; zero if there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        let stream = self.node.netns().run(|| TcpStream::connect_timeout(&METRICS, PATIENCE))?;
        let stream = stream.context("nobody listens where metrics should be")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        metrics::sum(&admin::request(stream, "GET", "/metrics")?.body, name, labels)
    }

    /// Its records from the beginning of the file, those of the agents before it on this node included.
    pub fn records(&self) -> Records {
        Records::from_start(&self.node.records_file())
    }

    /// What it wrote to its standard streams so far, those of the agents before it on this node included.
    pub fn log(&self) -> String {
        fs::read_to_string(log_file(&self.node)).unwrap_or_default()
    }

    /// Ends it without giving it a chance to do anything.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("cannot kill the agent")?;
        self.child.wait().context("cannot wait for the agent")?;
        Ok(())
    }

    /// Asks it to end, as Kubernetes does, and waits for that.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        let process = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("the agent has no number")?;
        kill_process(process, Signal::TERM).context("cannot signal the agent")?;
        wait::until("the agent to end", END_PATIENCE, || Ok(self.child.try_wait()?))
    }

    /// Starts it again with the same options, after it was killed or terminated, and waits until it is ready.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_none() {
            bail!("the agent still runs");
        }
        self.child = spawn(&self.node, &self.options)?;
        self.wait_ready()
    }

    /// Starts it again, and waits for nothing.
    pub fn spawn_again(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_none() {
            bail!("the agent still runs");
        }
        self.child = spawn(&self.node, &self.options)?;
        Ok(())
    }

    /// Its memory that is in use, in bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).context("the agent has ended")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes = line.split_whitespace().next().context("no number of kB")?;
        Ok(kilobytes.parse::<u64>().context("no number of kB")? * 1024)
    }

    /// Terminates it and starts it again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.terminate()?;
        self.start_again()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(node: &Node, options: &AgentOptions) -> anyhow::Result<Child> {
    // A socket of the agent before would answer nothing; without the file, "not there yet" is what is seen.
    let _ = fs::remove_file(node.run_directory().join("agent.sock"));
    let log = File::options().create(true).append(true).open(log_file(node)).context("cannot open the agent's log")?;
    let program = options.program.clone().map_or_else(agent_program, Ok)?;
    let mut command = match options.through.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    match &options.facts {
        Facts::Manifests => command.arg("--manifests").arg(node.manifests_directory()),
        Facts::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
    };
    command
        .args(["--node", node.name()])
        .arg("--bpffs")
        .arg(node.bpffs())
        .arg("--run-dir")
        .arg(node.run_directory())
        .arg("--state-dir")
        .arg(node.state_directory())
        .arg("--cgroup")
        .arg(node.cgroup())
        .arg("--records")
        .arg(node.records_file())
        .args(["--metrics-listen", &METRICS.to_string()])
        .args(&options.arguments)
        .envs(options.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // A program before it may need what an agent does not, such as to make a namespace.
    if options.through.is_empty() {
        // SAFETY: system calls only, and nothing of this process is touched.
        unsafe {
            command.pre_exec(|| {
                let others = CapabilitySet::all().difference(GRANTED);
                Ok(others.iter_names().try_for_each(|(_, one)| remove_capability_from_bounding_set(one))?)
            });
        }
    }
    node.spawn(&mut command)
}

fn get(node: &Node, method: &str, path: &str) -> anyhow::Result<Response> {
    let stream = UnixStream::connect(node.run_directory().join("agent.sock")).context("the admin socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    admin::request(stream, method, path)
}

fn log_file(node: &Node) -> PathBuf {
    node.run_directory().with_file_name("agent.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_grants_what_agents_have_in_the_lab_and_no_more() {
        let chart = include_str!("../../../deploy/helm/reeve/templates/daemonset.yaml");
        let names: Vec<&str> = GRANTED.iter_names().map(|(name, _)| name).collect();
        let mut granted: Vec<&str> = chart
            .lines()
            .find_map(|line| line.trim().strip_prefix("add: [")?.strip_suffix(']'))
            .expect("a line of capabilities")
            .split(", ")
            .collect();
        granted.sort_unstable_by_key(|name| names.iter().position(|known| known == name));
        assert_eq!(granted, names);
        assert!(chart.contains("drop: [ALL]"));
    }
}
