//! A network namespace, and running code inside it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};

use super::ip;
use super::register::Register;

/// A handle to a named network namespace; the lab's register removes the namespace.
#[derive(Clone)]
pub struct Netns {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    file: File,
    cgroup: Option<PathBuf>,
}

impl Netns {
    /// A namespace with its loopback up; code run in it also runs in the cgroup, if there is one.
    pub(super) fn create(register: &Register, name: &str, cgroup: Option<&Path>) -> anyhow::Result<Self> {
        let name = register.namespace(name)?;
        ip::run(&["netns", "add", &name])?;
        let path = Path::new("/run/netns").join(&name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let netns = Self { inner: Arc::new(Inner { name, file, cgroup: cgroup.map(Path::to_owned) }) };
        // Duplicate address detection would delay the first packet by a second; redirects would go around the hooks.
        netns.sysctls(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])?;
        netns.ip(&["link set lo up".to_owned()])?;
        Ok(netns)
    }

    /// Takes the namespace's name away, as a runtime does once a pod has ended: with the last process and handle in it,
    /// it goes.
    pub fn remove(&self) -> anyhow::Result<()> {
        ip::run(&["netns", "del", &self.inner.name])
    }

    /// The name that `ip netns` shows.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Runs code on a thread inside the namespace and returns what it returns.
    ///
    /// Sockets made there stay in the namespace and can be used from anywhere; so do processes started there.
    pub fn run<T: Send>(&self, code: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> anyhow::Result<T> {
                self.enter()?;
                Ok(code())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) -> anyhow::Result<()> {
        if let Some(cgroup) = &self.inner.cgroup {
            // Before any socket is made: a socket belongs to the cgroup of the thread that makes it.
            fs::write(cgroup.join("cgroup.threads"), gettid().as_raw_nonzero().to_string())
                .with_context(|| format!("cannot join {}", cgroup.display()))?;
        }
        move_into_link_name_space(self.inner.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter the namespace {}", self.inner.name))
    }

    /// Runs commands of `ip` inside.
    pub fn ip(&self, commands: &[String]) -> anyhow::Result<()> {
        ip::batch(&self.inner.name, commands)
    }

    /// Runs commands of `bridge` inside.
    pub fn bridge(&self, commands: &[String]) -> anyhow::Result<()> {
        ip::bridge(&self.inner.name, commands)
    }

    /// Runs a program inside that reads `input`.
    pub(crate) fn feed(&self, command: &mut Command, input: &str) -> anyhow::Result<()> {
        self.run(|| ip::feed(command, Some(input)))?
    }

    /// Writes settings below `/proc/sys`.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.run(|| {
            for (name, value) in settings {
                fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("cannot set {name}"))?;
            }
            Ok(())
        })?
    }

    /// The hardware address of an interface inside.
    pub fn mac(&self, interface: &str) -> anyhow::Result<[u8; 6]> {
        let file = self.run(|| crate::frames::hardware_address(interface))?;
        file.with_context(|| format!("{} has no interface {interface}", self.inner.name))
    }
}
