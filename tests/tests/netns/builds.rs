//! An agent of another build takes over: its programs come into the links of the one before.

use crate::before;
use crate::drift::pins;
use crate::life::{Flow, shop_with};
use aya::programs::links::{FdLink, PinnedLink};
use reeve_tests::lab::{AgentOptions, until};
use reeve_tests::stage::{Stage, WEB};
use reeve_tests::traffic::{Datagrams, PATIENCE, Server, connect};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The first machine on the switch after the node.
const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 18, 0, 2));

/// A pinned link: its number, its program's number, and a hash of that program's instructions.
type Standing = (u32, u32, u64);

/// All links by their pins.
fn standing(stage: &Stage) -> BTreeMap<String, Standing> {
    let links = pins(stage).join("links").read_dir().expect("a directory").map(|link| link.expect("read").path());
    let of = |path: PathBuf| {
        let info = FdLink::from(PinnedLink::from_pin(&path).expect("a link")).info().expect("asked");
        let programs = aya::programs::loaded_programs().filter_map(Result::ok);
        let tag = programs.into_iter().find(|program| program.id() == info.program_id()).expect("loaded").tag();
        (path.file_name().expect("a name").to_string_lossy().into_owned(), (info.id(), info.program_id(), tag))
    };
    links.map(of).collect()
}

#[test]
fn agent_of_another_build_takes_over_without_a_gap_and_without_a_wrong_verdict() {
    if before::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("another", &[]);
    let silent = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Egress"] });
    stage.policy("web-silent", &silent);
    stage.settled();
    let outside = stage.lab.outside("world").expect("a machine outside");
    let node = SocketAddr::new(stage.node.v4(), 9004);
    let _server = Server::tcp(&outside, OUTSIDE, 8080).expect("a server");
    let live = [
        Flow::start(stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection")),
        Flow::start(connect(client.netns(), SocketAddr::new(OUTSIDE, 8080), PATIENCE).expect("an open connection")),
    ];
    let (web_at, world_at) = (SocketAddr::new(web.v4(), 9000), SocketAddr::new(OUTSIDE, 9002));
    let host = stage.node.netns().clone();
    let allowed = [
        ("to a pod", Datagrams::start(client.netns(), web.netns(), web_at)),
        ("out of the node", Datagrams::start(client.netns(), &outside, world_at)),
        ("to a process of the node", Datagrams::start(client.netns(), &host, node)),
    ];
    let denied = [
        ("to a pod", Datagrams::start(guest.netns(), web.netns(), SocketAddr::new(web.v4(), 9001))),
        ("out of the node", Datagrams::start(web.netns(), &outside, SocketAddr::new(OUTSIDE, 9003))),
        ("to a process of the node", Datagrams::start(web.netns(), &host, SocketAddr::new(stage.node.v4(), 9005))),
    ];
    let other = stage.lab.another_build().expect("another build");
    let mut before = standing(&stage);
    assert!(before.len() >= 9, "two of each pod's, two of eth0's and the cgroup's: {before:?}");
    for program in [Some(other.clone()), None, Some(other)] {
        let since: Vec<u64> = allowed.iter().map(|(_, one)| one.heard() + 50).collect();
        stage.agent().terminate().expect("ended");
        stage.start_with(AgentOptions { program, ..AgentOptions::default() });
        let flowing = until("traffic", Duration::from_secs(30), || {
            Ok(allowed.iter().zip(&since).all(|((_, one), since)| one.heard() > *since).then_some(()))
        });
        flowing.expect("all that may come does");
        let now = standing(&stage);
        assert_eq!(now.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
        for (pin, (link, program, tag)) in &now {
            let (old_link, old_program, old_tag) = before[pin];
            assert_eq!(*link, old_link, "{pin} is the link that it was");
            assert!(*program != old_program && *tag != old_tag, "{pin} has a program of the other build");
        }
        let adopted = stage.agent().metric("reeve_adopted_links", &[]).expect("a metric");
        assert!((adopted - 3.0).abs() < 0.5, "{adopted}");
        before = now;
    }
    for flow in live {
        flow.check_unbroken();
    }
    for (what, one) in allowed {
        let (sent, came) = one.finish();
        assert_eq!(sent, came, "what client sends {what}");
    }
    for (what, one) in denied {
        let (sent, came) = one.finish();
        assert_eq!((sent > 100, came), (true, 0), "what may not be sent {what}");
    }
    let (guest_ip, web_ip) = (guest.v4().to_string(), web.v4().to_string());
    let rows = stage.agent().records().rest().expect("records");
    let judged = |row: &&Value| row["verdict"].is_string() && row["source"]["ip"].is_string();
    let mut seen = [0, 0];
    for row in rows.iter().filter(judged) {
        let source = row["source"]["ip"].as_str().expect("text");
        let begun_by_web = row["direction"] == "egress" && source == web_ip;
        let must_not = begun_by_web || source == guest_ip && row["direction"] == "ingress";
        assert_eq!(row["verdict"], if must_not { "deny" } else { "allow" }, "{row}");
        seen[usize::from(must_not)] += 1;
    }
    assert!(seen[0] > 100 && seen[1] > 10, "{seen:?} verdicts are told");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}
