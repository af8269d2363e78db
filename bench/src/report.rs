//! Measurements and what each is compared with: a table for people, JSON for programs.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The median of some rounds, the least and the most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of at least one figure.
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |n: usize| sorted.get(n).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Self {
            median: f64::midpoint(at(last / 2), at(last.div_ceil(2))),
            min: at(0),
            max: at(last),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median < 20.0 {
            2
        } else {
            usize::from(self.median < 200.0)
        };
        write!(
            f,
            "{:.digits$} ({:.digits$}-{:.digits$})",
            self.median, self.min, self.max
        )
    }
}

/// The middle of delivery times and what 1 in 100 exceeds, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Times {
    pub(crate) fn of(latencies: &[f64]) -> Self {
        let mut sorted = latencies.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            sorted
                .get((sorted.len().saturating_sub(1) as f64 * share) as usize)
                .copied()
                .unwrap_or(f64::NAN)
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} / {:.2}", self.p50, self.p99)
    }
}

/// What a figure is to stay below.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// So many times what it is held against.
    Times(f64),
    /// This much itself.
    Value(f64),
}

/// What a line is held against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base {
    name: &'static str,
    figure: Spread,
    /// How many times as much the line's own figure was in the same round.
    ratio: Spread,
}

/// One line of the table.
pub(crate) struct Measurement {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    figures: Vec<f64>,
    pub(crate) figure: Spread,
    pub(crate) base: Option<Base>,
    pub(crate) target: Option<Target>,
    pub(crate) times: Option<Times>,
    pub(crate) base_times: Option<Times>,
}

impl Measurement {
    /// A figure alone.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, figures: &[f64]) -> Self {
        let figure = Spread::of(figures);
        Self {
            name: name.into(),
            unit,
            figures: figures.to_vec(),
            figure,
            base: None,
            target: None,
            times: None,
            base_times: None,
        }
    }

    /// Held against `figures`, which were taken in turn with its own: a machine that slows down in the middle slows both of a round.
    pub(crate) fn against(mut self, name: &'static str, figures: &[f64]) -> Self {
        assert_eq!(
            self.figures.len(),
            figures.len(),
            "{}: as many rounds of {name}",
            self.name
        );
        let ratios: Vec<f64> = self
            .figures
            .iter()
            .zip(figures)
            .map(|(own, base)| own / base)
            .collect();
        self.base = Some(Base {
            name,
            figure: Spread::of(figures),
            ratio: Spread::of(&ratios),
        });
        self
    }

    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    pub(crate) fn times(mut self, own: &[f64], base: &[f64]) -> Self {
        self.times = (!own.is_empty()).then(|| Times::of(own));
        self.base_times = (!base.is_empty()).then(|| Times::of(base));
        self
    }

    fn ratio(&self) -> Option<Spread> {
        self.base.map(|base| base.ratio)
    }

    fn is_reached(&self) -> Option<bool> {
        Some(match self.target? {
            Target::Times(limit) => self.ratio()?.median <= limit,
            Target::Value(limit) => self.figure.median <= limit,
        })
    }

    fn row(&self) -> String {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let target = self.target.map(|target| match target {
            Target::Times(limit) => format!("<= {limit} x"),
            Target::Value(limit) => format!("<= {limit}"),
        });
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            self.name,
            self.unit,
            self.figure,
            or_dash(
                self.base
                    .map(|base| format!("{} {}", base.figure, base.name))
            ),
            or_dash(self.ratio().map(|ratio| ratio.to_string())),
            or_dash(target),
            or_dash(
                self.is_reached()
                    .map(|reached| if reached { "yes" } else { "no" }.to_owned())
            ),
            or_dash(self.times.map(|times| times.to_string())),
            or_dash(self.base_times.map(|times| times.to_string())),
        )
    }

    fn json(&self, group: &str) -> Value {
        let spread = |spread: Spread| json!({ "median": spread.median, "min": spread.min, "max": spread.max });
        let times = |times: Times| json!({ "p50_ms": times.p50, "p99_ms": times.p99 });
        json!({
            "group": group,
            "name": self.name,
            "unit": self.unit,
            "figure": spread(self.figure),
            "against": self.base.map(|base| json!({ "name": base.name, "figure": spread(base.figure) })),
            "ratio": self.ratio().map(spread),
            "target": self.target.map(|target| match target {
                Target::Times(limit) => json!({ "ratio": limit }),
                Target::Value(limit) => json!({ "value": limit }),
            }),
            "reached": self.is_reached(),
            "times": self.times.map(times),
            "against_times": self.base_times.map(times),
        })
    }
}

/// Everything of one run; each line is printed as it comes.
#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<Value>,
    skipped: Vec<String>,
    failed: Vec<String>,
    group: &'static str,
}

impl Report {
    /// Begins the table of a group.
    pub(crate) fn begin(&mut self, group: &'static str, about: &str) {
        self.group = group;
        println!("\n## {group}\n{about}\n");
        println!(
            "| figure | unit | median (min-max) | against | ratio | to reach | reached | p50 / p99 ms | against |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    }

    pub(crate) fn add(&mut self, line: &Measurement) {
        println!("{}", line.row());
        self.lines.push(line.json(self.group));
    }

    /// A group that could not run here.
    pub(crate) fn skip(&mut self, group: &str, reason: &str) {
        println!("\nskipped: {group}: {reason}");
        self.skipped.push(format!("{group}: {reason}"));
    }

    /// Messages were lost or out of order, or a server did not do its work.
    pub(crate) fn fail(&mut self, group: &str, error: &anyhow::Error) {
        println!("\nfailed: {group}: {error:#}");
        self.failed.push(format!("{group}: {error:#}"));
    }

    pub(crate) fn is_good(&self) -> bool {
        self.failed.is_empty()
    }

    pub(crate) fn write(&self, file: &Path, small: bool) -> Result<()> {
        let all = json!({ "small": small, "lines": self.lines, "skipped": self.skipped, "failed": self.failed });
        std::fs::write(file, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_reports_whether_its_target_is_reached() {
        assert_eq!(Spread::of(&[4.0, 1.0]).median, 2.5);
        // The second round was slow for both.
        let line = Measurement::new("x", "us", &[1.0, 6.0, 3.0]).against("floor", &[1.0, 6.0, 2.0]);
        assert_eq!(
            (line.figure.median, line.figure.min, line.figure.max),
            (3.0, 1.0, 6.0)
        );
        let ratio = line.ratio().expect("it is held against something");
        assert_eq!((ratio.median, ratio.min, ratio.max), (1.0, 1.0, 1.5));
        assert_eq!(line.is_reached(), None);
        assert_eq!(line.target(Target::Times(1.1)).is_reached(), Some(true));
        assert_eq!(
            Measurement::new("x", "us", &[3.0])
                .target(Target::Value(2.0))
                .is_reached(),
            Some(false)
        );
    }
}
