//! `reeve flows` from a file: filters, forms, lines that cannot be read, and a file that is still written.

mod command;
mod records;

use command::{Told, command, reeve, write};
use records::{MISSED, asked, denied, opened};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use tempfile::TempDir;

const DENIED: &str = "12:00:01.123 DENY  ingress shop/web          -> payments/card-db:5432/TCP  \
    by tier default deny (isolated by GlobalNetworkPolicy pci-isolation)\n";
const OPENED: &str = "12:00:02.000 ALLOW egress  payments/card-api -> payments/card-db:5432/TCP  \
    by GlobalNetworkPolicy pci-isolation egress rule 0\n";
const ASKED: &str = "12:00:03.000 ALLOW egress  shop/web          -> 8.8.8.8:53/UDP             by no policy selects\n";

fn written(lines: &[&str]) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), "flows.jsonl", &format!("{}\n", lines.join("\n")));
    directory
}

fn flows(directory: &TempDir, arguments: &[&str]) -> Told {
    let file = directory.path().join("flows.jsonl");
    reeve(&[&["flows", "--file", file.to_str().expect("text")], arguments].concat())
}

#[track_caller]
fn shows(arguments: &[&str], want: &str) {
    let lines = [denied().to_string(), opened().to_string(), MISSED.to_owned(), asked().to_string()];
    let told = flows(&written(&lines.each_ref().map(String::as_str)), arguments);
    assert_eq!((told.out.as_str(), told.err.as_str(), told.code), (want, "", 0));
}

/// Which of the three records meet the filter.
#[track_caller]
fn keeps(arguments: &[&str], want: &[&serde_json::Value]) {
    let lines = [denied().to_string(), opened().to_string(), asked().to_string()];
    let told = flows(&written(&lines.each_ref().map(String::as_str)), &[arguments, &["-o", "json"]].concat());
    let shown: Vec<&str> = told.out.lines().collect();
    let want: Vec<String> = want.iter().map(ToString::to_string).collect();
    assert_eq!((shown, told.err.as_str(), told.code), (want.iter().map(String::as_str).collect(), "", 0));
}

#[test]
fn lines_are_aligned_and_name_the_decider() {
    shows(&[], &format!("{DENIED}{OPENED}-- 7 records missed here: this reader was too slow --\n{ASKED}"));
    shows(
        &["--tail", "1"],
        &ASKED.replace("shop/web          ->", "shop/web ->").replace("UDP             by", "UDP  by"),
    );
}

#[test]
fn json_lines_come_out_as_they_went_in() {
    shows(&["-o", "json"], &format!("{}\n{}\n{MISSED}\n{}\n", denied(), opened(), asked()));
}

#[test]
fn each_filter_keeps_what_it_says() {
    let (denied, opened, asked) = (&denied(), &opened(), &asked());
    keeps(&["--verdict", "deny"], &[denied]);
    keeps(&["--policy", "GlobalNetworkPolicy/pci-isolation"], &[denied, opened]);
    keeps(&["--policy", "NetworkPolicy/pci-isolation"], &[]);
    keeps(&["--label", "PCI=true"], &[denied, opened]);
    keeps(&["--label", "PCI=true", "--pod", "web"], &[]);
    keeps(&["--namespace", "shop"], &[denied, asked]);
    keeps(&["--pod", "payments/card-api"], &[opened]);
    keeps(&["--port", "53"], &[asked]);
    keeps(&["--node", "node-2"], &[asked]);
    keeps(&["--direction", "ingress"], &[denied]);
    keeps(&["--from", "2026-01-31T12:00:02Z"], &[opened, asked]);
    keeps(&["--from", "2026-01-31T12:00:02Z", "--to", "2026-01-31T12:00:03Z"], &[opened]);
    keeps(&["--verdict", "allow", "--namespace", "payments", "--direction", "egress"], &[opened]);
}

#[test]
fn lines_that_are_no_records_are_named_and_the_others_shown() {
    let other = denied().to_string().replacen("\"schema\":1", "\"schema\":9", 1);
    let told = flows(&written(&[&opened().to_string(), "", "{}", &other]), &[]);
    let err = "\
warning: line 3 is no flow record: missing field `schema` at line 1 column 2
warning: line 4 has schema 9; this version reads schema 1
error: 2 of 4 lines could not be read
";
    assert_eq!((told.out.as_str(), told.err.as_str(), told.code), (OPENED, err, 2));
}

#[test]
fn arguments_that_mean_nothing_are_named() {
    for (arguments, error) in [
        (["--label", "PCI"], "error: invalid value 'PCI' for '--label <KEY=VALUE>': a label is written KEY=VALUE"),
        (["--verdict", "drop"], "error: invalid value 'drop' for '--verdict <VERDICT>'"),
        (["--file", "/nowhere"], "error: cannot read /nowhere: No such file or directory (os error 2)"),
    ] {
        let told = reeve(&[&["flows"][..], &arguments].concat());
        assert_eq!((told.err.lines().next(), told.out.as_str(), told.code), (Some(error), "", 2));
    }
    let told = reeve(&["flows", "--from", "yesterday"]);
    let begin = "error: invalid value 'yesterday' for '--from <TIME>': \"yesterday\" is no RFC 3339 time";
    assert!(told.err.starts_with(begin), "{}", told.err);
}

#[test]
fn file_that_grows_and_is_replaced_is_followed() {
    let directory = written(&[&denied().to_string()]);
    let path = directory.path().join("flows.jsonl");
    let mut child = command(&["flows", "--follow", "-o", "json", "--file", path.to_str().expect("text")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    assert_eq!(lines.next(), Some(denied().to_string()));
    let mut file = OpenOptions::new().append(true).open(&path).expect("it is there");
    let record = opened().to_string();
    let (half, rest) = record.split_at(100);
    write!(file, "{half}").expect("written");
    writeln!(file, "{rest}").expect("written");
    assert_eq!(lines.next(), Some(record));
    std::fs::rename(&path, directory.path().join("flows.jsonl.1")).expect("renamed");
    write(directory.path(), "flows.jsonl", &format!("{}\n", asked()));
    assert_eq!(lines.next(), Some(asked().to_string()));
    child.kill().expect("it still runs");
    child.wait().expect("it ends");
}
