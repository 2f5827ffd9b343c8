//! The guest's end of the user network: who is there, and the frames that wait for it.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::packet::{
    ETHERNET, ETHERTYPE_ARP, ETHERTYPE_IPV4, IPV4, Ipv4, MTU, address, be16, put_ethernet,
};
use crate::net::UserConfig;
use crate::net::frame::{MacAddress, Offloads};

/// Frames that wait for the guest at most; more are lost, as on a wire.
const MAX_FRAMES: usize = 512;
/// The same in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Guests whose addresses are remembered.
const MAX_NEIGHBOURS: usize = 64;
/// Hops that packets may still make.
const TTL: u8 = 64;

/// ARP's operations (RFC 826).
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// The wire between the network and the guest.
pub(super) struct Wire {
    pub(super) config: UserConfig,
    /// What the guest's card takes.
    pub(super) offloads: Offloads,
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// IP and Ethernet addresses of guests, the one that was heard of last at the end.
    neighbours: Vec<(Ipv4Addr, MacAddress)>,
    next_id: u16,
}

impl Wire {
    pub(super) fn new(config: UserConfig) -> Self {
        Self {
            config,
            offloads: Offloads::empty(),
            frames: VecDeque::new(),
            bytes: 0,
            neighbours: Vec::new(),
            next_id: 0,
        }
    }

    /// The Ethernet address of a host of the network.
    pub(super) fn mac_of(host: Ipv4Addr) -> MacAddress {
        let [a, b, c, d] = host.octets();
        MacAddress([0x52, 0x55, a, b, c, d])
    }

    /// Whether `address` is one of the network's own hosts.
    pub(super) fn is_ours(&self, address: Ipv4Addr) -> bool {
        let config = &self.config;
        address == config.host
            || address == config.dns
            || config.guest_forwards.iter().any(|forward| forward.server == address)
    }

    /// The host that packets from `from` come by way of.
    pub(super) fn sender_mac(&self, from: Ipv4Addr) -> MacAddress {
        Self::mac_of(if self.is_ours(from) { from } else { self.config.host })
    }

    /// A guest was heard of.
    pub(super) fn learn(&mut self, address: Ipv4Addr, mac: MacAddress) {
        if self.neighbours.last() == Some(&(address, mac)) {
            return;
        }
        let usable = self.config.contains(address)
            && !self.is_ours(address)
            && !mac.is_multicast()
            && address != self.config.broadcast()
            && address != self.config.net;
        if !usable {
            return;
        }
        self.neighbours.retain(|(known, _)| *known != address);
        if self.neighbours.len() == MAX_NEIGHBOURS {
            self.neighbours.remove(0);
        }
        self.neighbours.push((address, mac));
    }

    /// The Ethernet address of a guest, if it has been heard of.
    pub(super) fn neighbour(&self, address: Ipv4Addr) -> Option<MacAddress> {
        if address == Ipv4Addr::BROADCAST || address == self.config.broadcast() {
            return Some(MacAddress::BROADCAST);
        }
        self.neighbours.iter().rev().find(|(known, _)| *known == address).map(|(_, mac)| *mac)
    }

    /// The number of the next packet.
    pub(super) fn next_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Queues a frame.
    pub(super) fn push(&mut self, frame: Vec<u8>) {
        if self.frames.len() < MAX_FRAMES && self.bytes + frame.len() <= MAX_BYTES {
            self.bytes += frame.len();
            self.frames.push_back(frame);
        }
    }

    /// Whether there is room for another datagram of any size.
    pub(super) fn has_room(&self) -> bool {
        self.frames.len() + 64 <= MAX_FRAMES && self.bytes + (128 << 10) <= MAX_BYTES
    }

    /// Takes the frame that waits longest.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// Puts a frame back that was not wanted yet.
    pub(super) fn unpop(&mut self, frame: Vec<u8>) {
        self.bytes += frame.len();
        self.frames.push_front(frame);
    }

    /// Whether no frame waits.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Queues an IP packet to a guest, in fragments if it is long. If nobody knows the guest yet, it
    /// is asked for and the packet is lost.
    pub(super) fn send_ip(&mut self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        let Some(mac) = self.neighbour(to) else { return self.ask_for(to) };
        self.send_ip_to(mac, from, to, protocol, payload);
    }

    /// The same to an Ethernet address.
    pub(super) fn send_ip_to(
        &mut self,
        mac: MacAddress,
        from: Ipv4Addr,
        to: Ipv4Addr,
        protocol: u8,
        payload: &[u8],
    ) {
        const MOST: usize = (MTU - IPV4) / 8 * 8;
        if payload.len() + IPV4 > usize::from(u16::MAX) {
            return;
        }
        let id = self.next_id();
        let sender = self.sender_mac(from);
        let whole = payload.len() + IPV4 <= MTU;
        let mut offset = 0;
        loop {
            let len = if whole { payload.len() } else { MOST.min(payload.len() - offset) };
            let more = offset + len < payload.len();
            let total = IPV4 + len;
            let ip = Ipv4 {
                from,
                to,
                protocol,
                ttl: TTL,
                id,
                header: IPV4,
                total,
                offset,
                more_fragments: more,
            };
            let mut frame = vec![0; ETHERNET + IPV4];
            put_ethernet(&mut frame, mac, sender, ETHERTYPE_IPV4);
            let fragment = (offset / 8) as u16 | u16::from(more) << 13;
            ip.put(fragment, &mut frame[ETHERNET..]);
            frame.extend(&payload[offset..offset + len]);
            self.push(frame);
            offset += len;
            if !more {
                return;
            }
        }
    }

    /// Asks for a guest's Ethernet address.
    pub(super) fn ask_for(&mut self, guest: Ipv4Addr) {
        if self.config.contains(guest) && !self.is_ours(guest) {
            let to = MacAddress::default();
            self.send_arp(REQUEST, MacAddress::BROADCAST, self.config.host, (to, guest));
        }
    }

    fn send_arp(&mut self, op: u16, mac: MacAddress, from: Ipv4Addr, to: (MacAddress, Ipv4Addr)) {
        let sender = Self::mac_of(from);
        let mut frame = vec![0; 60];
        put_ethernet(&mut frame, mac, sender, ETHERTYPE_ARP);
        // Ethernet and IPv4 with their addresses' sizes.
        frame[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        frame[20..22].copy_from_slice(&op.to_be_bytes());
        frame[22..28].copy_from_slice(&sender.0);
        frame[28..32].copy_from_slice(&from.octets());
        frame[32..38].copy_from_slice(&to.0.0);
        frame[38..42].copy_from_slice(&to.1.octets());
        self.push(frame);
    }

    /// A guest's ARP packet; `head` is the frame's front.
    pub(super) fn arp(&mut self, head: &[u8]) {
        if head.len() < 42 || head[14..20] != [0, 1, 8, 0, 6, 4] {
            return;
        }
        let mut mac = MacAddress::default();
        mac.0.copy_from_slice(&head[22..28]);
        let (sender, wanted) = (address(head, 28), address(head, 38));
        self.learn(sender, mac);
        // A probe for an address that is free (RFC 5227) has no sender.
        if be16(head, 20) == REQUEST && self.is_ours(wanted) {
            self.send_arp(REPLY, mac, wanted, (mac, sender));
        }
    }
}
