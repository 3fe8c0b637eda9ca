//! What a test has of the cluster: a node with an agent and a namespace of its own, and the control plane of all.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use reeve_tests::cluster::{Chain, Cluster, point_to_point};
use reeve_tests::lab::cni::plugin_program;
use reeve_tests::lab::{Agent, AgentOptions, Facts, Mode, Node, Pod, PodSpec, Records, until};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::stage::{RECORD_PATIENCE, get};
use reeve_tests::traffic::{NoAnswer, Server};
use serde_json::{Value, json};

/// Longest wait for what an agent does of itself: it asks a server that was away again after half a minute, at most.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// Long enough for a first packet that has to resolve addresses on the way, on a machine with other work.
pub(crate) const GENEROUS: Duration = Duration::from_secs(3);

/// The kind of the policies that every API server has, as agents name it.
pub(crate) const POLICIES: &str = "networkpolicies.networking.k8s.io";

/// Starting one takes longer than most tests; it goes with the last who has it.
static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// Taken alone by those who break what others need.
static TURN: RwLock<()> = RwLock::new(());

/// Whether others may use the control plane at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    Shared,
    Alone,
}

enum Turn {
    Shared(#[allow(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[allow(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

/// Fields are dropped in this order: the agent first, the right to be there last.
pub(crate) struct Town {
    agent: Option<Agent>,
    records: Option<Records>,
    servers: Vec<Server>,
    pub(crate) node: Node,
    pub(crate) cluster: Arc<Cluster>,
    /// Its namespace, and the name of its node and of its agent's service account.
    pub(crate) name: String,
    _turn: Turn,
}

/// Whether the machine lacks something; says so.
#[track_caller]
pub(crate) fn skipped() -> bool {
    use Capability::{Agent, Bpf, Cgroup, Kubernetes, Netns, Root};
    skip_unless(&[Root, Bpf, Netns, Cgroup, Agent, Kubernetes])
}

/// The same for tests that start no agent.
#[track_caller]
pub(crate) fn skipped_without_agent() -> bool {
    use Capability::{Cgroup, Kubernetes, Nat, Netns, Root};
    skip_unless(&[Root, Netns, Cgroup, Nat, Kubernetes])
}

/// Whether a record tells of a judgement at this end, and not of what became of a flow later.
pub(crate) fn is_judged(line: &Value, direction: &str) -> bool {
    line["direction"] == direction && (line["event"] == "opened" || line["event"] == "denied")
}

fn cluster() -> Arc<Cluster> {
    let mut shared = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = shared.upgrade() {
        return cluster;
    }
    let cluster = Arc::new(Cluster::start("cluster").expect("a control plane"));
    *shared = Arc::downgrade(&cluster);
    cluster
}

impl Town {
    /// A node and a namespace of this name.
    #[track_caller]
    pub(crate) fn new(name: &str, company: Company) -> Self {
        // Taken before the turn: who waits for it keeps the control plane up.
        let cluster = cluster();
        let turn = match company {
            Company::Shared => Turn::Shared(TURN.read().unwrap_or_else(PoisonError::into_inner)),
            Company::Alone => Turn::Alone(TURN.write().unwrap_or_else(PoisonError::into_inner)),
        };
        // The one before may have failed while it was away.
        if !cluster.is_running().expect("a process") {
            cluster.spawn_api_server().expect("an API server");
        }
        cluster.wait_ready().expect("an API server");
        cluster.namespace(name, &json!({ "town": name })).expect("a namespace");
        let node = cluster.node(name, Mode::Routed).expect("a node");
        Self { agent: None, records: None, servers: Vec::new(), node, cluster, name: name.to_owned(), _turn: turn }
    }

    /// A pod that serves TCP on port 8080.
    #[track_caller]
    pub(crate) fn pod(&mut self, name: &str) -> Pod {
        let spec = PodSpec::new(&self.name, name).label("app", name);
        let pod = self.cluster.pod(&self.node, spec).expect("a pod");
        self.servers.push(Server::tcp(pod.netns(), pod.v4(), 8080).expect("a TCP server"));
        pod
    }

    /// Nobody reaches pods of this name any more.
    pub(crate) fn close(&self, pod: &str, policy: &str) {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": policy, "namespace": self.name },
            "spec": { "podSelector": { "matchLabels": { "app": pod } }, "policyTypes": ["Ingress"] },
        });
        self.cluster.apply(&[object]).expect("a policy");
    }

    /// The end of [`Town::close`].
    pub(crate) fn open(&self, policy: &str) {
        self.cluster.delete(&["networkpolicy", policy, "-n", &self.name]).expect("deleted");
    }

    /// A kubeconfig with a new token of the agent's service account.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig(&self.name, &self.name).expect("a kubeconfig")
    }

    /// Starts an agent that has what the chart grants, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.cluster.grant(&self.name, &self.name).expect("rights");
        self.spawn();
        self.agent().wait_ready().expect("an agent that is ready");
    }

    /// Grants what the chart grants, but for NetworkPolicies.
    pub(crate) fn grant_all_but_policies(&self) {
        let mut objects = self.cluster.rights(&self.name, &self.name).expect("rights");
        let role = objects.iter_mut().find(|object| object["kind"] == "ClusterRole").expect("a role");
        let of_policies = |rule: &Value| rule["apiGroups"] == json!(["networking.k8s.io"]);
        role["rules"].as_array_mut().expect("rules").retain(|rule| !of_policies(rule));
        self.cluster.apply(&objects).expect("rights without policies");
    }

    /// Starts an agent and waits for nothing.
    #[track_caller]
    pub(crate) fn spawn(&mut self) {
        self.spawn_with(AgentOptions { facts: Facts::Kubeconfig(self.kubeconfig()), ..AgentOptions::default() });
    }

    /// The same in another way.
    #[track_caller]
    pub(crate) fn spawn_with(&mut self, options: AgentOptions) {
        let agent = self.node.spawn_agent(options).expect("an agent");
        self.records = Some(agent.records());
        self.agent = Some(agent);
    }

    /// Another node.
    #[track_caller]
    pub(crate) fn another_node(&self, suffix: &str) -> Node {
        self.cluster.node(&format!("{}-{suffix}", self.name), Mode::Routed).expect("a node")
    }

    /// An agent of another node, which is ready; rights are granted by [`Town::start`].
    #[track_caller]
    pub(crate) fn agent_of(&self, node: &Node) -> Agent {
        let facts = Facts::Kubeconfig(self.kubeconfig());
        node.start_agent(AgentOptions { facts, ..AgentOptions::default() }).expect("an agent that is ready")
    }

    /// The chain of `ptp` on a node, with the agent's plugin behind: its pods are enforced when they start.
    #[track_caller]
    pub(crate) fn enforced_chain(&self, node: &Node) -> Chain {
        self.enforced(node, point_to_point(node).expect("a conflist"))
    }

    /// The same with fewer addresses: the last of each family ends so.
    #[track_caller]
    pub(crate) fn enforced_chain_ending_at(&self, node: &Node, last: [&str; 2]) -> Chain {
        let mut conflist = point_to_point(node).expect("a conflist");
        for (family, (last, separator)) in last.into_iter().zip(['.', ':']).enumerate() {
            let range = &mut conflist["plugins"][0]["ipam"]["ranges"][family][0];
            let first =
                range["rangeStart"].as_str().and_then(|first| first.rsplit_once(separator)).expect("an address");
            range["rangeEnd"] = json!(format!("{}{separator}{last}", first.0));
        }
        self.enforced(node, conflist)
    }

    #[track_caller]
    fn enforced(&self, node: &Node, conflist: Value) -> Chain {
        let plugins = self.cluster.programs().plugins();
        let plugin = plugin_program().expect("the agent's plugin");
        let chain = Chain::of(conflist, &[&plugins]).expect("a chain");
        let ours = json!({ "type": "reeve-cni", "socket": node.run_directory().join("cni.sock") });
        chain.then(ours).folder(plugin.parent().expect("it is in a folder"))
    }

    /// Lets only these peers reach pods of this name, by the policy `into-NAME`; these agents' kernels have it.
    #[track_caller]
    pub(crate) fn let_in(&self, pod: &str, peers: &[Value], agents: &[&Agent]) {
        let spec = json!({
            "podSelector": { "matchLabels": { "app": pod } }, "policyTypes": ["Ingress"], "ingress": [{ "from": peers }],
        });
        self.enforce(&format!("into-{pod}"), &spec, agents);
    }

    /// Makes or changes a policy, and waits until the kernel of each of these agents has it as it is now.
    #[track_caller]
    pub(crate) fn enforce(&self, policy: &str, spec: &Value, agents: &[&Agent]) {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": policy, "namespace": self.name }, "spec": spec,
        });
        self.cluster.apply(&[object]).expect("a policy");
        self.in_force(policy, agents);
    }

    /// Waits until the kernel of each of these agents has a policy as it is now; that policy.
    #[track_caller]
    pub(crate) fn in_force(&self, policy: &str, agents: &[&Agent]) -> Value {
        let object = self.cluster.get(&["networkpolicy", policy, "-n", &self.name]).expect("a policy");
        Self::active(&object, agents);
        object
    }

    /// Waits until the kernel of each of these agents has this version of a policy.
    #[track_caller]
    pub(crate) fn active(object: &Value, agents: &[&Agent]) {
        let (uid, generation) = (&object["metadata"]["uid"], &object["metadata"]["generation"]);
        for agent in agents {
            let active = until("the policy to be in force", LONG, || {
                let all = agent.request("GET", "/policies")?.json()?;
                let is = |one: &Value| one["uid"] == *uid && one["generation"] == *generation;
                let found = all.as_array().into_iter().flatten().find(|one| is(one)).cloned().unwrap_or_default();
                Ok(found["activeAt"].is_string().then_some(()))
            });
            active.unwrap_or_else(|error| panic!("{error:#}: {object}; the agent's log:\n{}", agent.log()));
        }
    }

    pub(crate) fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("the agent was started")
    }

    /// The agent, to be asked.
    pub(crate) fn own(&self) -> &Agent {
        self.agent.as_ref().expect("the agent was started")
    }

    /// Waits until the agent gives this among its reasons not to be ready.
    #[track_caller]
    pub(crate) fn becomes_unready(&mut self, because: &str) {
        let mut last = String::new();
        let agent = self.agent();
        let told = until("the agent not to be ready", LONG, || {
            // Its socket may not be there yet.
            let Ok(answer) = agent.request("GET", "/readyz") else { return Ok(None) };
            last = format!("{} {}", answer.status, answer.body);
            Ok((answer.status == 503 && answer.body.contains(because)).then_some(()))
        });
        assert!(told.is_ok(), "{because} is not in {last}; the agent's log:\n{}", agent.log());
    }

    /// Waits until a connection is denied, and a record names the policy that does it.
    #[track_caller]
    pub(crate) fn becomes_denied(&mut self, from: &Pod, to: &Pod, policy: &str) {
        self.becomes(from, to, Err(NoAnswer::TimedOut));
        self.records.as_mut().expect("the agent was started").rest().expect("records");
        self.is_denied(from, to, policy);
    }

    /// A connection is denied, and a record names the policy that does it.
    #[track_caller]
    pub(crate) fn is_denied(&mut self, from: &Pod, to: &Pod, policy: &str) {
        assert_eq!(get(from, to), Err(NoAnswer::TimedOut));
        let names = |record: &Value| {
            record["verdict"] == "deny"
                && record["destination"].to_string().contains(to.name().1)
                && record["decision"].to_string().contains(policy)
        };
        let records = self.records.as_mut().expect("the agent was started");
        records.wait_for(RECORD_PATIENCE, names).unwrap_or_else(|error| panic!("no record names {policy}: {error:#}"));
    }

    /// Waits until a connection passes.
    #[track_caller]
    pub(crate) fn becomes_allowed(&mut self, from: &Pod, to: &Pod) {
        self.becomes(from, to, Ok(()));
    }

    #[track_caller]
    fn becomes(&mut self, from: &Pod, to: &Pod, wanted: Result<(), NoAnswer>) {
        let mut last = None;
        let reached = until("a verdict", LONG, || {
            let got = get(from, to);
            last = Some(got);
            Ok((got == wanted).then_some(()))
        });
        assert!(reached.is_ok(), "{last:?} instead of {wanted:?}; the agent's log:\n{}", self.agent().log());
    }

    /// Waits until a metric of this kind's watch is what it should be.
    #[track_caller]
    pub(crate) fn measures(&mut self, name: &str, kind: &str, good: impl Fn(f64) -> bool) -> f64 {
        let mut last = f64::NAN;
        let agent = self.agent();
        let reached = until("a metric", LONG, || {
            last = agent.metric(name, &[("kind", kind)])?;
            Ok(good(last).then_some(()))
        });
        assert!(reached.is_ok(), "{name} of {kind} is {last}; the agent's log:\n{}", agent.log());
        last
    }
}
