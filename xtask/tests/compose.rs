//! `deploy/compose.yaml` loads with the module that Compose itself uses, publishes nothing beyond this machine, and mounts files that exist.
//!
//! Nothing is started. Whether the gateways accept the mounted settings is a test of the gateway.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
        .to_owned()
}

/// What the file has, a line each (`tests/compose/main.go`), or `None` where there is no Go.
fn load(file: &Path) -> Option<Vec<Vec<String>>> {
    let command = Command::new("go")
        .args(["run", "."])
        .arg(file)
        .current_dir(root().join("tests/compose"))
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .output();
    let Ok(output) = command else {
        let _ = writeln!(
            std::io::stdout(),
            "skipped: the_compose_file_is_valid: Go is not installed"
        );
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    Some(text.lines().map(words).collect())
}

#[test]
fn the_compose_file_is_valid_and_publishes_on_this_machine_alone() {
    let Some(lines) = load(&root().join("deploy/compose.yaml")) else {
        return;
    };
    let of = |kind: &str| -> Vec<&[String]> {
        let found = lines.iter().filter(|line| line[0] == kind);
        found.map(|line| &line[1..]).collect()
    };
    let mut services: Vec<&str> = of("service").iter().map(|line| line[0].as_str()).collect();
    services.sort_unstable();
    assert_eq!(
        services,
        [
            "gateway-1",
            "gateway-2",
            "issuer",
            "kafka",
            "postgres",
            "redis",
            "topics"
        ]
    );
    let ports = of("port");
    assert_eq!(ports.len(), 4);
    for port in ports {
        assert_eq!(port[1], "127.0.0.1", "{port:?}");
    }
    let builds = of("build");
    assert_eq!(builds.len(), 2);
    for build in builds {
        assert_eq!(build[1], "gateway", "{build:?}");
        assert!(
            Path::new(&build[2]).join("Dockerfile").exists(),
            "{build:?}"
        );
    }
    let files = of("file");
    assert_eq!(files.len(), 4);
    for file in files {
        assert!(Path::new(&file[1]).exists(), "{file:?}");
    }
}
