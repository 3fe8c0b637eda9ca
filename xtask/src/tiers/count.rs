//! Counts tests from what libtest prints.

use std::fmt;
use std::ops::AddAssign;

/// How tests went; a test that skipped itself counts as skipped, although libtest calls it passed.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    passed: u64,
    pub(crate) failed: u64,
    pub(super) skipped: u64,
}

impl Count {
    /// Reads one line of output.
    pub(crate) fn read(&mut self, line: &str) {
        // With one thread libtest prints a test's name before the test runs, on the same line.
        if line.starts_with("SKIP ") || line.contains("... SKIP ") {
            self.skipped += 1;
        }
        let Some(result) = line.trim_start().strip_prefix("test result: ") else { return };
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let number = words.next().and_then(|word| word.parse::<u64>().ok());
            match (number, words.next()) {
                (Some(number), Some("passed")) => self.passed += number,
                (Some(number), Some("failed")) => self.failed += number,
                _ => {}
            }
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed.saturating_sub(self.skipped), self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lines: &[&str], want: &str) {
        let mut count = Count::default();
        for line in lines {
            count.read(line);
        }
        assert_eq!(count.to_string(), want);
    }

    #[test]
    fn results_of_several_programs_add_up() {
        check(
            &[
                "running 3 tests",
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
                "test result: FAILED. 120 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            ],
            "123 passed, 2 failed",
        );
    }

    #[test]
    fn a_test_that_skipped_itself_has_not_passed() {
        let result = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        check(&["SKIP a: no root\n", "test b ... SKIP b: no bpffs\n", result], "0 passed, 0 failed");
    }
}
