//! Metrics move with what happens.

use reeve_tests::lab::{Mode, Pod, until};
use reeve_tests::stage::{Stage, WEB, shop};
use reeve_tests::traffic::PATIENCE;
use std::collections::BTreeSet;
use std::time::Duration;

struct Shop {
    stage: Stage,
    web: Pod,
    client: Pod,
    guest: Pod,
}

impl Shop {
    fn new(name: &str) -> Self {
        let mut stage = Stage::new(name, Mode::Routed);
        let web = stage.pod("web", &[("app", "web")]);
        let client = stage.pod("client", &[("role", "client")]);
        let guest = stage.pod("guest", &[]);
        stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
        stage.start();
        Self { stage, web, client, guest }
    }

    /// One connection is allowed and one is denied.
    fn traffic(&mut self) {
        self.stage.allows(&self.client, &self.web, WEB, "web-clients");
        self.stage.denies(&self.guest, &self.web, WEB, "web-clients");
    }

    /// Looks anew, so that gauges are of now.
    #[track_caller]
    fn metric(&mut self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.stage.settled();
        self.stage.agent().metric(name, labels).expect("metrics")
    }

    #[track_caller]
    fn check_more(&mut self, name: &str, labels: &[(&str, &str)], during: impl FnOnce(&mut Self)) {
        let before = self.metric(name, labels);
        during(self);
        let after = self.metric(name, labels);
        assert!(after > before, "{name} {labels:?}: {before} -> {after}");
    }
}

#[test]
fn verdicts_count_by_policy_direction_and_verdict() {
    if crate::skipped() {
        return;
    }
    let mut shop = Shop::new("m-verdicts");
    let policy = ("policy", "NetworkPolicy/shop/web-clients");
    shop.check_more("reeve_verdicts_total", &[("direction", "ingress"), ("verdict", "allow"), policy], Shop::traffic);
    let unselected = ("policy", "default:noPolicySelects");
    shop.check_more(
        "reeve_verdicts_total",
        &[("direction", "egress"), ("verdict", "allow"), unselected],
        Shop::traffic,
    );
    let denied = ("policy", "default:tierDefault");
    shop.check_more("reeve_verdicts_total", &[("direction", "ingress"), ("verdict", "deny"), denied], Shop::traffic);
}

#[test]
fn flow_events_count_by_kind() {
    if crate::skipped() {
        return;
    }
    let mut shop = Shop::new("m-events");
    shop.check_more("reeve_flow_events_total", &[("state", "opened")], Shop::traffic);
    shop.check_more("reeve_flow_events_total", &[("state", "denied")], Shop::traffic);
    let mut live =
        shop.stage.allows(&shop.client, &shop.web, WEB, "web-clients").connection.expect("an open connection");
    shop.check_more("reeve_flow_events_total", &[("state", "rejudged")], |shop| {
        shop.client.set_labels(&[]).expect("relabelled");
        shop.stage.settled();
        live.exchange(PATIENCE).expect_err("cut");
    });
    assert!(shop.metric("reeve_records_lost_total", &[]) < 1.0);
}

#[test]
fn packets_count_by_what_became_of_them() {
    if crate::skipped() {
        return;
    }
    let mut shop = Shop::new("m-packets");
    for state in ["allowed_established", "allowed_judged", "denied_judged"] {
        shop.check_more("reeve_datapath_packets_total", &[("state", state)], Shop::traffic);
    }
}

#[test]
fn revisions_rise_with_a_change_and_only_then() {
    if crate::skipped() {
        return;
    }
    let mut shop = Shop::new("m-revision");
    let active = [("state", "active")];
    let before = shop.metric("reeve_revision", &active);
    shop.traffic();
    assert!((shop.metric("reeve_revision", &active) - before).abs() < 0.5, "traffic is no change");
    shop.check_more("reeve_apply_seconds_count", &[], |shop| {
        shop.stage.allow_from("others", ("app", "other"), ("role", "client"));
    });
    assert!(shop.metric("reeve_revision", &active) > before);
    let compiled = shop.metric("reeve_revision", &[("state", "compiled")]);
    assert!((shop.metric("reeve_revision", &active) - compiled).abs() < 0.5);
    assert!(shop.metric("reeve_compile_seconds_count", &[]) >= 2.0);
}

#[test]
fn problems_and_policies_are_those_of_now() {
    if crate::skipped() {
        return;
    }
    let mut shop = Shop::new("m-problems");
    let warnings = [("state", "warning")];
    assert!(shop.metric("reeve_problems", &warnings) < 0.5);
    shop.check_more("reeve_problems", &warnings, |shop| {
        shop.stage.lab.manifests().write_text("broken.yaml", "kind: [").expect("written");
    });
    shop.stage.lab.manifests().remove_file("broken.yaml").expect("removed");
    assert!(shop.metric("reeve_problems", &warnings) < 0.5);
    shop.check_more("reeve_policies", &[], |shop| {
        shop.stage.allow_from("others", ("app", "other"), ("role", "client"));
    });
}

#[test]
fn endpoints_identities_and_map_rows_follow_pods() {
    if crate::skipped() {
        return;
    }
    let mut shop = Shop::new("m-endpoints");
    let more = |shop: &mut Shop, name: &str| {
        shop.stage.pod(name, &[("app", name)]);
    };
    shop.check_more("reeve_endpoints", &[("state", "ready")], |shop| more(shop, "one"));
    shop.check_more("reeve_identities", &[], |shop| more(shop, "two"));
    shop.check_more("reeve_map_entries", &[("map", "ADDRESSES")], |shop| more(shop, "three"));
    // Maps that traffic fills are counted every 5 s only.
    let flows = [("map", "FLOWS")];
    let before = shop.metric("reeve_map_entries", &flows);
    shop.traffic();
    let counted = until("more flows", Duration::from_secs(10), || {
        Ok((shop.metric("reeve_map_entries", &flows) > before).then_some(()))
    });
    counted.expect("rows are counted");
    let (rows, capacity) = (
        shop.metric("reeve_map_entries", &[("map", "ENDPOINTS")]),
        shop.metric("reeve_map_capacity", &[("map", "ENDPOINTS")]),
    );
    assert!(rows > 5.0 && rows < capacity, "{rows} of {capacity}");
    assert!((shop.metric("reeve_build_info", &[]) - 1.0).abs() < 0.5);
    assert!(shop.metric("reeve_adopted_links", &[]) < 0.5, "nobody was there before");
}

#[test]
fn agent_tells_what_addresses_are_seen_as_and_what_becomes_of_a_full_map() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, ..) = shop("told", Mode::Routed);
    let mut ask = |path: &str| stage.agent().request("GET", path).and_then(|answer| answer.json()).expect("an answer");
    let identities = ask("/identities");
    let of_web = identities.as_array().expect("a list").iter().find(|row| row["identity"]["labels"]["app"] == "web");
    let of_web = of_web.unwrap_or_else(|| panic!("no identity has app=web: {identities}"));
    assert_eq!(of_web["addresses"], 2, "both of its addresses show it: {of_web}");
    let endpoints = ask("/endpoints");
    let endpoint = endpoints.as_array().expect("a list").iter().find(|row| row["uid"] == web.uid()).expect("web's");
    assert_eq!(endpoint["identity"], of_web["id"], "{endpoint}");
    let maps = ask("/maps");
    for map in maps.as_array().expect("a list") {
        assert!(map["whenFull"].is_string() && map["capacity"].as_u64() > Some(0), "{map}");
    }
    let names = |told: &serde_json::Value| -> BTreeSet<String> {
        told.as_array().expect("a list").iter().map(|map| map["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&ask("/status")["maps"]), names(&maps));
    let pinned = stage.node.bpffs().join("reeve/v1/maps").read_dir().expect("a directory");
    let mut pinned: BTreeSet<String> =
        pinned.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    // Where every row has its place from the beginning, nothing can be full.
    for array in ["CONFIG", "GENERATION", "RECENT", "SLOTS", "STATS"] {
        assert!(pinned.remove(array), "{array} is pinned");
    }
    assert_eq!(names(&maps), pinned);
}
