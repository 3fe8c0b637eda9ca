//! Clocks that are wrong, or jump: the wall's, and a time namespace's.

use crate::PATIENCE;
use reeve_flow::time::Timestamp;
use reeve_tests::lab::{AgentOptions, until};
use reeve_tests::stage::WEB;
use reeve_tests::stage::counts::{Traffic, counted_with};
use reeve_tests::traffic;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

/// Where Debian's `faketime` puts what it preloads.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
const DAY_NS: i64 = 86_400_000_000_000;

fn moment(record: &Value, field: &str) -> i64 {
    let text = record[field].as_str().unwrap_or_else(|| panic!("no {field} in {record}"));
    text.parse::<Timestamp>().unwrap_or_else(|error| panic!("{error} in {record}")).unix_ns
}

fn now_ns() -> i64 {
    Timestamp::from_system(SystemTime::now()).unix_ns
}

#[test]
fn agent_in_a_time_namespace_tells_the_right_times_and_ends_no_live_flow() {
    if crate::skipped() {
        return;
    }
    // Eleven days ahead: to its clock every flow would have been idle for as long.
    let through = ["unshare", "--time", "--monotonic", "1000000", "--fork", "--kill-child=KILL"].map(str::to_owned);
    let options = AgentOptions {
        through: through.to_vec(),
        arguments: ["--attest-interval", "1"].map(str::to_owned).to_vec(),
        ..AgentOptions::default()
    };
    let begun = now_ns();
    let (mut stage, web, client, guest) = counted_with("f-timens", 1, "", options, |_| {});
    let mut live = stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection");
    let looks = until("two sweeps", PATIENCE, || {
        Ok((stage.agent().metric("reeve_attestations_total", &[])? >= 11.0).then_some(()))
    });
    looks.expect("it looks once a second, and sweeps every five");
    live.exchange(traffic::PATIENCE).expect("it lives");
    let port = live.local().port();
    let records = stage.agent().records().rest().expect("records");
    let closed = records.iter().find(|record| record["event"] == "closed" && record["source"]["port"] == port);
    assert_eq!(closed, None, "it was never idle");
    for record in &records {
        for field in ["time", "first", "last"].into_iter().filter(|field| record[*field].is_string()) {
            let at = moment(record, field);
            assert!((begun - 1_000_000_000..=now_ns() + 1_000_000_000).contains(&at), "{field} of {record}");
        }
    }
    assert!(records.len() > 4, "hardly any records");
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn wall_clock_that_jumps_moves_records_and_loses_none() {
    if crate::skipped() {
        return;
    }
    if !Path::new(FAKETIME).exists() {
        println!("SKIP wall_clock_that_jumps_moves_records_and_loses_none: {FAKETIME} is not there");
        return;
    }
    let path = std::env::temp_dir().join(format!("reeve-faketime-{}", std::process::id()));
    std::fs::write(&path, "+0\n").expect("written");
    let environment = [
        ("LD_PRELOAD", FAKETIME.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", path.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let (mut stage, web, client, guest) =
        counted_with("f-wall", 1, "", AgentOptions { environment, ..AgentOptions::default() }, |_| {});
    let traffic = Traffic::start(&web, &client, &guest);
    for (shift, days) in [("-3d", -3), ("+400d", 400), ("+0", 0)] {
        traffic.denied.wait_for(100);
        // Whole or not at all, like a step of the clock.
        let beside = path.with_extension("new");
        std::fs::write(&beside, format!("{shift}\n")).expect("written");
        std::fs::rename(&beside, &path).expect("renamed");
        let near = |at: i64| (at - now_ns() - days * DAY_NS).abs() < DAY_NS / 24;
        let told = |record: &Value| record["event"] == "window" && near(moment(record, "time"));
        stage.records().wait_for(PATIENCE, told).unwrap_or_else(|error| panic!("{shift}: {error:#}"));
        let connection =
            traffic::connect(client.netns(), SocketAddr::new(web.v4(), 8080), traffic::PATIENCE).expect("allowed");
        let port = connection.local().port();
        let mine = |record: &Value| record["event"] == "opened" && record["source"]["port"] == port;
        let record = stage.records().wait_for(PATIENCE, mine).expect("it is told");
        assert!(near(moment(&record, "time")), "{shift}: {record}");
    }
    let account = traffic.stop();
    account.check_exact(&mut stage);
    for record in stage.agent().records().rest().expect("records") {
        if record["first"].is_string() && record["last"].is_string() {
            let (first, last, time) = (moment(&record, "first"), moment(&record, "last"), moment(&record, "time"));
            assert!(first > 0 && first <= last, "{record}");
            assert!(last <= time, "{record}");
            assert!(last - first < DAY_NS / 24, "a step of the clock is no length of a flow: {record}");
        }
    }
    // Before the epoch nothing has a time; whatever is told then, enforcement and counts do not care.
    std::fs::write(&path, "-60000d\n").expect("written");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    std::fs::remove_file(path).expect("removed");
}
