//! Putting fragments of IP packets together again (RFC 791, 3.2).

use std::net::Ipv4Addr;
use std::time::Duration;

use board::time::VmTime;

use super::packet::{IPV4, Ipv4};

/// Packets in pieces at the same time; the oldest makes room.
const MAX_PACKETS: usize = 16;
/// Pieces of a packet.
const MAX_PIECES: usize = 64;
/// How long the pieces may take.
const LIFETIME: Duration = Duration::from_secs(30);

struct Partial {
    key: (Ipv4Addr, Ipv4Addr, u8, u16),
    born: VmTime,
    bytes: Vec<u8>,
    /// What has come: from and to.
    pieces: Vec<(usize, usize)>,
    /// The length, once the last piece has come.
    total: Option<usize>,
}

/// Packets of which pieces are missing.
#[derive(Default)]
pub(super) struct Fragments {
    partials: Vec<Partial>,
}

impl Fragments {
    /// A piece, `bytes` behind its IP header. Returns the packet if that was the last one missing.
    pub(super) fn add(&mut self, ip: &Ipv4, bytes: &[u8], now: VmTime) -> Option<(Ipv4, Vec<u8>)> {
        self.partials.retain(|partial| now.since(partial.born) < LIFETIME);
        let end = ip.offset + bytes.len();
        let ragged = ip.more_fragments && !bytes.len().is_multiple_of(8);
        if end + IPV4 > usize::from(u16::MAX) || bytes.is_empty() || ragged {
            return None;
        }
        let key = (ip.from, ip.to, ip.protocol, ip.id);
        let index = match self.partials.iter().position(|partial| partial.key == key) {
            Some(index) => index,
            None => {
                if self.partials.len() == MAX_PACKETS {
                    self.partials.remove(0);
                }
                let (bytes, pieces) = (Vec::new(), Vec::new());
                self.partials.push(Partial { key, born: now, bytes, pieces, total: None });
                self.partials.len() - 1
            }
        };
        let partial = &mut self.partials[index];
        let overlaps = partial.pieces.iter().any(|&(from, to)| ip.offset < to && from < end);
        let known = partial.pieces.contains(&(ip.offset, end));
        if known {
            return None;
        }
        let beyond = partial.total.is_some_and(|total| end > total || !ip.more_fragments);
        // Overlaps are an attack, whoever is meant (RFC 5722 for IPv6).
        if overlaps || beyond || partial.pieces.len() == MAX_PIECES {
            self.partials.remove(index);
            return None;
        }
        if partial.bytes.len() < end {
            partial.bytes.resize(end, 0);
        }
        partial.bytes[ip.offset..end].copy_from_slice(bytes);
        partial.pieces.push((ip.offset, end));
        if !ip.more_fragments {
            partial.total = Some(end);
        }
        let have: usize = partial.pieces.iter().map(|(from, to)| to - from).sum();
        if partial.total != Some(have) || partial.bytes.len() != have {
            return None;
        }
        let partial = self.partials.remove(index);
        let whole =
            Ipv4 { header: IPV4, total: IPV4 + have, offset: 0, more_fragments: false, ..*ip };
        Some((whole, partial.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: usize, len: usize, more: bool) -> (Ipv4, Vec<u8>) {
        let ip = Ipv4 {
            from: Ipv4Addr::LOCALHOST,
            to: Ipv4Addr::LOCALHOST,
            protocol: 17,
            ttl: 64,
            id: 1,
            header: IPV4,
            total: IPV4 + len,
            offset,
            more_fragments: more,
        };
        (ip, (offset..offset + len).map(|n| n as u8).collect())
    }

    #[test]
    fn pieces_make_a_packet_in_any_order() {
        let mut fragments = Fragments::default();
        let mut add = |(ip, bytes): (Ipv4, Vec<u8>)| fragments.add(&ip, &bytes, VmTime::ZERO);
        assert!(add(piece(16, 5, false)).is_none());
        assert!(add(piece(0, 8, true)).is_none());
        assert!(add(piece(0, 8, true)).is_none());
        let (ip, bytes) = add(piece(8, 8, true)).unwrap();
        assert_eq!(bytes, (0..21).collect::<Vec<u8>>());
        assert_eq!((ip.total, ip.is_fragment()), (41, false));
    }

    #[test]
    fn overlaps_and_what_is_too_old_are_forgotten() {
        let mut fragments = Fragments::default();
        let mut add = |(ip, bytes): (Ipv4, Vec<u8>), now| fragments.add(&ip, &bytes, now);
        assert!(add(piece(0, 16, true), VmTime::ZERO).is_none());
        assert!(add(piece(8, 16, true), VmTime::ZERO).is_none());
        assert!(add(piece(16, 8, false), VmTime::ZERO).is_none());
        let late = VmTime::ZERO + LIFETIME;
        assert!(add(piece(0, 16, true), late).is_none(), "the end of before is gone");
        assert!(add(piece(16, 8, false), late).is_some());
        assert!(add(piece(65_528, 8, false), late).is_none());
    }
}
