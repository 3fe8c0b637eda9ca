//! Agents that are replaced, killed and absent, and connections that live meanwhile.

use reeve_tests::lab::until;
use serde_json::{Value, json};

use crate::city::{LONG, SYSTEM, Stay, skipped};

/// Rounds of a probe that have to pass for a state to count as seen.
const ENOUGH: usize = 5;

/// A pod that asks all the time whom it may ask and whom it may not, while something happens; each verdict is right.
#[track_caller]
fn probed(stay: &Stay, happens: impl FnOnce()) {
    stay.deploy("web", "one", &["serve", "8080"]);
    stay.deploy("closed", "one", &["serve", "8080"]);
    stay.deploy("client", "two", &[]);
    let (web, closed, client) = (stay.running("web"), stay.running("closed"), stay.running("client"));
    assert!(stay.ask(&client.0, &closed.1).is_ok(), "it is open at first");
    stay.lets_in("probe-to-web", "web", "probe");
    stay.lets_in("nobody-to-closed", "closed", "nobody");
    stay.becomes(&client.0, &closed.1, false);
    stay.becomes(&client.0, &web.1, false);
    let port = |address: &str| format!("{address}:8080");
    stay.deploy("probe", "two", &["probe", &port(&web.1), &port(&closed.1)]);
    let (probe, _) = stay.running("probe");
    let log = || stay.city.cluster.kubectl(&["logs", "-n", &stay.name, &probe]).expect("a log");
    let rounds = || log().lines().filter(|line| line.starts_with("round")).count();
    let goes_on = || {
        let before = rounds();
        until("more rounds of the probe", LONG, || Ok((rounds() >= before + ENOUGH).then_some(()))).expect("rounds");
    };
    goes_on();
    happens();
    goes_on();
    let wrong: Vec<String> = log().lines().filter(|line| line.starts_with("wrong")).map(str::to_owned).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn agents_of_another_setting_take_over_under_traffic_without_a_wrong_verdict() {
    if skipped() {
        return;
    }
    let stay = Stay::new("rollout");
    let before = stay.agents();
    probed(&stay, || {
        stay.install(&["--set", "agent.windowSeconds=30"]);
        let after = stay.agents();
        assert_eq!(after.len(), 2);
        assert!(before.iter().all(|pod| !after.contains(pod)), "{before:?} {after:?}");
    });
    stay.install(&["--set", "agent.windowSeconds=60"]);
}

#[test]
fn agents_that_are_deleted_by_force_leave_verdicts_as_they_are_and_come_back() {
    if skipped() {
        return;
    }
    let stay = Stay::new("forced");
    let before = stay.agents();
    // The one that tells how policies stand, for all.
    let holder = |other_than: &str| {
        let held = until("an agent to hold the Lease", LONG, || {
            let Ok(lease) = stay.city.cluster.get(&["lease", "reeve-status", "-n", SYSTEM]) else { return Ok(None) };
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
            Ok(Some(holder).filter(|holder| !holder.is_empty() && holder != other_than))
        });
        held.expect("a holder")
    };
    let first = holder("");
    assert!(first.starts_with("one_") || first.starts_with("two_"), "{first}");
    probed(&stay, || {
        let pods: Vec<&str> = before.iter().map(|(_, pod)| pod.as_str()).collect();
        let delete = ["delete", "pod", "-n", SYSTEM, "--force", "--grace-period=0"];
        stay.city.cluster.kubectl(&[&delete, pods.as_slice()].concat()).expect("deleted");
        until("other agents", LONG, || {
            let after = stay.agents();
            Ok((after.len() == 2 && before.iter().all(|pod| !after.contains(pod))).then_some(()))
        })
        .expect("other agents");
        stay.rolled_out();
    });
    holder(&first);
}

#[test]
fn policy_that_closes_a_live_connection_cuts_it_and_a_record_says_so() {
    if skipped() {
        return;
    }
    let stay = Stay::new("live");
    stay.deploy("web", "one", &["serve", "8080"]);
    let web = stay.running("web");
    let to = format!("{}:8080", web.1);
    stay.deploy("holder", "two", &["hold", &to]);
    let (holder, _) = stay.running("holder");
    let log = |previous: &[&str]| {
        let arguments = [&["logs", "-n", &stay.name, &holder], previous].concat();
        stay.city.cluster.kubectl(&arguments).unwrap_or_default()
    };
    until("answers", LONG, || Ok(log(&[]).contains("answer 3\n").then_some(()))).expect("answers");
    stay.lets_in("nobody-to-web", "web", "nobody");
    // The container ends with its connection, and another one is started.
    let ended = until("the connection to be cut", LONG, || {
        let logs = [log(&[]), log(&["--previous"])];
        Ok(logs.into_iter().find(|log| log.contains("failed: cut after")))
    });
    let ended = ended.expect("an end");
    assert!(ended.contains("answer 3\n"), "{ended}");
    stay.record("one", |record: &Value| {
        record["verdict"] == "deny"
            && record.to_string().contains("rejudged")
            && record["source"].to_string().contains(&holder)
            && record["decision"].to_string().contains("nobody-to-web")
    });
}

#[test]
fn pod_waits_for_an_agent_with_an_error_that_says_what_to_do_and_starts_when_there_is_one() {
    if skipped() {
        return;
    }
    let stay = Stay::new("absent");
    let cluster = &stay.city.cluster;
    let choose = |label: Value| {
        let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": { "absent": label } } } } });
        cluster.patch(&["daemonset", "reeve", "-n", SYSTEM], &patch).expect("a patch");
    };
    choose(json!("yes"));
    until("no agents", LONG, || Ok(stay.agents().is_empty().then_some(()))).expect("no agents");
    stay.deploy("web", "one", &["serve", "8080"]);
    let told = until("an event", LONG, || {
        let events = cluster.get(&["events", "-n", &stay.name, "--field-selector", "reason=FailedCreatePodSandBox"])?;
        let all = events["items"].as_array().cloned().unwrap_or_default();
        Ok(all
            .iter()
            .filter_map(|event| event["message"].as_str())
            .find(|text| text.contains("reeve"))
            .map(str::to_owned))
    });
    let told = told.expect("an event");
    assert!(told.contains("agent") && told.contains("DaemonSet"), "it says what to look at: {told}");
    choose(Value::Null);
    stay.rolled_out();
    stay.deploy("client", "two", &[]);
    let (web, client) = (stay.running("web"), stay.running("client"));
    assert_eq!(stay.ask(&client.0, &web.1), Ok(format!("hello {}", client.1)));
}
