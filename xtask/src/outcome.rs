//! What a `cargo test` run came to, read from its lines.

use std::io::{self, Write};

/// Sums over all test binaries.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    passed: usize,
    failed: usize,
    /// `BINARY: TEST`, in the order they failed.
    failures: Vec<String>,
    /// `NAME: REASON`.
    skipped: Vec<String>,
    /// The runner's closing line of each binary that ran a test.
    closings: Vec<String>,
    binary: String,
    bad_exit: bool,
}

impl Outcome {
    /// Takes the next line of cargo's or a test binary's output.
    pub(crate) fn read(&mut self, line: &str) {
        let text = line.trim();
        if let Some(path) = text
            .strip_prefix("Running ")
            .or_else(|| text.strip_prefix("Doc-tests "))
        {
            path.clone_into(&mut self.binary);
        } else if let Some(rest) = text.strip_prefix("test result: ") {
            self.passed += number_before(rest, " passed");
            self.failed += number_before(rest, " failed");
            if !rest.contains(" 0 passed; 0 failed; 0 ignored;") {
                self.closings.push(format!("{}: {text}", self.binary));
            }
        } else if let Some(name) = text
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(format!("{}: {name}", self.binary));
        } else if let Some(at) = text.find("skipped: ") {
            // A test's own line can follow the runner's `test NAME ... ` on the same line.
            let skip = text[at + "skipped: ".len()..].to_owned();
            if skip.contains(": ") && !self.skipped.contains(&skip) {
                self.skipped.push(skip);
            }
        }
    }

    /// Something that is no test of cargo's was left out, as `NAME: REASON`.
    pub(crate) fn skip(&mut self, skip: &str) {
        // As the runner does with a test that reports itself skipped.
        self.passed += 1;
        self.skipped.push(skip.to_owned());
    }

    /// Whether cargo itself was content: a test binary that crashes or does not compile writes no closing line.
    pub(crate) fn exit(&mut self, good: bool) {
        self.bad_exit = !good;
    }

    pub(crate) fn is_good(&self) -> bool {
        self.failed == 0 && !self.bad_exit && self.passed > 0
    }

    /// The closing lines of all binaries, what was skipped and why, what failed, and last the sums alone on a line.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        writeln!(to)?;
        for line in &self.closings {
            writeln!(to, "{line}")?;
        }
        for skip in &self.skipped {
            writeln!(to, "skipped: {skip}")?;
        }
        for failure in &self.failures {
            writeln!(to, "failed: {failure}")?;
        }
        // A binary that crashed counts as one failure, so that the sums never look better than the exit code.
        let failed = if self.bad_exit {
            self.failed.max(1)
        } else {
            self.failed
        };
        if failed > self.failed {
            writeln!(
                to,
                "failed: cargo test ended with an error that no test reported; see above"
            )?;
        }
        // The runner takes a test that reported itself skipped for a passed one.
        write!(
            to,
            "{} passed, {failed} failed",
            self.passed.saturating_sub(self.skipped.len())
        )?;
        if !self.skipped.is_empty() {
            write!(to, ", {} skipped", self.skipped.len())?;
        }
        writeln!(to)
    }
}

/// The number right before `word` in a closing line such as `ok. 5 passed; 0 failed; ...`.
fn number_before(line: &str, word: &str) -> usize {
    let Some(at) = line.find(word) else { return 0 };
    let digits = line[..at]
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str], good: bool) -> (Outcome, String) {
        let mut outcome = Outcome::default();
        lines.iter().for_each(|line| outcome.read(line));
        outcome.exit(good);
        let mut text = Vec::new();
        outcome.write(&mut text).unwrap();
        (outcome, String::from_utf8(text).unwrap())
    }

    #[test]
    fn sums_are_taken_over_all_binaries_and_stand_alone_on_the_last_line() {
        let (outcome, text) = read(
            &[
                "     Running unittests src/lib.rs (target/debug/deps/a-1)",
                "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                "     Running gateway/main.rs (target/debug/deps/b-2)",
                "test socket::closes ... ok",
                "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.00s",
                "   Doc-tests a",
                "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            ],
            true,
        );
        assert!(outcome.is_good());
        assert_eq!(text.lines().last(), Some("17 passed, 0 failed"));
        assert_eq!(
            text.matches("test result:").count(),
            2,
            "an empty binary is left out: {text}"
        );
    }

    #[test]
    fn a_failed_test_is_named_with_its_binary() {
        let (outcome, text) = read(
            &[
                "     Running gateway/main.rs (target/debug/deps/b-2)",
                "test rest::a ... FAILED",
                "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.00s",
            ],
            false,
        );
        assert!(!outcome.is_good());
        assert!(
            text.contains("failed: gateway/main.rs (target/debug/deps/b-2): rest::a\n"),
            "{text}"
        );
        assert!(text.ends_with("1 passed, 1 failed\n"), "{text}");
    }

    #[test]
    fn a_skipped_test_is_counted_once_by_name_and_reason() {
        let line = "skipped: pipeline::both: SIGNAL_TEST_KAFKA is not set";
        let good = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.00s";
        let (outcome, text) = read(
            &[&format!("test pipeline::both ... {line}"), line, good],
            true,
        );
        assert!(outcome.is_good());
        assert!(text.ends_with("skipped: pipeline::both: SIGNAL_TEST_KAFKA is not set\n2 passed, 0 failed, 1 skipped\n"), "{text}");
    }

    #[test]
    fn what_is_no_test_is_skipped_by_name_and_leaves_the_sums_of_tests_as_they_are() {
        let (mut outcome, _) = read(&["test result: ok. 3 passed; 0 failed; 0 ignored;"], true);
        outcome.skip("clients: Node is not installed");
        let mut text = Vec::new();
        outcome.write(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.ends_with(
                "skipped: clients: Node is not installed\n3 passed, 0 failed, 1 skipped\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_binary_that_crashes_without_a_closing_line_is_a_failure() {
        let (outcome, text) = read(
            &[
                "test result: ok. 4 passed; 0 failed; 0 ignored;",
                "error: test failed",
            ],
            false,
        );
        assert!(!outcome.is_good());
        assert!(text.ends_with("4 passed, 1 failed\n"), "{text}");
    }

    #[test]
    fn a_run_without_tests_is_not_good() {
        assert!(!read(&[], true).0.is_good());
    }
}
