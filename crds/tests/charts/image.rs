//! What an image contains, by the script that the Dockerfile uses too.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use signal_services::find_program;

use crate::{root, skip};

/// Programs to put into images: this one, and the gateway and the operator where a run has built them.
fn programs() -> Vec<PathBuf> {
    let named = ["SIGNAL_TEST_GATEWAY", "SIGNAL_TEST_OPERATOR"]
        .map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    [std::env::current_exe().unwrap()]
        .into_iter()
        .chain(named.into_iter().flatten().map(PathBuf::from))
        .collect()
}

fn fill(program: &Path) -> Option<tempfile::TempDir> {
    if !cfg!(target_os = "linux")
        || find_program(&["readelf"]).is_none()
        || !Path::new("/etc/ssl/certs/ca-certificates.crt").is_file()
    {
        skip("images are made on Linux, with readelf and Debian's certificate authorities");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    // A temporary folder is its owner's alone, and is entered as another user here.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(root().join("deploy/rootfs.sh"))
        .arg(program)
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(dir)
}

/// Every file below a folder, by its path from there.
fn files(dir: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let relative = format!("/{}", path.strip_prefix(dir).unwrap().display());
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            if metadata.is_symlink() {
                files.insert(relative);
                continue;
            }
            let mode = metadata.permissions().mode();
            assert!(
                mode & 0o022 == 0 || relative == "/tmp",
                "{relative} may be written by others: {mode:o}"
            );
            assert!(mode & 0o6000 == 0, "{relative} changes users: {mode:o}");
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(relative);
            }
        }
    }
    files
}

/// The names of the libraries that the loader itself takes.
fn libraries(program: &Path) -> BTreeSet<String> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let paths = text.lines().filter_map(|line| {
        line.split(" (0x")
            .next()?
            .rsplit(" => ")
            .next()?
            .trim()
            .strip_prefix('/')
    });
    paths
        .map(|path| path.rsplit('/').next().unwrap().to_owned())
        .collect()
}

#[test]
fn an_image_holds_the_program_its_libraries_authorities_and_users_and_nothing_else() {
    for program in programs() {
        let Some(dir) = fill(&program) else { return };
        let mut files = files(dir.path());
        for file in [
            "/etc/passwd",
            "/etc/group",
            "/etc/ssl/certs/ca-certificates.crt",
            "/usr/lib/ssl/cert.pem",
        ] {
            assert!(files.remove(file), "{file}");
        }
        assert!(files.remove(&format!(
            "/usr/bin/{}",
            program.file_name().unwrap().display()
        )));
        let names: BTreeSet<String> = files
            .iter()
            .map(|file| file.rsplit('/').next().unwrap().to_owned())
            .collect();
        assert_eq!(names, libraries(&program), "{files:?}");
    }
}

#[test]
fn a_program_runs_from_its_image_alone_and_without_root() {
    let Some(chroot) = find_program(&["chroot"]) else {
        return skip("there is no chroot");
    };
    if Command::new("id")
        .arg("-u")
        .output()
        .unwrap()
        .stdout
        .trim_ascii()
        != b"0"
    {
        return skip("chroot needs root");
    }
    for program in programs() {
        let Some(dir) = fill(&program) else { return };
        let inside = format!("/usr/bin/{}", program.file_name().unwrap().display());
        let output = Command::new(&chroot)
            .arg("--userspec=65532:65532")
            .arg(dir.path())
            .args([&inside, "--help"])
            .env_clear()
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{inside}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn the_dockerfile_makes_both_images_of_that_folder_with_the_rust_that_the_workspace_asks_for() {
    let text = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    assert!(
        text.contains(concat!(
            "rust:",
            env!("CARGO_PKG_RUST_VERSION"),
            "-bookworm AS build"
        )),
        "{text}"
    );
    for name in ["gateway", "operator"] {
        let stage = text
            .split(&format!("FROM scratch AS {name}\n"))
            .nth(1)
            .expect(name)
            .split("\nFROM ")
            .next()
            .unwrap();
        let copies: Vec<&str> = stage
            .lines()
            .filter(|line| line.starts_with("COPY"))
            .collect();
        assert_eq!(copies, [format!("COPY --from=build /rootfs/{name} /")]);
        assert!(
            stage.contains("USER 65532:65532")
                && stage.contains(&format!("ENTRYPOINT [\"/usr/bin/signal-{name}\"]")),
            "{stage}"
        );
    }
    assert!(
        text.contains("deploy/rootfs.sh \"target/$target/release/signal-$name\" \"/rootfs/$name\"")
    );
}
