//! The first process of a node with containers: makes the node's view of the machine, starts containerd and the kubelet,
//! and ends with either of them. The daemonset tier starts it, in the node's network namespace.
//!
//! It runs twice: the outer one joins the node's cgroups and leaves the machine's namespaces, the inner one is the node's
//! process number 1. When the outer one ends, however it does, the kernel ends everything of the node.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reeve_tests::cluster::Plan;
use reeve_tests::lab::hierarchies::{self, Hierarchy};
use reeve_tests::lab::until;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_move};
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, wait};
use rustix::thread::UnshareFlags;

/// The second argument of the inner one.
const INSIDE: &str = "inside";

/// Longest wait for containerd to listen.
const PATIENCE: Duration = Duration::from_mins(1);

const SOCKET: &str = "/run/containerd/containerd.sock";

/// Settings of the machine's kernel that a kubelet insists on: it finds them so, and the machine keeps its own.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reeve-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (path, is_inside) = match arguments.as_slice() {
        [path] => (path, false),
        [path, word] if word == INSIDE => (path, true),
        _ => bail!("usage: reeve-node PLAN"),
    };
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let plan: Plan = serde_json::from_str(&text).with_context(|| format!("{path} is no plan"))?;
    if is_inside { inside(&plan) } else { outside(&plan, path) }
}

fn outside(plan: &Plan, path: &str) -> anyhow::Result<()> {
    for cgroup in &plan.cgroups {
        hierarchies::join(cgroup)?;
    }
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWPID | UnshareFlags::NEWCGROUP;
    // SAFETY: this process has one thread, and shares nothing with others that a namespace would take from them.
    unsafe { rustix::thread::unshare_unsafe(flags) }.context("cannot leave the machine's namespaces")?;
    let me = env::current_exe().context("this program has no path")?;
    let mut inner = Command::new(me).args([path, INSIDE]).spawn().context("cannot start the node's first process")?;
    fs::write(plan.directory.join("first"), inner.id().to_string()).context("cannot tell the first process")?;
    let status = inner.wait()?;
    bail!("the node's first process ended ({status})");
}

fn inside(plan: &Plan) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot end with the outer process")?;
    // Read before the machine's view of them is gone.
    let hierarchies = hierarchies::hierarchies()?;
    rustix::system::sethostname(plan.name.as_bytes()).context("cannot name the node")?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).context("cannot part mounts")?;
    new("proc", "proc", Path::new("/proc"), "")?;
    directories(plan)?;
    new("sysfs", "sysfs", Path::new("/sys"), "")?;
    new("bpf", "bpf", Path::new("/sys/fs/bpf"), "")?;
    cgroups(&hierarchies)?;
    for (name, value) in SYSCTLS {
        let file = plan.directory.join("sysctls").join(name.replace('/', "_"));
        fs::write(&file, format!("{value}\n")).with_context(|| format!("cannot write {}", file.display()))?;
        bind(&file, &Path::new("/proc/sys").join(name))?;
    }
    // Kubelets mount for containers, which have to see it.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED).context("cannot share mounts")?;
    let runtime = start_runtime(plan)?;
    let mut kubelet = Command::new(&plan.kubelet);
    let kubelet = start(plan, "kubelet", kubelet.args(&plan.kubelet_arguments))?;
    loop {
        // Containers' processes come to the first process when their own parent is gone.
        let Some((ended, status)) = wait(WaitOptions::empty()).context("nothing is left to wait for")? else {
            continue;
        };
        for (name, child) in [("containerd", &runtime), ("the kubelet", &kubelet)] {
            let status = ExitStatus::from_raw(status.as_raw());
            ensure!(u32::try_from(ended.as_raw_nonzero().get()) != Ok(child.id()), "{name} ended ({status})");
        }
    }
}

/// The node's own `/run`, `/etc`, `/opt`, `/var/lib` and `/var/log`; the lab's directory stays where it is.
fn directories(plan: &Plan) -> anyhow::Result<()> {
    let (aside, own) = (Path::new("/mnt"), |name: &str| plan.directory.join(name));
    bind(&own("lib"), Path::new("/var/lib"))?;
    bind(&own("log"), Path::new("/var/log"))?;
    bind(&own("opt"), Path::new("/opt"))?;
    bind(&plan.lab, aside)?;
    new("tmpfs", "tmpfs", Path::new("/run"), "mode=755")?;
    for directory in [&plan.lab, Path::new("/run/netns"), Path::new("/run/lock")] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    mount_move(aside, &plan.lab).context("cannot move the lab's directory back")?;
    // A copy that is written to, over the machine's: it has users, groups and what libraries read.
    let work = own("etc-work");
    fs::create_dir_all(&work).context("cannot make a directory for overlayfs")?;
    let options = format!("lowerdir=/etc,upperdir={},workdir={}", own("etc").display(), work.display());
    new("overlay", "overlay", Path::new("/etc"), &options)
}

/// The node's cgroups as a kubelet looks for them: its own is the root of each hierarchy.
fn cgroups(hierarchies: &[Hierarchy]) -> anyhow::Result<()> {
    let root = Path::new(hierarchies::ROOT);
    let only = hierarchies.iter().any(|hierarchy| hierarchy.place == root);
    if !only {
        new("tmpfs", "tmpfs", root, "mode=755")?;
    }
    for Hierarchy { place, kind: (kind, options) } in hierarchies {
        fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
        new("cgroup", kind, place, options)?;
    }
    if only {
        // Of v2, a cgroup with processes passes nothing on to those below it.
        let first = root.join("first");
        fs::create_dir_all(&first).context("cannot make a cgroup for the first process")?;
        hierarchies::join(&first)?;
        hierarchies::enable_controllers(root)?;
    }
    Ok(())
}

fn start_runtime(plan: &Plan) -> anyhow::Result<Child> {
    let mut containerd = Command::new(plan.runtime.join("containerd"));
    containerd.arg("--config").arg(plan.directory.join("containerd.toml"));
    let mut runtime = start(plan, "containerd", &mut containerd)?;
    until("containerd to listen", PATIENCE, || {
        if let Some(status) = runtime.try_wait()? {
            bail!("containerd ended ({status})");
        }
        let asked = client(plan, &["version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        Ok(asked.success().then_some(()))
    })?;
    for image in &plan.images {
        let path = image.to_str().context("a path that is text")?;
        let done = client(plan, &["--namespace", "k8s.io", "images", "import", path]).status()?;
        ensure!(done.success(), "containerd does not import {path}");
    }
    Ok(runtime)
}

fn client(plan: &Plan, arguments: &[&str]) -> Command {
    let mut command = Command::new(plan.runtime.join("ctr"));
    command.args(["--address", SOCKET]).args(arguments).stdin(Stdio::null());
    command
}

/// Starts a program of the node, with a log of its own; it finds its companions.
fn start(plan: &Plan, name: &str, command: &mut Command) -> anyhow::Result<Child> {
    let path = plan.directory.join(name).with_extension("log");
    let log = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut folders: Vec<PathBuf> = vec![plan.runtime.clone()];
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    folders.extend(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
    let path = env::join_paths(folders).context("a folder with a colon in its name")?;
    command.env("PATH", path).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start {name}"))
}

fn new(source: &str, kind: &str, place: &Path, options: &str) -> anyhow::Result<()> {
    let options = std::ffi::CString::new(options).context("options of a mount")?;
    mount(source, place, kind, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("cannot mount {kind} at {}", place.display()))
}

fn bind(from: &Path, to: &Path) -> anyhow::Result<()> {
    mount_bind_recursive(from, to).with_context(|| format!("cannot have {} at {}", from.display(), to.display()))
}
