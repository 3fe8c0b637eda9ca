//! Pods that CNI plugins wire: the parts of scheduler, kubelet and container runtime, each with its own rights.
//!
//! Invariant: a pod is bound with the scheduler's rights and spoken of with its node's, so what RBAC, the Node authorizer
//! and NodeRestriction refuse to those is refused here.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::cni::{Chain, Sandbox};
use super::{Cluster, kubelet};
use crate::lab::{Netns, Node, until};

/// Longest wait until the Node authorizer has heard that a pod was bound.
const HEARSAY: Duration = Duration::from_secs(20);

/// Numbers for sandboxes: a pod that is made again has another one.
static SANDBOXES: AtomicU32 = AtomicU32::new(1);

/// A pod that was created through the API server and wired by plugins; it goes with [`Cluster::end_pod`] or with the lab.
pub struct WiredPod {
    netns: Netns,
    node: Node,
    chain: Chain,
    sandbox: Sandbox,
    result: Value,
    addresses: Vec<IpAddr>,
}

impl WiredPod {
    /// The pod's namespace; its interface is `eth0`.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The node it was bound to.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What plugins were told of it.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// What the last plugin said of its attachment.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Its addresses in the order of the plugins' result, as in `status.podIPs`.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Makes the network of a pod that the API server has, given with its UID: nobody is told of it yet.
    ///
    /// Where a plugin fails, what the others have made is taken back; the error is its [`CniError`](super::CniError).
    pub fn attach(node: &Node, chain: &Chain, made: &Value) -> anyhow::Result<Self> {
        let number = SANDBOXES.fetch_add(1, Ordering::Relaxed);
        let metadata = |field: &str| made["metadata"][field].as_str().unwrap_or_default().to_owned();
        let sandbox = Sandbox {
            namespace: metadata("namespace"),
            name: metadata("name"),
            uid: metadata("uid"),
            container: format!("sandbox{number:08}"),
            ports: host_ports(made),
        };
        let netns = node.sandbox(&format!("{}-{number}", sandbox.name))?;
        let result = match chain.add(node, &netns, &sandbox) {
            Ok(result) => result,
            Err(error) => {
                // A runtime takes back what it can, and tells why there is no pod rather than what is left of it.
                let _ = chain.delete(node, &netns, &sandbox, &Value::Null);
                return Err(error);
            }
        };
        let addresses = addresses(&result)?;
        Ok(Self { netns, node: node.clone(), chain: chain.clone(), sandbox, result, addresses })
    }

    /// Takes its network away.
    pub fn detach(&self) -> anyhow::Result<()> {
        self.chain.delete(&self.node, &self.netns, &self.sandbox, &self.result)
    }

    /// What its kubelet tells of it: it runs and is ready.
    pub fn status(&self) -> Value {
        kubelet::running(&self.node, &self.addresses)
    }

    /// Its address of a family.
    ///
    /// # Panics
    ///
    /// If the plugins gave it none.
    pub fn address(&self, v6: bool) -> IpAddr {
        let found = self.addresses.iter().find(|address| address.is_ipv6() == v6);
        *found.expect("the pod has an address of that family")
    }

    /// Asks the plugins whether the attachment is still as they made it.
    pub fn check(&self) -> anyhow::Result<()> {
        self.chain.check(&self.node, &self.netns, &self.sandbox, &self.result)
    }
}

impl Cluster {
    /// A pod by its object, which says nothing of a node: created, bound, wired by this chain, and told to run.
    ///
    /// Where a plugin fails, what the others have made is taken back; the error is its [`CniError`](super::CniError), and
    /// the pod stays bound and without address, as with any kubelet.
    pub fn run_pod(&self, node: &Node, chain: &Chain, pod: &Value) -> anyhow::Result<WiredPod> {
        let made = self.kubectl_with(&["create", "-f", "-", "-o", "json"], Some(&pod.to_string()))?;
        let made: Value = serde_json::from_str(&made).context("kubectl prints no JSON")?;
        self.bind(node, &made)?;
        let pod = WiredPod::attach(node, chain, &made)?;
        self.speak_of(&pod, made)?;
        Ok(pod)
    }

    /// Deletes a pod: it is marked by whoever wants it gone, detached, and removed by its node.
    pub fn end_pod(&self, pod: &WiredPod) -> anyhow::Result<()> {
        let Sandbox { namespace, name, .. } = &pod.sandbox;
        self.kubectl(&["delete", "pod", name, "-n", namespace, "--wait=false"])?;
        self.finish_pod(pod)
    }

    /// The kubelet's part of a deletion, once somebody has asked for it: detached, and removed by its node.
    pub fn finish_pod(&self, pod: &WiredPod) -> anyhow::Result<()> {
        let Sandbox { namespace, name, .. } = &pod.sandbox;
        pod.detach()?;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0");
        self.as_node(&pod.node, &["delete", "--raw", &path], None)
    }

    /// Says where a pod runs, as the scheduler.
    fn bind(&self, node: &Node, pod: &Value) -> anyhow::Result<()> {
        let metadata = &pod["metadata"];
        let (namespace, name) = (&metadata["namespace"], &metadata["name"]);
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": { "namespace": namespace, "name": name, "uid": metadata["uid"] },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node.name() },
        });
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/binding",
            namespace.as_str().context("a pod has a namespace")?,
            name.as_str().context("a pod has a name")?
        );
        let scheduler = self.keys.path("scheduler.kubeconfig");
        self.kubectl_as(&scheduler, &["create", "--raw", &path, "-f", "-"], Some(&binding.to_string())).map(drop)
    }

    /// Tells that a pod runs, as its node, which may write its status and not read it.
    fn speak_of(&self, pod: &WiredPod, mut object: Value) -> anyhow::Result<()> {
        object["spec"]["nodeName"] = json!(pod.node.name());
        object["status"] = pod.status();
        // Binding has made a newer version of it than the one at hand.
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        let Sandbox { namespace, name, .. } = &pod.sandbox;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
        self.as_node(&pod.node, &["replace", "--raw", &path, "-f", "-"], Some(&object.to_string()))
    }

    /// Asks with a node's rights; the authorizer hears of bindings a little later than whoever made them.
    fn as_node(&self, node: &Node, arguments: &[&str], input: Option<&str>) -> anyhow::Result<()> {
        let kubeconfig = self.keys.node_kubeconfig(node.name());
        let mut refusal = String::new();
        let done = until("the API server to know whose pod it is", HEARSAY, || {
            match self.kubectl_as(&kubeconfig, arguments, input) {
                Ok(_) => Ok(Some(())),
                Err(error) => {
                    refusal = error.to_string();
                    if refusal.contains("(Forbidden)") { Ok(None) } else { Err(error) }
                }
            }
        });
        done.context(refusal)
    }
}

/// The pod's ports that its node has, too, as plugins are told of them.
fn host_ports(pod: &Value) -> Vec<Value> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let published = ports.filter(|port| !port["hostPort"].is_null());
    published
        .map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
            json!({ "hostPort": port["hostPort"], "containerPort": port["containerPort"], "protocol": protocol })
        })
        .collect()
}

/// The addresses of a plugin's result.
fn addresses(result: &Value) -> anyhow::Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().with_context(|| format!("no addresses in {result}"))?;
    let address = |ip: &Value| {
        let text = ip["address"].as_str().and_then(|text| text.split('/').next()).context("an address is text")?;
        text.parse().with_context(|| format!("{text} is no address"))
    };
    ips.iter().map(address).collect()
}
