//! A bounded queue of bytes between a side that must not wait and one that may be slow.

use std::collections::VecDeque;

/// Bytes in the order in which they came, at most `limit` by [`Buffer::push`].
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Buffer {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: VecDeque::new(), limit }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// How many bytes `push` would take.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.bytes.len())
    }

    /// Takes bytes from the front of `data` up to the limit and returns how many.
    pub(super) fn push(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.room());
        self.bytes.extend(&data[..taken]);
        taken
    }

    /// Takes all of `data`, past the limit if need be: for few bytes that cannot wait.
    pub(super) fn push_all(&mut self, data: &[u8]) {
        self.bytes.extend(data);
    }

    /// The oldest bytes, as many as lie in one piece.
    pub(super) fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// Forgets the `n` oldest bytes.
    pub(super) fn consume(&mut self, n: usize) {
        self.bytes.drain(..n);
    }

    /// Moves bytes out to the front of `data` and returns how many.
    pub(super) fn take(&mut self, data: &mut [u8]) -> usize {
        let n = data.len().min(self.bytes.len());
        for (to, from) in data.iter_mut().zip(self.bytes.drain(..n)) {
            *to = from;
        }
        n
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_limit_hold() {
        let mut buffer = Buffer::new(4);
        assert_eq!(buffer.push(b"abc"), 3);
        assert_eq!(buffer.push(b"def"), 1);
        assert_eq!(buffer.room(), 0);
        let mut out = [0; 2];
        assert_eq!(buffer.take(&mut out), 2);
        assert_eq!(&out, b"ab");
        buffer.push_all(b"xyz");
        assert_eq!((buffer.len(), buffer.room()), (5, 0));
        let mut out = [0; 8];
        assert_eq!(buffer.take(&mut out), 5);
        assert_eq!(&out[..5], b"cdxyz");
    }
}
