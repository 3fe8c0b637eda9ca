//! Disks that are full: where records go, and where the dictionary is.

use crate::{PATIENCE, check_nothing_leaked, metric};
use reeve_tests::lab::{AgentOptions, until};
use reeve_tests::stage::counts::{Traffic, counted_with};
use reeve_tests::stage::{Stage, WEB, get};
use reeve_tests::traffic::NoAnswer;
use rustix::mount::{MountFlags, mount};
use serde_json::json;
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Mounts a small disk over a directory; it goes with the lab.
fn small_disk(directory: &Path, bytes: u64) {
    std::fs::create_dir_all(directory).expect("a directory");
    let size = CString::new(format!("size={bytes}")).expect("no zero byte");
    mount("tmpfs", directory, "tmpfs", MountFlags::empty(), Some(&*size)).expect("mounted");
}

/// Fills a disk to the last byte; the file that does it.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("filler");
    let mut file = File::create(&path).expect("created");
    for size in [4_096, 1] {
        loop {
            match file.write(&[0; 4_096][..size]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    path
}

/// The dictionary's directory is as small as this.
const STATE_BYTES: u64 = 1 << 20;

#[test]
fn full_disk_of_records_loses_detail_that_is_counted_and_no_count() {
    if crate::skipped() {
        return;
    }
    let disk = |stage: &Stage| stage.lab.directory().join("disk");
    let (mut stage, web, client, guest) = counted_with("f-records", 1, "", AgentOptions::default(), |stage| {
        small_disk(&disk(stage), 64 << 20);
        std::os::unix::fs::symlink(disk(stage).join("records.jsonl"), stage.node.records_file()).expect("linked");
    });
    let before = stage.node.objects().expect("what is held");
    let traffic = Traffic::start(&web, &client, &guest);
    traffic.denied.wait_for(100);
    let filler = fill(&disk(&stage));
    let lost = until("lost records", PATIENCE, || {
        Ok((stage.agent().metric("reeve_records_lost_total", &[])? > 100.0).then_some(()))
    });
    lost.expect("they are counted");
    // A window that cannot be written comes due.
    traffic.denied.wait_for(800);
    assert_eq!((get(&guest, &web), get(&client, &web)), (Err(NoAnswer::TimedOut), Ok(())), "enforcement goes on");
    std::fs::remove_file(filler).expect("removed");
    traffic.denied.wait_for(100);
    let account = traffic.stop();
    // Every line that was made stands in the file, or is counted as lost; none stands there twice or in part.
    account.check_exact(&mut stage);
    stage.allows(&client, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
    check_nothing_leaked(&stage.node, &before);
    let balanced = until("all lines", PATIENCE, || {
        let made = stage.agent().metric("reeve_flow_events_total", &[])?;
        let lost = stage.agent().metric("reeve_records_lost_total", &[])?;
        let lines = stage.agent().records().rest()?.len() as f64;
        Ok((made == lines + lost).then_some((made, lines, lost)))
    });
    let (made, lines, lost) = balanced.expect("each is there or lost");
    println!("{made} records made, {lines} written, {lost} lost; {account:?}");
}

#[test]
fn full_disk_of_the_dictionary_changes_nothing_until_there_is_room() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = counted_with("f-state", 1, "", AgentOptions::default(), |stage| {
        small_disk(&stage.node.state_directory(), STATE_BYTES);
    });
    let other = stage.pod("other", &[("role", "other")]);
    stage.settled();
    stage.denies(&other, &web, WEB, "web-clients");
    let before = stage.node.objects().expect("what is held");
    let traffic = Traffic::start(&web, &client, &guest);
    let filler = fill(&stage.node.state_directory());
    // More than what is left of the file's last page; what comes first may still fit.
    for number in 0..40 {
        stage.allow_from(&format!("web-more-{number}"), ("app", "web"), ("role", &format!("more-{number}")));
    }
    stage.policy(
        "web-others",
        &json!({
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": "other" } } }] }]
        }),
    );
    let refused = stage.agent().request("POST", "/sync").expect("an answer");
    assert_eq!(refused.status, 504, "{}", refused.body);
    assert!(refused.body.contains("dictionary"), "{}", refused.body);
    assert_eq!(get(&other, &web), Err(NoAnswer::TimedOut), "what nobody could write down is not in force");
    assert_eq!((get(&guest, &web), get(&client, &web)), (Err(NoAnswer::TimedOut), Ok(())), "what was in force is");
    // A pod that comes now cannot be written down either: it is closed, not open.
    let late = stage.pod("late", &[("app", "web")]);
    let closed = until("a closed pod", PATIENCE, || Ok((get(&guest, &late) == Err(NoAnswer::TimedOut)).then_some(())));
    closed.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.agent().log()));
    traffic.denied.wait_for(1_500);
    std::fs::remove_file(filler).expect("removed");
    stage.agent().wait_ready().expect("ready again");
    stage.settled();
    stage.allows(&other, &web, WEB, "web-others");
    stage.denies(&guest, &late, WEB, "web-clients");
    stage.allows(&client, &late, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
    late.remove().expect("removed");
    stage.settled();
    traffic.stop().check_exact(&mut stage);
    for record in stage.agent().records().rest().expect("records") {
        let decision = &record["decision"];
        assert!(decision["decider"].is_object() || decision["default"].is_string(), "an unknown number: {record}");
        assert_ne!(decision["default"], "unknown", "{record}");
    }
    check_nothing_leaked(&stage.node, &before);
    // What is on disk now is whole: the next agent reads it.
    stage.agent().restart().expect("restarted");
    stage.allows(&other, &web, WEB, "web-others");
    assert_eq!(metric(&mut stage, "reeve_records_lost_total", &[]), 0.0);
}
