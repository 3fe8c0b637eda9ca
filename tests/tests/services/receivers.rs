//! What the receiving pod's policies say where addresses are rewritten on the way: the client is who it really is.

use std::net::SocketAddr;

use reeve_tests::lab::Transport::Tcp;
use reeve_tests::lab::{Backend, ExternalPolicy, Masquerade};
use reeve_tests::traffic::{NoAnswer, PATIENCE, UdpClient, connect};

use super::town::{Town, ask, ask_udp, everywhere, pods};

#[test]
fn backends_of_services_let_in_whom_their_policies_name() {
    everywhere("backends", |town| {
        let backends = [("web", town.web.clone(), 0), ("far", town.far.clone(), 1)];
        for (name, backend, node) in backends {
            let service = town.service(name, &[Backend::pod(&backend)]);
            town.let_in(name, &[pods("role", "client")]);
            let said = format!("into-{name}");
            let (client, guest, to) = (town.of(&town.client), town.of(&town.guest), town.of(&backend));
            let (tcp, udp) = (town.tcp(&service), town.udp(&service));
            for (netns, from, answer, verdict) in [
                (town.client.netns().clone(), client, Ok(()), "allow"),
                (town.guest.netns().clone(), guest, Err(NoAnswer::TimedOut), "deny"),
            ] {
                town.cluster.skip_records();
                assert_eq!(ask(&netns, tcp), answer, "TCP to {name}");
                let line = town.told_at_receiver(node, from, to, verdict, &said);
                assert_eq!((&line["protocol"], &line["destination"]["port"]), (&"TCP".into(), &8080.into()), "{line}");
                town.cluster.skip_records();
                assert_eq!(ask_udp(&netns, udp), answer, "UDP to {name}");
                let line = town.told_at_receiver(node, from, to, verdict, &said);
                assert_eq!((&line["protocol"], &line["destination"]["port"]), (&"UDP".into(), &53.into()), "{line}");
            }
        }
    });
}

#[test]
fn client_outside_that_keeps_its_address_is_judged_as_itself() {
    everywhere("outside-kept", |town| {
        let web = town.web.clone();
        town.at_nodes("kept", 30_080, ExternalPolicy::Local, &web);
        town.services.host_port(&web, Tcp, 9090, 8080, Masquerade::Neighbours).expect("a hostPort");
        let (outside, to, node) = (town.outside_address(), town.of(&web), town.node(0));
        let machine = town.outside.clone();
        for (peer, answer, verdict) in
            [(outside, Ok(()), "allow"), (town.of(&town.guest), Err(NoAnswer::TimedOut), "deny")]
        {
            town.let_in("web", &[Town::block(peer)]);
            for port in [30_080, 9090] {
                town.cluster.skip_records();
                assert_eq!(ask(&machine, SocketAddr::new(node, port)), answer, "port {port}");
                town.told_at_receiver(0, outside, to, verdict, "into-web");
            }
        }
    });
}

#[test]
fn process_of_the_own_node_reaches_an_isolated_backend_by_way_of_a_service() {
    everywhere("own-node", |town| {
        let service = town.service("web", &[Backend::pod(&town.web)]);
        town.let_in("web", &[pods("role", "nobody")]);
        let tcp = town.tcp(&service);
        let node = town.cluster.nodes[0].netns().clone();
        assert_eq!(ask(&node, tcp), Ok(()), "the kubelet's probe may go by way of a Service");
        assert_eq!(ask(town.client.netns(), tcp), Err(NoAnswer::TimedOut), "nobody else is let in");
    });
}

#[test]
fn connection_stays_with_its_backend_when_its_service_moves_to_one_that_is_closed() {
    everywhere("moves", |town| {
        let service = town.service("web", &[Backend::pod(&town.web)]);
        town.let_in("near", &[pods("role", "nobody")]);
        let (tcp, netns) = (town.tcp(&service), town.client.netns().clone());
        let mut live = connect(&netns, tcp, PATIENCE).expect("open");
        assert_eq!(live.exchange(PATIENCE), Ok(()));
        service.set_backends(&[Backend::pod(&town.near)]).expect("moved");
        town.cluster.settled();
        town.cluster.skip_records();
        assert_eq!(ask(&netns, tcp), Err(NoAnswer::TimedOut), "new connections reach the closed pod");
        let (from, to) = (town.of(&town.client), town.of(&town.near));
        town.told_at_receiver(0, from, to, "deny", "into-near");
        assert_eq!(live.exchange(PATIENCE), Ok(()), "the old one is where it was");
        service.set_backends(&[Backend::pod(&town.web)]).expect("moved back");
        town.cluster.settled();
        assert_eq!(ask(&netns, tcp), Ok(()));
    });
}

#[test]
fn datagrams_from_one_port_that_are_led_to_another_backend_are_judged_there() {
    everywhere("moves-udp", |town| {
        let service = town.service("names", &[Backend::pod(&town.web)]);
        town.let_in("near", &[pods("role", "nobody")]);
        let mut live = UdpClient::new(town.client.netns(), None, town.udp(&service)).expect("a socket");
        assert_eq!(live.exchange(PATIENCE), Ok(()));
        service.set_backends(&[Backend::pod(&town.near)]).expect("moved");
        town.cluster.settled();
        town.cluster.skip_records();
        assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut), "the closed pod has them now");
        let (from, to) = (town.of(&town.client), town.of(&town.near));
        town.told_at_receiver(0, from, to, "deny", "into-near");
        service.set_backends(&[Backend::pod(&town.web)]).expect("moved back");
        town.cluster.settled();
        assert_eq!(live.exchange(PATIENCE), Ok(()));
    });
}
