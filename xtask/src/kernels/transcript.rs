//! What test programs print on a machine far away, told as one result per test.

use crate::tiers::Count;

/// Reads libtest's lines, of one test after the other.
#[derive(Default)]
pub(super) struct Transcript {
    /// The test whose result is still to come, because it says something itself.
    running: Option<String>,
    /// Why tests failed, in the words of the program.
    pub(super) failures: Vec<String>,
    part: Part,
    pub(super) count: Count,
}

#[derive(Default, PartialEq, Eq)]
enum Part {
    #[default]
    Results,
    /// What the tests that failed said.
    Failures,
    /// Their names once more.
    Names,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    Badly,
}

impl Transcript {
    /// Reads a line; the test that it ends, if it ends one.
    pub(super) fn read(&mut self, line: &str) -> Option<(String, Ended)> {
        self.count.read(line);
        if line == "failures:" {
            self.part = if self.part == Part::Results { Part::Failures } else { Part::Names };
        } else if line.starts_with("test result: ") || line.starts_with("running ") {
            self.part = Part::Results;
        } else if self.part == Part::Failures {
            self.failures.push(line.to_owned());
        } else if self.part == Part::Results {
            let begun = line.strip_prefix("test ").and_then(|line| line.split_once(" ... "));
            let said = match begun {
                Some((name, said)) => {
                    self.running = Some(name.to_owned());
                    said
                }
                None => line,
            };
            let ended = match said {
                "ok" => Ended::Well,
                "FAILED" => Ended::Badly,
                _ => return None,
            };
            return self.running.take().map(|name| (name, ended));
        }
        None
    }

    /// The test that was begun and whose end nobody will hear of.
    pub(super) fn unfinished(&self) -> Option<&str> {
        self.running.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_is_told_once_with_its_end_and_failures_with_their_reasons() {
        let lines = [
            "running 4 tests",
            "test a::one ... ok",
            "test two ... a word of its own",
            "ok",
            "test three ... FAILED",
            "",
            "failures:",
            "",
            "---- three stdout ----",
            "the verifier refuses it",
            "ok",
            "",
            "failures:",
            "    three",
            "",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "running 1 test",
            "test four ... ",
        ];
        let mut transcript = Transcript::default();
        let told: Vec<(String, Ended)> = lines.iter().filter_map(|line| transcript.read(line)).collect();
        let names: Vec<(&str, Ended)> = told.iter().map(|(name, ended)| (name.as_str(), *ended)).collect();
        assert_eq!(names, [("a::one", Ended::Well), ("two", Ended::Well), ("three", Ended::Badly)]);
        assert!(transcript.failures.contains(&"the verifier refuses it".to_owned()), "{:?}", transcript.failures);
        assert!(!transcript.failures.contains(&"    three".to_owned()));
        assert_eq!(transcript.count.to_string(), "2 passed, 1 failed");
        assert_eq!(transcript.unfinished(), Some("four"));
    }
}
