//! What a test needs from the machine, and skipping aloud when it is not there.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// The effective user is root.
    Root,
    /// The compiled eBPF object is named by `REEVE_BPF_OBJECT`, and the kernel has its own type information.
    Bpf,
    /// Network namespaces can be made with iproute2.
    Netns,
    /// nftables, iptables and ipset are installed.
    Nat,
    /// A cgroup2 hierarchy is mounted.
    Cgroup,
    /// The agent's program was built.
    Agent,
    /// Programs of Kubernetes are in a folder that `REEVE_KUBERNETES` names.
    Kubernetes,
    /// The reference CNI plugins are installed.
    Plugins,
    /// A container runtime, programs of Kubernetes for nodes and images are where variables of the environment say.
    Containers,
}

impl Capability {
    /// The word in `REEVE_REQUIRE`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Bpf => "bpf",
            Self::Netns => "netns",
            Self::Nat => "nat",
            Self::Cgroup => "cgroup",
            Self::Agent => "agent",
            Self::Kubernetes => "kubernetes",
            Self::Plugins => "plugins",
            Self::Containers => "containers",
        }
    }
}

/// Whether this machine has it; if not, a clause that says why.
pub fn available(capability: Capability) -> Result<(), String> {
    let good = |condition: bool, why: &str| if condition { Ok(()) } else { Err(why.to_owned()) };
    match capability {
        Capability::Root => good(rustix::process::geteuid().is_root(), "not root"),
        Capability::Bpf => {
            let object = std::env::var_os("REEVE_BPF_OBJECT").map(PathBuf::from).filter(|path| path.is_file());
            good(object.is_some(), "REEVE_BPF_OBJECT names no file")?;
            good(fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false), "the kernel has no BTF")
        }
        Capability::Netns => {
            available(Capability::Root)?;
            good(crate::lab::ip_program().is_some(), "iproute2 is not installed")
        }
        Capability::Nat => match crate::lab::rules_programs() {
            Ok(()) => Ok(()),
            Err(missing) => Err(format!("{missing} is not installed")),
        },
        Capability::Cgroup => found(crate::lab::own_cgroup()),
        Capability::Kubernetes => found(crate::cluster::Programs::find(crate::cluster::Nodes::Played)),
        Capability::Containers => {
            found(crate::cluster::Programs::find(crate::cluster::Nodes::Real))?;
            found(crate::cluster::Containers::find())
        }
        Capability::Plugins => {
            let all = ["ptp", "bridge", "host-local"];
            let missing = all.iter().find(|name| !std::path::Path::new(crate::lab::cni::PLUGINS).join(name).is_file());
            missing.map_or(Ok(()), |name| Err(format!("{}/{name} is not installed", crate::lab::cni::PLUGINS)))
        }
        Capability::Agent => found(crate::lab::agent_program()),
    }
}

fn found<T>(what: anyhow::Result<T>) -> Result<(), String> {
    what.map(drop).map_err(|error| format!("{error:#}"))
}

/// Says whether the test should return at once, because something is missing; prints `SKIP name: why`.
///
/// # Panics
///
/// If `REEVE_REQUIRE` (words with commas, or `all`) says that the machine must have it.
#[track_caller]
pub fn skip_unless(needs: &[Capability]) -> bool {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    for need in needs {
        let Err(why) = available(*need) else { continue };
        let required = std::env::var("REEVE_REQUIRE").unwrap_or_default();
        let is_required = required.split(',').map(str::trim).any(|word| word == "all" || word == need.word());
        assert!(!is_required, "REEVE_REQUIRE asks for {}, but {name} would have to be skipped: {why}", need.word());
        // Straight to the stream: the test harness would keep what `println!` writes to itself.
        let _ = writeln!(std::io::stdout(), "SKIP {name}: {why}");
        return true;
    }
    false
}
