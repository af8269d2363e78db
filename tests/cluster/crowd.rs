//! Many clients with one connection each, which reconnect whenever they are closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use signal_tests::Client;
use signal_tests::client::{Error, Incoming, KeyMember};
use signal_tests::wait::until_within;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::edge::Edge;

/// How many connect at the same time. They share one thread, and no handshake should time out because of the others.
const COMING: usize = 64;
/// How long the whole crowd may take to be connected.
const ASSEMBLED: Duration = Duration::from_secs(120);

/// How long an attempt to connect may take.
const PATIENCE: Duration = Duration::from_secs(15);

struct CrowdState {
    coming: Semaphore,
    round: Mutex<Round>,
    closed: Mutex<BTreeMap<u16, u64>>,
    /// Answers of 503.
    refused: Mutex<Vec<String>>,
    /// Whether a client tries again where nothing answers, because a node may be dead while its pods are still sent to.
    forgiving: AtomicBool,
}

/// A round: every client connects once in it.
#[derive(Clone, Copy, Default)]
struct Round {
    /// The number of the round; a higher one makes every client reconnect.
    number: u64,
    /// How many have connected in this round.
    connected: u64,
}

impl CrowdState {
    /// Counts a client that has connected or left. Those of an older round do not count.
    fn count(&self, number: u64, by: i64) {
        let mut round = self.round.lock();
        if round.number == number {
            round.connected = round.connected.saturating_add_signed(by);
        }
    }
}

/// The clients, and how their connections ended.
pub(crate) struct Crowd {
    size: u64,
    state: Arc<CrowdState>,
    people: JoinSet<()>,
}

impl Crowd {
    /// Connects so many clients, each as a user of its own.
    pub(crate) async fn gather(edge: &Edge, size: u64) -> Self {
        let state = Arc::new(CrowdState {
            coming: Semaphore::new(COMING),
            round: Mutex::default(),
            closed: Mutex::default(),
            refused: Mutex::default(),
            forgiving: AtomicBool::default(),
        });
        let mut people = JoinSet::new();
        for number in 0..size {
            let token = edge.issuer.token(&format!("crowd-{number}"));
            people.spawn(person(edge.address(), token, Arc::clone(&state)));
        }
        let crowd = Self {
            size,
            state,
            people,
        };
        crowd.assembled().await;
        crowd
    }

    /// How many clients there are.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Waits until all are connected.
    pub(crate) async fn assembled(&self) {
        until_within(ASSEMBLED, "everybody is connected", async || {
            (self.connected() == self.size).then_some(())
        })
        .await;
    }

    /// Makes all reconnect, so that every pod has its share.
    pub(crate) async fn spread_out(&self) {
        {
            let mut round = self.state.round.lock();
            *round = Round {
                number: round.number + 1,
                connected: 0,
            };
        }
        self.assembled().await;
    }

    /// Sets whether a client that gets no answer tries again, as clients do. If not, it fails the test.
    pub(crate) fn forgive(&self, forgiving: bool) {
        self.state.forgiving.store(forgiving, Ordering::SeqCst);
    }

    /// Forgets what happened so far.
    pub(crate) fn forget(&self) {
        self.state.closed.lock().clear();
        self.state.refused.lock().clear();
    }

    /// The answers of 503 that clients got.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.state.refused.lock().clone()
    }

    /// Close codes, and how often each was seen; 1006 stands for a connection that was lost without one.
    pub(crate) fn closed(&self) -> BTreeMap<u16, u64> {
        self.state.closed.lock().clone()
    }

    /// How many are connected at this moment.
    pub(crate) fn connected(&self) -> u64 {
        self.state.round.lock().connected
    }

    /// Closes all connections.
    ///
    /// # Panics
    /// When a client was refused for a reason that should not occur.
    pub(crate) async fn leave(mut self) {
        self.people.abort_all();
        while let Some(ended) = self.people.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

async fn person(address: SocketAddr, token: String, state: Arc<CrowdState>) {
    loop {
        let coming = state.coming.acquire().await.expect("it is never closed");
        let round = state.round.lock().number;
        let mut client = open(address, &token, &state).await;
        drop(coming);
        state.count(round, 1);
        let code = loop {
            if state.round.lock().number != round {
                break None;
            }
            match client.next_within(Duration::from_secs(2)).await {
                Some(Incoming::Closed(code, _)) => break Some(code),
                Some(Incoming::Lost) => break Some(1006),
                Some(Incoming::Envelope(_)) | None => {}
            }
        };
        match code {
            Some(code) => {
                state.count(round, -1);
                *state.closed.lock().entry(code).or_default() += 1;
            }
            // One whose server died gets no answer.
            None => drop(tokio::time::timeout(Duration::from_secs(2), client.close()).await),
        }
    }
}

/// Connects and authenticates. A pod that stops answers 503 with Retry-After; the client then tries again.
async fn open(address: SocketAddr, token: &str, state: &CrowdState) -> Client {
    loop {
        let attempt = tokio::time::timeout(PATIENCE, Client::try_connect(address, &[])).await;
        match attempt {
            Ok(Ok(mut client)) => {
                client.authenticate(token, KeyMember::None).await;
                return client;
            }
            Ok(Err(Error::Http(answer))) if answer.status() == 503 => {
                let body = answer.body().as_deref().unwrap_or_default();
                let mut refused = state.refused.lock();
                refused.push(String::from_utf8_lossy(body).into_owned());
            }
            _ if state.forgiving.load(Ordering::SeqCst) => {}
            Ok(Err(error)) => panic!("cannot connect to {address}: {error}"),
            Err(_) => panic!("no answer from {address} within {PATIENCE:?}"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
