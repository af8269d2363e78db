//! A bounded map of what was seen recently: verified tokens, unknown `kid`s, failed attempts of addresses, policy rows of users.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// A map that, once full, drops entries that were not used for a while.
///
/// It has two generations of half the capacity each. An entry that is read or written moves to the newer one; when that is full, the older one is
/// dropped as a whole. Every operation is O(1).
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    half: usize,
    newer: HashMap<K, V>,
    older: HashMap<K, V>,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// Makes an empty map of at most `capacity` entries.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            half: (capacity / 2).max(1),
            newer: HashMap::new(),
            older: HashMap::new(),
        }
    }

    pub(super) fn get<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if !self.newer.contains_key(key) {
            let (key, value) = self.older.remove_entry(key)?;
            self.insert(key, value);
        }
        self.newer.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.older.remove(&key);
        if self.newer.len() >= self.half && !self.newer.contains_key(&key) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(key, value);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.newer.len() + self.older.len()
    }

    pub(super) fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.newer.remove(key).is_none() {
            self.older.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_holds_more_than_its_capacity_and_keeps_what_is_used() {
        let mut recent = Recent::new(100);
        recent.insert("used".to_owned(), 0);
        for n in 0..10_000 {
            recent.insert(n.to_string(), n);
            assert!(recent.len() <= 100);
            assert_eq!(recent.get("used"), Some(&mut 0));
        }
        assert_eq!(recent.get("0"), None);
        assert_eq!(recent.get("9999"), Some(&mut 9999));
    }

    #[test]
    fn a_removed_entry_is_gone_from_both_generations() {
        let mut recent = Recent::new(2);
        recent.insert(1, 'a');
        recent.insert(2, 'b');
        for key in [1, 2] {
            recent.remove(&key);
            assert_eq!(recent.get(&key), None);
        }
    }
}
