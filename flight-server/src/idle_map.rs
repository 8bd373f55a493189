//! A map that forgets what nobody has used for long.
//!
//! Invariant: a full map drops its longest-idle entries and never one that was used just now.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A map that drops the longest-idle entries.
pub(crate) struct IdleMap<K, V> {
    /// The time of the last use, and the value.
    pub(crate) entries: HashMap<K, (Instant, V)>,
}

impl<K, V> Default for IdleMap<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Hash + Eq + Copy, V> IdleMap<K, V> {
    /// Returns a value, which counts as used now.
    pub(crate) fn touch(&mut self, key: &K) -> Option<&mut V> {
        let (used_at, value) = self.entries.get_mut(key)?;
        *used_at = Instant::now();
        Some(value)
    }

    /// Makes room, then inserts: drops entries idle for too long, then, if needed, the oldest tenth.
    pub(crate) fn insert(&mut self, key: K, value: V, entries_max: usize, idle_max: Duration) {
        if self.entries.len() >= entries_max {
            self.sweep(Instant::now(), idle_max);
        }
        if self.entries.len() >= entries_max {
            let mut ages: Vec<Instant> = self.entries.values().map(|(used_at, _)| *used_at).collect();
            let tenth = ages.len() / 10;
            let (_, cut, _) = ages.select_nth_unstable(tenth);
            let cut = *cut;
            self.entries.retain(|_, (used_at, _)| *used_at > cut);
        }
        self.entries.insert(key, (Instant::now(), value));
    }

    /// Drops entries that were not used for `idle_max` before `now`.
    pub(crate) fn sweep(&mut self, now: Instant, idle_max: Duration) {
        self.entries.retain(|_, (used_at, _)| now.saturating_duration_since(*used_at) <= idle_max);
    }

    /// Drops the longest-idle entry that `is_evictable`; returns whether there was one.
    pub(crate) fn evict_longest_idle(&mut self, is_evictable: impl Fn(&K, &V) -> bool) -> bool {
        let idle = self.entries.iter().filter(|(key, (_, value))| is_evictable(key, value));
        let oldest = idle.min_by_key(|(_, (used_at, _))| *used_at).map(|(key, _)| *key);
        oldest.is_some_and(|key| self.entries.remove(&key).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_forgets_the_idle_and_keeps_the_used() {
        let mut map = IdleMap::default();
        for key in 0..100_u32 {
            map.insert(key, (), 100, Duration::from_secs(60));
        }
        map.touch(&0);
        map.insert(100, (), 100, Duration::from_secs(60));
        assert!(map.entries.len() <= 100);
        assert!(map.entries.contains_key(&0));
        assert!(map.entries.contains_key(&100));
        assert!(!map.entries.contains_key(&1));
    }

    #[test]
    fn what_was_idle_too_long_goes_though_there_is_room() {
        let mut map = IdleMap::default();
        map.insert(1, (), 100, Duration::from_secs(60));
        let now = Instant::now();
        map.sweep(now + Duration::from_secs(59), Duration::from_secs(60));
        assert_eq!(map.entries.len(), 1);
        map.sweep(now + Duration::from_secs(61), Duration::from_secs(60));
        assert!(map.entries.is_empty());
    }
}
