//! What `helm uninstall` leaves of an installation: nothing, on any node.

use std::fs;

use reeve_tests::lab::until;

use crate::city::{LONG, RELEASE, SYSTEM, Stay, skipped};

#[test]
fn uninstalled_chart_leaves_nodes_as_they_were_and_traffic_free() {
    if skipped() {
        return;
    }
    let stay = Stay::new("uninstalled");
    stay.deploy("web", "one", &["serve", "8080"]);
    stay.deploy("client", "two", &[]);
    let (web, client) = (stay.running("web"), stay.running("client"));
    stay.lets_in("nobody-to-web", "web", "nobody");
    stay.becomes(&client.0, &web.1, false);
    for machine in &stay.city.machines {
        assert!(machine.path("/sys/fs/bpf/reeve/v1/maps").expect("a path").is_dir(), "it is there before");
    }

    stay.helm(&["uninstall", RELEASE, "--namespace", SYSTEM]);
    for machine in &stay.city.machines {
        let name = machine.node().name();
        let now = machine.conflist().expect("a conflist");
        let [now, before] = [&now, machine.written()].map(String::from_utf8_lossy);
        assert_eq!(now, before, "{name}: byte for byte");
        for gone in ["/sys/fs/bpf/reeve", "/opt/cni/bin/reeve-cni", "/var/lib/reeve/dictionary.jsonl"] {
            assert!(!machine.path(gone).expect("a path").exists(), "{name}: {gone} is left");
        }
        let pins = fs::read_dir(machine.path("/sys/fs/bpf").expect("a path")).expect("a bpffs");
        let names = pins.map(|pin| pin.expect("an entry").file_name().to_string_lossy().into_owned());
        // Two are the kernel's own in every bpffs.
        let left: Vec<String> = names.filter(|name| !["maps.debug", "progs.debug"].contains(&name.as_str())).collect();
        assert!(left.is_empty(), "{name}: pins are left: {left:?}");
        let tables = machine.run(&["nft", "list", "tables"]).expect("tables");
        assert!(tables.contains("kube-proxy") || tables.contains("nat"), "{name}: those of others are seen: {tables}");
        assert!(!tables.contains("reeve"), "{name}: {tables}");
    }
    // The last pods are still on their way out when Helm has done its part.
    until("nothing of the release to be left", LONG, || {
        let kinds = "all,roles,rolebindings,serviceaccounts";
        let left = stay.city.cluster.kubectl(&["get", kinds, "-n", SYSTEM, "-o", "name"])?;
        Ok((!left.contains(RELEASE)).then_some(()))
    })
    .expect("nothing left");
    // The policy is there still, and nobody enforces it.
    assert_eq!(stay.ask(&client.0, &web.1), Ok(format!("hello {}", client.1)));
    // New pods start without the plugin.
    stay.deploy("later", "one", &[]);
    let later = stay.running("later");
    assert_eq!(stay.ask(&later.0, &web.1), Ok(format!("hello {}", later.1)));
}
