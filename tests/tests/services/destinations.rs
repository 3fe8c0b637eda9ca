//! Which destination the sending pod's policies judge where the one that it asked for is no pod: not the one that is
//! asked for, not the one of before, but the one that is reached now.

use std::net::SocketAddr;

use reeve_policy::model::Verdict;
use reeve_tests::lab::Transport::Tcp;
use reeve_tests::lab::{Affinity, Backend, Masquerade, Pod, ServiceSpec};
use reeve_tests::stage::{Probe, WEB};
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, UdpClient};
use serde_json::{Value, json};

use super::town::{Town, ask, everywhere, pods};

impl Town {
    /// Lets `client` reach only these peers, at any port; every agent knows.
    fn let_out(&mut self, peers: &[Value]) {
        self.let_out_to_ports(peers, &[]);
    }

    fn let_out_to_ports(&mut self, peers: &[Value], ports: &[u16]) {
        let mut rule = json!({ "to": peers });
        if !ports.is_empty() {
            rule["ports"] = ports.iter().map(|port| json!({ "protocol": "TCP", "port": port })).collect();
        }
        let client = json!({ "matchLabels": { "role": "client" } });
        let spec = json!({ "podSelector": client, "policyTypes": ["Egress"], "egress": [rule] });
        self.cluster.policy("client-out", &spec);
        self.cluster.settled();
    }

    /// `client` asks for an address and is led to this pod: allowed, or denied by its own policy.
    #[track_caller]
    fn reaches(&mut self, asked: SocketAddr, to: &Pod, probe: Probe, verdict: Verdict) {
        let client = self.client.clone();
        let said = if verdict == Verdict::Deny { "client-out" } else { "noPolicySelects" };
        let done = self.cluster.check_at(&client, asked, to, probe, verdict, said);
        let sent = done.rows[0].line["decision"].to_string();
        assert!(sent.contains("client-out"), "the sender's policy decides: {sent}");
        if verdict == Verdict::Deny {
            assert_eq!(done.rows.len(), 1, "the receiver sees nothing of what its sender may not send");
        }
    }
}

#[test]
fn rule_for_a_services_own_address_or_port_opens_nothing() {
    everywhere("own-address", |town| {
        for backend in [town.web.clone(), town.far.clone()] {
            let app = backend.name().1.to_owned();
            let service = town.service("it", &[Backend::pod(&backend)]);
            let asked = town.tcp(&service);
            town.let_out(&[Town::block(asked.ip())]);
            town.reaches(asked, &backend, WEB, Verdict::Deny);
            town.let_out_to_ports(&[pods("app", &app)], &[80]);
            town.reaches(asked, &backend, WEB, Verdict::Deny);
            town.let_out_to_ports(&[pods("app", &app)], &[8080]);
            town.reaches(asked, &backend, WEB, Verdict::Allow);
            service.remove().expect("removed");
        }
    });
}

#[test]
fn host_port_is_judged_by_the_pod_that_it_leads_to() {
    everywhere("host-port", |town| {
        let (web, near) = (town.web.clone(), town.near.clone());
        town.services.host_port(&web, Tcp, 9090, 8080, Masquerade::Neighbours).expect("a hostPort");
        town.services.host_port(&near, Tcp, 9091, 8080, Masquerade::Neighbours).expect("a hostPort");
        town.let_out(&[pods("app", "web")]);
        let node = town.node(0);
        town.reaches(SocketAddr::new(node, 9090), &web, WEB, Verdict::Allow);
        town.reaches(SocketAddr::new(node, 9091), &near, WEB, Verdict::Deny);
        town.let_out(&[Town::block(node)]);
        town.reaches(SocketAddr::new(node, 9090), &web, WEB, Verdict::Deny);
    });
}

#[test]
fn isolated_pod_reaches_itself_by_way_of_its_service_and_others_do_not_reach_it() {
    everywhere("hairpin", |town| {
        let service = town.service("self", &[Backend::pod(&town.client)]);
        let asked = town.tcp(&service);
        for peers in [vec![], vec![pods("role", "guest")]] {
            let rules: Vec<Value> = if peers.is_empty() { vec![] } else { vec![json!({ "from": peers })] };
            let client = json!({ "matchLabels": { "role": "client" } });
            let spec = json!({
                "podSelector": client, "policyTypes": ["Ingress", "Egress"], "ingress": rules, "egress": []
            });
            town.cluster.policy("client-alone", &spec);
            town.cluster.settled();
            assert_eq!(ask(town.client.netns(), asked), Ok(()), "to itself");
            assert_eq!(ask(town.guest.netns(), asked).is_ok(), !peers.is_empty(), "to another");
        }
    });
}

#[test]
fn backend_that_affinity_keeps_is_judged_each_time() {
    everywhere("affinity", |town| {
        let (web, far) = (town.web.clone(), town.far.clone());
        let spec = ServiceSpec::new("shop", "sticky").port(Tcp, 80, 8080).affinity(Affinity::ClientIp);
        let service = town.add(spec, &[Backend::pod(&web), Backend::pod(&far)]);
        let (asked, source, netns) = (town.tcp(&service), town.of(&town.client), town.client.netns().clone());
        town.cluster.skip_records();
        assert_eq!(ask(&netns, asked), Ok(()));
        let line = town
            .cluster
            .record(0, |line| line["direction"] == "egress" && line["source"]["ip"] == source.to_string().as_str());
        let (kept, other) = if line["destination"]["pod"] == "web" { (&web, "far") } else { (&far, "web") };
        // Its receiver's record comes from another agent, maybe later: it is none of those that follow.
        let receiver = town.of(kept).to_string();
        let node = usize::from(kept.name().1 == "far");
        town.cluster
            .record(node, |line| line["direction"] == "ingress" && line["destination"]["ip"] == receiver.as_str());
        for (app, verdict) in [(other, Verdict::Deny), (kept.name().1, Verdict::Allow)] {
            town.let_out(&[pods("app", app)]);
            for _ in 0..4 {
                town.reaches(asked, kept, WEB, verdict);
            }
        }
    });
}

#[test]
fn connection_is_judged_by_the_backend_that_it_has_and_not_by_the_one_that_its_service_has_now() {
    everywhere("mid-flow", |town| {
        let (web, far) = (town.web.clone(), town.far.clone());
        let service = town.service("moving", &[Backend::pod(&web)]);
        let asked = town.tcp(&service);
        town.let_out(&[pods("app", "web")]);
        let client = town.client.clone();
        let done = town.cluster.check_at(&client, asked, &web, WEB, Verdict::Allow, "noPolicySelects");
        let mut live = done.connection.expect("open");
        service.set_backends(&[Backend::pod(&far)]).expect("moved");
        town.cluster.settled();
        town.reaches(asked, &far, WEB, Verdict::Deny);
        assert_eq!(live.exchange(PATIENCE), Ok(()), "the old backend is the one that the policy allows");
        town.let_out(&[pods("app", "far")]);
        town.cluster.skip_records();
        assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut), "and is not any more");
        let port = live.local().port();
        let line = town.cluster.record(0, |line| line["event"] == "rejudged" && line["source"]["port"] == port);
        assert_eq!((&line["verdict"], &line["reason"]), (&"deny".into(), &"flowCut".into()), "{line}");
        assert_eq!((&line["direction"], &line["destination"]["pod"]), (&"egress".into(), &"web".into()), "{line}");
        assert!(line["decision"].to_string().contains("client-out"), "{line}");
        town.reaches(asked, &far, WEB, Verdict::Allow);
    });
}

#[test]
fn service_that_a_process_of_the_node_answers_is_judged_by_its_address() {
    everywhere("node-local", |town| {
        let service = town.service("names", &[Backend::pod(&town.far)]);
        let asked = town.tcp(&service);
        town.services.serve_on_node(&town.cluster.nodes[0], &service).expect("served on the node");
        let _here = Server::tcp(town.cluster.nodes[0].netns(), asked.ip(), 80).expect("a server");
        let (client, netns) = (town.of(&town.client), town.client.netns().clone());
        for (peer, answer, verdict) in
            [(asked.ip(), Ok(()), "allow"), (town.of(&town.far), Err(NoAnswer::TimedOut), "deny")]
        {
            town.let_out(&[Town::block(peer)]);
            town.cluster.skip_records();
            assert_eq!(ask(&netns, asked), answer, "{peer}");
            let line = town.cluster.record_between(0, client, asked.ip());
            assert_eq!((&line["direction"], &line["verdict"]), (&"egress".into(), &verdict.into()), "{line}");
            assert_eq!(line["destination"]["owner"], "host", "{line}");
            assert!(line["decision"].to_string().contains("client-out"), "{line}");
        }
    });
}

#[test]
fn datagrams_from_one_port_are_judged_by_the_backend_that_they_are_led_to_now() {
    everywhere("moving-udp", |town| {
        let (web, far) = (town.web.clone(), town.far.clone());
        let service = town.service("names", &[Backend::pod(&web)]);
        town.let_out(&[pods("app", "web")]);
        let mut live = UdpClient::new(town.client.netns(), None, town.udp(&service)).expect("a socket");
        for (backend, answer) in [(&web, Ok(())), (&far, Err(NoAnswer::TimedOut)), (&web, Ok(()))] {
            service.set_backends(&[Backend::pod(backend)]).expect("moved");
            town.cluster.settled();
            town.cluster.skip_records();
            assert_eq!(live.exchange(PATIENCE), answer, "{}", backend.full_name());
        }
        service.set_backends(&[Backend::pod(&far)]).expect("moved");
        town.let_out(&[pods("app", "far")]);
        assert_eq!(live.exchange(PATIENCE), Ok(()), "the policy follows");
    });
}
