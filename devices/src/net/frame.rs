//! An Ethernet frame on its way, and what is said of it.

use std::fmt;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::str::FromStr;

/// The longest frame: 64 KiB of IP packet and the Ethernet header with two VLAN tags.
pub const MAX_FRAME: usize = 65_536 + 22;

bitflags::bitflags! {
    /// What the receiver of frames can do with them beyond taking whole ones of the MTU's size.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Offloads: u8 {
        /// It completes a partial checksum, or does without.
        const CSUM = 1;
        /// It takes TCP over IPv4 that is still to be cut into segments.
        const TSO4 = 2;
        /// The same over IPv6.
        const TSO6 = 4;
        /// Such TCP may have ECN's CWR set.
        const ECN = 8;
    }
}

/// A frame's virtio-net header (Virtio 1.2, 5.1.6), in the host's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// [`NetHeader::NEEDS_CSUM`], [`NetHeader::DATA_VALID`].
    pub flags: u8,
    /// [`NetHeader::GSO_NONE`] and the others.
    pub gso_type: u8,
    /// Bytes of all headers, a hint.
    pub hdr_len: u16,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Where the checksum begins to count.
    pub csum_start: u16,
    /// Where behind that it is put.
    pub csum_offset: u16,
}

impl NetHeader {
    /// Bytes of the header without the number of buffers.
    pub const SIZE: usize = 10;
    /// The checksum at `csum_start + csum_offset` covers the pseudo header only.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum is known to be right.
    pub const DATA_VALID: u8 = 2;
    /// An ordinary frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4, to be cut into segments.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6, likewise.
    pub const GSO_TCPV6: u8 = 4;
    /// A bit beside the type: CWR is set.
    pub const GSO_ECN: u8 = 0x80;

    /// The header as it stands in front of a frame.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let Self { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = self;
        let mut bytes = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (place, word) in
            bytes[2..].chunks_exact_mut(2).zip([hdr_len, gso_size, csum_start, csum_offset])
        {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a header.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }
}

/// Bytes to be read that lie in several places, in this program's memory or the guest's.
///
/// The guest may change its memory at any moment, so the bytes are only ever copied, by this program
/// or by the kernel, and never looked at in place.
#[derive(Clone, Copy)]
pub struct Gather<'a> {
    pieces: &'a [libc::iovec],
    len: usize,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    /// The bytes of `pieces`, in that order.
    ///
    /// # Safety
    /// Each piece is memory that stays mapped and readable for `'a`; others may write to it.
    pub unsafe fn from_raw(pieces: &'a [libc::iovec]) -> Self {
        Self { pieces, len: pieces.iter().map(|piece| piece.iov_len).sum(), memory: PhantomData }
    }

    /// The same of memory that nobody writes to.
    pub fn new(pieces: &'a [IoSlice<'a>]) -> Self {
        // SAFETY: an IoSlice has the layout of an iovec on Unix (std's documentation), and what it
        // borrows is readable for 'a.
        unsafe { Self::from_raw(std::slice::from_raw_parts(pieces.as_ptr().cast(), pieces.len())) }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The places, for readv's relatives.
    pub fn pieces(&self) -> &'a [libc::iovec] {
        self.pieces
    }

    /// Appends what lies from byte `offset` on, at most `len` bytes, to `pieces`.
    pub fn cut(&self, offset: usize, len: usize, pieces: &mut Vec<libc::iovec>) {
        let (mut skip, mut left) = (offset, len);
        for piece in self.pieces {
            let skipped = skip.min(piece.iov_len);
            skip -= skipped;
            let iov_len = left.min(piece.iov_len - skipped);
            left -= iov_len;
            if iov_len > 0 {
                let iov_base = piece.iov_base.wrapping_byte_add(skipped);
                pieces.push(libc::iovec { iov_base, iov_len });
            }
        }
    }

    /// Copies bytes from `offset` on to `data`; returns how many there were.
    pub fn read_at(&self, offset: usize, data: &mut [u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for piece in self.pieces {
            if done == data.len() {
                break;
            }
            let skipped = skip.min(piece.iov_len);
            skip -= skipped;
            let len = (piece.iov_len - skipped).min(data.len() - done);
            // SAFETY: the constructor's caller vouches for the piece, `len` bytes of which follow
            // `skipped`, and `data` has room for them.
            unsafe {
                let from = piece.iov_base.cast::<u8>().add(skipped);
                std::ptr::copy_nonoverlapping(from, data[done..].as_mut_ptr(), len);
            }
            done += len;
        }
        done
    }

    /// Appends the bytes from `offset` on to `data`.
    pub fn append_to(&self, offset: usize, data: &mut Vec<u8>) {
        let start = data.len();
        data.resize(start + self.len.saturating_sub(offset), 0);
        self.read_at(offset, &mut data[start..]);
    }
}

/// A vector for [`Gather::cut`] to reuse. Between calls nothing in it is of any meaning.
#[derive(Default)]
pub(super) struct Pieces(pub(super) Vec<libc::iovec>);

// SAFETY: the pointers are followed only by whoever has just put them there, who borrows the memory.
unsafe impl Send for Pieces {}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All stations.
    pub const BROADCAST: Self = Self([0xFF; 6]);

    /// The address of the `index`th card whose user gave none.
    pub fn of_card(index: u8) -> Self {
        Self([0x52, 0x54, 0x00, 0x12, 0x34, 0x56_u8.wrapping_add(index)])
    }

    /// Whether it names a group of stations.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = ();

    /// Six pairs of hexadecimal digits with colons or dashes between them.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 6];
        let mut words = text.split([':', '-']);
        for byte in &mut bytes {
            let word = words.next().filter(|word| (1..=2).contains(&word.len())).ok_or(())?;
            *byte = u8::from_str_radix(word, 16).map_err(|_| ())?;
        }
        words.next().map_or(Ok(Self(bytes)), |_| Err(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_its_bytes() {
        let header = NetHeader {
            flags: NetHeader::NEEDS_CSUM,
            gso_type: NetHeader::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes, [1, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0]);
        assert_eq!(NetHeader::from_bytes(bytes), header);
    }

    #[test]
    fn gathered_bytes_are_cut_and_copied() {
        let pieces = [IoSlice::new(b"abc"), IoSlice::new(b""), IoSlice::new(b"defg")];
        let gather = Gather::new(&pieces);
        assert_eq!(gather.len(), 7);
        let mut data = [0; 4];
        assert_eq!(gather.read_at(2, &mut data), 4);
        assert_eq!(&data, b"cdef");
        assert_eq!(gather.read_at(5, &mut data), 2);
        assert_eq!(gather.read_at(9, &mut data), 0);
        let mut cut = Vec::new();
        gather.cut(1, 4, &mut cut);
        assert_eq!(cut.iter().map(|piece| piece.iov_len).collect::<Vec<_>>(), [2, 2]);
        let mut all = b"-".to_vec();
        gather.append_to(1, &mut all);
        assert_eq!(all, b"-bcdefg");
    }

    #[test]
    fn mac_addresses_are_read_and_shown() {
        let mac: MacAddress = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac, MacAddress::of_card(0));
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        assert_eq!("52-54-0-12-34-57".parse(), Ok(MacAddress::of_card(1)));
        for wrong in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:1ff", "::::::"]
        {
            assert_eq!(wrong.parse::<MacAddress>(), Err(()), "{wrong}");
        }
    }
}
