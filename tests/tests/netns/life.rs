//! The agent's life: killed, stopped, started again, started twice, uninstalled.

use aya::programs::{SchedClassifier, TcAttachType};
use reeve_tests::lab::{AgentOptions, Mode, Pod, agent_program, until};
use reeve_tests::stage::{Stage, WEB, get, shop};
use reeve_tests::traffic::{self, NoAnswer, PATIENCE, Tcp};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// `shop` with an agent that is started with these arguments.
pub(crate) fn shop_with(name: &str, arguments: &[&str]) -> (Stage, Pod, Pod, Pod) {
    let mut stage = Stage::new(name, Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    let guest = stage.pod("guest", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    stage.start_with(AgentOptions { arguments, ..AgentOptions::default() });
    (stage, web, client, guest)
}

/// Runs the agent's program to its end, with the node's directories.
pub(crate) fn run(stage: &Stage, arguments: &[&str]) -> Output {
    let node = &stage.node;
    let mut command = Command::new(agent_program().expect("a program"));
    command.args(arguments).arg("--bpffs").arg(node.bpffs()).arg("--run-dir").arg(node.run_directory());
    command.arg("--state-dir").arg(node.state_directory());
    command.stdin(Stdio::null());
    node.netns().run(|| command.output()).expect("entered").expect("ran")
}

/// Names of the programs that stand at these devices of the node, by links, and at its cgroup.
pub(crate) fn standing(stage: &Stage, devices: &[&str]) -> BTreeSet<String> {
    let ask = || -> anyhow::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for device in devices {
            for at in [TcAttachType::Ingress, TcAttachType::Egress] {
                let (_, chain) = SchedClassifier::query_tcx(device, at)?;
                names.extend(chain.iter().filter_map(|program| program.name_as_str().map(str::to_owned)));
            }
        }
        Ok(names)
    };
    let mut names = stage.node.netns().run(ask).expect("entered").expect("asked");
    let mut show = Command::new("bpftool");
    show.args(["-j", "cgroup", "show"]).arg(stage.node.cgroup()).stdin(Stdio::null());
    let shown = show.output().expect("bpftool runs").stdout;
    // Where there is nothing it says nothing.
    let shown: Vec<serde_json::Value> = match shown.trim_ascii() {
        [] => Vec::new(),
        text => serde_json::from_slice(text).expect("JSON"),
    };
    names.extend(shown.iter().map(|program| program["name"].as_str().expect("a name").to_owned()));
    names
}

/// A connection that is used without a pause, until it is asked whether it ever broke.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), NoAnswer>>,
}

/// Exchanges that are traffic enough.
const ENOUGH: u64 = 100;

impl Flow {
    pub(crate) fn start(mut connection: Tcp) -> Self {
        let (stop, exchanges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (seen, done) = (Arc::clone(&stop), Arc::clone(&exchanges));
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                connection.exchange(PATIENCE)?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, exchanges, thread }
    }

    #[track_caller]
    pub(crate) fn check_unbroken(self) {
        // What was done meanwhile may have taken a moment only: it goes on until it is traffic.
        let enough = until("traffic", Duration::from_secs(20), || {
            let enough = self.exchanges.load(Ordering::Relaxed) > ENOUGH || self.thread.is_finished();
            Ok(enough.then_some(()))
        });
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic").expect("no exchange went wrong");
        enough.expect("more than a few exchanges");
    }
}

#[track_caller]
fn check_killed(name: &str, mode: Mode) {
    let (mut stage, web, client, guest) = shop(name, mode);
    let mut live = stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection");
    stage.denies(&guest, &web, WEB, "web-clients");
    let flow = Flow::start(stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection"));
    stage.agent().kill9().expect("killed");
    assert_eq!(live.exchange(PATIENCE), Ok(()), "the live connection does without an agent");
    assert_eq!(get(&guest, &web), Err(NoAnswer::TimedOut), "denied stays denied without an agent");
    assert_eq!(get(&client, &web), Ok(()), "allowed stays allowed without an agent");
    // Written while nobody reads it.
    stage.allow_from("guest-clients", ("app", "guests"), ("role", "nobody"));
    guest.set_labels(&[("app", "guests")]).expect("relabelled");
    stage.agent().start_again().expect("started again");
    stage.settled();
    flow.check_unbroken();
    let adopted = stage.agent().metric("reeve_adopted_links", &[]).expect("a metric");
    assert!((adopted - 3.0).abs() < 0.5, "{adopted}");
    assert_eq!(live.exchange(PATIENCE), Ok(()), "the live connection goes on under the new agent");
    stage.denies(&client, &guest, WEB, "guest-clients");
    let port = live.local().port();
    let mut all = stage.agent().records();
    let again: Vec<_> = all
        .rest()
        .expect("records")
        .into_iter()
        .filter(|line| line["event"] == "rejudged" && line["source"]["port"] == port)
        .collect();
    assert!(again.is_empty(), "no verdict of a live connection differs after a restart: {again:?}");
    stage.allows(&client, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn killed_agent_leaves_routed_pods_enforced_and_the_next_one_takes_over() {
    if !crate::skipped() {
        check_killed("kill-routed", Mode::Routed);
    }
}

#[test]
fn killed_agent_leaves_bridged_pods_enforced_and_the_next_one_takes_over() {
    if !crate::skipped() {
        check_killed("kill-bridged", Mode::Bridged);
    }
}

#[test]
fn restart_without_a_change_keeps_revision_and_decisions() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("restart", Mode::Routed);
    let before = stage.allows(&client, &web, WEB, "web-clients");
    let revision = stage.endpoint(&web).expect("an endpoint")["revision"].clone();
    stage.agent().restart().expect("restarted");
    stage.settled();
    assert_eq!(stage.endpoint(&web).expect("an endpoint")["revision"], revision, "nothing is judged again");
    let after = stage.allows(&client, &web, WEB, "web-clients");
    let decisions = |attempt: &reeve_tests::demo::attempt::Attempt| -> Vec<_> {
        attempt.rows.iter().map(|row| row.line["decision"].clone()).collect()
    };
    assert_eq!(decisions(&before), decisions(&after));
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn policy_that_was_deleted_while_the_agent_was_away_is_gone_after_its_start() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("away", Mode::Routed);
    stage.agent().kill9().expect("killed");
    stage.lab.manifests().remove("web-clients").expect("removed");
    assert_eq!(get(&guest, &web), Err(NoAnswer::TimedOut), "nobody has read that yet");
    stage.agent().start_again().expect("started again");
    stage.allows(&guest, &web, WEB, "noPolicySelects");
    stage.allows(&client, &web, WEB, "noPolicySelects");
}

#[test]
fn pod_that_went_while_the_agent_was_away_leaves_nothing_allowed() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("gone-away", Mode::Routed);
    stage.agent().kill9().expect("killed");
    client.remove().expect("removed");
    stage.agent().start_again().expect("started again");
    let ready = stage.agent().metric("reeve_endpoints", &[("state", "ready")]).expect("a metric");
    assert!((ready - 2.0).abs() < 0.5, "{ready}");
    stage.denies(&guest, &web, WEB, "web-clients");
    let next = stage.pod("next", &[("role", "client")]);
    stage.settled();
    stage.allows(&next, &web, WEB, "web-clients");
}

#[test]
fn terminated_agent_ends_well_and_leaves_enforcement() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("term", Mode::Routed);
    let status = stage.agent().terminate().expect("ended");
    assert!(status.success(), "{status}");
    assert_eq!(get(&guest, &web), Err(NoAnswer::TimedOut));
    assert_eq!(get(&client, &web), Ok(()));
    assert!(stage.agent().log().contains("what is pinned goes on enforcing"));
}

#[test]
fn terminated_agent_writes_the_last_records_first() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, _) = shop("term-records", Mode::Routed);
    let connection = traffic::connect(client.netns(), SocketAddr::new(web.v4(), 8080), PATIENCE).expect("connected");
    stage.agent().terminate().expect("ended");
    let port = connection.local().port();
    let mine = |line: &serde_json::Value| line["event"] == "opened" && line["source"]["port"] == port;
    stage.records().wait_for(Duration::ZERO, mine).expect("what was judged before the end is told");
}

#[test]
fn uninstall_frees_traffic_and_removes_every_pin() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("uninstall", Mode::Routed);
    let refused = run(&stage, &["uninstall"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("another reeve-agent runs here"), "{said}");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.agent().terminate().expect("ended");
    assert_eq!(get(&guest, &web), Err(NoAnswer::TimedOut), "an agent that ends frees nothing");
    let devices = [web.host_side(), guest.host_side(), "eth0"];
    let all = ["reeve_from_pod", "reeve_host_in", "reeve_to_pod", "reeve_uplink", "reeve_uplink_in"];
    assert_eq!(standing(&stage, &devices), all.map(str::to_owned).into());
    let done = run(&stage, &["uninstall"]);
    assert_eq!(standing(&stage, &devices), BTreeSet::new(), "nothing stands any more, at once");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(!stage.node.bpffs().join("reeve").exists(), "what a bpffs holds from the beginning stays, ours goes");
    assert_eq!((get(&guest, &web), get(&client, &web)), (Ok(()), Ok(())), "nothing is enforced any more");
    stage.agent().start_again().expect("started again");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn second_agent_on_the_same_directory_says_why_it_does_not_start() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("second", Mode::Routed);
    let manifests = stage.node.manifests_directory();
    let manifests = manifests.to_str().expect("text");
    let port = ["--metrics-listen", "127.0.0.1:9465"];
    let second = run(&stage, &[&["--manifests", manifests, "--node", "node-1"], &port[..]].concat());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another reeve-agent runs here"), "{said}");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn agent_without_any_manifest_is_ready() {
    if crate::skipped() {
        return;
    }
    let stage = Stage::new("empty", Mode::Routed);
    stage.lab.manifests().remove("namespace-shop").expect("removed");
    stage.lab.manifests().remove("node-node-1").expect("removed");
    let agent = stage.node.start_agent(AgentOptions::default()).expect("ready");
    assert!(agent.settled().expect("settled") > 0);
}
