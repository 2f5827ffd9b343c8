//! Tables of an image in memory, in slices, with the least recently used ones given up.

use std::collections::HashMap;

/// A piece of a table.
pub(super) struct Slice {
    pub(super) data: Box<[u8]>,
    /// Which contents these are; no two of a cache have the same.
    pub(super) version: u64,
    /// The version that is in the file.
    pub(super) written: u64,
    used: u64,
}

impl Slice {
    pub(super) fn dirty(&self) -> bool {
        self.version != self.written
    }
}

/// Slices by their offset in the file.
pub(super) struct Cache {
    slices: HashMap<u64, Slice>,
    slice_len: usize,
    capacity: usize,
    clock: u64,
    /// The offsets of dirty slices; those that were cleaned meanwhile stay until they are taken.
    dirty: Vec<u64>,
}

impl Cache {
    /// Room for `bytes` in slices of `slice_len`.
    pub(super) fn new(slice_len: usize, bytes: usize) -> Self {
        Self {
            slices: HashMap::new(),
            slice_len,
            capacity: (bytes / slice_len).max(4),
            clock: 0,
            dirty: Vec::new(),
        }
    }

    pub(super) fn slice_len(&self) -> usize {
        self.slice_len
    }

    pub(super) fn get(&mut self, offset: u64) -> Option<&Slice> {
        self.clock += 1;
        let slice = self.slices.get_mut(&offset)?;
        slice.used = self.clock;
        Some(slice)
    }

    /// Changes a slice that is there.
    pub(super) fn change<T>(
        &mut self,
        offset: u64,
        change: impl FnOnce(&mut [u8]) -> T,
    ) -> Option<T> {
        self.clock += 1;
        let slice = self.slices.get_mut(&offset)?;
        slice.used = self.clock;
        if !slice.dirty() {
            self.dirty.push(offset);
        }
        slice.version = self.clock;
        Some(change(&mut slice.data))
    }

    /// Puts in a slice as it is in the file. There is room, by [`Cache::make_room`].
    pub(super) fn insert(&mut self, offset: u64, data: Box<[u8]>) {
        self.clock += 1;
        self.slices.insert(
            offset,
            Slice { data, version: self.clock, written: self.clock, used: self.clock },
        );
    }

    /// Gives up clean slices, a part of all at once; `false`: all are dirty.
    pub(super) fn make_room(&mut self) -> bool {
        if self.slices.len() < self.capacity {
            return true;
        }
        let mut ages: Vec<_> =
            self.slices.values().filter(|slice| !slice.dirty()).map(|slice| slice.used).collect();
        if ages.is_empty() {
            return false;
        }
        let part = (ages.len() / 4).min(ages.len() - 1);
        let (_, limit, _) = ages.select_nth_unstable(part);
        let limit = *limit;
        self.slices.retain(|_, slice| slice.dirty() || slice.used > limit);
        true
    }

    /// The offsets of dirty slices, ascending. Whoever takes them writes them.
    pub(super) fn take_dirty(&mut self) -> Vec<u64> {
        let mut offsets = std::mem::take(&mut self.dirty);
        offsets.sort_unstable();
        offsets.dedup();
        offsets.retain(|offset| self.slices.get(offset).is_some_and(Slice::dirty));
        offsets
    }

    /// What could not be written stays dirty.
    pub(super) fn put_back_dirty(&mut self, offsets: &[u64]) {
        self.dirty.extend_from_slice(offsets);
    }

    /// A slice without taking note of its use.
    pub(super) fn peek(&self, offset: u64) -> Option<&Slice> {
        self.slices.get(&offset)
    }

    /// `version` of a slice is in the file.
    pub(super) fn wrote(&mut self, offset: u64, version: u64) {
        if let Some(slice) = self.slices.get_mut(&offset) {
            slice.written = slice.written.max(version);
            if slice.dirty() {
                self.dirty.push(offset);
            }
        }
    }

    /// Forgets slices in a range of the file.
    pub(super) fn forget(&mut self, offset: u64, len: u64) {
        let mut at = offset;
        while at < offset + len {
            self.slices.remove(&at);
            at += self.slice_len as u64;
        }
    }

    /// Whether any slice of a range is here.
    pub(super) fn holds(&self, offset: u64, len: u64) -> bool {
        let mut at = offset;
        while at < offset + len {
            if self.slices.contains_key(&at) {
                return true;
            }
            at += self.slice_len as u64;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_clean_slices_make_room() {
        let mut cache = Cache::new(16, 64);
        for n in 0..4 {
            assert!(cache.make_room());
            cache.insert(n * 16, vec![n as u8; 16].into());
        }
        cache.change(0, |data| data[0] = 9);
        let version = cache.peek(0).unwrap().version;
        cache.get(16);
        assert!(cache.make_room());
        assert!(cache.peek(32).is_none() && cache.peek(16).is_some());
        assert_eq!(cache.take_dirty(), [0]);
        assert!(cache.peek(0).unwrap().dirty());
        cache.wrote(0, version);
        assert!(!cache.peek(0).unwrap().dirty());
    }

    #[test]
    fn a_change_during_a_write_keeps_the_slice_dirty() {
        let mut cache = Cache::new(16, 64);
        cache.insert(0, vec![0; 16].into());
        cache.change(0, |data| data[0] = 1);
        let first = cache.peek(0).unwrap().version;
        assert_eq!(cache.take_dirty(), [0]);
        cache.change(0, |data| data[0] = 2);
        let second = cache.peek(0).unwrap().version;
        cache.wrote(0, first);
        assert_eq!(cache.take_dirty(), [0]);
        cache.wrote(0, second);
        assert_eq!(cache.take_dirty(), [0; 0]);
    }
}
