//! A cluster that stays, for people who want to look at one.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use signal_services::{Kubernetes, KubernetesHome, Level, cache_dir};

use crate::setup;

/// `up [--nodes N]` or `down`.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let dir = cache_dir()?.join("cluster");
    match words.as_slice() {
        ["up"] => up(&dir, 1),
        ["up", "--nodes", nodes] => up(&dir, nodes.parse().context("--nodes takes a number")?),
        ["down"] => {
            Kubernetes::end(&dir)?;
            println!("xtask: there is no cluster in {} now", dir.display());
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("cargo xtask cluster up [--nodes N] | down"),
    }
}

fn up(dir: &std::path::Path, nodes: usize) -> Result<ExitCode> {
    if dir.join("settings").is_file() {
        bail!("there is a cluster already: `cargo xtask cluster down` ends it");
    }
    setup::clusters()?;
    let level = if nodes == 0 { Level::B } else { Level::C { nodes } };
    let home = KubernetesHome::find(level)?;
    let cluster = Kubernetes::start(&home, dir, level)?;
    let kubeconfig = cluster.kubeconfig();
    cluster.leave_running()?;
    println!("export KUBECONFIG={}", kubeconfig.display());
    println!("export PATH={}:$PATH", home.kubectl().parent().unwrap_or(dir).display());
    Ok(ExitCode::SUCCESS)
}
