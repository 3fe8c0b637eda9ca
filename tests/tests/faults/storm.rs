//! More changes than anybody could take in one by one, and more agents than one.

use crate::{PATIENCE, check_nothing_leaked, metric};
use reeve_tests::lab::{agent_program, until};
use reeve_tests::require::number;
use reeve_tests::stage::counts::{Traffic, counted};
use reeve_tests::stage::{WEB, get};
use reeve_tests::traffic::NoAnswer;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Policies that change, and as many forms of each.
const POLICIES: u64 = 50;
const FORMS: u64 = 8;
/// Changes between two pauses, and the pause: a thousand in a second.
const BURST: u64 = 10;
const PAUSE: Duration = Duration::from_millis(10);
/// What an agent may have more after the storm than before, for tables that grew.
const MEMORY_BYTES: u64 = 64 << 20;

/// Adds somebody to those whom `web` lets in, who is not there.
fn form(change: u64) -> Value {
    let port = 10_000 + change / POLICIES % FORMS;
    json!({
        "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{
            "from": [{ "podSelector": { "matchLabels": { "role": format!("nobody-{}", change % POLICIES) } } }],
            "ports": [{ "port": port }]
        }]
    })
}

#[test]
fn a_thousand_changes_a_second_end_in_the_last_one_and_cut_nobody() {
    if crate::skipped() {
        return;
    }
    let seconds = number("REEVE_STORM_SECONDS", || 3);
    let (mut stage, web, client, guest) = counted("f-storm", 1, "");
    let other = stage.pod("other", &[("role", "nobody-7")]);
    // Every form once, so that what is remembered of them is there before.
    for change in 0..POLICIES {
        stage.policy(&format!("storm-{change}"), &form(change));
    }
    let before = stage.settled();
    let held = stage.node.objects().expect("what is held");
    let memory = stage.agent().resident_bytes().expect("it runs");
    let traffic = Traffic::start(&web, &client, &guest);
    let (_never, pause) = mpsc::channel::<()>();
    let begun = Instant::now();
    let changes = seconds * 1_000;
    let (mut slowest, mut late) = (Duration::ZERO, 0);
    for first in (0..changes / BURST).map(|nth| nth * BURST) {
        let due = begun + PAUSE * u32::try_from(first / BURST).expect("few");
        // Nobody ever sends: this is a pause until then.
        let _ = pause.recv_timeout(due.saturating_duration_since(Instant::now()));
        late = u128::max(late, due.elapsed().as_millis());
        for change in first..first + BURST {
            stage.policy(&format!("storm-{}", change % POLICIES), &form(change));
        }
        if first % 1_000 == 0 {
            let asked = Instant::now();
            stage.agent().request("GET", "/status").expect("it answers in the middle of it");
            slowest = slowest.max(asked.elapsed());
        }
    }
    let written = begun.elapsed();
    // The last word: one of the policies opens the port that is tried.
    let last = json!({
        "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": "nobody-7" } } }] }]
    });
    stage.policy("storm-7", &last);
    let asked = Instant::now();
    let after = stage.settled();
    let settled = asked.elapsed();
    stage.allows(&other, &web, WEB, "storm-7");
    stage.allows(&client, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
    let grown = stage.agent().resident_bytes().expect("it runs").saturating_sub(memory);
    println!(
        "{changes} changes in {:.1} s (up to {late} ms late) made {} revisions; settled {} ms after the last; \
         slowest answer {} ms; {} kB more memory",
        written.as_secs_f64(),
        after - before,
        settled.as_millis(),
        slowest.as_millis(),
        grown / 1024,
    );
    assert!(after > before && after - before <= changes + 2, "{before} to {after}");
    assert!(settled < PATIENCE, "it did not keep up: {settled:?}");
    assert!(grown < MEMORY_BYTES, "{grown} bytes more");
    traffic.stop().check_exact(&mut stage);
    check_nothing_leaked(&stage.node, &held);
    assert_eq!(metric(&mut stage, "reeve_records_lost_total", &[]), 0.0);
}

#[test]
fn of_two_agents_that_are_started_at_once_one_says_why_it_ends() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = counted("f-two", 1, "");
    let held = stage.node.objects().expect("what is held");
    let traffic = Traffic::start(&web, &client, &guest);
    for round in 0..3 {
        stage.agent().kill9().expect("killed");
        let start = |port: u16| -> Child {
            let node = &stage.node;
            let mut command = Command::new(agent_program().expect("a program"));
            command.args(["--node", node.name()]).arg("--manifests").arg(node.manifests_directory());
            command.arg("--bpffs").arg(node.bpffs()).arg("--run-dir").arg(node.run_directory());
            command.arg("--state-dir").arg(node.state_directory()).arg("--cgroup").arg(node.cgroup());
            command.arg("--records").arg(node.records_file()).args(["--window-seconds", "1"]);
            command.args(["--metrics-listen", &format!("127.0.0.1:{port}")]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            node.spawn(&mut command).expect("spawned")
        };
        let mut agents = [start(9_465), start(9_466)];
        let ended = until("one of them to end", PATIENCE, || {
            for (nth, agent) in agents.iter_mut().enumerate() {
                if let Some(status) = agent.try_wait()? {
                    return Ok(Some((nth, status)));
                }
            }
            Ok(None)
        });
        let (nth, status) = ended.expect("there is room for one");
        let mut said = String::new();
        let mut errors = agents[nth].stderr.take().expect("piped");
        std::io::Read::read_to_string(&mut errors, &mut said).expect("read");
        assert!(!status.success() && said.contains("another reeve-agent runs here"), "round {round}: {status}: {said}");
        let other = &mut agents[1 - nth];
        assert_eq!(other.try_wait().expect("asked"), None, "round {round}: the other one runs");
        assert_eq!((get(&guest, &web), get(&client, &web)), (Err(NoAnswer::TimedOut), Ok(())));
        // Asked, not killed: what an agent was telling when it was killed is told again, with what has come since.
        let process = rustix::process::Pid::from_child(other);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("asked to end");
        other.wait().expect("ended");
        stage.agent().start_again().expect("started again");
    }
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    traffic.stop().check_exact(&mut stage);
    check_nothing_leaked(&stage.node, &held);
}
