//! What is checked without running Signal: arrows between modules, names, spelling, licences.

mod arrows;
mod names;
mod source;

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::tools::Tool;
use crate::{cargo, root};

/// Runs the checks of these names, or all of them.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => {
            for check in [arrows, names, spelling, licences] {
                check()?;
            }
        }
        ["arrows"] => arrows()?,
        ["arrows", "--print", package] => print!("{}", arrows::print(&root(), package)?),
        ["names"] => names()?,
        ["spelling"] => spelling()?,
        ["licences"] => licences()?,
        _ => {
            bail!("cargo xtask check [arrows [--print PACKAGE] | names | spelling | licences]")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The modules use each other as `ARCHITECTURE.md` draws it.
pub(crate) fn arrows() -> Result<()> {
    arrows::check(&root())
}

/// No item has a name that says nothing.
pub(crate) fn names() -> Result<()> {
    names::check(&root())
}

/// No text has a spelling mistake or a word that `_typos.toml` forbids.
pub(crate) fn spelling() -> Result<()> {
    let program = Tool::Typos.ensure()?;
    succeed(Command::new(program).current_dir(root()))
}

/// Dependencies have the licences and sources that `deny.toml` allows.
pub(crate) fn licences() -> Result<()> {
    let program = Tool::CargoDeny.ensure()?;
    // Also those of other systems, which the check looks at and no build here downloads.
    succeed(cargo().args(["fetch", "--locked", "--quiet"]))?;
    let mut command = Command::new(program);
    command.args(["--offline", "check", "bans", "licenses", "sources"]);
    succeed(command.current_dir(root()))
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
