//! Memory that a transfer reads from or writes to: guest RAM in pieces, or a buffer of ours.
//!
//! Guest RAM is written by vCPUs at any time, so no Rust reference to it is ever made: it is handed
//! to the kernel, or copied byte by byte, through raw pointers.

use std::marker::PhantomData;

use board::GuestRam;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    /// The first address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
}

/// Pieces of memory in order, as the kernel's vectored calls take them.
#[derive(Clone, Debug)]
struct Pieces {
    list: Vec<libc::iovec>,
    len: usize,
}

impl Pieces {
    fn one(start: *const u8, len: usize) -> Self {
        Self { list: vec![libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len }], len }
    }

    fn slice(&self, at: usize, len: usize) -> Self {
        debug_assert!(at + len <= self.len);
        let (mut skip, mut left) = (at, len);
        let mut list = Vec::with_capacity(self.list.len());
        for piece in &self.list {
            if left == 0 {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let take = (piece.iov_len - skip).min(left);
            // SAFETY: `skip` lies inside the piece.
            let start = unsafe { piece.iov_base.cast::<u8>().add(skip) };
            list.push(libc::iovec { iov_base: start.cast(), iov_len: take });
            left -= take;
            skip = 0;
        }
        Self { list, len }
    }

    /// Whether all addresses and lengths are multiples of `align`, a power of two.
    fn is_aligned(&self, align: usize) -> bool {
        self.list.iter().all(|piece| (piece.iov_base as usize | piece.iov_len) & (align - 1) == 0)
    }
}

/// Memory that data is taken from.
#[derive(Clone, Debug)]
pub struct Source<'a>(Pieces, PhantomData<&'a [u8]>);

/// Memory that data is put into.
#[derive(Clone, Debug)]
pub struct Target<'a>(Pieces, PhantomData<&'a mut [u8]>);

// SAFETY: the pieces point to memory that is borrowed for 'a, or to guest RAM, which lives as long
// as its `GuestRam`; both may be used from any thread.
unsafe impl Send for Source<'_> {}
// SAFETY: as above; sharing a `Source` only reads.
unsafe impl Sync for Source<'_> {}
// SAFETY: as for `Source`.
unsafe impl Send for Target<'_> {}
// SAFETY: writes go through raw pointers or the kernel; a `Target` is used by one request at a time.
unsafe impl Sync for Target<'_> {}

impl<'a> Source<'a> {
    /// A buffer.
    pub fn new(data: &'a [u8]) -> Self {
        Self(Pieces::one(data.as_ptr(), data.len()), PhantomData)
    }

    /// Ranges of guest RAM; `None` when any of it is no RAM.
    pub fn guest(ram: &'a GuestRam, ranges: &[GuestRange]) -> Option<Self> {
        Some(Self(guest_pieces(ram, ranges)?, PhantomData))
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// `len` bytes from `at` on, which must lie inside.
    pub fn slice(&self, at: usize, len: usize) -> Source<'a> {
        Self(self.0.slice(at, len), PhantomData)
    }

    /// These, then those of `other`.
    pub fn chain(mut self, other: &Source<'a>) -> Source<'a> {
        self.0.list.extend_from_slice(&other.0.list);
        self.0.len += other.0.len;
        self
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        let mut chunk = [0; 4096];
        let mut at = 0;
        while at < self.len() {
            let count = (self.len() - at).min(chunk.len());
            self.slice(at, count).copy_to(&mut chunk);
            if chunk[..count].iter().any(|byte| *byte != 0) {
                return false;
            }
            at += count;
        }
        true
    }

    /// Copies all of it to the start of `data`, which is at least as long.
    pub fn copy_to(&self, data: &mut [u8]) {
        assert!(data.len() >= self.0.len);
        let mut at = data.as_mut_ptr();
        for piece in &self.0.list {
            // SAFETY: `data` has room for the sum of the pieces; a piece is readable memory, which
            // does not overlap the exclusively borrowed `data`.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.iov_base.cast::<u8>(), at, piece.iov_len);
                at = at.add(piece.iov_len);
            }
        }
    }

    /// The pieces for the kernel.
    pub fn pieces(&self) -> &[libc::iovec] {
        &self.0.list
    }

    pub(super) fn is_aligned(&self, align: usize) -> bool {
        self.0.is_aligned(align)
    }
}

impl<'a> Target<'a> {
    /// A buffer.
    pub fn new(data: &'a mut [u8]) -> Self {
        Self(Pieces::one(data.as_mut_ptr(), data.len()), PhantomData)
    }

    /// Ranges of guest RAM; `None` when any of it is no RAM. Whoever writes to it calls
    /// [`mark_written`] then.
    pub fn guest(ram: &'a GuestRam, ranges: &[GuestRange]) -> Option<Self> {
        Some(Self(guest_pieces(ram, ranges)?, PhantomData))
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// `len` bytes from `at` on, which must lie inside.
    pub fn slice(&self, at: usize, len: usize) -> Target<'a> {
        Self(self.0.slice(at, len), PhantomData)
    }

    /// Copies `data`, which is as long.
    pub fn copy_from(&self, data: &[u8]) {
        assert!(data.len() >= self.0.len);
        let mut at = data.as_ptr();
        for piece in &self.0.list {
            // SAFETY: the pieces sum up to at most `data`; a piece is writable memory that `data`,
            // a buffer of ours, does not overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(at, piece.iov_base.cast::<u8>(), piece.iov_len);
                at = at.add(piece.iov_len);
            }
        }
    }

    /// Fills it with zeros.
    pub fn zero(&self) {
        for piece in &self.0.list {
            // SAFETY: a piece is writable memory.
            unsafe { std::ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) };
        }
    }

    /// The pieces for the kernel.
    pub fn pieces(&self) -> &[libc::iovec] {
        &self.0.list
    }

    pub(super) fn is_aligned(&self, align: usize) -> bool {
        self.0.is_aligned(align)
    }
}

fn guest_pieces(ram: &GuestRam, ranges: &[GuestRange]) -> Option<Pieces> {
    let mut pieces = Pieces { list: Vec::with_capacity(ranges.len()), len: 0 };
    for range in ranges {
        if !ram.contains(range.gpa, range.len.into()) {
            return None;
        }
        for slice in ram.map().get_slices(GuestAddress(range.gpa), range.len as usize) {
            let guard = slice.ok()?.ptr_guard_mut();
            // The RAM stays mapped as long as its `GuestRam`, which is borrowed.
            pieces.list.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
            pieces.len += guard.len();
        }
    }
    Some(pieces)
}

/// Notes that the first `len` bytes of `ranges` have been written: for the dirty log and for CPUs
/// that hold decoded code.
pub fn mark_written(ram: &GuestRam, ranges: &[GuestRange], len: usize) {
    let mut left = len;
    for range in ranges {
        let count = left.min(range.len as usize);
        for slice in ram.map().get_slices(GuestAddress(range.gpa), count).flatten() {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        left -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_and_joined_where_asked() {
        let (a, b) = (*b"abcdef", *b"ghi");
        let source = Source::new(&a).chain(&Source::new(&b));
        let mut out = [0; 5];
        source.slice(4, 5).copy_to(&mut out);
        assert_eq!(&out, b"efghi");
        assert_eq!(source.slice(6, 3).pieces().len(), 1);
        assert_eq!(source.slice(9, 0).len(), 0);
    }

    #[test]
    fn guest_ranges_are_checked_and_marked() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let range = |gpa, len| GuestRange { gpa, len };
        assert!(Target::guest(&ram, &[range(0, 16), range((1 << 20) - 8, 9)]).is_none());
        assert!(Target::guest(&ram, &[range(u64::MAX - 3, 16)]).is_none());
        let ranges = [range(0x1FFE, 2), range(0x5000, 0x1000)];
        ram.log_dirty(true);
        let target = Target::guest(&ram, &ranges).unwrap();
        target.copy_from(&[7; 0x1002]);
        mark_written(&ram, &ranges, 3);
        let mut data = [0; 1];
        ram.read(0x5FFF, &mut data).unwrap();
        assert_eq!(data, [7]);
        assert_eq!(ram.take_dirty()[0][0], 0b10_0010);
    }
}
