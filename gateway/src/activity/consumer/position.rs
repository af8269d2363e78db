//! Where the next record of a partition is expected, and which records can no longer be had.
//!
//! Input: the offsets of records, and what the statistics say. Output: the range of records that were deleted before they were read; where a partition
//! begins again.
//!
//! Offsets have gaps that are no loss (compaction, marks of transactions), so a gap alone says nothing: only what lies before the start of the log is gone.

/// Reports of the statistics after a gap that the start of the log may need to be known.
const REPORTS: u8 = 3;

/// How far a partition has been received.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// The offset after the last record; `None` until one is known.
    expected: Option<i64>,
    has_received: bool,
    gap: Option<Gap>,
}

#[derive(Debug)]
struct Gap {
    from: i64,
    to: i64,
    reports: u8,
}

/// Offsets from the first to before the second.
pub(super) type Range = (i64, i64);

impl Position {
    /// The offset that the group has committed, if any.
    pub(super) fn starting(committed: Option<i64>) -> Self {
        Self {
            expected: committed,
            has_received: false,
            gap: None,
        }
    }

    /// Whether everything that was received is done: `next` is the first offset that is not.
    pub(super) fn is_all_done(&self, next: Option<i64>) -> bool {
        !self.has_received || next == self.expected
    }

    /// Takes the offset of a record. Returns the offset that was expected if the record lies before it: the topic was made again, or the log was cut.
    pub(super) fn received(&mut self, offset: i64) -> Option<i64> {
        self.has_received = true;
        let expected = self.expected.replace(offset + 1)?;
        if offset > expected {
            match &mut self.gap {
                Some(gap) => gap.to = offset,
                None => {
                    self.gap = Some(Gap {
                        from: expected,
                        to: offset,
                        reports: 0,
                    });
                }
            }
        }
        (offset < expected).then(|| {
            self.gap = None;
            expected
        })
    }

    /// Takes where the log starts. Returns the records that were deleted before they were read, once.
    /// `fetched_before`: everything before this offset was received or does not exist; `None` while records are on their way.
    pub(super) fn log_starts(&mut self, start: i64, fetched_before: Option<i64>) -> Option<Range> {
        if let Some(mut gap) = self.gap.take() {
            if start > gap.from {
                return Some((gap.from, gap.to.min(start)));
            }
            gap.reports += 1;
            if gap.reports < REPORTS {
                self.gap = Some(gap);
            }
            return None;
        }
        let expected = self.expected?;
        if expected < start && fetched_before.is_some_and(|next| next >= start) {
            self.expected = Some(start);
            return Some((expected, start));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_were_deleted_unread_are_said_once_and_other_gaps_never() {
        let mut position = Position::starting(Some(5));
        assert_eq!(position.received(9), None);
        assert_eq!(position.log_starts(8, None), Some((5, 8)), "8 is a gap");
        assert_eq!(position.log_starts(8, Some(10)), None);
        // A compacted record, and a mark of a transaction.
        assert_eq!(position.received(12), None);
        for _ in 0..4 {
            assert_eq!(position.log_starts(8, Some(13)), None);
        }
        // Everything that was left is deleted, and nothing new came.
        assert_eq!(position.log_starts(20, Some(13)), None, "not reset yet");
        assert_eq!(position.log_starts(20, None), None, "records are coming");
        assert_eq!(position.log_starts(20, Some(20)), Some((13, 20)));
        assert_eq!(position.received(20), None);
        assert_eq!(position.log_starts(20, Some(21)), None);
    }

    #[test]
    fn a_partition_that_begins_again_is_noticed_and_a_first_record_never() {
        let mut position = Position::default();
        assert_eq!(position.received(100), None);
        assert_eq!(position.log_starts(90, Some(101)), None);
        assert_eq!(position.received(0), Some(101));
        assert_eq!(position.received(1), None);
        assert!(position.is_all_done(Some(2)) && !position.is_all_done(None));
        assert!(Position::starting(Some(7)).is_all_done(None));
    }
}
