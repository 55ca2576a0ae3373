//! A bounded cache that forgets what was not asked for lately.
//!
//! Entries live in two generations. What is used moves to the young one; when that holds half of
//! the bound, the old generation is dropped and the young one takes its place.

use std::collections::HashMap;
use std::hash::Hash;

pub(crate) struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    young_weight: usize,
    weight_max: usize,
    weigh: fn(&V) -> usize,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// A cache of at most `weight_max` as `weigh` measures, or of one entry in each generation
    /// where entries are heavier.
    pub(crate) fn new(weight_max: usize, weigh: fn(&V) -> usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_weight: 0, weight_max, weigh }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let weight = (self.weigh)(&value);
        if self.young_weight + weight > self.weight_max / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_weight = 0;
        }
        if self.young.insert(key, value).is_none() {
            self.young_weight += weight;
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(value) = self.young.remove(key) {
            self.young_weight -= (self.weigh)(&value);
        }
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_bounded() {
        let mut cache = Cache::new(10, |_: &u32| 1);
        for key in 0..100 {
            cache.insert(key, key);
            assert_eq!(cache.get(&0), Some(0), "used after every insertion");
            assert!(cache.young.len() + cache.old.len() <= 10);
        }
        assert_eq!(cache.get(&50), None);
        assert_eq!(cache.get(&99), Some(99));
    }
}
