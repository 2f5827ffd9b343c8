//! Descriptor chains (Virtio 1.2, 2.7.5), walked once, checked, and from then on known to be good.

use std::fmt;

use board::GuestRam;
use board::memory::MarksSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

/// The most buffers in a chain: what readv and writev take (IOV_MAX).
pub const MAX_SEGMENTS: usize = 1024;

/// A descriptor's bytes.
const DESCRIPTOR: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What is wrong with a ring. The device needs a reset then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A part of a ring, or an indirect table, is not in RAM.
    RingNotRam,
    /// The available index is more than a queue's size ahead.
    AvailIndex,
    /// More buffers than the queue has descriptors are in flight.
    TooManyInFlight,
    /// A descriptor's index is beyond its table.
    DescriptorIndex,
    /// More descriptors than there are in the table: a loop.
    Loop,
    /// More than [`MAX_SEGMENTS`] buffers, or 4 GiB.
    TooLong,
    /// A buffer is not in RAM.
    BufferNotRam,
    /// A readable buffer comes after a writable one.
    Order,
    /// An indirect table without the feature, inside another one, with a successor, or of a size
    /// that is no multiple of a descriptor's.
    Indirect,
    /// The device cannot do with what a chain has: a header that is too short, say.
    Request(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RingNotRam => "a ring is not in RAM",
            Self::AvailIndex => "the available index is too far ahead",
            Self::TooManyInFlight => "more buffers in flight than the queue has descriptors",
            Self::DescriptorIndex => "a descriptor index beyond the table",
            Self::Loop => "a loop of descriptors",
            Self::TooLong => "a chain that is too long",
            Self::BufferNotRam => "a buffer that is not in RAM",
            Self::Order => "a readable buffer after a writable one",
            Self::Indirect => "an indirect table that is not allowed",
            Self::Request(what) => what,
        })
    }
}

/// A buffer: bytes of RAM throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes, at least 1.
    pub len: u32,
}

impl Segment {
    /// The host's view of it; writes through the slice are marked. `None` only for a chain of
    /// another machine's RAM: [`Chain`]s hold what is RAM throughout.
    pub fn slice<'a>(&self, ram: &'a GuestRam) -> Option<VolatileSlice<'a, MarksSlice<'a>>> {
        ram.map().get_slice(GuestAddress(self.address), self.len as usize).ok()
    }
}

/// A descriptor table: the queue's or an indirect one. All of it is RAM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) address: u64,
    pub(super) count: u32,
}

/// The buffers of one request: what the device may read, and after that what it may write.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// The queue's epoch when the chain was taken; see `Queue::push`.
    pub(super) epoch: u32,
    segments: Vec<Segment>,
    /// How many of `segments` are readable.
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// Follows the chain that starts at descriptor `head`. `segments` is a vector to reuse.
    pub(super) fn walk(
        ram: &GuestRam,
        mut table: Table,
        head: u16,
        indirect: bool,
        mut segments: Vec<Segment>,
    ) -> Result<Self, Malformed> {
        segments.clear();
        let mut chain =
            Self { head, epoch: 0, segments, readable: 0, readable_len: 0, writable_len: 0 };
        let mut in_indirect = false;
        let mut index = u32::from(head);
        let mut left = table.count;
        loop {
            if index >= table.count {
                return Err(Malformed::DescriptorIndex);
            }
            if left == 0 {
                return Err(Malformed::Loop);
            }
            left -= 1;
            let descriptor = Descriptor::read(ram, table.address + u64::from(index) * DESCRIPTOR)
                .ok_or(Malformed::RingNotRam)?;
            if descriptor.flags & INDIRECT != 0 {
                let whole = descriptor.len != 0 && u64::from(descriptor.len) % DESCRIPTOR == 0;
                if in_indirect || !indirect || !whole || descriptor.flags & NEXT != 0 {
                    return Err(Malformed::Indirect);
                }
                if !ram.contains(descriptor.address, descriptor.len.into()) {
                    return Err(Malformed::RingNotRam);
                }
                let count = descriptor.len / DESCRIPTOR as u32;
                table = Table { address: descriptor.address, count };
                (in_indirect, index, left) = (true, 0, count);
                continue;
            }
            chain.add(ram, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next.into();
        }
    }

    fn add(&mut self, ram: &GuestRam, descriptor: Descriptor) -> Result<(), Malformed> {
        let Descriptor { address, len, flags, .. } = descriptor;
        // A buffer without bytes is of no use to anybody, and does no harm either.
        if len == 0 {
            return Ok(());
        }
        if !ram.contains(address, len.into()) {
            return Err(Malformed::BufferNotRam);
        }
        if self.segments.len() == MAX_SEGMENTS {
            return Err(Malformed::TooLong);
        }
        self.readable_len.checked_add(self.writable_len + len).ok_or(Malformed::TooLong)?;
        if flags & WRITE != 0 {
            self.writable_len += len;
        } else if self.readable < self.segments.len() {
            return Err(Malformed::Order);
        } else {
            self.readable += 1;
            self.readable_len += len;
        }
        self.segments.push(Segment { address, len });
        Ok(())
    }

    /// The index of the first descriptor, which names the chain to the driver.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// What the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// Bytes of `readable`.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes of `writable`.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Copies the readable part from byte `offset` on to `data`, and returns how many bytes there
    /// were.
    pub fn read_at(&self, ram: &GuestRam, offset: u32, data: &mut [u8]) -> usize {
        let mut done = 0;
        for part in parts(self.readable(), offset, clamp(data.len())) {
            let bytes = &mut data[done..done + part.len as usize];
            if ram.read(part.address, bytes).is_err() {
                break;
            }
            done += part.len as usize;
        }
        done
    }

    /// Copies `data` to the writable part from byte `offset` on, and returns how many bytes there
    /// was room for.
    pub fn write_at(&self, ram: &GuestRam, offset: u32, data: &[u8]) -> usize {
        let mut done = 0;
        for part in parts(self.writable(), offset, clamp(data.len())) {
            if ram.write(part.address, &data[done..done + part.len as usize]).is_err() {
                break;
            }
            done += part.len as usize;
        }
        done
    }

    /// `N` bytes of the readable part at `offset`, if there are that many.
    pub fn read_array<const N: usize>(&self, ram: &GuestRam, offset: u32) -> Option<[u8; N]> {
        let mut data = [0; N];
        (self.read_at(ram, offset, &mut data) == N).then_some(data)
    }

    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }
}

fn clamp(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The part of `segments` from byte `offset` on, `len` bytes of it or as many as there are.
pub fn parts(segments: &[Segment], offset: u32, len: u32) -> impl Iterator<Item = Segment> {
    let (mut skip, mut left) = (offset, len);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len);
        skip -= skipped;
        let len = left.min(segment.len - skipped);
        left -= len;
        (len > 0).then(|| Segment { address: segment.address + u64::from(skipped), len })
    })
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(ram: &GuestRam, at: u64) -> Option<Self> {
        let mut bytes = [0; DESCRIPTOR as usize];
        ram.read(at, &mut bytes).ok()?;
        let number = |range: std::ops::Range<usize>| {
            bytes[range].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        Some(Self {
            address: number(0..8),
            len: number(8..12) as u32,
            flags: number(12..14) as u16,
            next: number(14..16) as u16,
        })
    }
}
