//! Input that is bad, late or gone while the agent runs: it goes on, says so, and nothing opens.

use reeve_tests::lab::{AgentOptions, Mode, Pod, PodSpec, until};
use reeve_tests::stage::{Stage, WEB, get, shop};
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server};
use serde_json::json;
use std::time::Duration;

#[test]
fn half_written_policy_keeps_its_last_good_version_and_is_named() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("half", Mode::Routed);
    assert_eq!(stage.problems("web-clients"), Vec::<serde_json::Value>::new());
    for half in ["", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web-cl"] {
        stage.lab.manifests().write_text("web-clients.yaml", half).expect("written");
        stage.settled();
        assert_eq!((get(&client, &web), get(&guest, &web)), (Ok(()), Err(NoAnswer::TimedOut)), "{half:?}");
        let told = stage.problems("web-clients.yaml");
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0]["effect"].to_string().contains("last good version"), "{told:?}");
    }
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    stage.settled();
    assert!(stage.problems("web-clients").is_empty());
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn broken_file_does_not_keep_others_from_being_enforced() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("broken", Mode::Routed);
    stage.lab.manifests().write_text("broken.yaml", "kind: [").expect("written");
    stage.allow_from("web-clients", ("app", "web"), ("role", "other"));
    guest.set_labels(&[("role", "other")]).expect("relabelled");
    stage.settled();
    assert_eq!((get(&client, &web), get(&guest, &web)), (Err(NoAnswer::TimedOut), Ok(())));
    assert_eq!(stage.problems("broken.yaml").len(), 1);
    stage.lab.manifests().remove_file("broken.yaml").expect("removed");
    stage.settled();
    stage.denies(&client, &web, WEB, "web-clients");
    assert!(stage.problems("broken.yaml").is_empty());
}

#[test]
fn agent_that_starts_waits_for_a_file_that_it_cannot_read() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("start-broken", Mode::Routed);
    stage.agent().kill9().expect("killed");
    stage.lab.manifests().write_text("web-clients.yaml", "kind: [").expect("written");
    let manifests = stage.lab.clone();
    // Ready only when the file is mended: this thread mends it as soon as the agent has said what it waits for.
    let node = stage.node.clone();
    let mender = std::thread::spawn(move || {
        let log = node.run_directory().with_file_name("agent.log");
        let said = until("the agent's reason", Duration::from_secs(10), || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(text.contains("web-clients.yaml has not been readable yet").then_some(()))
        });
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "web-clients", "namespace": "shop" },
            "spec": { "podSelector": { "matchLabels": { "app": "web" } },
                      "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": "client" } } }] }] }
        });
        manifests.manifests().write("web-clients", &policy).expect("mended");
        said
    });
    stage.agent().start_again().expect("ready");
    mender.join().expect("no panic").expect("the agent says what it waits for");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn policy_with_a_bad_selector_closes_and_says_so() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("bad-selector", Mode::Routed);
    stage.policy(
        "web-clients",
        &json!({
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{ "from": [{ "podSelector": { "matchExpressions": [{ "key": "role", "operator": "Is", "values": ["client"] }] } }] }]
        }),
    );
    stage.settled();
    let told = stage.problems("web-clients");
    assert!(
        told.iter()
            .any(|problem| problem["field"].to_string().contains("operator") || problem.to_string().contains("Is")),
        "{told:?}"
    );
    stage.denies(&client, &web, WEB, "");
    stage.denies(&guest, &web, WEB, "");
    stage.allows(&client, &guest, WEB, "noPolicySelects");
}

#[test]
fn calico_policy_with_an_unreadable_selector_closes_its_subjects() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("bad-calico", Mode::Routed);
    let object = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": { "name": "unreadable", "namespace": "shop" },
        "spec": { "selector": "role == \"client", "types": ["Ingress"], "ingress": [{ "action": "Allow" }] }
    });
    stage.allows(&guest, &client, WEB, "noPolicySelects");
    stage.lab.manifests().write("unreadable", &object).expect("written");
    stage.settled();
    let told = stage.problems("unreadable");
    assert!(!told.is_empty() && told[0]["field"].to_string().contains("selector"), "{told:?}");
    stage.denies(&guest, &client, WEB, "");
    stage.lab.manifests().remove("unreadable").expect("removed");
    stage.settled();
    stage.allows(&guest, &client, WEB, "noPolicySelects");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn address_that_two_pods_claim_is_closed_and_both_are_named() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("duplicate", Mode::Routed);
    let mut twin = client.manifest();
    twin["metadata"]["name"] = "twin".into();
    twin["metadata"]["uid"] = "00000000-0000-4000-8000-0000000000fe".into();
    stage.lab.manifests().write("pod-shop-twin", &twin).expect("written");
    stage.settled();
    let told = stage.problems(&client.v4().to_string());
    let named = told.iter().any(|one| one.to_string().contains("shop/twin") && one.to_string().contains("shop/client"));
    assert!(named, "{told:?}");
    assert_eq!(get(&client, &web), Err(NoAnswer::TimedOut));
    let other = stage.pod("other", &[("role", "client")]);
    stage.settled();
    stage.allows(&other, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.lab.manifests().remove("pod-shop-twin").expect("removed");
    stage.settled();
    stage.allows(&client, &web, WEB, "web-clients");
    assert!(stage.problems("shop/twin").is_empty());
}

#[test]
fn pod_whose_address_is_claimed_before_it_is_attached_is_closed() {
    if crate::skipped() {
        return;
    }
    let mut stage = Stage::new("contested", Mode::Routed);
    let (web, client) = (stage.pod("web", &[("app", "web")]), stage.pod("client", &[]));
    let mut twin = web.manifest();
    twin["metadata"]["name"] = "twin".into();
    twin["metadata"]["uid"] = "00000000-0000-4000-8000-0000000000fe".into();
    stage.lab.manifests().write("pod-shop-twin", &twin).expect("written");
    stage.start();
    // Nothing selects anybody here: without the quarrel this connection is let through.
    assert_eq!((get(&client, &web), get(&web, &client)), (Err(NoAnswer::TimedOut), Err(NoAnswer::TimedOut)));
    // Nobody answers for the address, so what is sent to it goes no further than the node's neighbour table.
    let told = |record: &serde_json::Value| {
        record["decision"]["default"] == "contestedAddress" && record["source"]["ip"] == web.v4().to_string()
    };
    stage.records().wait_for(PATIENCE, told).expect("what it sends is denied by name");
    stage.lab.manifests().remove("pod-shop-twin").expect("removed");
    stage.settled();
    stage.allows(&client, &web, WEB, "noPolicySelects");
}

#[test]
fn deleting_the_file_of_a_policy_reopens() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("reopen", Mode::Routed);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.lab.manifests().write_text("web-clients.yaml", "kind: [").expect("written");
    stage.settled();
    stage.lab.manifests().remove_file("web-clients.yaml").expect("removed");
    stage.settled();
    stage.allows(&guest, &web, WEB, "noPolicySelects");
    stage.allows(&client, &web, WEB, "noPolicySelects");
}

#[test]
fn pod_whose_manifest_comes_before_its_interface_is_enforced_when_that_comes() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("late", Mode::Routed);
    // A pod that is wired and unwired again, so that its manifest is there and its interface is not.
    let late = stage.node.pod(PodSpec::new("shop", "late").label("app", "web")).expect("a pod");
    let manifest = late.manifest();
    late.remove().expect("removed");
    stage.lab.manifests().write("pod-shop-late", &manifest).expect("written");
    stage.settled();
    assert_eq!(stage.endpoint(&late).expect("an endpoint")["state"], "unattached");
    check_unattached(&mut stage, 1.0);
    stage.allows(&client, &web, WEB, "web-clients");
    rewire(&stage, &late);
    let _server = Server::tcp(late.netns(), late.v4(), 8080).expect("a server");
    stage.settled();
    assert_eq!(stage.endpoint(&late).expect("an endpoint")["state"], "ready");
    check_unattached(&mut stage, 0.0);
    stage.denies(&guest, &late, WEB, "web-clients");
    stage.allows(&client, &late, WEB, "web-clients");
}

#[track_caller]
fn check_unattached(stage: &mut Stage, wanted: f64) {
    let unattached = stage.agent().metric("reeve_endpoints", &[("state", "unattached")]).expect("a metric");
    assert!((unattached - wanted).abs() < 0.5, "{unattached}");
}

/// Gives a pod that lost its wire another one, IPv4 only.
fn rewire(stage: &Stage, pod: &Pod) {
    let (device, address) = (pod.host_side(), pod.v4());
    let on_node = [
        format!("link add {device} type veth peer name eth0 netns {}", pod.netns().name()),
        format!("link set {device} address ee:ee:ee:ee:ee:ee up"),
        format!("route replace {address} dev {device}"),
    ];
    stage.node.netns().ip(&on_node).expect("wired");
    let in_pod = [
        "link set eth0 up".to_owned(),
        format!("addr add {address}/32 dev eth0"),
        "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent".to_owned(),
        "route add 0.0.0.0/0 via 169.254.1.1 dev eth0 onlink".to_owned(),
    ];
    pod.netns().ip(&in_pod).expect("wired");
}

#[test]
fn interface_that_is_made_anew_is_enforced_anew() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("anew", Mode::Routed);
    let before = stage.endpoint(&web).expect("an endpoint")["ifindex"].clone();
    stage.node.netns().ip(&[format!("link del {}", web.host_side())]).expect("removed");
    stage.settled();
    assert_eq!(stage.endpoint(&web).expect("an endpoint")["state"], "unattached");
    rewire(&stage, &web);
    check_noticed(&mut stage, &web, &before);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

/// Nobody asks the agent to look: it has to notice by itself, and sooner than by looking now and then.
#[track_caller]
fn check_noticed(stage: &mut Stage, pod: &Pod, before: &serde_json::Value) {
    let noticed = until("the new interface", Duration::from_secs(1), || {
        let row = stage.endpoint(pod)?;
        Ok((row["state"] == "ready" && row["ifindex"] != *before).then_some(()))
    });
    noticed.expect("the new interface is attached");
}

#[test]
fn interface_that_is_replaced_at_once_is_heard_of() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("replaced", Mode::Routed);
    let before = stage.endpoint(&web).expect("an endpoint")["ifindex"].clone();
    stage.node.netns().ip(&[format!("link del {}", web.host_side())]).expect("removed");
    rewire(&stage, &web);
    check_noticed(&mut stage, &web, &before);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn removed_pods_device_stays_closed_until_it_goes() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("closing", Mode::Routed);
    stage.allows(&client, &web, WEB, "web-clients");
    client.remove_manifest().expect("removed");
    stage.settled();
    assert_eq!(get(&client, &guest), Err(NoAnswer::TimedOut), "a pod that is gone from the facts sends nothing");
    assert_eq!(get(&guest, &client), Err(NoAnswer::TimedOut), "and receives nothing");
    stage.agent().kill9().expect("killed");
    stage.agent().start_again().expect("started again");
    assert_eq!(get(&client, &guest), Err(NoAnswer::TimedOut), "nor after a restart");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&web, &guest, WEB, "noPolicySelects");
}

#[test]
fn directory_that_cannot_be_listed_leaves_enforcement_and_readiness_says_why() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("unlisted", Mode::Routed);
    let (here, away) = (stage.node.manifests_directory(), stage.node.run_directory().with_file_name("away"));
    std::fs::rename(&here, &away).expect("moved away");
    let answer = stage.agent().request("POST", "/sync").expect("an answer");
    assert_eq!(answer.status, 504);
    assert!(answer.body.contains("cannot be listed"), "{}", answer.body);
    assert_eq!(stage.agent().request("GET", "/readyz").expect("an answer").status, 503);
    assert_eq!(stage.agent().request("GET", "/healthz").expect("an answer").status, 200);
    assert_eq!((get(&client, &web), get(&guest, &web)), (Ok(()), Err(NoAnswer::TimedOut)));
    std::fs::rename(&away, &here).expect("moved back");
    stage.agent().wait_ready().expect("ready again");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn change_made_while_the_directory_was_away_is_read_when_it_is_back() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("not-lost", Mode::Routed);
    let (here, away) = (stage.node.manifests_directory(), stage.node.run_directory().with_file_name("away"));
    std::fs::rename(&here, &away).expect("moved away");
    assert_eq!(stage.agent().request("POST", "/sync").expect("an answer").status, 504);
    // What the lab's writer would do, in the directory as it is called now.
    std::fs::remove_file(away.join("web-clients.yaml")).expect("removed");
    std::fs::rename(&away, &here).expect("moved back");
    stage.settled();
    stage.allows(&guest, &web, WEB, "noPolicySelects");
    stage.allows(&client, &web, WEB, "noPolicySelects");
}

#[test]
fn policy_that_the_maps_have_no_room_for_denies_and_says_so() {
    if crate::skipped() {
        return;
    }
    let mut stage = Stage::new("no-room", Mode::Routed);
    let (web, client, other) = (
        stage.pod("web", &[("app", "web")]),
        stage.pod("client", &[("role", "client")]),
        stage.pod("other", &[("app", "other")]),
    );
    stage.allow_from("a-fits", ("app", "other"), ("role", "client"));
    let ports: Vec<serde_json::Value> = (0..24).map(|n| json!({ "port": 8080 + n * 7 })).collect();
    let large = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "ports": ports }] });
    stage.policy("b-too-large", &large);
    let settings = stage.lab.directory().join("settings.toml");
    std::fs::write(&settings, "[map-entries]\nPORTS = 16\n").expect("written");
    stage.start_with(AgentOptions {
        arguments: vec!["--config".to_owned(), settings.display().to_string()],
        ..AgentOptions::default()
    });
    assert_eq!((get(&client, &web), get(&client, &other)), (Err(NoAnswer::TimedOut), Ok(())));
    let told = stage.problems("b-too-large");
    assert_eq!(told.len(), 1, "{told:?}");
    let refused = |record: &serde_json::Value| {
        record["decision"]["default"] == "refusedPolicy" && record["destination"]["pod"] == "web"
    };
    stage.records().wait_for(PATIENCE * 5, refused).expect("a record that names the refusal");
    let small =
        json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "ports": [{ "port": 8080 }] }] });
    stage.policy("b-too-large", &small);
    stage.settled();
    assert_eq!(get(&client, &web), Ok(()));
    assert!(stage.problems("b-too-large").is_empty());
}
