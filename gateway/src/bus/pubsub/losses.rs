//! Whose messages were given up, until the other instances have been told.
//!
//! Input: the channels of dispatches that could not be published. Output: one report, which the [publisher](super::publisher) sends when it can: the
//! clients that a channel reaches are told to sync. Beyond a bound single channels are not remembered, and everybody is told.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hash::HashSet;

/// Most channels that are remembered, and most bytes of their names.
const MAX_CHANNELS: usize = 2048;
const MAX_CHANNEL_BYTES: usize = 256 << 10;
/// Shortest time between two reports, and between two that concern everybody: their clients all sync at once.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
const REPORT_ALL_INTERVAL: Duration = Duration::from_secs(5);

/// What a report says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Channels on which messages were given up.
    channels: HashSet<String>,
    bytes: usize,
    /// Too many to name them.
    all: bool,
}

impl Lost {
    fn is_empty(&self) -> bool {
        self.channels.is_empty() && !self.all
    }

    fn add(&mut self, channel: &str) {
        if self.all || self.channels.contains(channel) {
            return;
        }
        if self.channels.len() == MAX_CHANNELS || self.bytes + channel.len() > MAX_CHANNEL_BYTES {
            return self.add_all();
        }
        self.bytes += channel.len();
        self.channels.insert(channel.to_owned());
    }

    fn add_all(&mut self) {
        *self = Self {
            all: true,
            ..Self::default()
        };
    }

    /// Returns the payload of the report: the instance alone where it concerns everybody, which is all that the release before knows; else the channels
    /// behind it, as a list.
    pub(super) fn payload(&self, instance: &str) -> Vec<u8> {
        if self.all {
            return instance.as_bytes().to_vec();
        }
        let channels: Vec<&String> = self.channels.iter().collect();
        let channels = serde_json::to_string(&channels).expect("a list of texts serializes");
        format!("{instance} {channels}").into_bytes()
    }
}

/// What was given up since the last report.
#[derive(Default)]
pub(super) struct Losses {
    state: Mutex<State>,
    noted: Notify,
}

#[derive(Default)]
struct State {
    lost: Lost,
    reported_at: Option<Instant>,
    reported_all_at: Option<Instant>,
}

impl State {
    /// Returns when the next report may be sent; `None` for at once.
    fn next_at(&self) -> Option<Instant> {
        let next = self.reported_at.map(|at| at + REPORT_INTERVAL);
        let next_all = self.reported_all_at.map(|at| at + REPORT_ALL_INTERVAL);
        if self.lost.all {
            next.max(next_all)
        } else {
            next
        }
    }
}

impl Losses {
    /// Notes that what was for these channels was given up. What is noted together is reported together.
    pub(super) fn note(&self, channels: impl IntoIterator<Item = String>) {
        let mut state = self.state.lock();
        for channel in channels {
            state.lost.add(&channel);
        }
        drop(state);
        self.noted.notify_one();
    }

    /// Ends when something was noted since it ended last. Only one task may wait.
    pub(super) async fn noted(&self) {
        self.noted.notified().await;
    }

    /// Notes that messages on any channel may have been given up.
    pub(super) fn note_all(&self) {
        self.state.lock().lost.add_all();
        self.noted.notify_one();
    }

    /// Whether there is something to report.
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().lost.is_empty()
    }

    /// Returns when the next report may be sent; `None` while there is nothing to report.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let state = self.state.lock();
        let at = (!state.lost.is_empty()).then(|| state.next_at())?;
        Some(at.unwrap_or_else(Instant::now))
    }

    /// Takes what is to be reported, if a report is due.
    pub(super) fn take_due(&self, now: Instant) -> Option<Lost> {
        let mut state = self.state.lock();
        if state.lost.is_empty() || state.next_at().is_some_and(|at| at > now) {
            return None;
        }
        let lost = std::mem::take(&mut state.lost);
        state.reported_at = Some(now);
        if lost.all {
            state.reported_all_at = Some(now);
        }
        Some(lost)
    }

    /// Puts back what could not be reported.
    pub(super) fn put_back(&self, lost: &Lost) {
        let mut state = self.state.lock();
        if lost.all {
            state.lost.add_all();
        }
        for channel in &lost.channels {
            state.lost.add(channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_reported_by_channel_and_beyond_the_bound_for_everybody() {
        let (losses, now) = (Losses::default(), Instant::now());
        assert!(losses.is_empty() && losses.take_due(now).is_none());
        losses.note(["ws:user:17".into()]);
        losses.note(["ws:user:17".into()]);
        let lost = losses.take_due(now).unwrap();
        assert_eq!(lost.payload("i"), br#"i ["ws:user:17"]"#);
        losses.put_back(&lost);
        assert!(losses.take_due(now).is_none(), "one was just sent");
        let later = now + REPORT_INTERVAL;
        assert_eq!(losses.take_due(later), Some(lost));
        losses.note((0..=MAX_CHANNELS).map(|user| format!("ws:user:{user}")));
        let lost = losses.take_due(later + REPORT_INTERVAL).unwrap();
        assert_eq!(lost.payload("i"), b"i");
        losses.note_all();
        assert!(
            losses.take_due(later + 2 * REPORT_INTERVAL).is_none(),
            "everybody syncs less often"
        );
        losses.note(["x".repeat(MAX_CHANNEL_BYTES)]);
        let much_later = later + REPORT_INTERVAL + REPORT_ALL_INTERVAL;
        assert_eq!(losses.take_due(much_later).unwrap().payload("i"), b"i");
    }
}
