//! How long each part of a run took, for the table at its end.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The parts of a run in their order.
#[derive(Debug, Default)]
pub(crate) struct Timing {
    parts: Vec<(String, Duration)>,
    /// The test binary that is running.
    running: Option<(String, Instant)>,
}

impl Timing {
    /// Runs one part and notes its time.
    ///
    /// # Errors
    /// Names the part that failed.
    pub(crate) fn part<T>(&mut self, name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("xtask: {name}");
        let begun = Instant::now();
        let result = run();
        let took = begun.elapsed();
        println!("xtask: {name} took {:.0} s", took.as_secs_f32());
        self.parts.push((name.to_owned(), took));
        result.with_context(|| format!("{name} failed"))
    }

    /// Takes the next line of cargo's output: each test binary is a part.
    pub(crate) fn read(&mut self, line: &str) {
        let text = line.trim();
        if let Some(name) = text.strip_prefix("Running ") {
            // `unittests src/lib.rs (target/debug/deps/signal_gateway-0123456789abcdef)`
            let (source, file) = name.split_once(" (").unwrap_or((name, ""));
            let program = file.rsplit('/').next().unwrap_or_default();
            let package = program.rsplit_once('-').map_or("", |(name, _)| name);
            self.begin(format!("tests: {package}, {source}"));
        } else if text.starts_with("Doc-tests ") {
            self.begin(format!("tests: {text}"));
        }
    }

    /// The last test binary has ended.
    pub(crate) fn end(&mut self) {
        if let Some((name, begun)) = self.running.take() {
            self.parts.push((name, begun.elapsed()));
        }
    }

    fn begin(&mut self, name: String) {
        self.end();
        self.running = Some((name, Instant::now()));
    }

    /// A line per part with its minutes, and the sum.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        writeln!(to, "\nminutes  part")?;
        for (name, took) in &self.parts {
            writeln!(to, "{:7.1}  {name}", took.as_secs_f32() / 60.0)?;
        }
        let sum: Duration = self.parts.iter().map(|(_, took)| *took).sum();
        writeln!(to, "{:7.1}  in all", sum.as_secs_f32() / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_and_each_test_binary_has_a_line_and_the_sum_is_last() {
        let mut timing = Timing::default();
        timing.part("format", || Ok(())).unwrap();
        timing.read("     Running unittests src/lib.rs (target/debug/deps/signal_gateway-0123)\n");
        timing.read("test socket::closes ... ok");
        timing.read("   Doc-tests signal_gateway\n");
        timing.end();
        let mut text = Vec::new();
        timing.write(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.trim().lines().collect();
        assert_eq!(
            lines,
            [
                "minutes  part",
                "    0.0  format",
                "    0.0  tests: signal_gateway, unittests src/lib.rs",
                "    0.0  tests: Doc-tests signal_gateway",
                "    0.0  in all",
            ]
        );
    }

    #[test]
    fn a_part_that_fails_is_named() {
        let mut timing = Timing::default();
        let failed = timing.part::<()>("docs", || anyhow::bail!("no"));
        assert_eq!(format!("{:#}", failed.unwrap_err()), "docs failed: no");
    }
}
