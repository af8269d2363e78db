//! The public id of a notification: made of the numbers that its row has, and read back as the `seq` to look at. No column holds it, and no index.
//!
//! | bits, highest first | most rows | inboxes of more |
//! |---|---|---|
//! | which of the two | 0 | 1 |
//! | low bits of the number of the text | 21 | 7 |
//! | number of the inbox | 26 | 31 |
//! | `seq` | 22 | 31 |
//!
//! Inbox and `seq` make it unique. After the database went back in time they are given again; the number of a text is drawn at random, so an id that a
//! client knows from before names nothing. Whoever looks for an id compares it with the one of the row that has its `seq`.

use crate::id::Id;

/// How many bits each part has.
struct Layout {
    is_wide: bool,
    text: u32,
    inbox: u32,
    seq: u32,
}

const MOST: Layout = Layout {
    is_wide: false,
    text: 21,
    inbox: 26,
    seq: 22,
};
const WIDE: Layout = Layout {
    is_wide: true,
    text: 7,
    inbox: 31,
    seq: 31,
};
/// All bits of an id.
const BITS: u32 = 70;

/// Makes the id of a row. The numbers are not negative.
pub(super) fn row_id(inbox: i64, seq: i64, text: i64) -> Id {
    let layout = if inbox >> MOST.inbox == 0 && seq >> MOST.seq == 0 {
        MOST
    } else {
        WIDE
    };
    let low = |number: i64, bits: u32| u128::from(number as u64) & ((1 << bits) - 1);
    let number = u128::from(layout.is_wide);
    let number = number << layout.text | low(text, layout.text);
    let number = number << layout.inbox | low(inbox, layout.inbox);
    Id::from_number(number << layout.seq | low(seq, layout.seq))
}

/// The `seq` of the row that may have this id; `None` if no row has.
pub(super) fn seq_of(id: Id) -> Option<i64> {
    let number = id.number();
    if number >> BITS != 0 {
        return None;
    }
    let layout = if number >> (BITS - 1) == 0 {
        MOST
    } else {
        WIDE
    };
    Some((number & ((1 << layout.seq) - 1)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// protocol.md 11.7.
    #[test]
    fn an_id_names_one_inbox_and_one_seq_and_reads_back() {
        let most = i64::from(i32::MAX);
        let numbers = [
            0,
            1,
            2,
            (1 << 22) - 1,
            1 << 22,
            (1 << 26) - 1,
            1 << 26,
            most,
        ];
        let mut ids = HashSet::new();
        for inbox in numbers {
            for seq in numbers {
                for text in [0, 1, most] {
                    let id = row_id(inbox, seq, text);
                    assert!(ids.insert(id), "{inbox} {seq} {text}");
                    assert_eq!(seq_of(id), Some(seq), "{inbox} {seq} {text}");
                    assert_eq!(id.as_str().parse(), Ok(id));
                    assert!(id.number() < 1 << BITS);
                }
            }
        }
    }

    #[test]
    fn a_number_that_no_row_can_have_names_none() {
        assert_eq!(seq_of("zzzzzzzzzzzz".parse().unwrap()), None);
        assert_eq!(seq_of(Id::from_number(1 << BITS)), None);
    }
}
