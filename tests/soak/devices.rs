//! Clients that keep to the documented rule (`docs/protocol.md` 9.5, 9.9 and 9.10): each device of a user is one connection at a time, and what it knows
//! of its inbox outlives the connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::seq::IndexedRandom as _;
use serde_json::json;
use signal_tests::client::Incoming;
use signal_tests::inbox::Next;
use signal_tests::{Client, Envelope, Inbox, Issuer, KeyMember};
use tokio::time::{Instant, sleep, timeout};

use crate::run_state::RunState;

/// A gateway that does not answer is left.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// A sync that is not answered for this long ends the connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// An issued token outlives the longest run.
const TOKEN_LIFE_SECS: i64 = 86_400;

/// What came to all devices together.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) refused: u64,
    pub(crate) pushes: u64,
    pub(crate) resyncs: u64,
    pub(crate) gaps: u64,
    pub(crate) syncs: u64,
    pub(crate) unanswered: u64,
    /// By close code; 1006 without a Close frame.
    pub(crate) closed: BTreeMap<u16, u64>,
    pub(crate) errors: BTreeMap<String, u64>,
}

/// What one device knows.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) inbox: Inbox,
    /// The gateway that holds its connection.
    pub(crate) gateway: Option<usize>,
    /// Answers that are to come.
    outstanding: u32,
    sync_at: Option<Instant>,
    /// `resync` came, so that it syncs with or without a gap.
    is_told: bool,
}

impl View {
    /// Whether it waits for nothing.
    pub(crate) fn is_settled(&self) -> bool {
        self.gateway.is_some() && self.outstanding == 0 && self.sync_at.is_none()
    }

    /// Makes it sync, whatever it knows.
    pub(crate) fn tell(&mut self) {
        self.is_told = true;
        self.sync_at = Some(Instant::now());
    }

    fn sync_soon(&mut self) {
        let wait = Duration::from_millis(rand::random_range(200..1000));
        self.sync_at.get_or_insert(Instant::now() + wait);
    }
}

/// One device of a user.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) run: RunState,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) user: u64,
    pub(crate) view: Arc<Mutex<View>>,
    pub(crate) counts: Arc<Mutex<Counts>>,
}

impl Device {
    /// Connects again and again until the run ends.
    pub(crate) async fn run(self) {
        while !self.run.is_ending() {
            if let Some((gateway, client)) = self.open().await {
                self.session(gateway, client).await;
                self.view.lock().gateway = None;
            } else {
                self.counts.lock().refused += 1;
            }
            sleep(Duration::from_millis(rand::random_range(50..500))).await;
        }
    }

    async fn open(&self) -> Option<(usize, Client)> {
        let (number, address) = *self.run.doors().choose(&mut rand::rng())?;
        let client = timeout(OPEN_LIMIT, self.authenticated(address)).await;
        Some((number, client.ok()??))
    }

    async fn authenticated(&self, address: SocketAddr) -> Option<Client> {
        let mut client = Client::try_connect(address, &[]).await.ok()?;
        let mut claims = self.issuer.claims(&format!("u{}", self.user));
        claims["exp"] = (claims["exp"].as_i64()? + TOKEN_LIFE_SECS).into();
        let token = self.issuer.sign("key-1", &claims);
        client.send_authenticate(&token, KeyMember::None).await;
        match client.next_within(OPEN_LIMIT).await? {
            Incoming::Envelope(envelope) if envelope.event == "connected" => Some(client),
            _ => None,
        }
    }

    async fn session(&self, gateway: usize, mut client: Client) {
        self.counts.lock().connections += 1;
        {
            let mut view = self.view.lock();
            view.inbox.reconnects();
            (view.gateway, view.outstanding) = (Some(gateway), 0);
            view.tell();
        }
        let mut answer_by = None;
        while !self.run.is_ending() {
            let now = Instant::now();
            if answer_by.is_some_and(|by| by < now) {
                self.counts.lock().unanswered += 1;
                return;
            }
            if let Some(after) = self.due(now) {
                answer_by.get_or_insert(now + ANSWER_LIMIT);
                let data = json!({"after": after});
                client.send("notification:sync", data).await;
            }
            let until = self.view.lock().sync_at.unwrap_or(now + OPEN_LIMIT);
            let wait = until.saturating_duration_since(now);
            // Not zero: what has come is read before the next sync.
            let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(200));
            match client.next_within(wait).await {
                None => {}
                Some(Incoming::Envelope(envelope)) => {
                    if !self.take(&envelope) {
                        return;
                    }
                    if self.view.lock().outstanding == 0 {
                        answer_by = None;
                    }
                }
                Some(Incoming::Closed(code, _)) => return self.closed(code),
                Some(Incoming::Lost) => return self.closed(1006),
            }
        }
    }

    /// The `seq` to sync from, if the client is to sync.
    fn due(&self, now: Instant) -> Option<i64> {
        let mut view = self.view.lock();
        view.sync_at.filter(|at| *at <= now)?;
        view.sync_at = None;
        if !view.is_told && !view.inbox.has_gap() {
            // What was missing came by itself.
            return None;
        }
        view.is_told = false;
        view.inbox.asks();
        view.outstanding += 1;
        self.counts.lock().syncs += 1;
        Some(view.inbox.contiguous())
    }

    /// Takes an event. Returns false when a sync is not answered, so that the connection is of no use.
    fn take(&self, envelope: &Envelope) -> bool {
        let mut view = self.view.lock();
        let mut counts = self.counts.lock();
        match envelope.event.as_str() {
            "notification:created" => counts.pushes += 1,
            "notification:synced" => view.outstanding = view.outstanding.saturating_sub(1),
            "resync" => counts.resyncs += 1,
            "error" => {
                let text = envelope.data["message"].as_str().unwrap_or_default();
                *counts.errors.entry(text.to_owned()).or_default() += 1;
                if view.outstanding > 0 {
                    return false;
                }
            }
            _ => {}
        }
        match view.inbox.take(envelope) {
            Next::Wait => {}
            Next::SyncLater => {
                counts.gaps += u64::from(view.sync_at.is_none());
                view.sync_soon();
            }
            Next::Sync if envelope.event == "resync" => {
                view.is_told = true;
                view.sync_soon();
            }
            Next::Sync => view.tell(),
        }
        true
    }

    fn closed(&self, code: u16) {
        *self.counts.lock().closed.entry(code).or_default() += 1;
    }
}
