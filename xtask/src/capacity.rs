//! `cargo xtask capacity`: what a load needs, computed from what one of everything cost when it was measured.
//!
//! [`coefficients`] is the table of costs, [`model`] the sums. Input: flags. Output: a table on the terminal, or, with `--coefficients` and
//! `--example`, the two tables of `docs/scaling.md`, which a test compares.

mod coefficients;
mod model;

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use self::coefficients::{ALL, Source};
use self::model::{Load, Need};

const HELP: &str = "\
What a load needs: cores, memory and network of gateways, Redis and PostgreSQL.

Usage: cargo xtask capacity [OPTIONS]

Options, each with its default:
  --connections N       open at the same time (1000000)
  --instances N         gateways that hold them (one for each 31250 connections)
  --encrypted           messages are sealed
  --tls                 the gateways end TLS themselves
  --bytes N             length of a message (256)
  --unicast R           messages a second to one user each, published on Redis (0)
  --rooms R             messages a second to a room (0)
  --room-members N      connections in that room (50)
  --broadcasts R        messages a second to everyone (0)
  --records R           records a second to one user each, from Kafka (0)
  --audiences R         records a second to many users each (0)
  --audience N          users of one of them, all with a connection (1000)
  --client-events R     events of clients a second that are answered (0)
  --arrivals R          connections that come in a second, each with a new token (0)
  --keep-days N         how long notifications are kept (90)
  --utilization P       percent of the cores that are to be busy (60)

  --coefficients        prints the table of costs that this computes with
  --example             prints the example of docs/scaling.md
";

/// Connections that one gateway holds where nothing else is said.
const CONNECTIONS_OF_ONE: f64 = 31_250.0;

/// A figure with its error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Span {
    low: f64,
    middle: f64,
    high: f64,
}

impl Span {
    const ZERO: Self = Self::exactly(0.0);

    const fn exactly(value: f64) -> Self {
        Self {
            low: value,
            middle: value,
            high: value,
        }
    }

    fn times(self, factor: f64) -> Self {
        Self {
            low: self.low * factor,
            middle: self.middle * factor,
            high: self.high * factor,
        }
    }

    /// The errors add up, as if all figures erred to the same side.
    fn plus(self, other: Self) -> Self {
        Self {
            low: self.low + other.low,
            middle: self.middle + other.middle,
            high: self.high + other.high,
        }
    }

    /// Never below zero.
    fn minus(self, other: Self) -> Self {
        Self {
            low: (self.low - other.high).max(0.0),
            middle: (self.middle - other.middle).max(0.0),
            high: (self.high - other.low).max(0.0),
        }
    }

    fn by(self, other: Self) -> Self {
        Self {
            low: self.low * other.low,
            middle: self.middle * other.middle,
            high: self.high * other.high,
        }
    }
}

/// Prints what the flags ask for.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let text = match arguments.first().map(String::as_str) {
        Some("--help" | "-h" | "help") => HELP.to_owned(),
        Some("--coefficients") => coefficient_table(),
        Some("--example") => table(&model::needs(&Load::example())),
        _ => table(&model::needs(&parse(arguments)?)),
    };
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}

/// Reads the flags.
fn parse(arguments: &[String]) -> Result<Load> {
    let mut load = Load::default();
    let mut instances = None;
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        match name.as_str() {
            "--encrypted" => load.encrypted = true,
            "--tls" => load.tls = true,
            _ => {
                let value = rest
                    .next()
                    .with_context(|| format!("{name} takes a number"))?;
                let value = number(value).with_context(|| format!("{name} {value}"))?;
                let field = match name.as_str() {
                    "--connections" => &mut load.connections,
                    "--instances" => instances.insert(0.0),
                    "--bytes" => &mut load.bytes,
                    "--unicast" => &mut load.unicast,
                    "--rooms" => &mut load.rooms,
                    "--room-members" => &mut load.room_members,
                    "--broadcasts" => &mut load.broadcasts,
                    "--records" => &mut load.records,
                    "--audiences" => &mut load.audiences,
                    "--audience" => &mut load.audience,
                    "--client-events" => &mut load.client_events,
                    "--arrivals" => &mut load.arrivals,
                    "--keep-days" => &mut load.keep_days,
                    "--utilization" => &mut load.utilization,
                    _ => {
                        bail!("there is no option {name}; `cargo xtask capacity --help` lists them")
                    }
                };
                *field = value;
            }
        }
    }
    load.instances = instances.unwrap_or_else(|| (load.connections / CONNECTIONS_OF_ONE).ceil());
    if load.instances < 1.0 || load.instances.fract() != 0.0 {
        bail!("--instances must be a whole number from 1 on");
    }
    if !(load.utilization > 0.0 && load.utilization <= 100.0) {
        bail!("--utilization is a percentage above 0");
    }
    if load.audience.max(load.room_members) > load.connections {
        bail!("--audience and --room-members cannot exceed --connections");
    }
    Ok(load)
}

fn number(text: &str) -> Result<f64> {
    let value: f64 = text.parse()?;
    if !(value.is_finite() && value >= 0.0) {
        bail!("it must be a number from 0 on");
    }
    Ok(value)
}

fn table(needs: &[Need]) -> String {
    let mut text = String::from("| of | what | needed | low - high |\n| --- | --- | --- | --- |\n");
    for need in needs {
        let Span { low, middle, high } = need.amount;
        let unit = need.unit;
        let show = |value| shown(value, unit);
        writeln!(
            text,
            "| {} | {} | {} | {} - {} |",
            need.of,
            need.what,
            show(middle),
            show(low),
            show(high)
        )
        .expect("a String takes all");
    }
    text
}

/// Three digits are more than the figures hold.
fn shown(value: f64, unit: model::Unit) -> String {
    let (value, name) = unit.scaled(value);
    let digits = match value {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {name}").trim_end().to_owned()
}

fn coefficient_table() -> String {
    let mut text =
        String::from("| cost of | measured | low - high | from |\n| --- | --- | --- | --- |\n");
    for coefficient in ALL {
        let Span { low, middle, high } = coefficient.value;
        let from = match coefficient.source {
            Source::Figure(group, figure) => format!("performance.md: {group}, {figure}"),
            Source::Ratio(group, figure) => format!("performance.md: {group}, {figure}, the ratio"),
            Source::ManyGateways(row, _) => format!("performance.md: many gateways, {row}"),
            Source::EachGateway(row, _) => {
                format!(
                    "performance.md: many gateways, {row}, from one number of gateways to the next"
                )
            }
            Source::Sentence(page, sentence) => {
                format!("{}: \"{sentence}\"", page.trim_start_matches("docs/"))
            }
            Source::Counted(how) => how.to_owned(),
        };
        writeln!(
            text,
            "| {} | {middle} {} | {low} - {high} | {from} |",
            coefficient.name, coefficient.unit
        )
        .expect("a String takes all");
    }
    text
}

#[cfg(test)]
mod tests;
