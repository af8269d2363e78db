//! What an image contains, by the script that the Dockerfile uses too.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use signal_services::find_program;

use crate::{root, skip};

/// In no image; what OpenShift gives the first namespace.
const ANY_USER: u32 = 1_000_660_000;

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

/// A process that ends with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The status line of a GET; `None`: nobody answers.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    answer.lines().next().map(str::to_owned)
}

/// Mounts the root so that nobody can write it, and its volumes, and runs the program as any user of group 0 that is also in the group of the volumes.
const RESTRICTED: &str = r#"
    set -e
    mount --bind "$1" "$1"
    mount -o remount,bind,ro "$1"
    mount --bind "$2/tmp" "$1/tmp"
    mount --bind "$2/data" "$1/var/lib/signal"
    exec "$3" --userspec="$4:0" --groups="$4" "$1" "/usr/bin/$5" serve"#;

/// A gateway that listens with its admin port on both families; `None`: this machine cannot run it so.
fn restricted(gateway: &Path, image: &Path, volumes: &Path, port: u16) -> Option<Running> {
    let programs = ["unshare", "chroot"].map(|name| find_program(&[name]));
    let [Some(unshare), Some(chroot)] = programs else {
        skip("there is no unshare or no chroot");
        return None;
    };
    std::fs::set_permissions(volumes, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (folder, inside) in [("tmp", "tmp"), ("data", "var/lib/signal")] {
        let volume = volumes.join(folder);
        std::fs::create_dir(&volume).unwrap();
        std::fs::create_dir_all(image.join(inside)).unwrap();
        std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o2770)).unwrap();
        if std::os::unix::fs::chown(&volume, Some(0), Some(ANY_USER)).is_err() {
            skip("another user needs root");
            return None;
        }
    }
    let mut probe = Command::new(&unshare);
    if !probe
        .args(["--mount", "true"])
        .output()
        .unwrap()
        .status
        .success()
    {
        skip("mounts of one's own need root");
        return None;
    }
    let child = Command::new(unshare)
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            RESTRICTED,
            "sh",
        ])
        .args([image, volumes, chroot.as_path()])
        .arg(ANY_USER.to_string())
        .arg(gateway.file_name().unwrap())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("SIGNAL__SERVER__PUBLIC_ADDRESS", "[::]:0")
        .env("SIGNAL__SERVER__ADMIN_ADDRESS", format!("[::]:{port}"))
        .env(
            "SIGNAL__DATABASE__URL",
            "sqlite:///var/lib/signal/signal.db",
        )
        .spawn()
        .unwrap();
    Some(Running(child))
}

/// As OpenShift's `restricted-v2` runs it.
#[test]
fn a_gateway_serves_both_families_as_any_user_of_group_0_and_writes_to_its_volumes_alone() {
    let gateway = std::env::var_os("SIGNAL_TEST_GATEWAY").filter(|value| !value.is_empty());
    let Some(gateway) = gateway.map(PathBuf::from) else {
        return skip("SIGNAL_TEST_GATEWAY names no gateway");
    };
    let Some(image) = fill(&gateway) else {
        return;
    };
    let Ok(free) = TcpListener::bind("[::1]:0") else {
        return skip("there is no IPv6");
    };
    let port = free.local_addr().unwrap().port();
    drop(free);
    let volumes = tempfile::tempdir().unwrap();
    let Some(mut running) = restricted(&gateway, image.path(), volumes.path(), port) else {
        return;
    };
    let began = Instant::now();
    let good = Some("HTTP/1.1 200 OK".to_owned());
    for address in [
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    ] {
        while get(address, "/readyz") != good {
            assert_eq!(running.0.try_wait().unwrap(), None, "it ended");
            assert!(began.elapsed() < Duration::from_secs(60), "{address}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    let id = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let first = line.unwrap().split_whitespace().next();
        first.unwrap().parse::<u32>().unwrap()
    };
    assert_eq!((id("Uid:"), id("Gid:")), (ANY_USER, 0));
    assert!(volumes.path().join("data/signal.db").is_file());
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
