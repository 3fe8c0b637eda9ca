//! An API server that is away: what is in force stays so, the agent says why it is not ready, and catches up.

use reeve_tests::lab::{AgentOptions, Facts, until};
use reeve_tests::stage::get;
use rustix::process::{Pid, Signal, kill_process};

use crate::town::{Company, LONG, POLICIES, Town, skipped};

#[test]
fn api_server_that_is_killed_changes_no_verdict_and_is_caught_up_with() {
    if skipped() {
        return;
    }
    let mut town = Town::new("outage", Company::Alone);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    town.close("web", "nobody-to-web");
    town.start();
    town.is_denied(&client, &web, "nobody-to-web");
    assert_eq!(get(&client, &front), Ok(()));
    town.measures("reeve_watch_up", POLICIES, |up| up == 1.0);
    let lists = town.measures("reeve_watch_lists_total", POLICIES, |lists| lists >= 1.0);
    let failures = town.measures("reeve_watch_failures_total", POLICIES, |_| true);
    let objects = town.measures("reeve_watch_objects", POLICIES, |objects| objects >= 1.0);

    town.cluster.kill_api_server().expect("killed");
    town.becomes_unready(&format!("{POLICIES} have not been heard of since"));
    town.is_denied(&client, &web, "nobody-to-web");
    assert_eq!(get(&client, &front), Ok(()));
    town.measures("reeve_watch_up", POLICIES, |up| up == 0.0);
    town.measures("reeve_watch_failures_total", POLICIES, |now| now > failures);

    town.cluster.start_api_server().expect("an API server");
    town.close("front", "nobody-to-front");
    town.becomes_denied(&client, &front, "nobody-to-front");
    town.agent().wait_ready().expect("ready again");
    town.is_denied(&client, &web, "nobody-to-web");
    town.measures("reeve_watch_up", POLICIES, |up| up == 1.0);
    town.measures("reeve_watch_objects", POLICIES, |now| now == objects + 1.0);
    town.measures("reeve_watch_lists_total", POLICIES, |now| now >= lists);
    town.open("nobody-to-front");
    town.becomes_allowed(&client, &front);
}

#[test]
fn policy_that_is_deleted_while_nobody_watches_is_gone_after_the_next_list() {
    if skipped() {
        return;
    }
    let mut town = Town::new("unwatched", Company::Alone);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    town.close("web", "nobody-to-web");
    town.close("front", "nobody-to-front");
    town.start();
    town.is_denied(&client, &web, "nobody-to-web");
    town.is_denied(&client, &front, "nobody-to-front");
    let lists = town.measures("reeve_watch_lists_total", POLICIES, |lists| lists >= 1.0);

    // Held still, it does not come back to the first server, which tells of the deletion; the second, which was started
    // after it, does not remember it.
    let process = i32::try_from(town.agent().process_id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(process, Signal::STOP).expect("stopped");
    town.cluster.kill_api_server().expect("killed");
    town.cluster.start_api_server().expect("an API server");
    town.open("nobody-to-web");
    town.cluster.kill_api_server().expect("killed");
    town.cluster.start_api_server().expect("an API server");
    assert!(get(&client, &web).is_err(), "what the kernel has stays in force");
    kill_process(process, Signal::CONT).expect("goes on");

    town.becomes_allowed(&client, &web);
    town.measures("reeve_watch_lists_total", POLICIES, |now| now > lists);
    town.is_denied(&client, &front, "nobody-to-front");
    town.agent().wait_ready().expect("ready again");
}

#[test]
fn api_server_that_falls_silent_is_missed_within_a_moment_and_changes_no_verdict() {
    if skipped() {
        return;
    }
    let mut town = Town::new("silence", Company::Alone);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    town.close("web", "nobody-to-web");
    town.cluster.grant(&town.name, &town.name).expect("rights");
    town.spawn_with(AgentOptions {
        facts: Facts::Kubeconfig(town.kubeconfig()),
        arguments: ["--api-silence", "2"].map(str::to_owned).to_vec(),
        ..AgentOptions::default()
    });
    town.agent().wait_ready().expect("ready");
    town.is_denied(&client, &web, "nobody-to-web");
    // Watches that hear nothing are asked for anew, which is no failure while somebody answers.
    let lists = town.measures("reeve_watch_lists_total", POLICIES, |lists| lists >= 1.0);
    let failures = town.measures("reeve_watch_failures_total", POLICIES, |_| true);
    let again = until("watches that are asked for anew", LONG, || {
        let calls = town.cluster.calls_of(&town.name, &town.name)?;
        let watches = calls.iter().filter(|(call, _)| call.verb == "watch" && call.resource == "networkpolicies");
        Ok((watches.map(|(_, times)| times).sum::<usize>() > 3).then_some(()))
    });
    again.expect("servers say something every minute only");
    town.measures("reeve_watch_failures_total", POLICIES, |now| now == failures);
    town.measures("reeve_watch_lists_total", POLICIES, |now| now == lists);

    town.cluster.hold_api_server(true).expect("held still");
    town.becomes_unready(&format!("{POLICIES} have not been heard of since"));
    town.is_denied(&client, &web, "nobody-to-web");
    assert_eq!(get(&client, &front), Ok(()));
    town.cluster.hold_api_server(false).expect("goes on");
    town.close("front", "nobody-to-front");
    town.becomes_denied(&client, &front, "nobody-to-front");
    town.agent().wait_ready().expect("ready again");
}
