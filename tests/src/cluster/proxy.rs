//! The real kube-proxy as a process of a node.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use super::Cluster;
use crate::lab::{Node, POD_NETWORKS, SERVICE_NETWORKS, admin, until};

/// Longest wait for its first rules.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where it tells its health, in the node's own namespace.
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// What it writes rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// Chains of iptables.
    Iptables,
    /// Tables and maps of nftables.
    Nftables,
}

impl ProxyMode {
    fn word(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// A running kube-proxy; killed when dropped, its rules stay until the node goes.
pub struct Proxy {
    child: Child,
}

impl Proxy {
    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    /// Starts kube-proxy on a node, and waits until it has written rules once.
    pub fn start_proxy(&self, node: &Node, mode: ProxyMode) -> anyhow::Result<Proxy> {
        // A Service's address leads nowhere; a node has some way to it nevertheless, most often its default route.
        node.netns().ip(&SERVICE_NETWORKS.map(|network| format!("route replace {network} dev eth0")))?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode.word(),
            "hostnameOverride": node.name(),
            "clientConnection": { "kubeconfig": self.keys.path("kube-proxy.kubeconfig") },
            "clusterCIDR": POD_NETWORKS.join(","),
            "healthzBindAddress": HEALTH.to_string(),
            "metricsBindAddress": "127.0.0.1:10249",
            // These are the machine's, and nodes here share it.
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
                "udpTimeout": "0s", "udpStreamTimeout": "0s",
            },
        });
        let place = self.directory.join(format!("kube-proxy-{}", node.name()));
        let (file, log_file) = (place.with_extension("json"), place.with_extension("log"));
        fs::write(&file, config.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
        let log = File::create(&log_file).with_context(|| format!("cannot make {}", log_file.display()))?;
        let mut command = self.programs.command("kube-proxy");
        command.arg("--config").arg(&file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut proxy = Proxy { child: node.spawn(&mut command)? };
        let healthy = until("kube-proxy to have written rules", PATIENCE, || {
            if let Some(status) = proxy.child.try_wait()? {
                bail!("kube-proxy ended ({status})");
            }
            let Ok(stream) = node.netns().run(|| TcpStream::connect_timeout(&HEALTH, PATIENCE))? else {
                return Ok(None);
            };
            stream.set_read_timeout(Some(PATIENCE))?;
            let answer = admin::request(stream, "GET", "/healthz")?;
            Ok((answer.status == 200).then_some(()))
        });
        healthy.with_context(|| self.log_end(&format!("kube-proxy-{}", node.name())))?;
        Ok(proxy)
    }
}
