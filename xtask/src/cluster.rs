//! A cluster that stays, for people who want to look at one.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use signal_services::{
    Image, Kubernetes, KubernetesInstallation, KubernetesRelease, Level, cache_dir,
};

use crate::{cargo, setup};

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
    let release = KubernetesRelease::chosen()?;
    setup::clusters(release)?;
    let level = if nodes == 0 {
        Level::B
    } else {
        Level::C { nodes }
    };
    let installation = KubernetesInstallation::find_release(release, level)?;
    let images = if nodes == 0 { Vec::new() } else { images()? };
    let cluster = Kubernetes::start(&installation, dir, level)?;
    for (image, archive) in images.iter().zip(1..) {
        let archive = dir.join(format!("image-{archive}.tar"));
        image.write(&archive)?;
        cluster.import_image(&archive)?;
        std::fs::remove_file(archive)?;
    }
    let kubeconfig = cluster.kubeconfig();
    cluster.leave_running()?;
    println!("export KUBECONFIG={}", kubeconfig.display());
    println!(
        "export PATH={}:$PATH",
        installation.kubectl().parent().unwrap_or(dir).display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Both images as the `Dockerfile` makes them, of an unoptimized build, under the names that charts and examples use.
fn images() -> Result<Vec<Image>> {
    setup::build()?;
    let packages = ["signal-gateway", "signal-operator"];
    let status = cargo()
        .args(["build", "-p", packages[0], "-p", packages[1]])
        .status()?;
    if !status.success() {
        bail!("the build failed");
    }
    // Cargo builds this program and those into the same folder.
    let own = std::env::current_exe()?;
    let image = |name: &&str| {
        let program = format!("/usr/bin/{name}");
        let image = Image::new(&format!(
            "docker.io/library/{name}:{}",
            env!("CARGO_PKG_VERSION")
        ));
        Ok(image
            .program(&own.with_file_name(name), &program)?
            .nonroot()?
            .entrypoint(&[&program]))
    };
    packages.iter().map(image).collect()
}
