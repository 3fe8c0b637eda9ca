//! Every map without room, one after the other: named, closed where it must be, and counted.

use crate::{PATIENCE, metric};
use reeve_tests::lab::until;
use reeve_tests::stage::counts::{SINK, Sums, Traffic, counted, datagrams, received, sent};
use reeve_tests::stage::{WEB, get};
use reeve_tests::traffic::{NoAnswer, Server};
use serde_json::{Value, json};

/// Names every map of policies: prefixes, each with ports of its own and a range that takes many rows.
fn big_policy() -> Value {
    let rules: Vec<Value> = (0..12)
        .map(|nth| {
            json!({
                "from": [{ "ipBlock": { "cidr": format!("198.51.{nth}.0/24") } }],
                "ports": [{ "port": 1_000 + nth }, { "port": 2_001, "endPort": 2_999 + nth }]
            })
        })
        .collect();
    json!({ "podSelector": { "matchLabels": { "app": "big" } }, "ingress": rules })
}

#[test]
fn policy_without_room_in_any_map_is_refused_whole_and_named() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = counted("f-policy-room", 600, "");
    let big = stage.pod("big", &[("app", "big")]);
    // The last one in order is refused first.
    stage.policy("zz-big", &big_policy());
    stage.settled();
    stage.denies(&client, &big, WEB, "tierDefault");
    for map in ["NETWORKS", "CLASSES", "PEERS", "PORTS", "RANGES"] {
        let path = stage.lab.directory().join("settings.toml");
        std::fs::write(&path, format!("[map-entries]\n{map} = 16\n")).expect("written");
        stage.agent().restart().expect("restarted");
        let named = stage.problems(&format!("map {map}"));
        assert_eq!(named.len(), 1, "{map}: {named:?}");
        assert_eq!(named[0]["object"], "NetworkPolicy/shop/zz-big", "{map}");
        assert_eq!(get(&client, &big), Err(NoAnswer::TimedOut), "{map}: what is refused denies");
        let refused = |row: &Value| row["decision"]["default"] == "refusedPolicy" && row["destination"]["pod"] == "big";
        stage.records().wait_for(PATIENCE, refused).unwrap_or_else(|error| panic!("{map}: {error:#}"));
        // Nobody else pays for it.
        stage.allows(&client, &web, WEB, "web-clients");
        stage.denies(&guest, &web, WEB, "web-clients");
    }
    // Control: without it there is room for all the rest.
    stage.lab.manifests().remove("zz-big").expect("removed");
    stage.settled();
    assert!(stage.problems("map ").is_empty());
    stage.allows(&client, &big, WEB, "noPolicySelects");
}

#[test]
fn counts_without_even_a_reserved_row_are_counted_as_lost() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = counted("f-overflow", 600, "[map-entries]\nEDGES = 16\nOVERFLOW = 1\n");
    let _sink = Server::sink(web.netns(), web.v4(), SINK).expect("a sink");
    let denied = datagrams(&guest, &web, 20_000..20_200, 200);
    let allowed = datagrams(&client, &web, 20_000..20_100, 100);
    stage.agent().terminate().expect("ended, and every window is told");
    stage.agent().start_again().expect("started again");
    *stage.records() = stage.agent().records();
    let mut sums = Sums::default();
    let told = sums.told(&mut stage, sent("client"))
        + sums.told(&mut stage, sent("guest"))
        + sums.told(&mut stage, received("allow"))
        + sums.told(&mut stage, received("deny"));
    let all = 2 * (allowed + denied);
    let lost = metric(&mut stage, "reeve_datapath_packets_total", &[("state", "edges_lost")]);
    println!("{told} of {all} are told, {lost} counts are lost");
    assert!(told < all && told > 0, "{told} of {all}: nothing was lost, or everything");
    assert!((all - told) as f64 <= lost, "{} are missing, and {lost} are said to be", all - told);
    assert!(lost <= (all - told) as f64 + 64.0, "{} are missing, and {lost} are said to be", all - told);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn ring_buffer_that_is_far_too_small_loses_detail_that_is_counted_and_no_count() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = counted("f-ring", 1, "[map-entries]\nEVENTS = 4096\n");
    let told = |stage: &mut reeve_tests::stage::Stage| {
        metric(stage, "reeve_flow_events_total", &[("state", "opened")])
            + metric(stage, "reeve_flow_events_total", &[("state", "denied")])
    };
    let state = [("state", "events_lost")];
    stage.settled();
    let before = (told(&mut stage), metric(&mut stage, "reeve_datapath_packets_total", &state));
    let sink = Server::sink(web.netns(), web.v4(), SINK).expect("a sink");
    let (mut allowed, mut denied) = (0, 0);
    let mut clients = Vec::new();
    for first in (20_000..24_000_u16).step_by(100) {
        // Not more at once than a socket holds.
        allowed += datagrams(&client, &web, first..first + 100, 1);
        denied += datagrams(&guest, &web, first..first + 100, 1);
        let arrived = until("what is allowed", PATIENCE, || {
            clients.extend(sink.clients());
            Ok((clients.len() as u64 >= allowed).then_some(()))
        });
        arrived.expect("it comes");
    }
    let mut sums = Sums::default();
    sums.check(&mut stage, "what client sent", allowed, sent("client"));
    sums.check(&mut stage, "what guest sent", denied, sent("guest"));
    sums.check(&mut stage, "what web got", allowed, received("allow"));
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    clients.extend(sink.clients());
    assert_eq!(clients.iter().filter(|who| who.ip() == client.v4()).count() as u64, allowed);
    assert!(clients.iter().all(|who| who.ip() == client.v4()), "what is denied stays denied");
    stage.settled();
    let (told, lost) =
        (told(&mut stage) - before.0, metric(&mut stage, "reeve_datapath_packets_total", &state) - before.1);
    println!("{told} events told, {lost} lost");
    assert!(lost > 100.0, "the buffer was not too small: {lost}");
    // Each datagram is a flow of its own, judged at both ends.
    assert_eq!(told + lost, 2.0 * (allowed + denied) as f64);
    drop(sink);
    let traffic = Traffic::start(&web, &client, &guest);
    traffic.denied.wait_for(200);
    let account = traffic.stop();
    assert_eq!((account.delivered, account.leaked), (account.allowed, 0));
}
