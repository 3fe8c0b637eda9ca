//! Pods whose wire is laid by the reference CNI plugins, as a container runtime has them do it.

use reeve_tests::cluster::{Chain, CniError, Sandbox, point_to_point};
use reeve_tests::lab::{Netns, PodSpec};
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, connect};
use std::net::{IpAddr, SocketAddr};

use crate::town::{Company, Town, skipped};

#[test]
fn pod_that_the_reference_plugins_attach_is_enforced_and_detached() {
    if skipped() {
        return;
    }
    let mut town = Town::new("plugins", Company::Shared);
    let client = town.pod("client");
    town.start();
    let plugins = town.cluster.programs().plugins();
    let conflist = point_to_point(&town.node).expect("a conflist").to_string();
    let chain = Chain::read(&conflist, &[&plugins]).expect("a chain");
    let spec = PodSpec::new(&town.name, "web").label("app", "web");
    let uid = town.cluster.create_pod(&town.node, &spec).expect("a pod");
    let netns: Netns = town.node.sandbox("web").expect("a namespace");
    let sandbox = Sandbox {
        namespace: town.name.clone(),
        name: "web".to_owned(),
        uid,
        container: "web-1".to_owned(),
        ports: Vec::new(),
    };
    let result = chain.add(&town.node, &netns, &sandbox).expect("attached");
    let addresses: Vec<IpAddr> = result["ips"]
        .as_array()
        .expect("addresses")
        .iter()
        .map(|ip| ip["address"].as_str().and_then(|text| text.split('/').next()).expect("text").parse().expect("one"))
        .collect();
    town.cluster.tell_running(&town.node, &town.name, "web", &addresses).expect("told");
    chain.check(&town.node, &netns, &sandbox, &result).expect("as it was attached");

    let web = SocketAddr::new(addresses[0], 8080);
    let _server = Server::tcp(&netns, web.ip(), 8080).expect("a server");
    let get = || connect(client.netns(), web, PATIENCE).map(drop);
    let becomes = |wanted: Result<(), NoAnswer>| {
        reeve_tests::lab::until("a verdict", crate::town::LONG, || Ok((get() == wanted).then_some(())))
    };
    becomes(Ok(())).expect("it is open");
    town.close("web", "nobody-to-web");
    becomes(Err(NoAnswer::TimedOut)).expect("it is closed");
    town.open("nobody-to-web");
    becomes(Ok(())).expect("it is open again");

    chain.delete(&town.node, &netns, &sandbox, &result).expect("detached");
    let error = chain.check(&town.node, &netns, &sandbox, &result).expect_err("nothing is attached");
    let error = error.downcast::<CniError>().expect("a CNI error");
    assert!(error.plugin == "ptp" && !error.message.is_empty(), "{error:?}");
}
