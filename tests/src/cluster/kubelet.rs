//! The kubelet's part, played by the lab: pods that the API server has are wired, and their status is told to it.

use std::net::IpAddr;

use anyhow::Context;
use serde_json::{Value, json};

use super::Cluster;
use crate::lab::{Mode, Node, Pod, PodSpec};

impl Cluster {
    /// A node of the lab that the API server knows, too.
    pub fn node(&self, name: &str, mode: Mode) -> anyhow::Result<Node> {
        let node = self.lab.node(name, mode)?;
        let mut object = node.object();
        let mut status =
            object.as_object_mut().and_then(|fields| fields.remove("status")).context("a node has a status")?;
        status["conditions"] = json!([{ "type": "Ready", "status": "True", "reason": "PlayedByTheLab" }]);
        self.keys.node(name)?;
        self.apply(&[object])?;
        self.patch_status(&["node", name], &status)?;
        Ok(node)
    }

    /// A pod that is created through the API server and runs: wired by the lab, with its status told.
    pub fn pod(&self, node: &Node, mut spec: PodSpec) -> anyhow::Result<Pod> {
        spec.uid = Some(self.create_pod(node, &spec)?);
        let (namespace, name) = (spec.namespace.clone(), spec.name.clone());
        let pod = node.pod(spec)?;
        self.tell_running(node, &namespace, &name, pod.addresses())?;
        Ok(pod)
    }

    /// Many pods of one namespace, each made as by [`Cluster::pod`].
    pub fn pods(&self, node: &Node, specs: Vec<PodSpec>) -> anyhow::Result<Vec<Pod>> {
        let namespace = specs.first().map(|spec| spec.namespace.clone()).unwrap_or_default();
        let objects: Vec<Value> = specs.iter().map(|spec| spec.object(node.name())).collect();
        let uids = self.ask(|administrator| administrator.create_pods(&namespace, &objects))?;
        let wired = specs.into_iter().zip(uids).map(|(spec, uid)| node.pod(PodSpec { uid: Some(uid), ..spec }));
        let pods: Vec<Pod> = wired.collect::<anyhow::Result<_>>()?;
        let statuses: Vec<(&str, Value)> =
            pods.iter().map(|pod| (pod.name().1, running(node, pod.addresses()))).collect();
        self.ask(|administrator| administrator.show_pods(&namespace, &statuses))?;
        Ok(pods)
    }

    /// A pod that is created and not yet wired: its UID.
    pub fn create_pod(&self, node: &Node, spec: &PodSpec) -> anyhow::Result<String> {
        self.apply(&[spec.object(node.name())])?;
        let made = self.get(&["pod", &spec.name, "-n", &spec.namespace])?;
        made["metadata"]["uid"].as_str().map(str::to_owned).with_context(|| format!("no UID in {made}"))
    }

    /// Tells the API server that a pod runs, as its kubelet does.
    pub fn tell_running(&self, node: &Node, namespace: &str, name: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let mut status = running(node, addresses);
        status["containerStatuses"] = json!([{
            "name": "main", "image": "none", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": {} },
        }]);
        self.patch_status(&["pod", name, "-n", namespace], &status)
    }

    /// Deletes a pod, as a kubelet does once its containers have ended, and takes its wire away.
    pub fn remove_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        let (namespace, name) = pod.name();
        self.delete(&["pod", name, "-n", namespace, "--grace-period=0", "--force"])?;
        pod.remove()
    }

    fn patch_status(&self, what: &[&str], status: &Value) -> anyhow::Result<()> {
        self.patch(&[&["--subresource=status"], what].concat(), &json!({ "status": status }))
    }
}

/// The status of a pod that runs and is ready.
pub(super) fn running(node: &Node, addresses: &[IpAddr]) -> Value {
    let ready = |kind: &str| json!({ "type": kind, "status": "True" });
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(ready);
    let ips: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    json!({
        "phase": "Running",
        "hostIP": node.v4(),
        "hostIPs": [{ "ip": node.v4() }, { "ip": node.v6() }],
        "podIP": addresses.first(),
        "podIPs": ips,
        "conditions": conditions,
    })
}
