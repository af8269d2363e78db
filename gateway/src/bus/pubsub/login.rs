//! Logging in again: another user, password or certificate in its file, or other credentials, authorities or names of the same server. New connections are made while the
//! old ones serve, and take their place without a gap.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connect::{Connector, unavailable};
use super::nodes::Prefer;
use super::{PubSubBus, PubSubCore};
use crate::bus::BusError;
use crate::config;

impl PubSubBus {
    /// Logs in to the same server by other settings. A connection that is made for this only shows first whether they work. Ends when the new
    /// connection that publishes is in use.
    ///
    /// # Errors
    /// [`BusError`] when the new login does not work; the old one stays in use.
    pub(in crate::bus) async fn log_in(&self, config: &config::Redis) -> Result<(), BusError> {
        let connector = Connector::new(config)?;
        connector
            .link(&Prefer::Any)
            .await
            .map_err(|error| unavailable(&error))?;
        let mut connected = self.core.connected.subscribe();
        let before = *connected.borrow_and_update();
        let limit = 4 * connector.timeout();
        *self.core.connector.lock() = Arc::new(connector);
        self.core.login.send_modify(|count| *count += 1);
        match tokio::time::timeout(limit, connected.wait_for(|count| *count > before)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(BusError::Unavailable(
                "no connection could be made with the changed login yet".into(),
            )),
        }
    }
}

/// Asks for new connections whenever the content of a file of the login changes, until `closing`.
pub(super) async fn follow_files(core: Arc<PubSubCore>, closing: CancellationToken) {
    let mut login = core.login.subscribe();
    loop {
        login.borrow_and_update();
        let paths = core.connector().login_files();
        let watching = closing.child_token();
        let mut content = (!paths.is_empty())
            .then(|| crate::files::watch_all(paths, core.timing.watch, watching.clone()));
        loop {
            tokio::select! {
                true = changed(&mut content) => {
                    core.login.send_modify(|count| *count += 1);
                    login.borrow_and_update();
                }
                _ = login.changed() => break,
                () = closing.cancelled() => return,
            }
        }
        watching.cancel();
    }
}

/// Ends at a change; never where no file is watched.
async fn changed(content: &mut Option<watch::Receiver<String>>) -> bool {
    match content {
        Some(content) => content.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}
