//! What an installation is: an agent on every node, ready, with its plugin in the chain and its metrics to be read.

use serde_json::Value;

use crate::city::{Stay, skipped};

#[test]
fn chart_brings_an_agent_to_every_node_with_its_plugin_and_its_metrics() {
    if skipped() {
        return;
    }
    let stay = Stay::new("installed");
    let nodes: Vec<String> = stay.agents().into_iter().map(|(node, _)| node).collect();
    assert_eq!(nodes, ["one", "two"]);
    for machine in &stay.city.machines {
        let conflist: Value = serde_json::from_slice(&machine.conflist().expect("a conflist")).expect("JSON");
        let plugins = conflist["plugins"].as_array().expect("a list");
        let types: Vec<&str> = plugins.iter().filter_map(|plugin| plugin["type"].as_str()).collect();
        assert_eq!(types, ["ptp", "portmap", "reeve-cni"]);
        assert!(machine.path("/opt/cni/bin/reeve-cni").expect("a path").is_file());
        let name = machine.node().name();
        let ready = machine.scrape("/readyz").expect("an answer");
        assert_eq!(ready.status, 200, "{name}: {}", ready.body);
        let metrics = machine.scrape("/metrics").expect("an answer");
        assert!(metrics.status == 200 && metrics.body.contains("\nreeve_endpoints{"), "{name}: {}", metrics.body);
    }
}
