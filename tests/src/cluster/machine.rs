//! A node that runs its own pods: containerd, runc and a kubelet, in namespaces of its own, beside the real kube-proxy.
//!
//! Invariant: nothing outside of the lab's directory, its namespaces and its cgroups is changed by what a machine does.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::output;
use super::cni::{point_to_point, port_mapping};
use super::{Cluster, Containers, Proxy, ProxyMode};
use crate::lab::{Mode, Node, Response, admin, hierarchies, until};

/// Longest wait for containerd, the images and the kubelet's first report.
const PATIENCE: Duration = Duration::from_mins(3);

/// What every pod's sandbox is made of.
const SANDBOX: &str = "localhost/reeve-pod:test";

/// As in the chart's values.
const AGENT_PORT: u16 = 9464;

/// The file that the runtime looks at for the network of pods.
const CONFLIST: &str = "10-lab.conflist";

/// What the first process of a machine is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The machine's name.
    pub name: String,
    /// The lab's directory, which is seen in the machine under the same path.
    pub lab: PathBuf,
    /// The machine's own, inside of it: `etc` lies over the host's `/etc`; `opt`, `lib` and `log` are `/opt`, `/var/lib`
    /// and `/var/log`.
    pub directory: PathBuf,
    /// Its cgroups, one in each hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// The folder of containerd and runc.
    pub runtime: PathBuf,
    /// The kubelet's program.
    pub kubelet: PathBuf,
    /// Archives to import before the kubelet starts.
    pub images: Vec<PathBuf>,
    /// After the kubelet's program.
    pub kubelet_arguments: Vec<String>,
}

/// A running machine; its processes end when it is dropped, and the rest with the lab.
pub struct Machine {
    node: Node,
    process: Mutex<Child>,
    directory: PathBuf,
    /// The conflist before anybody changed it.
    written: Vec<u8>,
    _proxy: Proxy,
}

impl Cluster {
    /// A node with containers, which the API server calls ready; it has the images that [`Containers`] names.
    pub fn machine(&self, name: &str) -> anyhow::Result<Machine> {
        let containers = Containers::find()?;
        let node = self.node(name, Mode::Routed)?;
        let directory = node.directory().join("machine");
        let at = |path: &str| directory.join(path);
        for path in ["etc/cni/net.d", "opt/cni/bin", "lib/kubelet", "log", "sysctls", "containerd"] {
            fs::create_dir_all(at(path)).with_context(|| format!("cannot make {}", at(path).display()))?;
        }
        for plugin in fs::read_dir(self.programs.plugins()).context("no CNI plugins")? {
            let plugin = plugin?;
            fs::copy(plugin.path(), at("opt/cni/bin").join(plugin.file_name())).context("cannot copy a plugin")?;
        }
        let mut conflist = point_to_point(&node)?;
        conflist["plugins"].as_array_mut().context("a list of plugins")?.push(port_mapping());
        let text = serde_json::to_string_pretty(&conflist)?;
        // As people write it, so that what is taken out again can be told from what was written anew.
        let written = format!("{text}\n\n");
        write(&at("etc/cni/net.d").join(CONFLIST), &written)?;
        write(&at("containerd.toml"), &runtime_settings(&directory, containers.programs()))?;
        write(&at("resolv.conf"), "")?;
        write(&at("kubelet.json"), &self.kubelet_settings(&node, &directory).to_string())?;
        let plan = Plan {
            name: name.to_owned(),
            lab: self.lab.directory().to_owned(),
            cgroups: node.cgroup_trees()?,
            runtime: containers.programs().to_owned(),
            kubelet: self.programs.path("kubelet"),
            images: containers.images().to_vec(),
            kubelet_arguments: vec![
                format!("--kubeconfig={}", self.keys.node_kubeconfig(name).display()),
                format!("--hostname-override={name}"),
                format!("--node-ip={},{}", node.v4(), node.v6()),
                format!("--config={}", at("kubelet.json").display()),
                "--root-dir=/var/lib/kubelet".to_owned(),
            ],
            directory: directory.clone(),
        };
        write(&at("plan.json"), &serde_json::to_string(&plan)?)?;
        let log = File::create(at("node.log")).context("cannot make a log")?;
        let mut command = Command::new(containers.node());
        command.arg(at("plan.json")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = node.spawn(&mut command)?;
        let proxy = self.start_proxy(&node, ProxyMode::Iptables)?;
        let machine =
            Machine { node, process: Mutex::new(process), directory, written: written.into_bytes(), _proxy: proxy };
        until("the node to be ready", PATIENCE, || {
            if let Some(status) = machine.process.lock().expect("nobody panics while it is held").try_wait()? {
                bail!("the node's first process ended ({status})");
            }
            let object = self.get(&["node", name])?;
            let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            let ready = |condition: &&Value| condition["type"] == "Ready" && condition["status"] == "True";
            Ok(conditions.into_iter().find(ready).map(drop))
        })
        .with_context(|| machine.log_ends())?;
        Ok(machine)
    }

    fn kubelet_settings(&self, node: &Node, directory: &Path) -> Value {
        let key = |end: &str| self.keys.path(&format!("node-{}.{end}", node.name()));
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.keys.path("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": key("crt"),
            "tlsPrivateKeyFile": key("key"),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": false,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "resolvConf": directory.join("resolv.conf"),
            "clusterDomain": "cluster.local",
            "clusterDNS": ["10.96.0.10"],
            "readOnlyPort": 0,
            // What the machine is short of is not the cluster's business.
            "evictionHard": { "nodefs.available": "0%", "imagefs.available": "0%", "memory.available": "0%" },
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "5s",
        })
    }
}

impl Machine {
    /// The lab's node that it is.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// A path of the machine as everybody else sees it.
    pub fn path(&self, path: &str) -> anyhow::Result<PathBuf> {
        let first =
            fs::read_to_string(self.directory.join("first")).context("the node's first process is not there")?;
        Ok(Path::new("/proc").join(first.trim()).join("root").join(path.trim_start_matches('/')))
    }

    /// The conflist of the network plugin.
    pub fn conflist(&self) -> anyhow::Result<Vec<u8>> {
        let path = self.path("/etc/cni/net.d")?.join(CONFLIST);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The same as it was before anybody changed it.
    pub fn written(&self) -> &[u8] {
        &self.written
    }

    /// What a program prints that runs in the machine's network.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let (program, arguments) = words.split_first().context("no program")?;
        self.node.netns().run(|| output(Command::new(program).args(arguments), None))?
    }

    /// Where its pods find the cgroup2 hierarchy.
    pub fn cgroup2(&self) -> anyhow::Result<PathBuf> {
        let all = hierarchies::hierarchies()?;
        let found = all.into_iter().find(|hierarchy| hierarchy.kind.0 == "cgroup2");
        Ok(found.context("no cgroup2 hierarchy is mounted")?.place)
    }

    /// Asks the agent's port on the node's address, as whoever scrapes it does.
    pub fn scrape(&self, path: &str) -> anyhow::Result<Response> {
        let address = SocketAddr::new(self.node.v4(), AGENT_PORT);
        let stream = self.node.netns().run(|| TcpStream::connect_timeout(&address, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        admin::request(stream, "GET", path)
    }

    /// What its programs said last.
    pub fn log_ends(&self) -> String {
        let end = |name: &str| {
            let log = fs::read_to_string(self.directory.join(name).with_extension("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("{name}'s log ends:\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        ["node", "containerd", "kubelet"].map(end).concat()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        // It may have ended already. What runs in the machine ends with it.
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// containerd's, as its version 2 reads them.
fn runtime_settings(directory: &Path, programs: &Path) -> String {
    let runtime = "plugins.'io.containerd.cri.v1.runtime'";
    format!(
        "version = 3\n\
         root = '{root}'\n\
         state = '/run/containerd'\n\
         [grpc]\n\
         address = '/run/containerd/containerd.sock'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\n\
         sandbox = '{SANDBOX}'\n\
         [{runtime}]\n\
         # Not every machine lets its root lower that.\n\
         restrict_oom_score_adj = true\n\
         [{runtime}.containerd]\n\
         default_runtime_name = 'runc'\n\
         [{runtime}.containerd.runtimes.runc]\n\
         runtime_type = 'io.containerd.runc.v2'\n\
         [{runtime}.containerd.runtimes.runc.options]\n\
         BinaryName = '{runc}'\n\
         SystemdCgroup = false\n\
         [{runtime}.cni]\n\
         conf_dir = '/etc/cni/net.d'\n\
         bin_dirs = ['/opt/cni/bin']\n",
        root = directory.join("containerd").display(),
        runc = programs.join("runc").display(),
    )
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
