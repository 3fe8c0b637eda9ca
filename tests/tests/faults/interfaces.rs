//! Devices and pods go away under traffic.

use crate::{PATIENCE, check_nothing_leaked};
use reeve_tests::lab::until;
use reeve_tests::stage::counts::{Account, SINK, Sums, Traffic, counted, received, sent};
use reeve_tests::stage::{WEB, get};
use reeve_tests::traffic::{NoAnswer, Server};
use std::net::{SocketAddr, UdpSocket};

#[test]
fn interface_that_goes_to_another_namespace_and_comes_back_is_enforced() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = counted("f-moved", 1, "");
    let elsewhere = stage.lab.outside("elsewhere").expect("a namespace");
    stage.settled();
    let before = stage.node.objects().expect("what is held");
    let (device, address, v6) = (web.host_side().to_owned(), web.v4(), web.v6());
    stage.node.netns().ip(&[format!("link set {device} netns {}", elsewhere.name())]).expect("moved");
    let gone = until("the agent to see it", PATIENCE, || {
        Ok(stage.endpoint(&web)?["ifindex"].as_u64().is_none_or(|ifindex| ifindex == 0).then_some(()))
    });
    gone.unwrap_or_else(|error| panic!("{error:#}: {}", stage.endpoint(&web).expect("an endpoint")));
    elsewhere.ip(&[format!("link set {device} netns {}", stage.node.netns().name())]).expect("moved back");
    let back = [
        format!("link set {device} up"),
        format!("route replace {address} dev {device}"),
        format!("route replace {v6} dev {device}"),
    ];
    stage.node.netns().ip(&back).expect("wired");
    let closed = until("enforcement", PATIENCE, || {
        Ok((get(&guest, &web) == Err(NoAnswer::TimedOut) && get(&client, &web) == Ok(())).then_some(()))
    });
    closed.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.agent().log()));
    stage.settled();
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    // Whoever is enforced is enforced whole, and counted.
    let traffic = Traffic::start(&web, &client, &guest);
    traffic.denied.wait_for(300);
    traffic.stop().check_exact(&mut stage);
    check_nothing_leaked(&stage.node, &before);
}

/// Longest until a flow of datagrams that was never answered has ended and been told.
const IDLE: std::time::Duration = std::time::Duration::from_mins(1);

#[test]
fn pod_that_is_deleted_in_the_middle_of_a_flow_leaves_no_count_behind() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = counted("f-deleted", 1, "");
    let sink = Server::sink(web.netns(), web.v4(), SINK).expect("a sink");
    let before = stage.node.objects().expect("what is held");
    // One flow, so that most of its counts stand in its entry when the pod goes.
    let to = SocketAddr::new(web.v4(), SINK);
    let socket = client.netns().run(|| UdpSocket::bind(("0.0.0.0", 5_000))).expect("entered").expect("bound");
    let mut account = Account { allowed: 0, delivered: 0, denied: 0, leaked: 0 };
    for _ in 0..14 {
        // Not more at once than a socket holds.
        for _ in 0..50 {
            account.allowed += u64::from(socket.send_to(b"one", to).is_ok());
        }
        let arrived = until("all of them", PATIENCE, || {
            account.delivered += sink.clients().len() as u64;
            Ok((account.delivered == account.allowed).then_some(()))
        });
        arrived.expect("they are allowed");
    }
    let gone = stage.endpoint(&web).expect("an endpoint")["ifindex"].to_string();
    web.remove().expect("removed");
    stage.settled();
    assert!(stage.endpoint(&web).is_err(), "it is no endpoint any more");
    for _ in 0..50 {
        // Into the void now: judged and counted where they are sent, or refused by the client's own kernel.
        account.allowed += u64::from(socket.send_to(b"one", to).is_ok());
    }
    drop(socket);
    // The entries of the pod that went end when they have been idle for half a minute, and their rest is told.
    let mut sums = Sums::default();
    *stage.records() = stage.agent().records();
    sums.check_within(IDLE, &mut stage, "what web got", account.delivered, received("allow"));
    stage.agent().terminate().expect("ended");
    stage.agent().start_again().expect("started again");
    sums.check(&mut stage, "what client sent", account.allowed, sent("client"));
    let other = stage.pod("other", &[("app", "web")]);
    stage.settled();
    stage.denies(&guest, &other, WEB, "web-clients");
    stage.allows(&client, &other, WEB, "web-clients");
    other.remove().expect("removed");
    stage.settled();
    let mut left = before.clone();
    left.interfaces.remove(web.host_side());
    left.pins.retain(|pin| !pin.contains(&format!("/{gone}-")));
    left.links -= 2;
    check_nothing_leaked(&stage.node, &left);
}
