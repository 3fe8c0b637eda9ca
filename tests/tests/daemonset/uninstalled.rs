//! What taking reeve away leaves of an installation: nothing, on any node; and where it cannot, it says so and ends.

use std::fs;
use std::path::Path;

use crate::city::{RELEASE, SYSTEM, Stay, skipped};

const UNINSTALL: [&str; 4] = ["uninstall", RELEASE, "--namespace", SYSTEM];

/// Two pods of which nobody may reach the one, and agents see to that.
struct Closed<'a> {
    stay: &'a Stay,
    web: (String, String),
    client: (String, String),
}

impl<'a> Closed<'a> {
    #[track_caller]
    fn begin(stay: &'a Stay) -> Self {
        stay.deploy("web", "one", &["serve", "8080"]);
        stay.deploy("client", "two", &[]);
        let (web, client) = (stay.running("web"), stay.running("client"));
        assert_eq!(stay.ask(&client.0, &web.1), Ok(format!("hello {}", client.1)), "it is open at first");
        stay.lets_in("nobody-to-web", "web", "nobody");
        stay.becomes(&client.0, &web.1, false);
        stay.nodes_are_enforced();
        Self { stay, web, client }
    }

    /// The policy is there still, and nobody enforces it; new pods start without the plugin.
    #[track_caller]
    fn is_free(&self) {
        let Self { stay, web, client } = self;
        assert_eq!(stay.ask(&client.0, &web.1), Ok(format!("hello {}", client.1)));
        stay.deploy("later", "one", &[]);
        let later = stay.running("later");
        assert_eq!(stay.ask(&later.0, &web.1), Ok(format!("hello {}", later.1)));
    }
}

#[test]
fn uninstalled_chart_leaves_nodes_as_they_were_and_traffic_free() {
    if skipped() {
        return;
    }
    let stay = Stay::new("uninstalled");
    let closed = Closed::begin(&stay);
    stay.helm(&UNINSTALL).expect("Helm");
    stay.nodes_are_as_before();
    stay.is_gone();
    closed.is_free();
}

#[test]
fn plain_manifests_install_and_remove_what_the_chart_does() {
    if skipped() {
        return;
    }
    let stay = Stay::without_chart("by-hand");
    let kubectl = |arguments: &[&str]| stay.city.cluster.kubectl(arguments).expect("kubectl");
    let written = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests").join(name);
    // As somebody edits it whose nodes have no cgroup2 at the usual place.
    let text = fs::read_to_string(written("reeve.yaml")).expect("the manifests");
    let manifests = stay.city.cluster.directory().join("reeve.yaml");
    fs::write(&manifests, text.replace("/sys/fs/cgroup", &stay.cgroup())).expect("written");
    let (manifests, uninstall) = (manifests.to_str().expect("text"), written("uninstall.yaml"));
    let uninstall = uninstall.to_str().expect("text");
    kubectl(&["apply", "-f", manifests]);
    stay.rolled_out();
    let closed = Closed::begin(&stay);

    // The words of docs/install.md.
    kubectl(&["apply", "-f", uninstall]);
    kubectl(&["--namespace", SYSTEM, "wait", "--for=condition=complete", "--timeout=300s", "job/reeve-uninstall"]);
    stay.nodes_are_as_before();
    kubectl(&["delete", "-f", uninstall, "-f", manifests]);
    stay.nodes_are_as_before();
    stay.is_gone();
    let left = kubectl(&["get", "namespaces,clusterroles,clusterrolebindings", "-o", "name"]);
    assert!(left.contains("kube-system") && !left.contains("reeve"), "{left}");
    closed.is_free();
}

#[test]
fn uninstallation_that_a_node_cannot_finish_ends_names_it_and_goes_on_when_it_can() {
    if skipped() {
        return;
    }
    let stay = Stay::new("unfinished");
    stay.install(&["--set", "uninstall.timeoutSeconds=20"]);
    let closed = Closed::begin(&stay);
    // Nobody can take the plugin out of this, and with it no pod starts once somebody mends it.
    let broken = stay.city.machines[1].path("/etc/cni/net.d/99-broken.conflist").expect("a path");
    fs::write(&broken, "{ \"type\": \"reeve-cni\"").expect("written");
    let told = stay.helm(&UNINSTALL).expect_err("a node is not done");
    assert!(format!("{told:#}").contains("reeve-uninstall"), "{told:#}");
    let log = stay.city.cluster.kubectl(&["logs", "-n", SYSTEM, "job/reeve-uninstall"]).expect("a log");
    assert!(log.contains("after 20 s reeve is not off these nodes: two."), "{log}");
    let why = stay.city.machines[1].scrape("/readyz").expect("an answer");
    assert!(why.status == 503 && why.body.contains("99-broken.conflist"), "{} {}", why.status, why.body);
    assert_eq!(stay.agents().len(), 2, "nothing was deleted");
    fs::remove_file(&broken).expect("removed");
    // Who thinks better of it has agents again, which are not ready beside a file that they cannot read.
    stay.roll_back(0);
    stay.becomes(&closed.client.0, &closed.web.1, false);
    stay.nodes_are_enforced();
    stay.helm(&UNINSTALL).expect("Helm");
    stay.nodes_are_as_before();
    stay.is_gone();
    closed.is_free();
}

#[test]
fn uninstallation_whose_image_is_missing_ends_and_deletes_nothing() {
    if skipped() {
        return;
    }
    let stay = Stay::new("no-image");
    let chart = stay.city.cluster.chart();
    let upgrade = ["upgrade", RELEASE, chart.to_str().expect("text"), "--namespace", SYSTEM];
    stay.helm(&[&upgrade, ["--set", "image.tag=none,uninstall.timeoutSeconds=1"].as_slice()].concat()).expect("Helm");
    let told = stay.helm(&UNINSTALL).expect_err("no node has begun");
    let told = format!("{told:#}");
    assert!(told.contains("reeve-uninstall") && told.contains("DeadlineExceeded"), "{told}");
    let events = stay.city.cluster.kubectl(&["get", "events", "-n", SYSTEM]).expect("events");
    assert!(events.contains("job/reeve-uninstall") && events.contains("localhost/reeve:none"), "{events}");
    stay.nodes_are_enforced();
    stay.roll_back(1);
    let closed = Closed::begin(&stay);
    stay.helm(&UNINSTALL).expect("Helm");
    stay.nodes_are_as_before();
    closed.is_free();
}
