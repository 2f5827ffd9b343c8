//! Ethernet (IEEE 802.3), IPv4 (RFC 791), UDP (RFC 768) and ICMP (RFC 792) as bytes.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::net::frame::{Gather, MacAddress, NetHeader};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub(super) const IPV4: usize = 20;
/// Bytes of a UDP header.
pub(super) const UDP: usize = 8;
/// The most bytes of an IP packet that is not to be cut into segments.
pub(super) const MTU: usize = 1500;

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;

/// Protocol numbers.
pub(super) mod protocol {
    pub(in crate::net::user) const ICMP: u8 = 1;
    pub(in crate::net::user) const TCP: u8 = 6;
    pub(in crate::net::user) const UDP: u8 = 17;
}

/// Sums of 16-bit words in ones' complement (RFC 1071).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Checksum {
    sum: u64,
    odd: bool,
}

impl Checksum {
    pub(super) fn add(&mut self, data: &[u8]) {
        let mut sum: u64 = 0;
        let (words, tail) = data.as_chunks::<8>();
        for word in words {
            let (value, carry) = sum.overflowing_add(u64::from_be_bytes(*word));
            sum = value + u64::from(carry);
        }
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        let (value, carry) = sum.overflowing_add(u64::from_be_bytes(last));
        let mut folded = fold(value + u64::from(carry));
        // Behind an odd number of bytes all that follows is in the other half of its word.
        if self.odd {
            folded = folded.swap_bytes();
        }
        self.odd ^= data.len() % 2 == 1;
        self.sum += u64::from(folded);
    }

    /// The pseudo header of TCP and UDP (RFC 9293, 3.1).
    pub(super) fn add_pseudo(&mut self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, len: usize) {
        self.add(&from.octets());
        self.add(&to.octets());
        self.add(&[0, protocol]);
        self.add(&(len as u16).to_be_bytes());
    }

    /// The sum as it is.
    pub(super) fn sum(self) -> u16 {
        fold(self.sum)
    }

    /// The checksum: the sum's complement.
    pub(super) fn finish(self) -> u16 {
        !self.sum()
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of `data`.
pub(super) fn checksum(data: &[u8]) -> u16 {
    let mut sum = Checksum::default();
    sum.add(data);
    sum.finish()
}

/// Two bytes at `at`, big-endian; the caller has seen that they are there.
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Four bytes at `at`, likewise.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// An address at `at`, likewise.
pub(super) fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(be32(bytes, at))
}

/// Writes an Ethernet header to the front of `out`.
pub(super) fn put_ethernet(out: &mut [u8], to: MacAddress, from: MacAddress, ethertype: u16) {
    out[..6].copy_from_slice(&to.0);
    out[6..12].copy_from_slice(&from.0);
    out[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

/// The header of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ipv4 {
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    pub(super) protocol: u8,
    pub(super) ttl: u8,
    pub(super) id: u16,
    /// Bytes of the header.
    pub(super) header: usize,
    /// Bytes of the packet.
    pub(super) total: usize,
    /// The place of a fragment in its packet.
    pub(super) offset: usize,
    pub(super) more_fragments: bool,
}

impl Ipv4 {
    /// Reads the header at the front of `head`. `available` are all bytes of the packet. `None`:
    /// it is malformed.
    pub(super) fn parse(head: &[u8], available: usize) -> Option<Self> {
        if head.len() < IPV4 || head[0] >> 4 != 4 {
            return None;
        }
        let header = usize::from(head[0] & 0xF) * 4;
        let total = usize::from(be16(head, 2));
        let sound = header >= IPV4
            && header <= head.len()
            && header <= total
            && total <= available
            && checksum(&head[..header]) == 0;
        let fragment = be16(head, 6);
        sound.then(|| Self {
            from: address(head, 12),
            to: address(head, 16),
            protocol: head[9],
            ttl: head[8],
            id: be16(head, 4),
            header,
            total,
            offset: usize::from(fragment & 0x1FFF) * 8,
            more_fragments: fragment & 0x2000 != 0,
        })
    }

    /// Whether it is part of a packet.
    pub(super) fn is_fragment(&self) -> bool {
        self.offset > 0 || self.more_fragments
    }

    /// Bytes behind the header.
    pub(super) fn payload(&self) -> usize {
        self.total - self.header
    }

    /// The header without options; `fragment` is its seventh and eighth byte.
    pub(super) fn put(&self, fragment: u16, out: &mut [u8]) {
        out[0] = 0x45;
        out[1] = 0;
        out[2..4].copy_from_slice(&(self.total as u16).to_be_bytes());
        out[4..6].copy_from_slice(&self.id.to_be_bytes());
        out[6..8].copy_from_slice(&fragment.to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.protocol;
        out[10..12].fill(0);
        out[12..16].copy_from_slice(&self.from.octets());
        out[16..20].copy_from_slice(&self.to.octets());
        let sum = checksum(&out[..IPV4]);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Whether the checksum over `payload`, behind the pseudo header of TCP or UDP, is right.
pub(super) fn sum_is_right(ip: &Ipv4, header: &NetHeader, frame: Gather<'_>) -> bool {
    if header.flags & (NetHeader::NEEDS_CSUM | NetHeader::DATA_VALID) != 0 {
        return true;
    }
    let mut sum = Checksum::default();
    sum.add_pseudo(ip.from, ip.to, ip.protocol, ip.payload());
    let (mut at, end) = (ETHERNET + ip.header, ETHERNET + ip.total);
    let mut chunk = [0; 2048];
    while at < end {
        let len = chunk.len().min(end - at);
        let len = frame.read_at(at, &mut chunk[..len]);
        if len == 0 {
            return false;
        }
        sum.add(&chunk[..len]);
        at += len;
    }
    sum.finish() == 0
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram<'a> {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads the payload of the IP packet `ip`, whose checksum has been looked at.
    pub(super) fn parse(ip: &Ipv4, bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < UDP {
            return None;
        }
        let len = usize::from(be16(bytes, 4));
        let payload = bytes.get(UDP..len)?;
        Some(Self {
            from: SocketAddrV4::new(ip.from, be16(bytes, 0)),
            to: SocketAddrV4::new(ip.to, be16(bytes, 2)),
            payload,
        })
    }

    /// The payload of an IP packet.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let len = UDP + self.payload.len();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(self.from.port().to_be_bytes());
        bytes.extend(self.to.port().to_be_bytes());
        bytes.extend((len as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.payload);
        let mut sum = Checksum::default();
        sum.add_pseudo(*self.from.ip(), *self.to.ip(), protocol::UDP, len);
        sum.add(&bytes);
        // Zero would say that there is none.
        let sum = match sum.finish() {
            0 => 0xFFFF,
            sum => sum,
        };
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum as RFC 1071 describes it, word by word.
    fn plain(data: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for word in data.chunks(2) {
            sum += u64::from(word[0]) << 8 | word.get(1).map_or(0, |&b| b.into());
        }
        !fold(sum)
    }

    #[test]
    fn the_checksum_is_that_of_the_words_however_it_is_cut() {
        let data: Vec<u8> = (0..=255).cycle().skip(7).step_by(3).take(777).collect();
        for len in [0, 1, 2, 3, 7, 8, 9, 16, 100, 777] {
            assert_eq!(checksum(&data[..len]), plain(&data[..len]), "{len}");
            for cut in [0, 1, len / 3, len / 2, len] {
                let mut sum = Checksum::default();
                sum.add(&data[..cut.min(len)]);
                sum.add(&data[cut.min(len)..len]);
                assert_eq!(sum.finish(), plain(&data[..len]), "{len} cut at {cut}");
            }
        }
        assert_eq!(checksum(&[0xFF; 64]), 0);
    }

    #[test]
    fn an_ip_header_is_read_as_it_was_written() {
        let ip = Ipv4 {
            from: Ipv4Addr::new(10, 0, 2, 15),
            to: Ipv4Addr::new(192, 0, 2, 1),
            protocol: protocol::UDP,
            ttl: 64,
            id: 77,
            header: IPV4,
            total: 100,
            offset: 0,
            more_fragments: false,
        };
        let mut bytes = [0; IPV4];
        ip.put(0, &mut bytes);
        assert_eq!(Ipv4::parse(&bytes, 100), Some(ip));
        assert_eq!(Ipv4::parse(&bytes, 99), None);
        bytes[8] ^= 1;
        assert_eq!(Ipv4::parse(&bytes, 100), None);
    }
}
