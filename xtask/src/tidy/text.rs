//! Rules about the text of single files: opening sentences, sizes, names, foreign paths, sleeps, metrics.

use super::{Complaint, File};

/// Longer files hold two duties.
const MOST_LINES: usize = 800;

/// Names that say nothing about what a module is for.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "helpers", "common", "misc", "manager"];

/// Tests that may sleep, each with the reason why no acknowledgement can be waited for.
const MAY_SLEEP: [(&str, &str); 5] = [
    ("tests/src/lab/wait.rs", "an agent's answers and a cgroup's emptiness have no file descriptor to wait on"),
    ("tests/src/bench/agent.rs", "what an idle agent takes is measured by the time that passes"),
    ("tests/src/bench/scale.rs", "so many changes a second are told by the clock"),
    ("tests/src/bench/propagation.rs", "packets are sent by the clock, which is how finely a moment is told"),
    ("tests/src/bench/records.rs", "so many flows a second are sent by the clock"),
];

/// Every rule of this module.
pub(super) fn all(files: &[File]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for file in files {
        foreign_paths(file, &mut complaints);
        if file.is_rust() {
            opening(file, &mut complaints);
            size(file, &mut complaints);
            name(file, &mut complaints);
            sleeps(file, &mut complaints);
            swallowed_errors(file, &mut complaints);
        }
    }
    undocumented_metrics(files, &mut complaints);
    complaints
}

fn opening(file: &File, complaints: &mut Vec<Complaint>) {
    let first = file.text.lines().next().unwrap_or_default();
    if !first.strip_prefix("//! ").is_some_and(|sentence| sentence.contains(' ')) {
        complaints.push(file.complaint(1, "open the file with one `//!` sentence on what it is for"));
    }
}

fn size(file: &File, complaints: &mut Vec<Complaint>) {
    let lines = file.text.lines().count();
    if lines > MOST_LINES {
        complaints.push(file.complaint(MOST_LINES, format!("{lines} lines: split what has more than {MOST_LINES}")));
    }
}

fn name(file: &File, complaints: &mut Vec<Complaint>) {
    for part in file.path.trim_end_matches(".rs").split('/') {
        if EMPTY_NAMES.contains(&part) {
            complaints.push(file.complaint(1, format!("`{part}` is no noun of the domain: say what is in it")));
        }
    }
}

/// Paths of one machine, which no other has.
fn foreign_paths(file: &File, complaints: &mut Vec<Complaint>) {
    // Put together here, so that this file does not complain about itself.
    let foreign = [["/wo", "rk/"], ["/fa", "rm/"], ["../sha", "red"], ["/ro", "ot/"]].map(|parts| parts.concat());
    for (number, line) in file.lines() {
        for path in &foreign {
            let hit = line.match_indices(path.as_str()).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|c| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '.' | '}' | '*')))
            });
            if hit {
                complaints.push(file.complaint(number, format!("`{path}` is a path of one machine only")));
            }
        }
    }
}

fn sleeps(file: &File, complaints: &mut Vec<Complaint>) {
    let is_test = file.path.starts_with("tests/") || file.path.contains("/tests/");
    if !is_test || MAY_SLEEP.iter().any(|(path, _)| *path == file.path) {
        return;
    }
    for (number, line) in file.lines() {
        let code = line.split("//").next().unwrap_or_default();
        if code.contains("thread::sleep") || code.contains("time::sleep") {
            let what = "no sleeps in tests: wait for a revision, a readiness guard or a record";
            complaints.push(file.complaint(number, what));
        }
    }
}

/// In the lowering an unreadable value is a problem to report, never an absence.
///
/// Where the problem has been noted by then, a comment on the line or the one above says so with the word "reported".
fn swallowed_errors(file: &File, complaints: &mut Vec<Complaint>) {
    if !file.path.starts_with("policy/src/lower") {
        return;
    }
    let mut comment_above = "";
    for (number, line) in file.lines() {
        let (code, comment) = line.split_once("//").unwrap_or((line, ""));
        let is_reported = [comment, comment_above].iter().any(|comment| comment.contains("reported"));
        if code.contains(".ok()") && !is_reported {
            let what = "`.ok()` swallows what must become a problem; where it has become one, say `// reported ...`";
            complaints.push(file.complaint(number, what));
        }
        comment_above = comment;
    }
}

/// Metrics that the agent declares and the documentation does not name; nothing before that page exists.
fn undocumented_metrics(files: &[File], complaints: &mut Vec<Complaint>) {
    let Some(page) = files.iter().find(|file| file.path == "docs/metrics.md") else { return };
    for file in files.iter().filter(|file| file.is_rust() && file.path.starts_with("agent/src/metrics")) {
        for (number, line) in file.lines() {
            for (at, _) in line.match_indices("\"reeve_") {
                let name: String =
                    line[at + 1..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if !page.text.contains(&name) {
                    complaints.push(file.complaint(number, format!("docs/metrics.md does not name `{name}`")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], want: &[&str]) {
        let files: Vec<File> =
            files.iter().map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() }).collect();
        let got: Vec<String> = all(&files).iter().map(ToString::to_string).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn a_module_opens_with_a_sentence() {
        check(&[("a/src/lib.rs", "//! What it is for.\n")], &[]);
        check(
            &[("a/src/lib.rs", "use std::fs;\n")],
            &["a/src/lib.rs:1: open the file with one `//!` sentence on what it is for"],
        );
    }

    #[test]
    fn names_say_what_is_inside() {
        check(
            &[("a/src/utils/x.rs", "//! A thing.\n")],
            &["a/src/utils/x.rs:1: `utils` is no noun of the domain: say what is in it"],
        );
    }

    #[test]
    fn a_path_of_one_machine_is_found_in_any_text() {
        let path = ["/wo", "rk/main"].concat();
        check(
            &[("README.md", &format!("fine\nsee {path}\n"))],
            &[&format!("README.md:2: `{}` is a path of one machine only", &path[..6])],
        );
        check(&[("README.md", "see ./network/x and /some/work/x\n")], &[]);
    }

    #[test]
    fn tests_do_not_sleep() {
        check(
            &[("tests/tests/a.rs", "//! A thing.\nstd::thread::sleep(x);\n// no thread::sleep here\n")],
            &["tests/tests/a.rs:2: no sleeps in tests: wait for a revision, a readiness guard or a record"],
        );
    }

    #[test]
    fn the_lowering_swallows_nothing_unless_it_was_reported() {
        let reported = "//! A thing.\n// reported by `text`\nlet x = y.ok();\nlet z = y.ok(); // reported above\n";
        check(&[("policy/src/lower/a.rs", reported), ("policy/src/b.rs", "//! A thing.\ny.ok()\n")], &[]);
        check(
            &[("policy/src/lower/a.rs", "//! A thing.\ny.ok()\n")],
            &["policy/src/lower/a.rs:2: `.ok()` swallows what must become a problem; where it has become one, say \
               `// reported ...`"],
        );
    }

    #[test]
    fn a_metric_is_documented() {
        let metrics = ("agent/src/metrics.rs", "//! The metrics.\nlet x = \"reeve_flows\";\n");
        check(&[metrics, ("docs/metrics.md", "`reeve_flows` counts")], &[]);
        check(
            &[metrics, ("docs/metrics.md", "nothing")],
            &["agent/src/metrics.rs:2: docs/metrics.md does not name `reeve_flows`"],
        );
    }
}
