//! TCP segments as bytes (RFC 9293, 3.1; window scale: RFC 7323, 2).

use std::io::IoSlice;
use std::net::SocketAddrV4;

use crate::net::backend::Sink;
use crate::net::frame::{Gather, MacAddress, NetHeader, Offloads};
use crate::net::user::packet::{
    Checksum, ETHERNET, ETHERTYPE_IPV4, IPV4, Ipv4, be16, be32, protocol, put_ethernet,
};
use crate::net::user::wire::Wire;

/// Bytes of a header without options.
pub(super) const TCP: usize = 20;
/// Bytes of all headers of a segment without options.
pub(super) const HEADERS: usize = ETHERNET + IPV4 + TCP;
/// Bytes of the options of a SYN: MSS, window scale, padding.
const SYN_OPTIONS: usize = 8;

/// Control bits.
pub(super) mod flag {
    pub(in super::super) const FIN: u8 = 1;
    pub(in super::super) const SYN: u8 = 2;
    pub(in super::super) const RST: u8 = 4;
    pub(in super::super) const PSH: u8 = 8;
    pub(in super::super) const ACK: u8 = 16;
}

/// A guest's segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
    /// Where the payload begins in the frame.
    pub(super) payload: usize,
    pub(super) len: usize,
}

impl Segment {
    pub(super) fn parse(ip: &Ipv4, frame: Gather<'_>) -> Option<Self> {
        let mut bytes = [0; 60];
        let at = ETHERNET + ip.header;
        let have = frame.read_at(at, &mut bytes).min(ip.payload());
        let bytes = &bytes[..have];
        if have < TCP {
            return None;
        }
        let header = usize::from(bytes[12] >> 4) * 4;
        if header < TCP || header > have {
            return None;
        }
        let mut this = Self {
            from: SocketAddrV4::new(ip.from, be16(bytes, 0)),
            to: SocketAddrV4::new(ip.to, be16(bytes, 2)),
            seq: be32(bytes, 4),
            ack: be32(bytes, 8),
            flags: bytes[13],
            window: be16(bytes, 14),
            mss: None,
            scale: None,
            payload: at + header,
            len: ip.payload() - header,
        };
        if this.has(flag::SYN) {
            this.options(&bytes[TCP..header]);
        }
        Some(this)
    }

    fn options(&mut self, mut bytes: &[u8]) {
        while let [kind, rest @ ..] = bytes {
            match (kind, rest) {
                (0, _) => return,
                (1, _) => bytes = rest,
                (kind, [len, ..]) => {
                    let len = usize::from(*len);
                    let Some(body) = bytes.get(2..len) else { return };
                    match (kind, body) {
                        (2, [high, low]) => self.mss = Some(u16::from_be_bytes([*high, *low])),
                        (3, [scale]) => self.scale = Some((*scale).min(14)),
                        _ => {}
                    }
                    bytes = &bytes[len..];
                }
                _ => return,
            }
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers that it takes.
    pub(super) fn span(&self) -> u32 {
        self.len as u32 + u32::from(self.has(flag::SYN)) + u32::from(self.has(flag::FIN))
    }
}

/// A segment to the guest.
pub(super) struct Outgoing<'a> {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// The options of a SYN: our MSS, and the window scale if there is one.
    pub(super) syn: Option<(u16, Option<u8>)>,
    pub(super) payload: [&'a [u8]; 2],
    /// Bytes of payload a segment.
    pub(super) mss: usize,
}

impl Outgoing<'_> {
    /// Gives the segment to the card; false: it has no room.
    pub(super) fn emit(&self, wire: &mut Wire, mac: MacAddress, sink: &mut Sink<'_>) -> bool {
        let mut bytes = [0; HEADERS + SYN_OPTIONS];
        let len = self.payload[0].len() + self.payload[1].len();
        let tcp = if self.syn.is_some() { TCP + SYN_OPTIONS } else { TCP };
        let (from, to) = (*self.from.ip(), *self.to.ip());
        put_ethernet(&mut bytes, mac, wire.sender_mac(from), ETHERTYPE_IPV4);
        let ip = Ipv4 {
            from,
            to,
            protocol: protocol::TCP,
            ttl: 64,
            id: wire.next_id(),
            header: IPV4,
            total: IPV4 + tcp + len,
            offset: 0,
            more_fragments: false,
        };
        // Don't fragment, as all TCP today.
        ip.put(0x4000, &mut bytes[ETHERNET..]);
        let header = &mut bytes[ETHERNET + IPV4..ETHERNET + IPV4 + tcp];
        header[..2].copy_from_slice(&self.from.port().to_be_bytes());
        header[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        header[4..8].copy_from_slice(&self.seq.to_be_bytes());
        header[8..12].copy_from_slice(&self.ack.to_be_bytes());
        header[12] = ((tcp / 4) << 4) as u8;
        header[13] = self.flags;
        header[14..16].copy_from_slice(&self.window.to_be_bytes());
        if let Some((mss, scale)) = self.syn {
            header[20..22].copy_from_slice(&[2, 4]);
            header[22..24].copy_from_slice(&mss.to_be_bytes());
            // Without a scale its place is padding.
            if let Some(scale) = scale {
                header[24..28].copy_from_slice(&[1, 3, 3, scale]);
            }
        }
        let mut sum = Checksum::default();
        sum.add_pseudo(from, to, protocol::TCP, tcp + len);
        let mut about = NetHeader::default();
        if wire.offloads.contains(Offloads::CSUM) {
            about.flags = NetHeader::NEEDS_CSUM;
            about.csum_start = (ETHERNET + IPV4) as u16;
            about.csum_offset = 16;
            header[16..18].copy_from_slice(&sum.sum().to_be_bytes());
        } else {
            sum.add(header);
            self.payload.iter().for_each(|part| sum.add(part));
            header[16..18].copy_from_slice(&sum.finish().to_be_bytes());
        }
        if len > self.mss {
            about.gso_type = NetHeader::GSO_TCPV4;
            about.gso_size = self.mss as u16;
            about.hdr_len = (ETHERNET + IPV4 + tcp) as u16;
        }
        let [first, second] = self.payload;
        let headers = &bytes[..ETHERNET + IPV4 + tcp];
        sink(&about, &[IoSlice::new(headers), IoSlice::new(first), IoSlice::new(second)])
    }
}
