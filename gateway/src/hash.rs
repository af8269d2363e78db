//! Hash tables whose keys somebody else chooses: clients choose names of rooms, issuers users, emitters both, and producers the ids of events.
//!
//! Each process draws a seed from the system and each table another one, so nobody outside knows which names fall together. Hashing costs a few
//! nanoseconds, which SipHash does not match.

use std::hash::BuildHasher;
use std::sync::LazyLock;

use foldhash::SharedSeed;
use foldhash::fast::{FoldHasher, SeedableRandomState};
use rand::Rng;

/// A hash map with a secret seed.
pub type HashMap<K, V> = hashbrown::HashMap<K, V, Seeded>;
/// A hash set with a secret seed.
pub type HashSet<K> = hashbrown::HashSet<K, Seeded>;

/// foldhash's own seed comes from addresses and the time.
static PROCESS: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(rand::rng().random()));

/// Hashes with a secret seed.
#[derive(Clone)]
pub struct Seeded(SeedableRandomState);

impl Default for Seeded {
    fn default() -> Self {
        Self(SeedableRandomState::with_seed(
            rand::rng().random(),
            &PROCESS,
        ))
    }
}

impl BuildHasher for Seeded {
    type Hasher = FoldHasher<'static>;

    #[inline]
    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

impl std::fmt::Debug for Seeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seeded(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet as Distinct;

    /// Names whose hashes share their lowest bits without a seed: they fall into one bucket of a table of 4096.
    fn chosen() -> Vec<String> {
        let unseeded = rustc_hash::FxBuildHasher;
        (0..2_000_000)
            .map(|n| format!("room-{n}"))
            .filter(|name| unseeded.hash_one(name.as_str()) & 0xFFF == 0x123)
            .take(300)
            .collect()
    }

    #[test]
    fn names_that_were_chosen_to_fall_together_do_not() {
        let (names, seeded) = (chosen(), Seeded::default());
        assert_eq!(names.len(), 300);
        let buckets: Distinct<u64> = names
            .iter()
            .map(|name| seeded.hash_one(name.as_str()) & 0xFFF)
            .collect();
        // 300 random buckets of 4096 are 289 distinct ones on average, and fewer than 250 practically never.
        assert!(buckets.len() > 250, "{} buckets", buckets.len());
    }

    #[test]
    fn each_table_has_a_seed_of_its_own() {
        let (one, other) = (Seeded::default(), Seeded::default());
        let same = chosen()
            .iter()
            .filter(|name| one.hash_one(name.as_str()) == other.hash_one(name.as_str()))
            .count();
        assert_eq!(same, 0);
        assert_eq!(one.hash_one("a"), one.clone().hash_one("a"));
    }
}
