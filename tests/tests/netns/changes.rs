//! Facts and policies that change under live connections.

use reeve_policy::model::Verdict;
use reeve_tests::demo::attempt;
use reeve_tests::lab::{Mode, Pod, PodSpec};
use reeve_tests::stage::{NAMES, RECORD_PATIENCE, Stage, WEB};
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, Tcp, UdpClient};
use std::net::SocketAddr;

/// A node with `web`, which lets `role=client` in, and such a client.
fn shop(name: &str) -> (Stage, Pod, Pod) {
    wired(name, Mode::Routed)
}

fn wired(name: &str, mode: Mode) -> (Stage, Pod, Pod) {
    let mut stage = Stage::new(name, mode);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    stage.start();
    (stage, web, client)
}

fn open(stage: &mut Stage, client: &Pod, web: &Pod) -> Tcp {
    stage.allows(client, web, WEB, "web-clients").connection.expect("an open connection")
}

/// The live connection is cut, and the record of that says so and names the policy.
#[track_caller]
fn check_cut(stage: &mut Stage, live: &mut Tcp, said: &str) {
    assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut));
    let port = live.local().port();
    let cut = |line: &serde_json::Value| line["event"] == "rejudged" && line["source"]["port"] == port;
    let line = stage.records().wait_for(RECORD_PATIENCE, cut).expect("a record");
    assert_eq!((&line["verdict"], &line["reason"]), (&"deny".into(), &"flowCut".into()), "{line}");
    assert_eq!(line["previous"]["verdict"], "allow", "{line}");
    assert!(line["decision"].to_string().contains(said), "{line}");
}

/// The connection lives, and no record of the whole file says that it was judged again.
///
/// To be asked when the record of a later connection is there: then nothing that came before is missing.
#[track_caller]
fn check_goes_on(stage: &mut Stage, live: &mut Tcp) {
    assert_eq!(live.exchange(PATIENCE), Ok(()));
    let port = live.local().port();
    let all = stage.agent().records().rest().expect("records");
    let again: Vec<_> =
        all.iter().filter(|line| line["event"] == "rejudged" && line["source"]["port"] == port).collect();
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn policy_edit_cuts_a_live_connection_and_another_lets_a_new_one_through() {
    if !crate::skipped() {
        check_edit("edit", Mode::Routed);
    }
}

#[test]
fn policy_edit_cuts_a_live_connection_behind_a_bridge() {
    if !crate::skipped() {
        check_edit("edit-bridged", Mode::Bridged);
    }
}

#[track_caller]
fn check_edit(name: &str, mode: Mode) {
    let (mut stage, web, client) = wired(name, mode);
    let other = stage.pod("other", &[("role", "other")]);
    stage.settled();
    let mut live = open(&mut stage, &client, &web);
    stage.allow_from("web-clients", ("app", "web"), ("role", "other"));
    stage.settled();
    check_cut(&mut stage, &mut live, "web-clients");
    stage.denies(&client, &web, WEB, "web-clients");
    stage.allows(&other, &web, WEB, "web-clients");
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    stage.settled();
    open(&mut stage, &client, &web);
}

#[test]
fn edit_of_another_policy_leaves_the_live_connection_alone() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client) = shop("unrelated");
    let other = stage.pod("other", &[("app", "other")]);
    stage.settled();
    let mut live = open(&mut stage, &client, &web);
    stage.allow_from("other-clients", ("app", "other"), ("role", "nobody"));
    stage.settled();
    stage.denies(&client, &other, WEB, "other-clients");
    assert_eq!(live.exchange(PATIENCE), Ok(()));
    stage.lab.manifests().remove("other-clients").expect("removed");
    stage.settled();
    stage.allows(&client, &other, WEB, "noPolicySelects");
    check_goes_on(&mut stage, &mut live);
}

#[test]
fn relabelled_peer_loses_its_live_connection() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client) = shop("relabel-peer");
    let mut live = open(&mut stage, &client, &web);
    client.set_labels(&[("role", "guest")]).expect("relabelled");
    stage.settled();
    check_cut(&mut stage, &mut live, "web-clients");
    stage.denies(&client, &web, WEB, "web-clients");
    client.set_labels(&[("role", "client")]).expect("relabelled");
    stage.settled();
    open(&mut stage, &client, &web);
}

#[test]
fn relabelled_subject_comes_under_a_policy_and_leaves_it() {
    if crate::skipped() {
        return;
    }
    let (mut stage, _, client) = shop("relabel-subject");
    let free = stage.pod("free", &[]);
    let guest = stage.pod("guest", &[]);
    stage.settled();
    let mut live = stage.allows(&guest, &free, WEB, "noPolicySelects").connection.expect("an open connection");
    free.set_labels(&[("app", "web")]).expect("relabelled");
    stage.settled();
    check_cut(&mut stage, &mut live, "web-clients");
    stage.denies(&guest, &free, WEB, "web-clients");
    open(&mut stage, &client, &free);
    free.set_labels(&[]).expect("relabelled");
    stage.settled();
    stage.allows(&guest, &free, WEB, "noPolicySelects");
}

#[test]
fn deleted_policy_opens_what_it_closed() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client) = shop("delete-policy");
    let guest = stage.pod("guest", &[]);
    stage.settled();
    stage.denies(&guest, &web, WEB, "web-clients");
    let mut live = open(&mut stage, &client, &web);
    stage.lab.manifests().remove("web-clients").expect("removed");
    stage.settled();
    stage.allows(&guest, &web, WEB, "noPolicySelects");
    assert_eq!(live.exchange(PATIENCE), Ok(()), "what was open stays open");
}

/// `old` goes and another pod gets its wire and its addresses.
fn reuse(stage: &Stage, old: &Pod, name: &str) -> String {
    old.remove_manifest().expect("removed");
    let mut manifest = old.manifest();
    let uid = "00000000-0000-4000-8000-0000000000ff";
    manifest["metadata"]["name"] = name.into();
    manifest["metadata"]["uid"] = uid.into();
    manifest["metadata"]["labels"] = serde_json::json!({ "role": "heir" });
    stage.lab.manifests().write(&format!("pod-shop-{name}"), &manifest).expect("a manifest");
    uid.to_owned()
}

#[test]
fn pod_that_inherits_an_address_and_a_device_inherits_no_permission() {
    if !crate::skipped() {
        check_inherits("reuse", Mode::Routed);
    }
}

#[test]
fn pod_that_inherits_an_address_behind_a_bridge_inherits_no_permission() {
    if !crate::skipped() {
        check_inherits("reuse-bridged", Mode::Bridged);
    }
}

#[track_caller]
fn check_inherits(name: &str, mode: Mode) {
    let (mut stage, web, client) = wired(name, mode);
    let mut live = open(&mut stage, &client, &web);
    let uid = reuse(&stage, &client, "heir");
    stage.settled();
    assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut), "the old allow does not stick");
    let denied = stage.denies(&client, &web, WEB, "web-clients");
    let source = &denied.rows.last().expect("a record").line["source"];
    assert_eq!((&source["pod"], &source["uid"]), (&"heir".into(), &uid.into()), "{source}");
    let control = stage.pod("control", &[("role", "client")]);
    stage.settled();
    open(&mut stage, &control, &web);
}

#[test]
fn address_reused_behind_a_new_device_belongs_to_the_new_pod() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client) = shop("reuse-device");
    stage.allows(&client, &web, WEB, "web-clients");
    let address = client.v4();
    client.remove().expect("removed");
    // A pod of the lab with other addresses, which then takes over the one that became free.
    let spec = PodSpec::new("shop", "heir").label("role", "heir");
    let heir = stage.node.pod(spec).expect("a pod");
    let device = heir.host_side().to_owned();
    stage.node.netns().ip(&[format!("route replace {address} dev {device}")]).expect("routed");
    // The new one first: with its last address the pod would lose its routes.
    let commands = [format!("addr add {address}/32 dev eth0"), format!("addr del {}/32 dev eth0", heir.v4())];
    heir.netns().ip(&commands).expect("readdressed");
    let mut manifest = heir.manifest();
    manifest["status"]["podIP"] = address.to_string().into();
    manifest["status"]["podIPs"] = serde_json::json!([{ "ip": address }]);
    stage.lab.manifests().write("pod-shop-heir", &manifest).expect("a manifest");
    stage.settled();
    let server = Server::tcp(heir.netns(), address, 8081).expect("a server");
    let to_heir = reeve_tests::traffic::connect(web.netns(), server.address(), PATIENCE);
    assert!(to_heir.is_ok(), "the way to the new pod is free: {to_heir:?}");
    let target = SocketAddr::new(web.v4(), 8080);
    let answer = reeve_tests::traffic::connect(heir.netns(), target, PATIENCE);
    assert_eq!(answer.err(), Some(NoAnswer::TimedOut));
    // The pod before it may have ended its connection after its manifest was gone, and that is told too.
    let of_heir = |line: &serde_json::Value| {
        let source = &line["source"];
        line["event"] == "denied" && source["ip"] == address.to_string() && source["pod"] != "client"
    };
    let line = stage.records().wait_for(RECORD_PATIENCE, of_heir).expect("a record");
    assert_eq!((&line["source"]["pod"], &line["source"]["uid"]), (&"heir".into(), &heir.uid().into()), "{line}");
    let store = attempt::facts(&stage.node.manifests_directory(), "node-1").expect("the facts");
    let told = reeve_policy::oracle::explain(store.world(), address, web.v4(), 6, 8080);
    assert_eq!(told.verdict, Verdict::Deny);
}

#[test]
fn pods_that_swap_addresses_and_devices_are_both_enforced_as_what_they_are_now() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client) = shop("swap");
    let guest = stage.pod("guest", &[]);
    stage.settled();
    stage.denies(&guest, &web, WEB, "web-clients");
    // Each becomes the pod whose wire the other had.
    let (mut first, mut second) = (client.manifest(), guest.manifest());
    let addresses = first["status"].take();
    first["status"] = second["status"].take();
    second["status"] = addresses;
    // In one file, so that no state in between can be read.
    let both = format!("{first}\n---\n{second}\n");
    stage.lab.manifests().remove("pod-shop-guest").expect("removed");
    stage.lab.manifests().write_text("pod-shop-client.yaml", &both).expect("written");
    stage.settled();
    stage.allows(&guest, &web, WEB, "web-clients");
    stage.denies(&client, &web, WEB, "web-clients");
    for wire in [&client, &guest] {
        stage.allows(&web, wire, WEB, "noPolicySelects");
    }
}

#[test]
fn policy_edit_cuts_a_live_exchange_of_datagrams() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client) = shop("edit-udp");
    for address in [web.v4(), web.v6()] {
        let mut live = UdpClient::new(client.netns(), None, SocketAddr::new(address, 53)).expect("a socket");
        assert_eq!(live.exchange(PATIENCE), Ok(()), "{address}");
        stage.allow_from("web-clients", ("app", "web"), ("role", "other"));
        stage.settled();
        assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut), "{address}");
        let port = live.local().port();
        let cut = |line: &serde_json::Value| line["event"] == "rejudged" && line["source"]["port"] == port;
        let line = stage.records().wait_for(RECORD_PATIENCE, cut).expect("a record");
        assert_eq!((&line["verdict"], &line["protocol"]), (&"deny".into(), &"UDP".into()), "{line}");
        stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
        stage.settled();
        stage.check(&client, &web, NAMES, address.is_ipv6(), Verdict::Allow, "web-clients");
    }
}
