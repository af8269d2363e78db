//! The live settings as they hold: read again when the file changes; a file with faults changes nothing and says so.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use crate::config::{Invalid, LIVE_DEFAULTS, Live, load_live};
use crate::metrics::Metrics;
use crate::watch;

/// What holds, and what is wrong with a newer file.
#[derive(Debug, Clone)]
pub(super) struct Revision {
    pub(super) revision: String,
    pub(super) error: Option<String>,
}

/// Follows the live file.
#[derive(Debug)]
pub(super) struct LiveSettings {
    file: Option<PathBuf>,
    sender: channel::Sender<Arc<Live>>,
    holds: RwLock<Revision>,
}

impl LiveSettings {
    /// Reads the file once; an empty path stands for the defaults.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn load(file: &Path) -> Result<Arc<Self>, Invalid> {
        let file = (!file.as_os_str().is_empty()).then(|| file.to_owned());
        let text = match &file {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|error| Invalid(vec![format!("live_file: {}: {error}", path.display())]))?
            }
            None => LIVE_DEFAULTS.to_owned(),
        };
        let live = load_live(&text)?;
        let holds = RwLock::new(Revision { revision: watch::revision_of(&text), error: None });
        Ok(Arc::new(Self { file, sender: channel::Sender::new(Arc::new(live)), holds }))
    }

    pub(super) fn subscribe(&self) -> channel::Receiver<Arc<Live>> {
        self.sender.subscribe()
    }

    pub(super) fn current(&self) -> Arc<Live> {
        Arc::clone(&self.sender.borrow())
    }

    pub(super) fn revision(&self) -> Revision {
        self.holds.read().clone()
    }

    /// Reloads at each change of the file until `shutdown`.
    pub(super) async fn follow(self: Arc<Self>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
        let Some(path) = self.file.clone() else { return };
        let mut told = watch::watch(path.clone(), watch::INTERVAL, shutdown);
        // What changed between the first reading and here is not told: look once.
        told.mark_changed();
        while told.changed().await.is_ok() {
            let path = path.clone();
            let Ok(text) = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await else { return };
            self.take(text.map_err(|error| error.to_string()), &metrics);
        }
    }

    fn take(&self, text: Result<String, String>, metrics: &Metrics) {
        let read = text.and_then(|text| load_live(&text).map(|live| (watch::revision_of(&text), live)).map_err(|error| error.to_string()));
        match read {
            Ok((revision, live)) => {
                let changed = {
                    let mut holds = self.holds.write();
                    let changed = holds.revision != revision;
                    *holds = Revision { revision: revision.clone(), error: None };
                    changed
                };
                if changed {
                    self.sender.send_replace(Arc::new(live));
                    metrics.config_reloads.get_or_create(&Metrics::kind("live_ok")).inc();
                    tracing::info!(live.revision = %revision, "live settings reloaded");
                }
            }
            Err(error) => {
                metrics.config_reloads.get_or_create(&Metrics::kind("live_error")).inc();
                tracing::error!(%error, "the live file has faults; the settings before it hold on");
                self.holds.write().error = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_faults_changes_nothing_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("live.toml");
        std::fs::write(&path, "log_filter = \"warn\"").unwrap();
        let settings = LiveSettings::load(&path).unwrap();
        let before = settings.revision().revision;
        let metrics = Metrics::new();
        settings.take(Ok("log_filter = 5\nnothing = 1".into()), &metrics);
        let holds = settings.revision();
        assert_eq!((holds.revision, settings.current().log_filter.as_str()), (before, "warn"));
        assert!(holds.error.unwrap().contains("nothing"));
        settings.take(Ok("log_filter = \"debug\"".into()), &metrics);
        assert_eq!((settings.revision().error, settings.current().log_filter.as_str()), (None, "debug"));
    }
}
