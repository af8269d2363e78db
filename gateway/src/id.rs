//! Snowflake ids of 70 bits and their base62 text (protocol.md 11.1 and 11.2).
//!
//! 48 bits of milliseconds since 2025-01-01T00:00:00Z, 10 bits of worker, 12 bits of sequence. The text form is what
//! travels and is stored: no 64-bit column holds the number, and the text is never an order.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;

/// 2025-01-01T00:00:00Z in milliseconds since the Unix epoch: the first instant an id can name.
pub const EPOCH_MS: i64 = 1_735_689_600_000;
/// The largest worker number that 10 bits hold.
pub const MAX_WORKER: u16 = 1023;
/// A clock that steps back this far or less is waited out.
pub const MAX_STEP_BACK_MS: i64 = 100;

const SEQUENCE_BITS: u32 = 12;
const WORKER_BITS: u32 = 10;
const MAX_SEQUENCE: u16 = (1 << SEQUENCE_BITS) - 1;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const MAX_TEXT: usize = 12;

/// An id in its base62 text, held inline: copying and hashing it allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    len: u8,
    text: [u8; MAX_TEXT],
}

impl Hash for Id {
    /// Hashes the text in one go: behind it there are zeros, which no text has.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.text);
    }
}

/// The text is not an id: it is empty, longer than 12 characters, or has a character outside `0-9A-Za-z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: want 1 to 12 characters of 0-9A-Za-z")]
pub struct NotAnId;

impl Id {
    /// Writes the 70-bit number in base62 without leading zeros.
    pub fn from_number(mut number: u128) -> Self {
        let mut digits = [0u8; MAX_TEXT];
        let mut at = MAX_TEXT;
        loop {
            at -= 1;
            digits[at] = ALPHABET[(number % 62) as usize];
            number /= 62;
            if number == 0 || at == 0 {
                break;
            }
        }
        let mut text = [0u8; MAX_TEXT];
        let len = MAX_TEXT - at;
        text[..len].copy_from_slice(&digits[at..]);
        Self {
            len: len as u8,
            text,
        }
    }

    /// Puts the three parts together. `ms` counts from [`EPOCH_MS`].
    pub fn from_parts(ms: u64, worker: u16, sequence: u16) -> Self {
        let number = (u128::from(ms) << (WORKER_BITS + SEQUENCE_BITS))
            | (u128::from(worker & MAX_WORKER) << SEQUENCE_BITS)
            | u128::from(sequence & MAX_SEQUENCE);
        Self::from_number(number)
    }

    /// Reads the text back as the 70-bit number.
    pub fn number(&self) -> u128 {
        self.as_str().bytes().fold(0, |n, b| {
            let digit = match b {
                b'0'..=b'9' => b - b'0',
                b'A'..=b'Z' => b - b'A' + 10,
                _ => b - b'a' + 36,
            };
            n * 62 + u128::from(digit)
        })
    }

    /// The time at which it was made, in milliseconds since the Unix epoch.
    pub fn made_at_ms(&self) -> i64 {
        let ms = self.number() >> (WORKER_BITS + SEQUENCE_BITS);
        i64::try_from(ms)
            .unwrap_or(i64::MAX)
            .saturating_add(EPOCH_MS)
    }

    /// The worker that made this id.
    pub fn worker(&self) -> u16 {
        ((self.number() >> SEQUENCE_BITS) & u128::from(MAX_WORKER)) as u16
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.len)]).expect("an id holds ASCII only")
    }
}

impl FromStr for Id {
    type Err = NotAnId;

    fn from_str(s: &str) -> Result<Self, NotAnId> {
        if s.is_empty() || s.len() > MAX_TEXT || !s.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(NotAnId);
        }
        let mut text = [0u8; MAX_TEXT];
        text[..s.len()].copy_from_slice(s.as_bytes());
        Ok(Self {
            len: s.len() as u8,
            text,
        })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Id {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some(
                "A number of 70 bits in base62: an identity, never an order.",
            ))
            .pattern(Some("^[0-9A-Za-z]{1,12}$"))
            .examples(["1KbZ0dT9Xa4"])
            .into()
    }
}

impl utoipa::ToSchema for Id {}

/// The longest id of another server, in characters.
pub const MAX_ANY_ID: usize = 64;

/// An id as any server of the protocol may give it: 1 to [`MAX_ANY_ID`] characters of `0-9A-Za-z_-`, such as a UUID (protocol.md 11.6).
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct AnyId(Box<str>);

impl AnyId {
    /// Returns the id if a gateway may have given it.
    pub fn ours(&self) -> Option<Id> {
        self.0.parse().ok()
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is no id of any server: it is empty, longer than 64 characters, or has a character outside `0-9A-Za-z_-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: want 1 to 64 characters of 0-9A-Za-z_-")]
pub struct NotAnyId;

impl TryFrom<String> for AnyId {
    type Error = NotAnyId;

    fn try_from(text: String) -> Result<Self, NotAnyId> {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if text.is_empty() || text.len() > MAX_ANY_ID || !text.bytes().all(known) {
            return Err(NotAnyId);
        }
        Ok(Self(text.into()))
    }
}

impl FromStr for AnyId {
    type Err = NotAnyId;

    fn from_str(text: &str) -> Result<Self, NotAnyId> {
        text.to_owned().try_into()
    }
}

impl serde::Serialize for AnyId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl utoipa::PartialSchema for AnyId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some(
                "An id of this gateway (a Snowflake in base62), or of another server, such as a UUID.",
            ))
            .pattern(Some("^[0-9A-Za-z_-]{1,64}$"))
            .examples(["1KbZ0dT9Xa4"])
            .into()
    }
}

impl utoipa::ToSchema for AnyId {}

/// Why no id can be made: one made now could repeat another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The clock went back further than is waited out.
    #[error(
        "the clock stepped back {by_ms} ms, more than the {MAX_STEP_BACK_MS} ms that are waited out"
    )]
    ClockStepped {
        /// How far back, in milliseconds.
        by_ms: i64,
    },
    /// The clock shows a time before ids begin.
    #[error("the clock is before 2025")]
    BeforeEpoch,
    /// The worker number may belong to another process.
    #[error("the worker number may belong to another process")]
    Suspended,
}

/// The last id of a worker number.
#[derive(Debug, Clone, Copy)]
struct LastId {
    worker: u16,
    ms: i64,
    sequence: u16,
}

impl LastId {
    /// No id was made with this number yet.
    const fn none(worker: u16) -> Self {
        Self {
            worker,
            ms: i64::MIN,
            sequence: 0,
        }
    }
}

/// The last ids of every worker number that was used: one that is used again goes on behind them.
struct LastIds {
    current: LastId,
    /// One for each other number.
    others: Vec<LastId>,
}

impl LastIds {
    /// Returns the last id of `worker`, whose ids are made from here on.
    fn of(&mut self, worker: u16) -> &mut LastId {
        if self.current.worker != worker {
            self.change_to(worker);
        }
        &mut self.current
    }

    #[cold]
    fn change_to(&mut self, worker: u16) {
        let known = self.others.iter().position(|last| last.worker == worker);
        let next = known.map_or(LastId::none(worker), |at| self.others.swap_remove(at));
        let before = std::mem::replace(&mut self.current, next);
        if before.ms > i64::MIN {
            self.others.push(before);
        }
    }
}

/// Makes ids, unique as long as no other live process has the same worker number.
///
/// They need a worker number that is leased and a clock that goes on. Notifications have ids of another kind, made of the numbers of their rows
/// (protocol.md 11.7).
#[derive(Clone)]
pub struct IdGenerator {
    clock: Arc<dyn Clock>,
    worker: Arc<AtomicU16>,
    last: Arc<Mutex<LastIds>>,
    suspended: Arc<AtomicBool>,
}

impl IdGenerator {
    /// `worker` is taken modulo 1024.
    pub fn new(worker: u16, clock: Arc<dyn Clock>) -> Self {
        Self::following(Arc::new(worker.into()), clock)
    }

    /// As [`IdGenerator::new`], with a worker number that may change: the next id has it.
    pub fn following(worker: Arc<AtomicU16>, clock: Arc<dyn Clock>) -> Self {
        let current = LastId::none(worker.load(Ordering::Acquire) & MAX_WORKER);
        Self {
            clock,
            worker,
            last: Arc::new(Mutex::new(LastIds {
                current,
                others: Vec::new(),
            })),
            suspended: Arc::default(),
        }
    }

    /// Makes no ids while `suspended`: for this generator and all its clones.
    pub fn suspend(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Release);
    }

    /// The worker number in the ids this generator makes.
    pub fn worker(&self) -> u16 {
        self.worker.load(Ordering::Acquire) & MAX_WORKER
    }

    /// Makes the next id.
    ///
    /// Blocks the thread for at most [`MAX_STEP_BACK_MS`] when the clock stepped back a little, and for the rest of the
    /// millisecond after 4096 ids in it.
    ///
    /// # Errors
    /// [`IdError`] when the clock went back further than that, or while suspended.
    pub fn next(&self) -> Result<Id, IdError> {
        loop {
            if let Some(id) = self.next_at_once()? {
                return Ok(id);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// As [`IdGenerator::next`], but `None` where that would wait.
    ///
    /// # Errors
    /// As [`IdGenerator::next`].
    pub fn next_at_once(&self) -> Result<Option<Id>, IdError> {
        if self.suspended.load(Ordering::Acquire) {
            return Err(IdError::Suspended);
        }
        let now = self.clock.now_ms() - EPOCH_MS;
        let Ok(since_epoch) = u64::try_from(now) else {
            return Err(IdError::BeforeEpoch);
        };
        let mut last = self.last.lock();
        let last = last.of(self.worker());
        if now > last.ms {
            (last.ms, last.sequence) = (now, 0);
            return Ok(Some(Id::from_parts(since_epoch, last.worker, 0)));
        }
        let behind = last.ms - now;
        if behind > MAX_STEP_BACK_MS {
            return Err(IdError::ClockStepped { by_ms: behind });
        }
        if behind == 0 && last.sequence < MAX_SEQUENCE {
            last.sequence += 1;
            return Ok(Some(Id::from_parts(
                since_epoch,
                last.worker,
                last.sequence,
            )));
        }
        Ok(None)
    }

    /// Checks whether the clock allows ids of connections, without making one.
    ///
    /// # Errors
    /// [`IdError::ClockStepped`] and [`IdError::BeforeEpoch`].
    pub fn check_clock(&self) -> Result<(), IdError> {
        let now = self.clock.now_ms() - EPOCH_MS;
        if now < 0 {
            return Err(IdError::BeforeEpoch);
        }
        let behind = self.last.lock().of(self.worker()).ms.saturating_sub(now);
        if behind > MAX_STEP_BACK_MS {
            return Err(IdError::ClockStepped { by_ms: behind });
        }
        Ok(())
    }
}

impl fmt::Debug for IdGenerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdGenerator")
            .field("worker", &self.worker())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{FixedClock, SystemClock};
    use std::collections::HashSet;

    /// protocol.md 11.1 and 11.2.
    #[test]
    fn the_first_instant_with_worker_and_sequence_zero_is_0() {
        assert_eq!(Id::from_parts(0, 0, 0).as_str(), "0");
        assert_eq!(Id::from_parts(0, 0, 61).as_str(), "z");
        assert_eq!(Id::from_parts(0, 0, 62).as_str(), "10");
    }

    /// protocol.md 11.2.
    #[test]
    fn the_largest_id_has_twelve_characters_and_reads_back() {
        let id = Id::from_parts((1 << 48) - 1, 1023, 4095);
        assert_eq!(id.as_str().len(), 12);
        assert_eq!(id.number(), (1u128 << 70) - 1);
        assert_eq!(id.worker(), 1023);
        assert_eq!(id.as_str().parse::<Id>().unwrap(), id);
    }

    /// protocol.md 11.3.
    #[test]
    fn text_that_is_no_id_is_refused() {
        for bad in ["", "abcdefghijklm", "a-b", "ws:1", "é"] {
            assert_eq!(bad.parse::<Id>(), Err(NotAnId), "{bad}");
        }
    }

    /// protocol.md 11.6.
    #[test]
    fn an_id_of_another_server_has_up_to_64_url_safe_characters() {
        let uuid = "7f0e2a52-6c1b-4c0e-9c5e-0d1f2a3b4c5d";
        for (text, ours) in [("4bC", true), (uuid, false), ("a_b", false)] {
            assert_eq!(text.parse::<AnyId>().unwrap().ours().is_some(), ours);
        }
        assert!("x".repeat(64).parse::<AnyId>().is_ok());
        for bad in ["", &"x".repeat(65), "a b", "a/b", "a.b", "é"] {
            assert_eq!(bad.parse::<AnyId>(), Err(NotAnyId), "{bad}");
        }
    }

    /// protocol.md 11.1.
    #[test]
    fn many_threads_never_see_the_same_id() {
        let ids = IdGenerator::new(9, Arc::new(SystemClock));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let ids = ids.clone();
                std::thread::spawn(move || {
                    (0..10_000).map(|_| ids.next().unwrap()).collect::<Vec<_>>()
                })
            })
            .collect();
        let all: HashSet<Id> = threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect();
        assert_eq!(all.len(), 40_000);
        assert!(all.iter().all(|id| id.worker() == 9));
    }

    /// protocol.md 11.4.
    #[test]
    fn a_small_step_back_is_waited_out_and_a_large_one_is_an_error() {
        let clock =
            FixedClock::new(chrono::DateTime::from_timestamp_millis(EPOCH_MS + 10_000).unwrap());
        let ids = IdGenerator::new(9, Arc::new(clock.clone()));
        let first = ids.next().unwrap();
        clock.advance_ms(-50);
        assert_eq!(ids.next_at_once(), Ok(None));
        let waiting = std::thread::spawn({
            let ids = ids.clone();
            move || ids.next().unwrap()
        });
        clock.advance_ms(50);
        assert_ne!(waiting.join().unwrap(), first);
        clock.advance_ms(-101);
        assert_eq!(ids.next(), Err(IdError::ClockStepped { by_ms: 101 }));
    }

    fn fixed() -> (FixedClock, IdGenerator, Arc<AtomicU16>) {
        let start = chrono::DateTime::from_timestamp_millis(EPOCH_MS + 60_000).unwrap();
        let (clock, worker) = (FixedClock::new(start), Arc::new(AtomicU16::new(9)));
        let ids = IdGenerator::following(worker.clone(), Arc::new(clock.clone()));
        (clock, ids, worker)
    }

    /// protocol.md 11.4.
    #[test]
    fn another_worker_number_makes_ids_again_after_a_step_back_and_the_old_one_repeats_none() {
        let (clock, ids, worker) = fixed();
        let mut all = HashSet::from([ids.next().unwrap()]);
        clock.advance_ms(-5_000);
        let stepped = IdError::ClockStepped { by_ms: 5_000 };
        assert_eq!(ids.check_clock(), Err(stepped));
        assert_eq!(ids.next(), Err(stepped));
        worker.store(10, Ordering::Release);
        assert_eq!(ids.check_clock(), Ok(()));
        all.insert(ids.next().unwrap());
        worker.store(9, Ordering::Release);
        assert_eq!(ids.next(), Err(stepped), "its ids of that time are taken");
        clock.advance_ms(5_000);
        all.insert(ids.next().unwrap());
        assert_eq!(all.len(), 3);
    }

    /// protocol.md 11.5.
    #[test]
    fn no_id_is_made_while_suspended_or_before_the_first_instant() {
        let clock = FixedClock::new(chrono::DateTime::from_timestamp_millis(EPOCH_MS).unwrap());
        let ids = IdGenerator::new(9, Arc::new(clock.clone()));
        ids.clone().suspend(true);
        assert_eq!(ids.next(), Err(IdError::Suspended));
        ids.suspend(false);
        ids.next().unwrap();
        clock.advance_ms(-1);
        assert_eq!(ids.next(), Err(IdError::BeforeEpoch));
    }
}
