//! Every record that was produced, and every row that it must become; no IO.
//!
//! Recipients are named by numbers (`u17`), so that the rows of one event are told by four sums, here and in SQL.

use std::collections::HashMap;

use rand::Rng;
use rand::seq::index;
use serde_json::{Value, json};

/// Users `u1` to this one have clients; merchants are made of them.
pub(crate) const CONNECTED: u64 = 24;
/// Users with numbers above this one are recipients without clients.
const CROWD_FROM: u64 = 1000;
/// How many of them there are.
const CROWD: u64 = 3000;
/// Members of merchant `m1` to this one.
pub(crate) const MERCHANTS: u64 = 6;

/// The members of a merchant.
pub(crate) fn members(merchant: u64) -> impl Iterator<Item = u64> {
    // Merchants overlap: each has six of the connected users.
    (0..6).map(move |n| (merchant * 4 + n) % CONNECTED + 1)
}

/// The rows of one event: how many, and three sums over the numbers of their recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Print {
    pub(crate) rows: i64,
    pub(crate) distinct: i64,
    pub(crate) sum: i64,
    pub(crate) squares: i64,
}

impl Print {
    fn of(recipients: &[u64]) -> Self {
        let number = |n: u64| i64::try_from(n).expect("small numbers");
        Self {
            rows: number(recipients.len() as u64),
            distinct: number(recipients.len() as u64),
            sum: recipients.iter().map(|n| number(*n)).sum(),
            squares: recipients.iter().map(|n| number(n * n)).sum(),
        }
    }
}

/// What is sent: key, value, and how often.
pub(crate) struct Made {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    /// A producer that does not know whether it was acknowledged sends twice.
    pub(crate) times: usize,
}

/// What was produced so far.
#[derive(Default)]
pub(crate) struct Ledger {
    events: HashMap<String, Print>,
    rows: i64,
    poison: Vec<String>,
    big: u64,
    repeated: u64,
    next: HashMap<u64, u64>,
}

impl Ledger {
    /// Makes the next record of a key and notes what it must become.
    pub(crate) fn make(&mut self, key: u64, random: &mut impl Rng) -> Made {
        if random.random_bool(0.03) {
            return self.make_poison(random);
        }
        let number = self.next.entry(key).or_default();
        *number += 1;
        let id = format!("{key}-{number}");
        let mut record = json!({
            "id": id, "type": "SOAK", "actorId": "17", "title": id, "content": "of the soak", "data": {"n": *number},
            "occurredAt": "2026-11-23T08:00:00Z",
        });
        let recipients: Vec<u64> = match random.random_range(0..1000) {
            0..2 => {
                self.big += 1;
                self.make_big(&mut record, random)
            }
            2..500 => {
                let merchant = random.random_range(1..=MERCHANTS);
                record["recipientType"] = "merchant".into();
                record["merchantId"] = format!("m{merchant}").into();
                members(merchant).collect()
            }
            _ => {
                let count = random.random_range(1..5);
                let chosen = index::sample(random, usize::try_from(CONNECTED).unwrap_or(1), count);
                name(&mut record, chosen.iter().map(|n| n as u64 + 1).collect())
            }
        };
        let print = Print::of(&recipients);
        self.rows += print.rows;
        self.events.insert(id, print);
        let times = if random.random_bool(0.02) { 2 } else { 1 };
        self.repeated += times as u64 - 1;
        Made {
            key: key.to_string(),
            value: record.to_string().into_bytes(),
            times,
        }
    }

    /// Hundreds of KB for more than a thousand people, one of them connected. The text repeats, so that the disk of the run stays small.
    fn make_big(&self, record: &mut Value, random: &mut impl Rng) -> Vec<u64> {
        let bytes = random.random_range(100_000..250_000);
        record["data"] = json!({"text": "0123456789".repeat(bytes / 10)});
        let first = random.random_range(0..CROWD / 2);
        let count = random.random_range(300..CROWD / 2);
        let crowd = (first..first + count).map(|n| CROWD_FROM + n);
        let connected = random.random_range(1..=CONNECTED);
        name(record, crowd.chain([connected]).collect())
    }

    fn make_poison(&mut self, random: &mut impl Rng) -> Made {
        let key = format!("poison-{}", self.poison.len());
        let value = match random.random_range(0..4) {
            0 => b"{\"type\": \"SOAK\", ".to_vec(),
            1 => br#"{"type": "SOAK", "title": "t", "content": "c", "recipientType": "moon"}"#.to_vec(),
            2 => br#"{"type": "SOAK", "title": "t", "content": "c", "recipientType": "users", "recipientIds": []}"#.to_vec(),
            _ => json!({"type": "SOAK", "title": "t".repeat(5000), "content": "c", "actorId": "u1"}).to_string().into_bytes(),
        };
        self.poison.push(key.clone());
        Made {
            key,
            value,
            times: 1,
        }
    }

    /// How many rows there must be.
    pub(crate) fn rows(&self) -> i64 {
        self.rows
    }

    /// How many events there must be.
    pub(crate) fn events(&self) -> usize {
        self.events.len()
    }

    /// Keys of records that must be dead letters.
    pub(crate) fn poison(&self) -> &[String] {
        &self.poison
    }

    /// Records of hundreds of KB, and records that were sent twice.
    pub(crate) fn big_and_repeated(&self) -> (u64, u64) {
        (self.big, self.repeated)
    }

    /// Compares the rows of the database with what they must be. Gives the lost events, and those that have more or other rows.
    pub(crate) fn compare(&self, stored: &HashMap<String, Print>) -> (Vec<String>, Vec<String>) {
        let (mut lost, mut doubled) = (Vec::new(), Vec::new());
        for (event, want) in &self.events {
            let got = stored.get(event).copied().unwrap_or_default();
            if got == *want {
                continue;
            }
            let text = format!("{event}: {got:?} in place of {want:?}");
            if got.rows < want.rows || got.distinct < want.distinct {
                lost.push(text);
            } else {
                doubled.push(text);
            }
        }
        let unknown = stored.keys().filter(|id| !self.events.contains_key(*id));
        doubled.extend(unknown.map(|id| format!("{id} was never produced")));
        (lost, doubled)
    }
}

fn name(record: &mut Value, recipients: Vec<u64>) -> Vec<u64> {
    record["recipientType"] = "users".into();
    record["recipientIds"] = recipients.iter().map(|n| format!("u{n}")).collect();
    recipients
}

/// The first event of a key that came after a later one, in the order of one recipient's inbox.
pub(crate) fn out_of_order(events: &[String]) -> Option<String> {
    let mut last: HashMap<&str, u64> = HashMap::new();
    for event in events {
        let (key, number) = event.split_once('-')?;
        let number = number.parse().ok()?;
        let before = last.insert(key, number).unwrap_or_default();
        if before >= number {
            return Some(format!("{event} came after {key}-{before}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_missing_a_doubled_and_an_exchanged_row_are_told_apart() {
        let mut random = StdRng::seed_from_u64(1);
        let mut ledger = Ledger::default();
        for _ in 0..100 {
            ledger.make(1, &mut random);
        }
        let good = ledger.events.clone();
        assert_eq!(ledger.compare(&good), (Vec::new(), Vec::new()));
        let with = |change: fn(&mut Print)| {
            let mut stored = good.clone();
            change(stored.get_mut("1-1").unwrap());
            ledger.compare(&stored)
        };
        assert_eq!(with(|print| *print = Print::default()).0.len(), 1);
        assert_eq!(with(|print| print.rows += 1).1.len(), 1);
        assert_eq!(with(|print| print.squares += 1).1.len(), 1, "exchanged");
        let mut more = good.clone();
        more.insert("9-9".into(), Print::default());
        assert_eq!(ledger.compare(&more).1.len(), 1);
    }

    #[test]
    fn order_is_that_of_each_key_by_itself() {
        let order = |events: &[&str]| {
            let events: Vec<String> = events.iter().map(|event| (*event).to_owned()).collect();
            out_of_order(&events)
        };
        assert_eq!(order(&["1-1", "2-1", "1-2", "2-5", "1-10"]), None);
        assert!(order(&["1-2", "2-1", "1-1"]).is_some());
        assert!(order(&["1-2", "1-2"]).is_some());
    }

    #[test]
    fn every_merchant_has_six_different_members() {
        for merchant in 1..=MERCHANTS {
            let all: std::collections::BTreeSet<u64> = members(merchant).collect();
            assert_eq!(all.len(), 6);
            assert!(all.iter().all(|user| (1..=CONNECTED).contains(user)));
        }
    }
}
