//! Which partition an error belongs to: librdkafka hands errors of fetching to a consumer with their text, but without their partition.
//!
//! Input: errors, and for each partition where its next fetch begins. Output: for a partition that does not move, the error that keeps it.
//!
//! An error that repeats keeps its partition at one offset, so after two reports of the statistics only such partitions are left; where there are several,
//! the offset in the text decides.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

/// How long an error is kept. librdkafka fetches again after less than a second, so one that lasts comes again.
const KEPT: Duration = Duration::from_secs(10);
/// Most errors that are kept.
const MOST: usize = 64;
/// How often the same error is logged.
const SAID_AGAIN: Duration = Duration::from_secs(30);

/// The errors of the last seconds.
#[derive(Default)]
pub(super) struct Faults {
    recent: VecDeque<Fault>,
    said: VecDeque<(Instant, RDKafkaErrorCode, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    at: Instant,
    reason: String,
    offset: Option<i64>,
}

impl Faults {
    /// Takes an error. Returns whether it should be logged: the same one is logged once in [`SAID_AGAIN`].
    pub(super) fn add(&mut self, now: Instant, code: RDKafkaErrorCode, reason: &str) -> bool {
        if is_of_a_partition(code) {
            if self.recent.len() == MOST {
                self.recent.pop_front();
            }
            self.recent.push_back(Fault {
                at: now,
                reason: reason.to_owned(),
                offset: offset_in(reason),
            });
        }
        self.said
            .retain(|(at, ..)| now.duration_since(*at) < SAID_AGAIN);
        let is_new = !self
            .said
            .iter()
            .any(|(_, known, text)| *known == code && text == reason);
        if is_new {
            if self.said.len() == MOST {
                self.said.pop_front();
            }
            self.said.push_back((now, code, reason.to_owned()));
        }
        is_new
    }

    /// Gives the errors to the partitions that stand still at these offsets. Returns for each of them its newest error and how many there were since the
    /// last call.
    pub(super) fn blame(&mut self, now: Instant, still: &[i64]) -> Vec<Option<(String, u64)>> {
        self.recent
            .retain(|fault| now.duration_since(fault.at) < KEPT);
        let mut blamed: Vec<Option<(String, u64)>> = vec![None; still.len()];
        if still.is_empty() {
            return blamed;
        }
        for fault in self.recent.drain(..) {
            let distance = |next: &i64| fault.offset.map_or(0, |offset| offset.abs_diff(*next));
            let least = still.iter().map(distance).min().unwrap_or(0);
            for (next, blamed) in still.iter().zip(&mut blamed) {
                if distance(next) == least {
                    let (reason, count) = blamed.get_or_insert_default();
                    reason.clone_from(&fault.reason);
                    *count += 1;
                }
            }
        }
        blamed
    }
}

/// Errors of connections and of the group concern all partitions.
fn is_of_a_partition(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    !matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::SSL
            | Code::OperationTimedOut
            | Code::GroupAuthorizationFailed
            | Code::PollExceeded
            | Code::NoOffset
    )
}

/// The offset in a text such as `message at 7 of 90 bytes` or `failed at offset 7 (leader epoch 0)`.
fn offset_in(reason: &str) -> Option<i64> {
    ["offset ", " at "].iter().find_map(|before| {
        reason.match_indices(before).find_map(|(at, _)| {
            let rest = &reason[at + before.len()..];
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..digits].parse().ok()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNDECODED: &str =
        "Decompression (codec 0x4) of message at 7 of 90 bytes failed: Local: Not implemented";
    const NO_STORAGE: &str =
        "Fetch from broker 1 failed at offset 40 (leader epoch 0): Broker: Disk error";

    #[test]
    fn an_error_belongs_to_the_partition_that_stands_at_its_offset() {
        let mut faults = Faults::default();
        let now = Instant::now();
        assert!(faults.add(now, RDKafkaErrorCode::NotImplemented, UNDECODED));
        assert!(!faults.add(now, RDKafkaErrorCode::NotImplemented, UNDECODED));
        faults.add(now, RDKafkaErrorCode::KafkaStorageError, NO_STORAGE);
        let blamed = faults.blame(now, &[41, 9]);
        assert_eq!(
            blamed,
            [
                Some((NO_STORAGE.to_owned(), 1)),
                Some((UNDECODED.to_owned(), 2))
            ]
        );
        assert_eq!(faults.blame(now, &[41, 9]), [None, None], "counted once");
    }

    #[test]
    fn an_error_without_offset_belongs_to_all_that_stand_still_and_none_is_kept_for_long() {
        let mut faults = Faults::default();
        let now = Instant::now();
        let refused = "Fetch from broker 1 failed: Broker: Topic authorization failed";
        let code = RDKafkaErrorCode::TopicAuthorizationFailed;
        faults.add(now, code, refused);
        assert_eq!(faults.blame(now, &[]), []);
        let both = faults.blame(now, &[0, 5]);
        assert!(both.iter().all(Option::is_some));
        faults.add(now, code, refused);
        assert_eq!(faults.blame(now + KEPT, &[0]), [None]);
        faults.add(
            now,
            RDKafkaErrorCode::AllBrokersDown,
            "1/1 brokers are down",
        );
        assert_eq!(
            faults.blame(now, &[0]),
            [None],
            "all partitions wait for that"
        );
        assert!(faults.add(now + SAID_AGAIN, code, refused), "said again");
    }
}
