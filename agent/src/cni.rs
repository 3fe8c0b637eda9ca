//! The chained CNI plugin, and the agent's side of it: a pod does not start before the kernel enforces its policies.
//!
//! The plugin (`plugin`, `network`, `failure`, `client`, `peer`) is a short process for each pod, without a runtime of its
//! own. It announces the pod to the agent (`server`, `waiting`) over a socket, one line of JSON each way. `chain`,
//! `conflist` and `installer` put the plugin into the node's configuration.
//!
//! Invariant: ADD succeeds only after a step that left the pod's row and programs in the kernel.

mod chain;
pub mod client;
pub mod conflist;
pub mod failure;
pub mod installer;
pub mod network;
pub mod peer;
pub mod plugin;
pub(crate) mod server;
pub(crate) mod waiting;

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Name of the plugin's program, and its `type` in configurations.
pub const PLUGIN: &str = "reeve-cni";
/// The agent's socket for it, in the agent's directory.
pub const SOCKET: &str = "cni.sock";

/// One interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

/// What is known of a pod when its network has been made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The container's interface.
    pub attachment: Attachment,
    /// Path of its network namespace, as the host sees it.
    pub netns: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID, where the runtime tells it.
    pub uid: Option<String>,
    /// The addresses that it was given.
    pub addresses: Vec<IpAddr>,
    /// The interface on the node's side.
    pub device: String,
    /// Its index.
    pub ifindex: u32,
}

impl Announcement {
    /// `namespace/name` of the pod.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// Answer when the pod is enforced.
    Add {
        /// The pod.
        announcement: Announcement,
        /// How long to try.
        timeout_ms: u64,
        /// Containers whose network namespaces the plugin has found gone.
        gone: Vec<String>,
    },
    /// Forget it.
    Del {
        /// Whose network goes.
        attachment: Attachment,
    },
    /// Whether it is enforced as it was announced.
    Check {
        /// The pod as it should be.
        announcement: Announcement,
    },
    /// Forget all others.
    Gc {
        /// Those that the runtime knows.
        valid: Vec<Attachment>,
    },
    /// Whether new pods can be enforced.
    Status,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// It is so.
    Done,
    /// It is not so (yet), and why.
    Not {
        /// A clause.
        why: String,
    },
    /// Another container has the device or an address.
    Claimed {
        /// It.
        by: Attachment,
        /// Path of its network namespace.
        netns: String,
        /// A clause that names both.
        why: String,
    },
}
