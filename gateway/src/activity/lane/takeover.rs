//! The first transactions of a partition that was just assigned. Whoever had it before may have died after it stored rows and before it pushed them: they
//! are found stored already, and their recipients get `resync` (protocol.md 9.5).
//!
//! For how long: a lane begins at the committed offset, and stores in order, so what the one before stored and did not commit lies at the beginning, in one
//! stretch: the work of 100 ms as a rule, and of a session timeout where only the coordinator of the group was away (45 s at 24,000 rows a second are a
//! thousand transactions of a thousand records). It is over when transactions find nothing stored already. Later ones tell nobody: an event that a
//! producer repeats was pushed when it came first. A topic that is read again from its start is one long stretch, so it has an end too, and nobody is told
//! twice.

use std::collections::{BTreeSet, HashSet};

/// So many transactions in a row with nothing stored already end it: with one record each, a repeated event and a new one may take turns.
const NEW_IN_A_ROW: u32 = 3;
/// Most transactions.
const MOST: u32 = 1000;
/// Most recipients that are remembered as told; with more, some are told again.
const MOST_TOLD: usize = 10_000;

/// What a lane knows about its partition's last owner.
#[derive(Debug, Default)]
pub(in crate::activity) struct Takeover {
    transactions: u32,
    new_in_a_row: u32,
    told: HashSet<Box<str>>,
}

impl Takeover {
    /// Whether rows that were stored already may be another owner's.
    pub(super) fn is_open(&self) -> bool {
        self.new_in_a_row < NEW_IN_A_ROW && self.transactions < MOST
    }

    /// Takes the recipients of rows that a transaction found stored already, and returns whom to tell.
    pub(super) fn tell<'r>(&mut self, found: BTreeSet<&'r str>) -> BTreeSet<&'r str> {
        self.transactions += 1;
        self.new_in_a_row = if found.is_empty() {
            self.new_in_a_row + 1
        } else {
            0
        };
        if self.told.len() + found.len() > MOST_TOLD {
            self.told.clear();
        }
        let untold = found
            .into_iter()
            .filter(|recipient| self.told.insert((*recipient).into()))
            .collect();
        if !self.is_open() {
            self.told = HashSet::new();
        }
        untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(recipients: &[&'static str]) -> BTreeSet<&'static str> {
        recipients.iter().copied().collect()
    }

    /// protocol.md 9.5.
    #[test]
    fn recipients_of_what_the_last_owner_stored_are_told_once_until_all_is_new() {
        let mut takeover = Takeover::default();
        assert_eq!(takeover.tell(found(&["17", "18"])), found(&["17", "18"]));
        assert_eq!(takeover.tell(found(&["18", "19"])), found(&["19"]));
        takeover.tell(found(&[]));
        takeover.tell(found(&[]));
        assert_eq!(takeover.tell(found(&["20"])), found(&["20"]));
        assert!(takeover.is_open());
        for _ in 0..NEW_IN_A_ROW {
            assert!(takeover.is_open());
            takeover.tell(found(&[]));
        }
        assert!(!takeover.is_open() && takeover.told.is_empty());
    }

    #[test]
    fn a_topic_that_is_read_again_from_its_start_tells_for_a_bounded_time() {
        let mut takeover = Takeover::default();
        let (mut transactions, mut told) = (0, 0);
        while takeover.is_open() {
            transactions += 1;
            told += takeover.tell(found(&["17"])).len();
        }
        assert_eq!((transactions, told), (MOST, 1));
    }
}
