//! What a connection, a message and a record cost, against bare system calls in the same run.
//!
//! The server has the first core, everything else the second. Figures are the server's own CPU time, user and system, as the kernel counts it; every
//! message on every connection is counted and its number looked at. Rounds of the gateway and of what it is held against alternate, so that a busy
//! machine weighs on both. Nothing here judges a time: only lost or disordered messages are an error.
//!
//! | module | does |
//! |---|---|
//! | `scenarios` | what is measured, a group of figures per module |
//! | `server` | processes that are measured, and what all scenarios share |
//! | `floor`, `rowwise` | what the gateway is held against, as processes of their own |
//! | `crowd`, `frame` | the load generator: thousands of sockets that check what comes |
//! | `publish` | who makes servers send |
//! | `report` | the table and the JSON |
//! | `os` | system calls |

#![expect(
    clippy::print_stdout,
    reason = "a command line tool speaks to its terminal"
)]

mod crowd;
mod floor;
mod frame;
mod os;
mod publish;
mod report;
mod rowwise;
mod scenarios;
mod server;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use report::Report;
use scenarios::{GROUPS, Sizes};
use server::Testbed;

const HELP: &str = "\
What a connection, a message and a record cost, against bare system calls in the same run.

Usage: signal-bench [--small] [--only GROUP]... [--json FILE] [--gateway PATH]

  --small         a tenth of everything and two rounds: to see that it works
  --only GROUP    idle, connect, fanout, burst, tls, storm, unicast, echo, pipeline, audience, workers,
                  instances, segments, token or seal; may be repeated
  --json FILE     the figures, for programs
  --gateway PATH  the gateway's binary (default: in the folder of this program)

Ends with an error when messages were lost or out of order, whatever the figures are.
";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["floor"] => {
            os::raise_file_limit()?;
            let listener = TcpListener::bind("127.0.0.1:0")?;
            println!("{}", listener.local_addr()?);
            floor::serve(&listener)?;
        }
        ["rowwise", brokers, topic, database, redis] => {
            rowwise::serve(brokers, topic, database, redis)?
        }
        ["--help" | "-h"] => print!("{HELP}"),
        _ => return Options::read(arguments)?.run(),
    }
    Ok(ExitCode::SUCCESS)
}

struct Options {
    small: bool,
    only: Vec<String>,
    json: Option<PathBuf>,
    gateway: PathBuf,
}

impl Options {
    fn read(arguments: Vec<String>) -> Result<Self> {
        let gateway = std::env::current_exe()?.with_file_name("signal-gateway");
        let mut options = Self {
            small: false,
            only: Vec::new(),
            json: None,
            gateway,
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--small" => options.small = true,
                name @ ("--only" | "--json" | "--gateway") => {
                    let Some(value) = arguments.next() else {
                        bail!("{name} wants a value\n\n{HELP}")
                    };
                    match name {
                        "--json" => options.json = Some(value.into()),
                        "--gateway" => options.gateway = value.into(),
                        _ if GROUPS.iter().any(|group| group.name == value) => {
                            options.only.push(value)
                        }
                        _ => bail!("there is no group {value:?}\n\n{HELP}"),
                    }
                }
                other => bail!("there is no option {other:?}\n\n{HELP}"),
            }
        }
        Ok(options)
    }

    fn run(self) -> Result<ExitCode> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sizes = if self.small {
            Sizes::small()
        } else {
            Sizes::full()
        };
        let testbed = Testbed::new(self.gateway, sizes)?;
        let _entered = testbed.runtime.enter();
        let mut report = Report::default();
        for group in GROUPS
            .iter()
            .filter(|group| self.only.is_empty() || self.only.iter().any(|name| name == group.name))
        {
            report.begin(group.name, group.about);
            if let Err(error) = (group.run)(&testbed, &mut report) {
                report.fail(group.name, &error);
            }
        }
        if let Some(file) = &self.json {
            report.write(Path::new(file), self.small)?;
        }
        Ok(if report.is_good() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
