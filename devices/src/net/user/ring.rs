//! Bytes of a connection on their way, in a ring that is allocated when the first come.

/// A queue of bytes of a fixed capacity.
#[derive(Debug)]
pub(super) struct Ring {
    data: Box<[u8]>,
    capacity: usize,
    start: usize,
    len: usize,
}

impl Ring {
    /// An empty one for `capacity` bytes, at least 1.
    pub(super) fn new(capacity: usize) -> Self {
        Self { data: Box::default(), capacity, start: 0, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Room for more.
    pub(super) fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// The bytes from `offset` on, at most `len` of them, in two pieces.
    pub(super) fn get(&self, offset: usize, len: usize) -> [&[u8]; 2] {
        let len = len.min(self.len.saturating_sub(offset));
        if len == 0 {
            return [&[], &[]];
        }
        let start = (self.start + offset) % self.capacity;
        let first = len.min(self.capacity - start);
        [&self.data[start..start + first], &self.data[..len - first]]
    }

    /// The room behind the bytes, in two pieces; [`Ring::commit`] says how much was used.
    pub(super) fn space(&mut self) -> [&mut [u8]; 2] {
        if self.data.is_empty() {
            self.data = vec![0; self.capacity].into_boxed_slice();
        }
        if self.len == 0 {
            self.start = 0;
        }
        let end = self.start + self.len;
        if end >= self.capacity {
            let space = &mut self.data[end - self.capacity..self.start];
            return [space, &mut []];
        }
        let (low, high) = self.data.split_at_mut(end);
        [high, &mut low[..self.start]]
    }

    /// `len` bytes were put into the space.
    pub(super) fn commit(&mut self, len: usize) {
        self.len = (self.len + len).min(self.capacity);
    }

    /// Appends what there is room for; returns how much.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let [first, second] = self.space();
        let one = first.len().min(bytes.len());
        first[..one].copy_from_slice(&bytes[..one]);
        let two = second.len().min(bytes.len() - one);
        second[..two].copy_from_slice(&bytes[one..one + two]);
        self.commit(one + two);
        one + two
    }

    /// Drops bytes at the front.
    pub(super) fn consume(&mut self, len: usize) {
        let len = len.min(self.len);
        self.start = (self.start + len) % self.capacity;
        self.len -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut ring = Ring::new(7);
        let (mut sent, mut got) = (0_u8, 0_u8);
        for step in 0..200 {
            let bytes: Vec<u8> = (0..step % 5).map(|n| sent.wrapping_add(n)).collect();
            let before = ring.room();
            let taken = ring.push(&bytes);
            assert_eq!(taken, bytes.len().min(before));
            sent = sent.wrapping_add(taken as u8);
            let offset = ring.len() / 2;
            let [first, second] = ring.get(offset, 3);
            let seen: Vec<u8> = first.iter().chain(second).copied().collect();
            for (at, byte) in seen.iter().enumerate() {
                assert_eq!(*byte, got.wrapping_add((offset + at) as u8));
            }
            ring.consume(step as usize % 4);
            got = sent.wrapping_sub(ring.len() as u8);
        }
    }
}
