//! The cluster of all tests, with the chart installed, and what a user asks of it by `kubectl`.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context;
use reeve_tests::cluster::{Cluster, Machine, Nodes};
use reeve_tests::lab::until;
use reeve_tests::require::{Capability, skip_unless};
use serde_json::{Value, json};

/// Longest wait for what kubelets and controllers do, one after the other.
pub(crate) const LONG: Duration = Duration::from_mins(3);

/// Where the chart is installed, and the release's name.
pub(crate) const SYSTEM: &str = "reeve-system";
pub(crate) const RELEASE: &str = "reeve";

/// The image of pods here.
pub(crate) const IMAGE: &str = "localhost/reeve-pod:test";

/// Starting one takes longer than a test; it goes with the last who has it.
static CITY: Mutex<Weak<City>> = Mutex::new(Weak::new());

/// There is one release, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Fields are dropped in this order: machines before the control plane.
pub(crate) struct City {
    pub(crate) machines: [Machine; 2],
    pub(crate) cluster: Cluster,
}

/// What a test has of the city: it alone, with the chart installed and a namespace of its own.
pub(crate) struct Stay {
    pub(crate) name: String,
    pub(crate) city: Arc<City>,
    _turn: MutexGuard<'static, ()>,
}

/// Whether the machine lacks something; says so.
#[track_caller]
pub(crate) fn skipped() -> bool {
    use Capability::{Bpf, Cgroup, Containers, Netns, Root};
    skip_unless(&[Root, Bpf, Netns, Cgroup, Containers])
}

fn city() -> Arc<City> {
    let mut shared = CITY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(city) = shared.upgrade() {
        return city;
    }
    let cluster = Cluster::start_for("daemonset", Nodes::Real).expect("a control plane");
    let machines = ["one", "two"].map(|name| cluster.machine(name).expect("a node"));
    let city = Arc::new(City { machines, cluster });
    *shared = Arc::downgrade(&city);
    city
}

impl Stay {
    /// The chart as docs/install.md says, all agents ready, and a namespace of this name.
    #[track_caller]
    pub(crate) fn new(name: &str) -> Self {
        let stay = Self::begin(name);
        stay.install(&[]);
        stay
    }

    /// The same without the chart, nor anything that it has left.
    #[track_caller]
    pub(crate) fn without_chart(name: &str) -> Self {
        let stay = Self::begin(name);
        stay.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found"]).expect("Helm");
        stay.is_gone();
        stay
    }

    #[track_caller]
    fn begin(name: &str) -> Self {
        // Taken before the turn: who waits for it keeps the cluster up.
        let city = city();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        city.cluster.namespace(name, &json!({ "stay": name })).expect("a namespace");
        Self { name: name.to_owned(), city, _turn: turn }
    }

    /// `helm upgrade --install` with these arguments, and the rollout awaited.
    #[track_caller]
    pub(crate) fn install(&self, arguments: &[&str]) {
        let chart = self.city.cluster.chart();
        let chart = chart.to_str().expect("text");
        let install = ["upgrade", "--install", RELEASE, chart, "--namespace", SYSTEM, "--create-namespace"];
        self.helm(&[&install, arguments].concat()).expect("Helm");
        self.rolled_out();
    }

    /// Has agents again after an uninstallation that did not end well: Helm upgrades no release whose uninstallation has begun.
    #[track_caller]
    pub(crate) fn roll_back(&self, revisions: usize) {
        let history = self.helm(&["history", RELEASE, "--namespace", SYSTEM, "--output", "json"]).expect("Helm");
        let history: Vec<Value> = serde_json::from_str(&history).expect("JSON");
        let to = history[history.len() - 1 - revisions]["revision"].to_string();
        self.helm(&["rollback", RELEASE, &to, "--namespace", SYSTEM]).expect("Helm");
        self.rolled_out();
    }

    pub(crate) fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let set = format!("node.cgroup={}", self.cgroup());
        let takes_values = arguments.first() == Some(&"upgrade");
        let values: &[&str] = if takes_values { &["--set", &set] } else { &[] };
        self.city.cluster.helm(&[arguments, values].concat())
    }

    /// `node.cgroup` of the chart's values: of cgroup v1, the mount of v2 is beside the others.
    pub(crate) fn cgroup(&self) -> String {
        self.city.machines[0].cgroup2().expect("a cgroup2 hierarchy").display().to_string()
    }

    /// Waits until the cluster has nothing of the release: the last pods are on their way out when whoever deletes them is done.
    #[track_caller]
    pub(crate) fn is_gone(&self) {
        until("nothing of the release to be left", LONG, || {
            let kinds = "all,roles,rolebindings,serviceaccounts";
            let left = self.city.cluster.kubectl(&["get", kinds, "-n", SYSTEM, "-o", "name"])?;
            Ok((!left.contains(RELEASE)).then_some(()))
        })
        .expect("nothing left");
    }

    /// Whether agents have their programs and maps on every node.
    #[track_caller]
    pub(crate) fn nodes_are_enforced(&self) {
        for machine in &self.city.machines {
            assert!(machine.path("/sys/fs/bpf/reeve/v1/maps").expect("a path").is_dir());
        }
    }

    /// Nothing of reeve is on any node, and what is not reeve's is there as it was.
    #[track_caller]
    pub(crate) fn nodes_are_as_before(&self) {
        for machine in &self.city.machines {
            let name = machine.node().name();
            let now = machine.conflist().expect("a conflist");
            let [now, before] = [&now, machine.written()].map(String::from_utf8_lossy);
            assert_eq!(now, before, "{name}: byte for byte");
            for gone in ["/sys/fs/bpf/reeve", "/opt/cni/bin/reeve-cni", "/var/lib/reeve/dictionary.jsonl"] {
                assert!(!machine.path(gone).expect("a path").exists(), "{name}: {gone} is left");
            }
            let pins = fs::read_dir(machine.path("/sys/fs/bpf").expect("a path")).expect("a bpffs");
            let names = pins.map(|pin| pin.expect("an entry").file_name().to_string_lossy().into_owned());
            // Two are the kernel's own in every bpffs.
            let left: Vec<String> =
                names.filter(|name| !["maps.debug", "progs.debug"].contains(&name.as_str())).collect();
            assert!(left.is_empty(), "{name}: pins are left: {left:?}");
            let tables = machine.run(&["nft", "list", "tables"]).expect("tables");
            assert!(tables.contains("kube-proxy") || tables.contains("nat"), "{name}: those of others: {tables}");
            assert!(!tables.contains("reeve"), "{name}: {tables}");
        }
    }

    /// Waits as a user does until every agent is new and ready.
    #[track_caller]
    pub(crate) fn rolled_out(&self) {
        let rollout = self.city.cluster.kubectl(&[
            "rollout",
            "status",
            "daemonset/reeve",
            "--namespace",
            SYSTEM,
            "--timeout=180s",
        ]);
        if let Err(error) = rollout {
            let told = self.city.cluster.kubectl(&["describe", "pods", "-n", SYSTEM]).unwrap_or_default();
            let logs = self.city.cluster.kubectl(&["logs", "-n", SYSTEM, "daemonset/reeve"]).unwrap_or_default();
            panic!("{error:#}\n{told}\n{logs}\n{}", self.city.machines[0].log_ends());
        }
    }

    /// The agents' pods, by the names of their nodes.
    pub(crate) fn agents(&self) -> Vec<(String, String)> {
        let list = self.city.cluster.get(&["pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=reeve"]).expect("pods");
        let pods = list["items"].as_array().expect("a list").iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut all: Vec<_> =
            pods.map(|pod| (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["name"]))).collect();
        all.sort();
        all
    }

    /// A Deployment of one pod on a node, with arguments for its program.
    pub(crate) fn deploy(&self, name: &str, node: &str, arguments: &[&str]) {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "namespace": self.name, "name": name },
            "spec": {
                "selector": { "matchLabels": { "app": name } },
                "template": {
                    "metadata": { "labels": { "app": name } },
                    "spec": {
                        "nodeName": node,
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{ "name": "main", "image": IMAGE, "args": arguments }],
                    },
                },
            },
        });
        self.city.cluster.apply(&[object]).expect("a deployment");
    }

    /// The pod of a Deployment, once it runs: its name and its address.
    #[track_caller]
    pub(crate) fn running(&self, deployment: &str) -> (String, String) {
        let mut last = Value::Null;
        let label = format!("app={deployment}");
        let found = until("a pod to run", LONG, || {
            last = self.city.cluster.get(&["pods", "-n", &self.name, "-l", &label])?;
            let pod = &last["items"][0];
            let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
            let ready = ready.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
            let text = |value: &Value| value.as_str().map(str::to_owned);
            Ok(text(&pod["metadata"]["name"]).zip(text(&pod["status"]["podIP"])).filter(|_| ready))
        });
        let told = || self.city.cluster.kubectl(&["describe", "pods", "-n", &self.name]).unwrap_or_default();
        found
            .unwrap_or_else(|error| panic!("{deployment}: {error:#}\n{}\n{}", told(), self.city.machines[0].log_ends()))
    }

    /// One request from a pod by `kubectl exec`: the answer's body, or what the client says of its failure.
    pub(crate) fn ask(&self, pod: &str, to: &str) -> Result<String, String> {
        let to = format!("{to}:8080");
        let asked = self.city.cluster.kubectl(&["exec", "-n", &self.name, pod, "--", "/reeve-pod", "get", &to]);
        asked.map(|body| body.trim().to_owned()).map_err(|error| format!("{error:#}"))
    }

    /// Waits until a request gets an answer, or none any more.
    #[track_caller]
    pub(crate) fn becomes(&self, pod: &str, to: &str, answered: bool) {
        let mut last = None;
        let reached = until("a verdict", LONG, || {
            let got = self.ask(pod, to);
            let good = got.is_ok() == answered;
            last = Some(got);
            Ok(good.then_some(()))
        });
        assert!(reached.is_ok(), "{pod} to {to}: {last:?}");
    }

    /// Nobody reaches pods of this name but those of that one.
    pub(crate) fn lets_in(&self, policy: &str, pod: &str, from: &str) {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": policy, "namespace": self.name },
            "spec": {
                "podSelector": { "matchLabels": { "app": pod } },
                "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": from } } }] }],
            },
        });
        self.city.cluster.apply(&[object]).expect("a policy");
    }

    /// Waits for a record in the log of a node's agent.
    #[track_caller]
    pub(crate) fn record(&self, node: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let agents = self.agents();
        let (_, agent) = agents.iter().find(|(of, _)| of == node).expect("an agent");
        let mut count = 0;
        let found = until("a record", LONG, || {
            let log = self.city.cluster.kubectl(&["logs", "-n", SYSTEM, agent]).context("no log")?;
            // The agent's own log is among them.
            let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let all: Vec<Value> = records.collect();
            count = all.len();
            Ok(all.into_iter().find(|record| wanted(record)))
        });
        found.unwrap_or_else(|error| panic!("{error:#}; {count} others came"))
    }
}
