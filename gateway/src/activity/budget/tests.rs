//! Fairness and accounting, with lanes that are numbers.

use super::*;
use crate::activity::testing;

const MIB: usize = 1 << 20;
/// No bound by number.
const ANY: usize = usize::MAX;

/// A record that counts as this many bytes.
fn record(bytes: usize) -> Record {
    let mut record = testing::record("");
    record.value = Some(vec![b'x'; bytes.saturating_sub(record.size())]);
    record
}

/// Queues records of 2 KB, one for each partition in turn, until all of them are full; returns how many each has.
fn fill(shares: &[Arc<Share>]) -> Vec<usize> {
    let record = record(2048);
    let mut counts = vec![0; shares.len()];
    loop {
        let mut is_any_open = false;
        for (share, count) in shares.iter().zip(&mut counts) {
            if !share.is_full(ANY) {
                share.queue(&record);
                *count += 1;
                is_any_open = true;
            }
        }
        if !is_any_open {
            return counts;
        }
    }
}

#[test]
fn a_hundred_partitions_that_are_behind_hold_the_same_and_together_no_more_than_the_budget() {
    let budget = Budget::new(64 * MIB, 8);
    let shares: Vec<_> = (0..100).map(|_| budget.share()).collect();
    let counts = fill(&shares);
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 1, "{least} to {most}");
    assert!(*least >= 190, "40 MiB in 101 parts: {least}");
    assert!(budget.in_use() <= 40 * MIB, "{}", budget.in_use());
    assert!(budget.in_use() >= 38 * MIB, "{}", budget.in_use());
}

#[test]
fn one_partition_alone_takes_half_and_one_that_comes_later_still_finds_room() {
    let budget = Budget::new(64 * MIB, 8);
    let greedy = budget.share();
    let alone = fill(std::slice::from_ref(&greedy))[0] * 2048;
    assert!((19 * MIB..=21 * MIB).contains(&alone), "{alone}");
    let late = budget.share();
    let found = fill(std::slice::from_ref(&late))[0] * 2048;
    assert!((9 * MIB..=11 * MIB).contains(&found), "{found}");
    assert!(greedy.is_full(ANY) && !greedy.has_room(ANY));
}

#[test]
fn every_partition_has_a_small_share_even_where_others_hold_everything() {
    let budget = Budget::new(16 * MIB, 8);
    let shares: Vec<_> = (0..1000).map(|_| budget.share()).collect();
    for share in &shares[..10] {
        share.queue(&record(2 * MIB));
    }
    assert!(budget.in_use() >= 20 * MIB, "more than there is");
    let least = 10 * MIB / 4 / 1000;
    for share in &shares[10..] {
        assert!(!share.is_full(ANY), "nothing is held: a record passes");
        share.queue(&record(least - 200));
        assert!(!share.is_full(ANY), "below the least share");
        share.queue(&record(400));
        assert!(share.is_full(ANY));
    }
}

#[test]
fn a_record_larger_than_any_share_passes_alone() {
    let budget = Budget::new(16 * MIB, 8);
    let (share, other) = (budget.share(), budget.share());
    let huge = record(100 * MIB);
    assert!(!share.is_full(ANY));
    share.queue(&huge);
    assert!(share.is_full(ANY) && !share.has_room(ANY));
    assert!(!other.is_full(ANY), "and the others go on");
    let mut hand = RecordsInHand::new(share.clone());
    hand.take(&huge);
    assert!(hand.bytes() >= share.batch_bytes(), "the batch is full");
    drop(hand);
    assert!(share.has_room(ANY));
    assert_eq!(budget.in_use(), 0);
}

#[test]
fn records_that_wait_are_bounded_by_number_too() {
    let budget = Budget::new(64 * MIB, 8);
    let share = budget.share();
    for _ in 0..4 {
        assert!(!share.is_full(4));
        share.queue(&record(200));
    }
    assert!(share.is_full(4) && !share.has_room(4));
    let mut hand = RecordsInHand::new(share.clone());
    for _ in 0..2 {
        hand.take(&record(200));
    }
    assert!(!share.has_room(4), "two wait, which is half");
    hand.take(&record(200));
    assert!(share.has_room(4));
}

#[test]
fn what_is_made_of_records_counts_until_they_are_done() {
    let budget = Budget::new(64 * MIB, 8);
    let share = budget.share();
    let one = record(1000);
    for _ in 0..3 {
        share.queue(&one);
    }
    let mut hand = RecordsInHand::new(share.clone());
    for _ in 0..3 {
        hand.take(&one);
    }
    assert_eq!((hand.bytes(), budget.in_use()), (6000, 6000));
    hand.put_back(&one);
    hand.set_made(500);
    assert_eq!((hand.bytes(), budget.in_use()), (2500, 3500));
    let work = budget.work(10_000);
    assert_eq!(budget.in_use(), 13_500);
    drop((work, hand));
    assert_eq!(budget.in_use(), 1000, "the one that waits again");
    drop(share);
    assert_eq!(budget.in_use(), 0, "its partition was given up");
}

#[test]
fn a_partition_that_was_given_up_leaves_its_part_to_the_others() {
    let budget = Budget::new(64 * MIB, 8);
    let shares: Vec<_> = (0..10).map(|_| budget.share()).collect();
    fill(&shares);
    let mut shares = shares.into_iter();
    let last = shares.next().unwrap();
    assert!(last.is_full(ANY));
    drop(shares);
    assert!(last.has_room(ANY));
}

#[test]
fn the_parts_of_the_budget_are_the_whole() {
    for bytes in [16 * MIB, 64 * MIB, 128 * MIB, 1024 * MIB] {
        let budget = Budget::new(bytes, 8);
        let parts = budget.for_lanes + 8 * budget.transaction + prefetch_bytes(bytes);
        assert!(parts <= bytes && bytes - parts < 8, "{parts} of {bytes}");
    }
}
