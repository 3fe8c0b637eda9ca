//! The list of traps in `tests/README.md` names tests and scenarios that exist.

use super::{Complaint, File};

const LIST: &str = "tests/README.md";

/// Names in the table of traps that stand for nothing.
pub(super) fn unknown(files: &[File]) -> Vec<Complaint> {
    let Some(list) = files.iter().find(|file| file.path == LIST) else { return Vec::new() };
    let mut complaints = Vec::new();
    for (number, line) in list.lines().filter(|(_, line)| line.starts_with('|')) {
        // Between backticks: every second piece.
        for name in line.split('`').skip(1).step_by(2) {
            let known = if name.contains('/') {
                files.iter().any(|file| file.path == name)
            } else if name.contains('_') {
                let declaration = format!("fn {name}(");
                files.iter().any(|file| file.is_rust() && file.text.contains(&declaration))
            } else {
                let path = format!("tests/scenarios/{name}.txt");
                files.iter().any(|file| file.path == path)
            };
            if !known {
                complaints.push(list.complaint(number, format!("there is no test, scenario or file `{name}`")));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_stand_for_nothing_are_found() {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let row = "| 1 | a trap | `it_works`, `it_fails`; scenario `one`, `two`; `tests/a.rs` |\n";
        let files = [file(LIST, row), file("tests/a.rs", "fn it_works() {}"), file("tests/scenarios/one.txt", "")];
        let found: Vec<String> = unknown(&files).into_iter().map(|complaint| complaint.what).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("it_fails") && found[1].contains("two"), "{found:?}");
    }
}
