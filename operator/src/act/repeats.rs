//! How often an object was applied with the same content: somebody else changes it back each time. Both would write as fast as the API server answers.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::act::writer::Key;
use crate::time::growing;

/// An object is applied again so many times without a pause.
const FREE: u32 = 4;
/// The first pause after that; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two applies of the same content.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long an apply counts.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Applies of what was there already.
#[derive(Debug, Default)]
pub(super) struct Repeats(HashMap<Key, Repeat>);

#[derive(Debug, Clone)]
struct Repeat {
    hash: String,
    times: u32,
    last: Instant,
}

impl Repeats {
    /// Whether an object may be applied with this content now.
    pub(super) fn may(&self, key: &Key, hash: &str, now: Instant) -> bool {
        let Some(known) = self.0.get(key).filter(|known| known.hash == hash) else {
            return true;
        };
        let counted = (known.times + 1).saturating_sub(FREE);
        counted == 0 || now - known.last >= growing(FIRST_PAUSE, LONGEST_PAUSE, counted, 1.0)
    }

    /// It was applied.
    pub(super) fn count(&mut self, key: &Key, hash: &str, now: Instant) {
        self.0.retain(|_, known| now - known.last < FORGOTTEN);
        let same = self.0.get(key).filter(|known| known.hash == hash);
        let known = Repeat {
            hash: hash.to_owned(),
            times: same.map_or(1, |known| known.times.saturating_add(1)),
            last: now,
        };
        self.0.insert(key.clone(), known);
    }

    /// Keeps what is known of these.
    pub(super) fn retain(&mut self, keeps: impl Fn(&Key) -> bool) {
        self.0.retain(|key, _| keeps(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("Service", "realtime".to_owned(), name.to_owned())
    }

    #[test]
    fn the_same_content_is_applied_again_with_growing_pauses() {
        let mut repeats = Repeats::default();
        let mut now = Instant::now();
        let apply = |repeats: &mut Repeats, name: &str, hash: &str, now| {
            let may = repeats.may(&key(name), hash, now);
            if may {
                repeats.count(&key(name), hash, now);
            }
            may
        };
        for _ in 0..FREE {
            assert!(apply(&mut repeats, "edge", "one", now));
        }
        for pause in [1, 2, 4] {
            now += Duration::from_secs(pause);
            let before = now - Duration::from_millis(1);
            assert!(!apply(&mut repeats, "edge", "one", before), "{pause} s");
            assert!(apply(&mut repeats, "edge", "one", now), "{pause} s");
        }
        assert!(apply(&mut repeats, "other", "one", now));
        assert!(apply(&mut repeats, "edge", "two", now), "another content");
        for _ in 0..FREE {
            assert!(apply(&mut repeats, "edge", "one", now), "and back");
        }
        assert!(!apply(&mut repeats, "edge", "one", now));
        now += FORGOTTEN;
        for _ in 0..FREE {
            assert!(apply(&mut repeats, "edge", "one", now));
        }
        assert!(!apply(&mut repeats, "edge", "one", now));
        assert_eq!(repeats.0.len(), 1, "the other one is forgotten");
    }
}
