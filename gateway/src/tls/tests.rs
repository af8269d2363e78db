//! Files of every kind, and what happens when they change.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use chrono::TimeDelta;
use signal_contract::SecretFile;
use signal_services::{Authority, PrivateKey};

use super::*;
use crate::clock::{FixedClock, SystemClock};

struct Rig {
    dir: tempfile::TempDir,
    authority: Authority,
    metrics: Arc<Metrics>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            authority: Authority::new(dir.path()).unwrap(),
            dir,
            metrics: Metrics::new(),
        }
    }

    fn issue(&self, name: &str, key: PrivateKey) {
        self.authority
            .issue(name, Ipv4Addr::LOCALHOST, key)
            .unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has the files in use be these.
    fn place(&self, certificate: &str, key: &str) {
        std::fs::copy(self.path(certificate), self.path("tls.crt")).unwrap();
        std::fs::copy(self.path(key), self.path("tls.key")).unwrap();
    }

    fn files(&self) -> ServerTls {
        ServerTls {
            certificate_file: self.path("tls.crt"),
            key_file: SecretFile::new(self.path("tls.key")),
            client_ca_file: PathBuf::new(),
            min_version: TlsVersion::V1_2,
        }
    }

    fn load(&self) -> Arc<Tls> {
        Tls::load(&self.files(), Arc::new(SystemClock))
            .unwrap()
            .unwrap()
    }

    fn look_again(&self, tls: &Tls) -> bool {
        let looked = tls.look_again();
        let looked_again = looked.is_some();
        if let Some(looked) = looked {
            tls.take(looked, &self.metrics);
        }
        looked_again
    }
}

#[test]
fn every_form_of_private_key_is_read() {
    let rig = Rig::new();
    for (name, key) in [
        ("pkcs8", PrivateKey::Pkcs8),
        ("sec1", PrivateKey::Sec1),
        ("rsa", PrivateKey::Rsa),
    ] {
        rig.issue(name, key);
        rig.place(&format!("{name}.pem"), &format!("{name}.key"));
        assert_eq!(check(&rig.files(), SystemClock.now()), [""; 0], "{name}");
    }
}

#[test]
fn a_new_pair_is_used_and_a_broken_one_keeps_the_one_before() {
    let rig = Rig::new();
    rig.issue("one", PrivateKey::Pkcs8);
    rig.issue("two", PrivateKey::Pkcs8);
    rig.place("one.pem", "one.key");
    let tls = rig.load();
    let first = tls.config();
    assert!(
        !rig.look_again(&tls),
        "nothing is read again without a change"
    );

    rig.place("two.pem", "one.key");
    assert!(rig.look_again(&tls));
    let report = tls.report();
    assert!(
        report.error.as_ref().is_some_and(|error| {
            error.starts_with("server.tls.key_file: ")
                && error.contains("does not belong to the certificate")
        }),
        "{report:?}"
    );
    assert!(Arc::ptr_eq(&first, &tls.config()));
    assert!(
        rig.look_again(&tls),
        "it is read again until it can be used"
    );

    rig.place("two.pem", "two.key");
    assert!(rig.look_again(&tls));
    assert_eq!(tls.report().error, None);
    assert!(!Arc::ptr_eq(&first, &tls.config()));
    assert_eq!(
        rig.metrics.tls_not_after.get(),
        DateTime::parse_from_rfc3339(&tls.report().not_after)
            .unwrap()
            .timestamp()
    );

    std::fs::remove_file(rig.path("tls.crt")).unwrap();
    let second = tls.config();
    assert!(rig.look_again(&tls) && tls.report().error.is_some());
    assert!(Arc::ptr_eq(&second, &tls.config()));
    let text = rig.metrics.render();
    assert!(
        text.contains("signal_config_reloads_total{kind=\"tls_ok\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("signal_config_reloads_total{kind=\"tls_error\"} 2"),
        "{text}"
    );
}

#[test]
fn an_expired_certificate_is_used_and_one_of_the_future_is_not() {
    let rig = Rig::new();
    rig.issue("one", PrivateKey::Pkcs8);
    rig.place("one.pem", "one.key");
    let now = SystemClock.now();
    assert_eq!(check(&rig.files(), now + TimeDelta::days(31)), [""; 0]);
    let problems = check(&rig.files(), now - TimeDelta::days(1));
    assert!(
        problems.len() == 1 && problems[0].contains("the certificate is not valid before"),
        "{problems:?}"
    );

    let clock = FixedClock::new(now);
    let tls = Tls::load(&rig.files(), Arc::new(clock.clone()))
        .unwrap()
        .unwrap();
    rig.issue("two", PrivateKey::Pkcs8);
    clock.advance_ms(-TimeDelta::days(1).num_milliseconds());
    rig.place("two.pem", "two.key");
    assert!(rig.look_again(&tls) && tls.report().error.is_some());
    clock.advance_ms(2 * TimeDelta::days(1).num_milliseconds());
    assert!(
        rig.look_again(&tls),
        "its time has come, although no file changed"
    );
    assert_eq!(tls.report().error, None);
}

#[test]
fn what_is_wrong_is_named_with_its_setting_and_its_file_all_together() {
    let rig = Rig::new();
    rig.issue("one", PrivateKey::Pkcs8);
    let mut files = rig.files();
    files.client_ca_file = rig.path("authorities.pem");
    std::fs::write(rig.path("tls.crt"), "no certificate").unwrap();
    std::fs::write(rig.path("authorities.pem"), vec![b' '; 2 << 20]).unwrap();
    let problems = check(&files, SystemClock.now());
    assert_eq!(problems.len(), 3, "{problems:?}");
    for (problem, (name, text)) in problems.iter().zip([
        ("certificate_file", "holds no PEM certificate"),
        ("key_file", "No such file"),
        ("client_ca_file", "longer than 1048576 bytes"),
    ]) {
        assert!(
            problem.starts_with(&format!("server.tls.{name}: /")) && problem.contains(text),
            "{problem}"
        );
    }
    // A key is no certificate.
    rig.place("one.key", "one.key");
    files.client_ca_file = PathBuf::new();
    assert_eq!(check(&files, SystemClock.now()).len(), 1);
}
