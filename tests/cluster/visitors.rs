//! Clients that come, stay for a moment and go, all the time: whoever comes must be let in. Every other answer is kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use signal_tests::Client;
use signal_tests::client::{Error, Incoming, KeyMember};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::edge::Edge;

/// How long a visitor waits for a connection and for its `connected`.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one stays.
const STAY: Duration = Duration::from_millis(500);
/// Most refusals that are kept.
const KEPT: usize = 50;

#[derive(Default)]
struct State {
    served: AtomicU64,
    refused: Mutex<Vec<String>>,
    is_leaving: AtomicBool,
}

/// The visitors, and how they fared.
pub(crate) struct Visitors {
    state: Arc<State>,
    people: JoinSet<()>,
}

impl Visitors {
    /// So many visitors at a time.
    pub(crate) fn come(edge: &Edge, size: usize) -> Self {
        let state = Arc::<State>::default();
        let mut people = JoinSet::new();
        for number in 0..size {
            let token = edge.issuer.token(&format!("visitor-{number}"));
            people.spawn(visit(edge.address(), token, Arc::clone(&state)));
        }
        Self { state, people }
    }

    /// Forgets what happened so far.
    pub(crate) fn forget(&self) {
        self.state.refused.lock().clear();
        self.state.served.store(0, Ordering::SeqCst);
    }

    /// How many were let in.
    pub(crate) fn served(&self) -> u64 {
        self.state.served.load(Ordering::SeqCst)
    }

    /// Why others were not.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.state.refused.lock().clone()
    }

    /// Checks that everybody was let in, and that somebody came.
    ///
    /// # Panics
    /// When that is not so.
    pub(crate) fn assert_all_served(&self, when: &str) {
        let (served, refused) = (self.served(), self.refused());
        assert!(
            refused.is_empty(),
            "{when}: {served} came, others: {refused:?}"
        );
        assert!(served > 0, "{when}: nobody came");
    }

    /// Lets all of them go.
    ///
    /// # Panics
    /// When a visitor has met what the protocol does not know.
    pub(crate) async fn leave(self) {
        self.state.is_leaving.store(true, Ordering::SeqCst);
        self.people.join_all().await;
    }
}

async fn visit(address: SocketAddr, token: String, state: Arc<State>) {
    while !state.is_leaving.load(Ordering::SeqCst) {
        match timeout(PATIENCE, call(address, &token)).await {
            Ok(Ok(client)) => {
                state.served.fetch_add(1, Ordering::SeqCst);
                stay(client, &state).await;
            }
            Ok(Err(refused)) => state.keep(refused),
            Err(_) => state.keep(format!("no answer within {PATIENCE:?}")),
        }
    }
}

/// Returns who was let in, or else why not.
async fn call(address: SocketAddr, token: &str) -> Result<Client, String> {
    let opened = Client::try_connect(address, &[]).await;
    let mut client = opened.map_err(|error| match error {
        Error::Http(answer) => {
            let body = answer.body().as_deref().unwrap_or_default();
            format!("{}: {}", answer.status(), String::from_utf8_lossy(body))
        }
        other => other.to_string(),
    })?;
    client.send_authenticate(token, KeyMember::None).await;
    match client.next().await {
        Incoming::Envelope(envelope) => {
            assert_eq!(envelope.event, "connected", "{envelope:?}");
            Ok(client)
        }
        Incoming::Closed(code, reason) => Err(format!("closed at once with {code}: {reason}")),
        Incoming::Lost => Err("lost at once".to_owned()),
    }
}

async fn stay(mut client: Client, state: &State) {
    match client.next_within(STAY).await {
        Some(Incoming::Closed(1001, _)) => {}
        Some(Incoming::Closed(code, reason)) => state.keep(format!("closed with {code}: {reason}")),
        Some(Incoming::Lost) => state.keep("lost its connection".to_owned()),
        Some(Incoming::Envelope(_)) | None => drop(timeout(PATIENCE, client.close()).await),
    }
}

impl State {
    fn keep(&self, refused: String) {
        let mut all = self.refused.lock();
        if all.len() < KEPT {
            all.push(refused);
        }
    }
}
