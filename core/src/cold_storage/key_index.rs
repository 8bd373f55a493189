//! The keys of a segment in memory until its commit, which looks up concurrent changes in them.

use bytes::Bytes;

/// Row keys in ascending order, in one allocation.
#[derive(Clone, Debug, Default)]
pub struct KeyIndex {
    bytes: Vec<u8>,
    /// The end of each key.
    ends: Vec<usize>,
}

impl KeyIndex {
    /// Adds keys, each greater than the one before.
    pub fn extend<'a>(&mut self, keys: impl IntoIterator<Item = &'a Bytes>) {
        for key in keys {
            debug_assert!(self.last().is_none_or(|last| last < &**key), "keys come in ascending order");
            self.bytes.extend_from_slice(key);
            self.ends.push(self.bytes.len());
        }
    }

    /// Returns the memory that the index takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.ends.len() * size_of::<usize>()
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the key at a position.
    pub fn get(&self, position: usize) -> Option<&[u8]> {
        let end = *self.ends.get(position)?;
        let start = match position {
            0 => 0,
            _ => *self.ends.get(position - 1)?,
        };
        self.bytes.get(start..end)
    }

    /// Returns the lowest key.
    pub fn first(&self) -> Option<&[u8]> {
        self.get(0)
    }

    /// Returns the highest key.
    pub fn last(&self) -> Option<&[u8]> {
        self.get(self.len().checked_sub(1)?)
    }

    /// Returns all keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|position| self.get(position))
    }

    /// Returns the position of a key.
    pub fn position(&self, key: &[u8]) -> Option<u32> {
        let position = self.partition_point(|stored| stored < key);
        (self.get(position)? == key).then(|| u32::try_from(position).ok()).flatten()
    }

    /// Returns the first position whose key fails `is_before`, which must hold for a prefix of the keys.
    pub fn partition_point(&self, is_before: impl Fn(&[u8]) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle).is_some_and(&is_before) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_at_their_positions() {
        let keys: Vec<Bytes> =
            (0..100_u32).map(|key| Bytes::from((key * 2).to_be_bytes().to_vec())).collect();
        let mut index = KeyIndex::default();
        index.extend(&keys);
        for (position, key) in keys.iter().enumerate() {
            assert_eq!(index.position(key), u32::try_from(position).ok());
        }
        for missing in [1_u32, 99, 199, 500] {
            assert_eq!(index.position(&missing.to_be_bytes()), None);
        }
        assert_eq!(index.position(b""), None);
        assert_eq!(KeyIndex::default().position(b"x"), None);
    }
}
