//! Clients that a node's own address stands for.

use std::net::{IpAddr, SocketAddr};

use reeve_tests::lab::{ExternalPolicy, Network};
use reeve_tests::traffic::NoAnswer;

use super::town::{Town, ask, everywhere};

#[test]
fn clients_behind_one_address_of_the_node_are_told_apart() {
    everywhere("masq-two", |town| {
        let web = town.web.clone();
        town.at_nodes("web", 30_080, ExternalPolicy::Cluster, &web);
        let second = town.cluster.lab.outside("second").expect("another machine outside");
        let machines = [town.outside.clone(), second];
        let addresses = (if town.setting.v6 { ["fd00:18::3", "fd00:18::4"] } else { ["172.18.0.3", "172.18.0.4"] })
            .map(|address| address.parse::<IpAddr>().expect("an address"));
        let to = town.of(&web);
        let asked = SocketAddr::new(town.node(0), 30_080);
        for (allowed, denied) in [(0, 1), (1, 0)] {
            town.let_in("web", &[Town::block(addresses[allowed])]);
            for _ in 0..2 {
                town.cluster.skip_records();
                assert_eq!(ask(&machines[allowed], asked), Ok(()));
                town.told_at_receiver(0, addresses[allowed], to, "allow", "into-web");
                assert_eq!(ask(&machines[denied], asked), Err(NoAnswer::TimedOut));
                town.told_at_receiver(0, addresses[denied], to, "deny", "into-web");
            }
        }
        let node = town.cluster.nodes[0].netns().clone();
        assert_eq!(ask(&node, SocketAddr::new(to, 8080)), Ok(()), "the own node is let in");
    });
}

#[test]
fn client_that_another_node_masquerades_is_judged_as_that_node_and_flagged() {
    everywhere("masq-there", |town| {
        let far = town.far.clone();
        town.at_nodes("far", 30_080, ExternalPolicy::Cluster, &far);
        let shown = match (town.setting.network, town.setting.v6) {
            (Network::Flat, _) => town.node(0),
            (Network::Overlay, false) => "10.244.1.0".parse().expect("an address"),
            (Network::Overlay, true) => "fd00:244:1::".parse().expect("an address"),
        };
        let (outside, to) = (town.outside_address(), town.of(&far));
        let asked = SocketAddr::new(town.node(0), 30_080);
        let machine = town.outside.clone();
        for (peer, answer, verdict) in [(shown, Ok(()), "allow"), (outside, Err(NoAnswer::TimedOut), "deny")] {
            town.let_in("far", &[Town::block(peer)]);
            town.cluster.skip_records();
            assert_eq!(ask(&machine, asked), answer);
            let line = town.told_at_receiver(1, shown, to, verdict, "into-far");
            assert_eq!(line["source"]["owner"], "node", "{line}");
            let flags = line["flags"].as_array().cloned().unwrap_or_default();
            assert!(flags.contains(&"mayBeMasqueraded".into()), "{line}");
        }
    });
}
