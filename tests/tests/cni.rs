//! The chained CNI plugin behind Debian's `ptp` and `bridge`, as a container runtime runs them: ADD returns when the pod is
//! enforced, fails closed, and nothing of it is lost over a restart of the agent.
#![allow(clippy::float_cmp, reason = "metrics are whole numbers")]

use reeve_tests::lab::cni::{Chain, Container, Said, addresses};
use reeve_tests::lab::{AgentOptions, Mode, Pod, agent_program, until};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::stage::{RECORD_PATIENCE, Stage};
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, connect};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

const CLIENT: [(&str, &str); 1] = [("role", "client")];
const GUEST: [(&str, &str); 1] = [("role", "guest")];
/// Longest wait for what the agent does by itself.
const NOTICE_PATIENCE: Duration = Duration::from_secs(10);

#[track_caller]
fn skipped() -> bool {
    use Capability::{Agent, Bpf, Cgroup, Netns, Plugins, Root};
    skip_unless(&[Root, Bpf, Netns, Cgroup, Agent, Plugins])
}

/// A node with `web`, which lets `role=client` in, and an agent; more pods come by way of the chain.
fn shop(name: &str, mode: Mode) -> (Stage, Pod, Chain) {
    let mut stage = Stage::new(name, mode);
    let web = stage.pod("web", &[("app", "web")]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    stage.start();
    let chain = match mode {
        Mode::Routed => Chain::ptp(&stage.node, "1.0.0"),
        Mode::Bridged => Chain::bridge(&stage.node, "1.0.0"),
    };
    (stage, web, chain)
}

fn get(from: &Container, to: IpAddr) -> Result<(), NoAnswer> {
    connect(&from.netns, SocketAddr::new(to, 8080), PATIENCE)?.exchange(PATIENCE)
}

/// A pod that is known to the agent, with its network: its address.
#[track_caller]
fn add(stage: &mut Stage, chain: &Chain, pod: &str, labels: &[(&str, &str)]) -> (Container, IpAddr) {
    let container = chain.container(pod).expect("a container");
    chain.schedule(&container, labels).expect("a manifest");
    stage.settled();
    let said = chain.add(&container).expect("ran");
    let log = stage.agent().log();
    assert!(said.succeeded, "{}\n{log}", said.output);
    let address = addresses(&said.output)[0];
    (container, address)
}

/// The record of what the pod at this address began.
#[track_caller]
fn recorded(stage: &mut Stage, source: IpAddr, event: &str) -> Value {
    let source = source.to_string();
    let wanted = |line: &Value| line["source"]["ip"] == source && line["event"] == event;
    stage.records().wait_for(RECORD_PATIENCE, wanted).unwrap_or_else(|error| panic!("no record of {event}: {error:#}"))
}

fn adds(stage: &mut Stage, state: &str) -> f64 {
    stage.agent().metric("reeve_cni_adds_total", &[("state", state)]).expect("a metric")
}

#[track_caller]
fn check_enforced(name: &str, mode: Mode) {
    let (mut stage, web, chain) = shop(name, mode);
    let (guest, guest_address) = add(&mut stage, &chain, "guest", &GUEST);
    assert_eq!(get(&guest, web.v4()), Err(NoAnswer::TimedOut));
    let denied = recorded(&mut stage, guest_address, "denied");
    assert!(denied["decision"].to_string().contains("web-clients"), "{denied}");
    let (client, client_address) = add(&mut stage, &chain, "client", &CLIENT);
    assert_eq!(get(&client, web.v4()), Ok(()));
    let opened = recorded(&mut stage, client_address, "opened");
    assert!(opened["decision"].is_object(), "{opened}");
    // What reaches the new pods is judged as well.
    stage.allow_from("client-web", ("role", "client"), ("app", "web"));
    stage.settled();
    let server = Server::tcp(&client.netns, client_address, 8080).expect("a server");
    let to_client = SocketAddr::new(client_address, 8080);
    assert!(connect(web.netns(), to_client, PATIENCE).is_ok());
    assert_eq!(get(&guest, client_address), Err(NoAnswer::TimedOut));
    drop(server);
    assert_eq!(adds(&mut stage, "enforced"), 2.0);
    let counted = stage.agent().metric("reeve_cni_add_seconds_count", &[]).expect("a metric");
    assert_eq!(counted, 2.0);
    for container in [&guest, &client] {
        assert!(chain.del(container).expect("ran").succeeded);
        assert!(chain.ours("DEL", container, json!({})).expect("ran").succeeded, "DEL again is no error");
    }
}

#[test]
fn pod_behind_ptp_is_enforced_when_add_returns() {
    if !skipped() {
        check_enforced("cni-ptp", Mode::Routed);
    }
}

#[test]
fn pod_behind_a_bridge_is_enforced_when_add_returns() {
    if !skipped() {
        check_enforced("cni-bridge", Mode::Bridged);
    }
}

#[test]
fn pod_that_nobody_knows_stays_closed_until_its_manifest_comes() {
    if skipped() {
        return;
    }
    let (mut stage, web, mut chain) = shop("cni-unknown", Mode::Routed);
    chain.ours["timeoutSeconds"] = json!(1);
    let first = chain.container("client").expect("a container");
    let said = chain.add(&first).expect("ran");
    assert_eq!(said.code(), 101, "{}", said.output);
    assert!(said.output.to_string().contains("shop/client"), "{}", said.output);
    assert!(said.took < Duration::from_secs(3), "{:?}", said.took);
    assert_eq!(get(&first, web.v4()), Err(NoAnswer::TimedOut), "its device is closed");
    assert_eq!(adds(&mut stage, "late"), 1.0);
    assert!(chain.del(&first).expect("ran").succeeded);
    // As the kubelet does it: another container, another namespace, another device.
    let mut again = chain.container("client").expect("a container");
    again.uid.clone_from(&first.uid);
    chain.schedule(&again, &CLIENT).expect("a manifest");
    let said = chain.add(&again).expect("ran");
    assert!(said.succeeded, "{}", said.output);
    assert_eq!(get(&again, web.v4()), Ok(()));
}

#[test]
fn add_waits_for_the_pod_with_the_uid_that_it_was_told() {
    if skipped() {
        return;
    }
    let (mut stage, web, chain) = shop("cni-uid", Mode::Routed);
    let old = chain.container("client").expect("a container");
    chain.schedule(&old, &CLIENT).expect("a manifest");
    stage.settled();
    let new = chain.container("client").expect("a container");
    let said = std::thread::scope(|scope| {
        let adding = scope.spawn(|| chain.add(&new).expect("ran"));
        let waiting = until("the announcement", NOTICE_PATIENCE, || {
            let waiting = stage.agent().metric("reeve_cni_announcements", &[("state", "waiting")])?;
            Ok((waiting > 0.5).then_some(()))
        });
        waiting.expect("the pod of that name is another one");
        chain.schedule(&new, &CLIENT).expect("a manifest");
        adding.join().expect("no panic")
    });
    assert!(said.succeeded, "{}", said.output);
    assert_eq!(get(&new, web.v4()), Ok(()));
}

#[test]
fn without_an_agent_add_says_what_to_do_and_del_succeeds() {
    if skipped() {
        return;
    }
    let (mut stage, web, chain) = shop("cni-absent", Mode::Routed);
    stage.agent().kill9().expect("killed");
    let container = chain.container("client").expect("a container");
    chain.schedule(&container, &CLIENT).expect("a manifest");
    let said = chain.add(&container).expect("ran");
    assert_eq!(said.code(), 100, "{}", said.output);
    for named in ["shop/client", "reeve-agent uninstall", "cni.sock"] {
        assert!(said.output.to_string().contains(named), "{named} is not in {}", said.output);
    }
    assert!(chain.del(&container).expect("ran").succeeded);
    stage.agent().start_again().expect("started again");
    let said = chain.add(&container).expect("ran");
    assert!(said.succeeded, "{}", said.output);
    assert_eq!(get(&container, web.v4()), Ok(()));
}

#[test]
fn agent_that_is_killed_before_the_status_shows_the_address_loses_and_opens_nothing() {
    if skipped() {
        return;
    }
    let (mut stage, web, chain) = shop("cni-killed", Mode::Routed);
    let (guest, _) = add(&mut stage, &chain, "guest", &GUEST);
    let (client, client_address) = add(&mut stage, &chain, "client", &CLIENT);
    stage.agent().kill9().expect("killed");
    assert_eq!((get(&client, web.v4()), get(&guest, web.v4())), (Ok(()), Err(NoAnswer::TimedOut)));
    stage.agent().start_again().expect("started again");
    stage.settled();
    assert_eq!((get(&client, web.v4()), get(&guest, web.v4())), (Ok(()), Err(NoAnswer::TimedOut)));
    let unconfirmed = |stage: &mut Stage| {
        stage.agent().metric("reeve_cni_announcements", &[("state", "unconfirmed")]).expect("a metric")
    };
    assert_eq!(unconfirmed(&mut stage), 2.0);
    chain.show(&client, &CLIENT, &[client_address]).expect("a manifest");
    stage.settled();
    assert_eq!(unconfirmed(&mut stage), 1.0);
    assert_eq!((get(&client, web.v4()), get(&guest, web.v4())), (Ok(()), Err(NoAnswer::TimedOut)));
    let seeded = stage.agent().metric("reeve_seeded_flows_total", &[("state", "seeded")]).expect("a metric");
    assert_eq!(seeded, 0.0, "nobody takes it for a pod from before");
}

#[test]
fn check_gc_and_status_tell_how_it_stands() {
    if skipped() {
        return;
    }
    let (mut stage, web, chain) = shop("cni-check", Mode::Routed);
    let container = chain.container("client").expect("a container");
    chain.schedule(&container, &CLIENT).expect("a manifest");
    stage.settled();
    let made = chain.make(&container).expect("made");
    let newest = |command: &str, more: Value| -> Said {
        let mut more = more;
        more["cniVersion"] = json!("1.1.0");
        chain.ours(command, &container, more).expect("ran")
    };
    let before = newest("CHECK", json!({ "prevResult": made }));
    assert_eq!(before.code(), 101, "{}", before.output);
    // Any version takes the result as it comes, and gives it back.
    let said = newest("ADD", json!({ "prevResult": made }));
    assert_eq!((said.code(), &said.output), (0, &made));
    assert_eq!(newest("CHECK", json!({ "prevResult": made })).code(), 0);
    assert_eq!(newest("STATUS", json!({})).code(), 0);
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": container.id, "ifname": "eth0" }] });
    assert_eq!(newest("GC", valid).code(), 0);
    assert_eq!(newest("CHECK", json!({ "prevResult": made })).code(), 0, "a valid one stays");
    assert_eq!(get(&container, web.v4()), Ok(()));
    assert_eq!(newest("GC", json!({ "cni.dev/valid-attachments": [] })).code(), 0);
    assert_eq!(newest("CHECK", json!({ "prevResult": made })).code(), 101, "any other is forgotten");
    stage.settled();
    assert_eq!(get(&container, web.v4()), Err(NoAnswer::TimedOut), "and closed");
    stage.agent().kill9().expect("killed");
    let absent = newest("STATUS", json!({}));
    assert_eq!(absent.code(), 50, "{}", absent.output);
}

#[test]
fn every_version_of_the_specification_is_spoken() {
    if skipped() {
        return;
    }
    let (mut stage, web, _) = shop("cni-versions", Mode::Routed);
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let chain = Chain::ptp(&stage.node, version);
        let (container, _) = add(&mut stage, &chain, &format!("client-{}", version.replace('.', "-")), &CLIENT);
        assert_eq!(get(&container, web.v4()), Ok(()), "{version}");
        let said = chain.ours("VERSION", &container, json!({})).expect("ran");
        assert_eq!(said.output["cniVersion"], version);
        assert_eq!(said.output["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
        assert!(chain.del(&container).expect("ran").succeeded);
    }
    assert_eq!(adds(&mut stage, "enforced"), 3.0);
}

#[test]
fn two_pods_that_claim_one_address_are_both_named_and_the_first_stays() {
    if skipped() {
        return;
    }
    let (mut stage, web, chain) = shop("cni-claims", Mode::Routed);
    let (client, _) = add(&mut stage, &chain, "client", &CLIENT);
    let thief = chain.container("thief").expect("a container");
    chain.schedule(&thief, &GUEST).expect("a manifest");
    stage.settled();
    let mut made = chain.make(&thief).expect("made");
    let said = chain.ours("ADD", &thief, json!({ "prevResult": made })).expect("ran");
    assert!(said.succeeded, "{}", said.output);
    let mut another = chain.container("another").expect("a container");
    another.netns = thief.netns.clone();
    let said = chain.announce(&another, &made).expect("ran");
    assert_eq!(said.code(), 102, "{}", said.output);
    for named in ["shop/thief", "shop/another"] {
        assert!(said.output.to_string().contains(named), "{}", said.output);
    }
    made["ips"][0]["address"] = json!("10.244.1.9/24");
    assert_eq!(chain.announce(&another, &made).expect("ran").code(), 102, "the device alone is a claim");
    assert!(chain.ours("DEL", &another, json!({})).expect("ran").succeeded);
    assert_eq!(adds(&mut stage, "refused"), 2.0);
    assert_eq!((get(&client, web.v4()), get(&thief, web.v4())), (Ok(()), Err(NoAnswer::TimedOut)));
}

#[test]
fn twenty_pods_at_once_are_enforced_within_a_moment() {
    if skipped() {
        return;
    }
    let (mut stage, web, chain) = shop("cni-twenty", Mode::Routed);
    let prepare = |number: usize| {
        let labels: &[(&str, &str)] = if number.is_multiple_of(2) { &CLIENT } else { &GUEST };
        let container = chain.container(&format!("pod-{number}")).expect("a container");
        chain.schedule(&container, labels).expect("a manifest");
        container
    };
    let alone: Vec<Container> = (0..10).map(prepare).collect();
    let together: Vec<Container> = (10..30).map(prepare).collect();
    stage.settled();
    let mut single: Vec<Duration> = alone
        .iter()
        .map(|container| {
            let made = chain.make(container).expect("made");
            let said = chain.announce(container, &made).expect("ran");
            assert!(said.succeeded, "{}", said.output);
            said.took
        })
        .collect();
    single.sort();
    let made: Vec<Value> = together.iter().map(|container| chain.make(container).expect("made")).collect();
    let begun = std::time::Instant::now();
    let all: Vec<Said> = std::thread::scope(|scope| {
        let adding: Vec<_> = together
            .iter()
            .zip(&made)
            .map(|(container, made)| scope.spawn(|| chain.announce(container, made).expect("ran")))
            .collect();
        adding.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    let took = begun.elapsed();
    println!("ADD alone: {single:?}; twenty together: {took:?}");
    for said in &all {
        assert!(said.succeeded, "{}", said.output);
    }
    for (number, container) in alone.iter().chain(&together).enumerate() {
        let wanted = if number.is_multiple_of(2) { Ok(()) } else { Err(NoAnswer::TimedOut) };
        if number % 7 < 2 {
            assert_eq!(get(container, web.v4()), wanted, "{}", container.pod);
        }
    }
    assert_eq!(adds(&mut stage, "enforced"), 30.0);
    // What the machine can do is told by the line above; this only finds what waits for something.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// What a file of the node's configuration holds.
fn configuration(path: &std::path::Path) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

#[test]
fn agent_installs_the_plugin_follows_the_configuration_and_uninstall_leaves_it_as_it_was() {
    if skipped() {
        return;
    }
    let mut stage = Stage::new("cni-installed", Mode::Routed);
    let places = ["conf", "bin"].map(|name| stage.node.run_directory().with_file_name(name));
    for place in &places {
        std::fs::create_dir(place).expect("made");
    }
    let path = places[0].join("10-lab.conflist");
    // As no program would write it.
    let text =
        "{'name':'lab' ,\r\n\t'plugins': [\r\n\t\t{ 'type': 'KIND' }\r\n\t], 'own':[1],\n'cniVersion': '1.0.0'}\n\n";
    let list = |kind: &str| text.replace('\'', "\"").replace("KIND", kind);
    let write = |list: String| std::fs::write(&path, list).expect("written");
    write(list("ptp"));
    let [conf, bin] = places.each_ref().map(|place| place.to_str().expect("text").to_owned());
    let directories = ["--cni-conf-dir".to_owned(), conf, "--cni-bin-dir".to_owned(), bin];
    stage.start_with(AgentOptions { arguments: directories.to_vec(), ..AgentOptions::default() });
    let has = |kind: &str| {
        until("the plugin in the configuration", NOTICE_PATIENCE, || {
            let found = configuration(&path)?;
            Ok((found["plugins"][0]["type"] == kind && found["plugins"][1]["type"] == "reeve-cni").then_some(found))
        })
    };
    let found = has("ptp").expect("put in at the start");
    assert_eq!(found["plugins"][1]["socket"], json!(stage.node.run_directory().join("cni.sock")));
    assert!(places[1].join("reeve-cni").is_file());
    write(list("bridge"));
    has("bridge").expect("put in again when another has written the file");
    // What cannot be read is named, and stays.
    std::fs::write(places[0].join("00-broken.conflist"), "{").expect("written");
    let named = until("the reason", NOTICE_PATIENCE, || {
        let ready = stage.agent().request("GET", "/readyz")?;
        Ok((ready.status == 503 && ready.body.contains("00-broken.conflist")).then_some(()))
    });
    named.expect("the file is named");
    assert_eq!(stage.problems("00-broken.conflist").len(), 1);
    std::fs::remove_file(places[0].join("00-broken.conflist")).expect("removed");
    stage.agent().wait_ready().expect("ready again");
    stage.agent().terminate().expect("ended");
    assert_eq!(
        configuration(&path).expect("read")["plugins"][1]["type"],
        "reeve-cni",
        "an agent that ends takes nothing out"
    );
    let mut uninstall = Command::new(agent_program().expect("a program"));
    uninstall.arg("uninstall").args(&directories).arg("--bpffs").arg(stage.node.bpffs());
    uninstall.arg("--run-dir").arg(stage.node.run_directory()).arg("--state-dir").arg(stage.node.state_directory());
    let done = stage.node.netns().run(|| uninstall.output()).expect("entered").expect("ran");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(std::fs::read_to_string(&path).expect("read"), list("bridge"), "byte for byte");
    assert!(!places[1].join("reeve-cni").exists());
}
