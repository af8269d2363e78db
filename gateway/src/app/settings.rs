//! The live settings in use. They are read again when their file, or a file that they name, changes. On a fault the settings in use stay, and
//! `/status` and the log say why.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use crate::auth::PublishedKeys;
use crate::config::{Invalid, LIVE_DEFAULTS, Live, RedisMode, load_live};
use crate::files;
use crate::metrics::Metrics;

/// Why new settings are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The live file itself has faults: only another file mends that.
    #[error(transparent)]
    Settings(Invalid),
    /// A file that it names is missing or cannot be used. A mounted volume may show it a moment later.
    #[error(transparent)]
    Files(Invalid),
}

/// The revision in use, and why a newer one is not.
#[derive(Debug, Clone)]
pub(super) struct Revision {
    pub(super) revision: String,
    pub(super) error: Option<String>,
    /// A hash of the files that the settings name.
    files: String,
}

/// The live file and all files that it names, read at one time.
struct Look {
    live: Live,
    revision: String,
    files: String,
    published: Option<PublishedKeys>,
}

/// Follows the live file.
#[derive(Debug)]
pub(super) struct LiveSettings {
    file: Option<PathBuf>,
    /// The mode in the static `[redis]`.
    mode: RedisMode,
    sender: channel::Sender<Arc<Live>>,
    published: channel::Sender<Option<Arc<PublishedKeys>>>,
    holds: RwLock<Revision>,
}

impl LiveSettings {
    /// Reads the file, and those that it names, once; an empty path stands for the defaults. `mode` is that of the static
    /// `[redis]`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(super) fn load(file: &Path, mode: RedisMode) -> Result<Arc<Self>, Fault> {
        let file = (!file.as_os_str().is_empty()).then(|| file.to_owned());
        let look = look(file.as_deref(), mode)?;
        let holds = RwLock::new(Revision {
            revision: look.revision,
            error: None,
            files: look.files,
        });
        let published = channel::Sender::new(look.published.map(Arc::new));
        Ok(Arc::new(Self {
            file,
            mode,
            sender: channel::Sender::new(Arc::new(look.live)),
            published,
            holds,
        }))
    }

    /// Returns a receiver of the settings. It is marked as changed when the settings, or a file that they name, have changed.
    pub(super) fn subscribe(&self) -> channel::Receiver<Arc<Live>> {
        self.sender.subscribe()
    }

    pub(super) fn current(&self) -> Arc<Live> {
        Arc::clone(&self.sender.borrow())
    }

    /// The key set that is served to others.
    pub(super) fn published(&self) -> channel::Receiver<Option<Arc<PublishedKeys>>> {
        self.published.subscribe()
    }

    pub(super) fn revision(&self) -> Revision {
        self.holds.read().clone()
    }

    /// Reloads at each change until `shutdown`. While there is a fault, reads everything again each [`files::INTERVAL`], because a missing file may
    /// appear a moment after the file that names it.
    pub(super) async fn follow(
        self: Arc<Self>,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) {
        loop {
            let this = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                this.has_other_content()
                    .then(|| look(this.file.as_deref(), this.mode))
            });
            let Ok(looked) = looked.await else { return };
            if let Some(looked) = looked {
                self.take(looked, &metrics);
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(files::INTERVAL) => {}
            }
        }
    }

    /// Whether the live file, or a file that it names, differs from what is in use. Always true after a fault.
    fn has_other_content(&self) -> bool {
        let holds = self.revision();
        let same = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .is_ok_and(|text| files::revision_of(&text) == holds.revision)
        };
        holds.error.is_some()
            || !self.file.as_ref().is_none_or(same)
            || contents(&self.current()) != holds.files
    }

    fn take(&self, looked: Result<Look, Fault>, metrics: &Metrics) {
        match looked {
            Ok(look) => {
                let holds = Revision {
                    revision: look.revision,
                    error: None,
                    files: look.files,
                };
                let before = std::mem::replace(&mut *self.holds.write(), holds.clone());
                let published = look.published.map(Arc::new);
                self.published
                    .send_if_modified(|now| std::mem::replace(now, published.clone()) != published);
                if (&before.revision, &before.files) != (&holds.revision, &holds.files) {
                    self.sender.send_replace(Arc::new(look.live));
                    metrics
                        .config_reloads
                        .get_or_create(&Metrics::kind("live_ok"))
                        .inc();
                    tracing::info!(live.revision = %holds.revision, "live settings reloaded");
                } else if before.error.is_some() {
                    tracing::info!(live.revision = %holds.revision, "live file mended: its content is what is in use");
                }
            }
            Err(fault) => {
                let text = fault.to_string();
                if self.holds.read().error.as_ref() != Some(&text) {
                    metrics
                        .config_reloads
                        .get_or_create(&Metrics::kind("live_error"))
                        .inc();
                    tracing::error!(error = %text, "live settings not reloaded: the live file has faults; the settings in use stay");
                    self.holds.write().error = Some(text);
                }
            }
        }
    }
}

/// Reads the settings in the file, and none of the files that it names.
pub(super) fn read_settings(file: &Path, mode: RedisMode) -> Result<Live, Invalid> {
    let file = (!file.as_os_str().is_empty()).then_some(file);
    read(&text_of(file)?, mode)
}

/// Reads the settings in a text, if they fit a static `[redis]` of this mode.
fn read(text: &str, mode: RedisMode) -> Result<Live, Invalid> {
    let live = load_live(text)?;
    if mode == RedisMode::None && (live.redis.is_some() || live.redis_previous.is_some()) {
        return Err(Invalid(vec![
            "redis.mode: the static redis.mode is none: using Redis needs a restart".into(),
        ]));
    }
    Ok(live)
}

fn text_of(file: Option<&Path>) -> Result<String, Invalid> {
    match file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Invalid(vec![format!("live_file: {}: {error}", path.display())])),
        None => Ok(LIVE_DEFAULTS.to_owned()),
    }
}

fn look(file: Option<&Path>, mode: RedisMode) -> Result<Look, Fault> {
    let text = text_of(file).map_err(Fault::Settings)?;
    let live = read(&text, mode).map_err(Fault::Settings)?;
    // Hashed before the contents are used, so that the next look sees a change in between.
    let files = contents(&live);
    let unreadable = live.files().filter_map(|(name, path)| {
        let error = std::fs::File::open(path)
            .and_then(|file| file.metadata())
            .and_then(|about| match about.is_file() {
                true => Ok(()),
                false => Err(std::io::Error::other("not a file")),
            });
        error
            .err()
            .map(|error| format!("{name}: {}: {error}", path.display()))
    });
    let mut problems: Vec<String> = unreadable.collect();
    let published = match published(&live) {
        Ok(published) => published,
        Err(problem) => {
            problems.extend(problem);
            None
        }
    };
    if !problems.is_empty() {
        return Err(Fault::Files(Invalid(problems)));
    }
    Ok(Look {
        live,
        revision: files::revision_of(&text),
        files,
        published,
    })
}

/// Reads the key set to serve. The error is `None` for a file that cannot be opened: the caller reports those already.
fn published(live: &Live) -> Result<Option<PublishedKeys>, Option<String>> {
    let (path, max_bytes) = (&live.jwks.managed.jwks_file, live.jwks.max_bytes);
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let wrong = |what: String| {
        Some(format!(
            "jwks.managed.jwks_file: {}: {what}",
            path.display()
        ))
    };
    let file = std::fs::File::open(path).map_err(|_| None)?;
    let mut text = String::new();
    file.take(max_bytes as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| wrong(error.to_string()))?;
    if text.len() > max_bytes {
        return Err(wrong(format!("longer than jwks.max_bytes, {max_bytes}")));
    }
    PublishedKeys::read(&text)
        .map(Some)
        .map_err(|error| wrong(error.to_string()))
}

fn contents(live: &Live) -> String {
    live.files()
        .map(|(_, path)| files::revision(path))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_faults_changes_nothing_and_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("live.toml");
        std::fs::write(&path, "observability.log_filter = \"warn\"").unwrap();
        let settings = LiveSettings::load(&path, RedisMode::None).unwrap();
        let before = settings.revision().revision;
        let metrics = Metrics::new();
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            assert!(settings.has_other_content());
            settings.take(look(Some(&path), RedisMode::None), &metrics);
        };
        write("nothing = 1\n[observability]\nlog_filter = 5");
        let holds = settings.revision();
        assert_eq!(
            (
                holds.revision,
                settings.current().observability.log_filter.as_str()
            ),
            (before, "warn")
        );
        assert!(holds.error.unwrap().contains("nothing"));
        write("[observability]\nlog_filter = \"debug\"");
        assert_eq!(
            (
                settings.revision().error,
                settings.current().observability.log_filter.as_str()
            ),
            (None, "debug")
        );
        assert!(!settings.has_other_content());
    }

    /// Live settings in a folder, with a key set to publish and a source with its keys in a file.
    struct Rig {
        dir: tempfile::TempDir,
        metrics: Arc<Metrics>,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
                metrics: Metrics::new(),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.path(name), text).unwrap();
        }

        fn live(&self, jwks: &str, keys: &str) {
            self.write(
                "live.toml",
                &format!(
                    "[jwks.managed]\njwks_file = {:?}\n[[jwks.sources]]\nname = \"a\"\nissuer = \"i\"\naudiences = [\"s\"]\n\
                     algorithms = [\"ES256\"]\nkeys_file = {:?}\n",
                    self.path(jwks),
                    self.path(keys)
                ),
            );
        }

        fn look(&self) -> Result<Look, Fault> {
            look(Some(&self.path("live.toml")), RedisMode::None)
        }
    }

    fn set(kid: &str, more: &str) -> String {
        format!(
            r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "x": "11qY", "kid": "{kid}"{more}}}]}}"#
        )
    }

    #[test]
    fn a_named_file_that_is_missing_is_a_fault_until_it_is_there() {
        let rig = Rig::new();
        rig.live("jwks.json", "keys.json");
        let Err(Fault::Files(Invalid(problems))) =
            LiveSettings::load(&rig.path("live.toml"), RedisMode::None).map(drop)
        else {
            panic!("it has faults")
        };
        assert_eq!(problems.len(), 2, "each once: {problems:?}");
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with("jwks.sources[0].keys_file: ")),
            "{problems:?}"
        );
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with("jwks.managed.jwks_file: ")),
            "{problems:?}"
        );
        rig.write("keys.json", &set("k1", ""));
        rig.write("jwks.json", &set("k1", ""));
        let settings = LiveSettings::load(&rig.path("live.toml"), RedisMode::None).unwrap();
        let before = settings.revision();

        rig.live("jwks.json", "later.json");
        assert!(settings.has_other_content());
        settings.take(rig.look(), &rig.metrics);
        let holds = settings.revision();
        assert_eq!(holds.revision, before.revision);
        assert!(
            holds
                .error
                .as_ref()
                .is_some_and(|why| why.contains("later.json")),
            "{holds:?}"
        );
        assert!(
            settings.has_other_content(),
            "it is looked at again, although nothing of it changed"
        );
        rig.write("later.json", &set("k2", ""));
        settings.take(rig.look(), &rig.metrics);
        let holds = settings.revision();
        assert!(
            holds.error.is_none() && holds.revision != before.revision,
            "{holds:?}"
        );
        assert!(
            settings.current().jwks.sources[0]
                .keys_file
                .ends_with("later.json")
        );
        std::fs::create_dir(rig.path("folder")).unwrap();
        rig.live("jwks.json", "folder");
        assert!(
            matches!(rig.look(), Err(Fault::Files(_))),
            "a folder is no file"
        );
    }

    #[test]
    fn other_content_of_a_named_file_is_announced_under_the_same_revision() {
        let rig = Rig::new();
        rig.live("jwks.json", "keys.json");
        rig.write("keys.json", &set("k1", ""));
        rig.write("jwks.json", &set("k1", ""));
        let settings = LiveSettings::load(&rig.path("live.toml"), RedisMode::None).unwrap();
        let (mut live, mut published) = (settings.subscribe(), settings.published());
        let before = settings.revision().revision;
        assert_eq!(published.borrow_and_update().as_ref().unwrap().keys, ["k1"]);
        rig.write("keys.json", &set("k2", ""));
        assert!(settings.has_other_content());
        settings.take(rig.look(), &rig.metrics);
        assert!(live.has_changed().unwrap() && !published.has_changed().unwrap());
        live.mark_unchanged();
        rig.write("jwks.json", &set("k2", ""));
        settings.take(rig.look(), &rig.metrics);
        assert_eq!(published.borrow_and_update().as_ref().unwrap().keys, ["k2"]);
        assert_eq!(settings.revision().revision, before);
    }

    #[test]
    fn a_private_key_is_never_published_and_the_key_set_before_it_stays() {
        let rig = Rig::new();
        rig.live("jwks.json", "keys.json");
        rig.write("keys.json", &set("k1", ""));
        rig.write("jwks.json", &set("k1", ""));
        let settings = LiveSettings::load(&rig.path("live.toml"), RedisMode::None).unwrap();
        let mut published = settings.published();
        published.mark_unchanged();
        for wrong in [
            set("k2", r#", "d": "hunter2""#),
            r#"{"keys": [{"kty": "oct", "kid": "s"}]}"#.into(),
            "x".repeat(300_000),
            "{".into(),
        ] {
            rig.write("jwks.json", &wrong);
            settings.take(rig.look(), &rig.metrics);
            let error = settings.revision().error.unwrap();
            assert!(
                error.contains("jwks.managed.jwks_file") && !error.contains("hunter2"),
                "{error}"
            );
            assert!(
                !published.has_changed().unwrap()
                    && settings.published().borrow().as_ref().unwrap().keys == ["k1"]
            );
        }
        rig.write("jwks.json", &set("k1", ""));
        settings.take(rig.look(), &rig.metrics);
        assert_eq!(settings.revision().error, None);
        assert!(
            rig.metrics
                .render()
                .contains("signal_config_reloads_total{kind=\"live_error\"} 4"),
            "each fault once"
        );
    }

    #[test]
    fn redis_is_named_only_where_the_static_settings_have_one_and_only_with_files_that_exist() {
        let rig = Rig::new();
        let password = rig.path("redis-password-1");
        let bus = format!(
            "[redis]\nmode = \"standalone\"\nnodes = [\"a:1\"]\nauth.password_file = {password:?}\n"
        );
        rig.write("live.toml", &bus);
        let Err(Fault::Settings(Invalid(problems))) = rig.look() else {
            panic!("it has faults")
        };
        assert!(
            problems.len() == 1 && problems[0].contains("restart"),
            "{problems:?}"
        );
        let look = || look(Some(&rig.path("live.toml")), RedisMode::Standalone);
        let Err(Fault::Files(Invalid(problems))) = look() else {
            panic!("it has faults")
        };
        assert!(
            problems.len() == 1 && problems[0].starts_with("redis.auth.password_file: "),
            "{problems:?}"
        );
        rig.write("redis-password-1", "secret");
        assert!(look().is_ok());
    }
}
