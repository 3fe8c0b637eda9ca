//! Marks among other users of the packet filter: taken away, taken by others, and guarded where no program is.

use reeve_tests::lab::{AgentOptions, Mode, Netns, Pod};
use reeve_tests::stage::{RECORD_PATIENCE, Stage, WEB};
use reeve_tests::traffic::{self, NoAnswer, PATIENCE, Server};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

/// Runs nft in the node's namespace.
fn nft(stage: &Stage, rules: &str) -> String {
    let mut command = Command::new("nft");
    command.arg(rules).stdin(Stdio::null());
    let output = stage.node.netns().run(|| command.output()).expect("a namespace").expect("nft runs");
    assert!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn get(netns: &Netns, to: IpAddr) -> traffic::Answer {
    traffic::connect(netns, SocketAddr::new(to, 8080), PATIENCE)?.exchange(PATIENCE)
}

/// Two pods that policies let everywhere, and a machine outside that serves.
fn open(name: &str) -> (Stage, Pod, Pod, Netns, Server) {
    let mut stage = Stage::new(name, Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[]);
    let outside = stage.lab.outside("world").expect("a machine outside");
    let server = Server::tcp(&outside, OUTSIDE, 8080).expect("a server");
    (stage, web, client, outside, server)
}

/// The first machine on the switch after the node.
const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 18, 0, 2));

#[test]
fn packets_whose_mark_somebody_clears_are_denied_by_name() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, _outside, _server) = open("mark-lost");
    stage.start();
    assert_eq!(get(client.netns(), OUTSIDE), Ok(()));
    stage.allows(&client, &web, WEB, "noPolicySelects");
    nft(&stage, "table inet foreign { chain pass { type filter hook forward priority 0; meta mark set 0; }; }");
    for to in [OUTSIDE, web.v4()] {
        stage.records().rest().expect("records");
        assert_eq!(get(client.netns(), to), Err(NoAnswer::TimedOut));
        let lost = |line: &serde_json::Value| line["decision"]["default"] == "markLost";
        stage.records().wait_for(RECORD_PATIENCE, lost).expect("a record");
    }
    assert_eq!(get(stage.node.netns(), web.v4()), Ok(()), "the node's own packets need no mark");
    nft(&stage, "delete table inet foreign");
    assert_eq!(get(client.netns(), OUTSIDE), Ok(()));
    stage.allows(&client, &web, WEB, "noPolicySelects");
}

#[test]
fn agent_does_not_start_beside_others_that_use_its_bits() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, _outside, _server) = open("mark-taken");
    nft(
        &stage,
        "table ip theirs { chain pass { type filter hook forward priority 0; meta mark set meta mark | 0x10000; }; }",
    );
    let plain = ("RUST_BACKTRACE".to_owned(), "0".to_owned());
    let options = AgentOptions { environment: vec![plain], ..AgentOptions::default() };
    let failed = stage.node.start_agent(options).err().expect("it does not start");
    let said = format!("{failed:#}");
    assert!(said.contains("0x3fff0000") && said.contains("meta mark set meta mark | 0x00010000"), "{said}");
    let elsewhere = AgentOptions { arguments: vec!["--mark-mask=0x3fff".to_owned()], ..AgentOptions::default() };
    stage.start_with(elsewhere);
    assert_eq!(get(client.netns(), OUTSIDE), Ok(()), "other bits do as well");
    stage.allows(&client, &web, WEB, "noPolicySelects");
}

#[test]
fn pending_packet_does_not_leave_by_a_device_without_program() {
    if crate::skipped() {
        return;
    }
    let (mut stage, _web, client, _outside, _server) = open("unhooked");
    let spec = json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": [{ "ipBlock": { "cidr": "192.168.77.0/24" } }] }] });
    stage.policy("out", &spec);
    stage.start();
    stage.agent().kill9().expect("killed");
    // Plugged in while nobody watches.
    let far = stage.lab.outside("late").expect("a machine");
    let to: IpAddr = "192.168.77.2".parse().expect("an address");
    stage
        .node
        .netns()
        .ip(&[
            format!("link add late type veth peer name late netns {}", far.name()),
            "addr add 192.168.77.1/24 dev late".to_owned(),
            "link set late up".to_owned(),
        ])
        .expect("a device");
    let back = format!("route replace {}/32 via 192.168.77.1", client.v4());
    far.ip(&["addr add 192.168.77.2/24 dev late".to_owned(), "link set late up".to_owned(), back]).expect("its end");
    let _server = Server::tcp(&far, to, 8080).expect("a server");
    assert_eq!(get(stage.node.netns(), to), Ok(()), "the node's own packets leave");
    assert_eq!(get(client.netns(), to), Err(NoAnswer::TimedOut), "nobody could judge it there");
    stage.agent().start_again().expect("started again");
    stage.settled();
    assert_eq!(get(client.netns(), to), Ok(()), "judged and allowed, once there is a program");
    assert_eq!(get(client.netns(), OUTSIDE), Err(NoAnswer::TimedOut), "what the policy denies stays denied");
}

#[test]
fn uninstall_takes_the_rule_for_devices_away() {
    if crate::skipped() {
        return;
    }
    let (mut stage, _web, client, _outside, _server) = open("unguard");
    stage.start();
    assert!(nft(&stage, "list ruleset").contains("table inet reeve"));
    let hooks = |stage: &mut Stage, state| stage.agent().metric("reeve_hooks", &[("state", state)]).expect("a metric");
    assert!(hooks(&mut stage, "uplink") >= 1.0);
    assert_eq!((hooks(&mut stage, "host"), hooks(&mut stage, "guarded")), (1.0, 1.0));
    stage.agent().terminate().expect("ended");
    assert!(nft(&stage, "list ruleset").contains("table inet reeve"), "an agent that ends leaves everything");
    let node = &stage.node;
    let mut command = Command::new(reeve_tests::lab::agent_program().expect("a program"));
    command.arg("uninstall").arg("--bpffs").arg(node.bpffs()).arg("--run-dir").arg(node.run_directory());
    command.arg("--state-dir").arg(node.state_directory()).stdin(Stdio::null()).stdout(Stdio::null());
    assert!(node.netns().run(|| command.status()).expect("a namespace").expect("it runs").success());
    assert!(!nft(&stage, "list ruleset").contains("table inet reeve"));
    assert_eq!(get(client.netns(), OUTSIDE), Ok(()));
}
