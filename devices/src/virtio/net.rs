//! The network card (Virtio 1.2, 5.1): pairs of receive and transmit queues and a control queue, in
//! front of a [`NetPort`].

mod control;
mod filter;
#[cfg(test)]
mod tests;

use std::io::IoSlice;

use board::GuestRam;
use board::device::{Attach, Notifier, Paused, Tag};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::time::VmTime;
use serde::{Deserialize, Serialize};

use self::filter::Filter;
use super::Io;
use super::chain::{Chain, parts};
use super::device::{Kind, NET, VirtioDevice, read_bytes};
use crate::net::{Gather, MAX_FRAME, MacAddress, NetHeader, NetPort, Offloads, Sent};

/// Feature bits (5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const CTRL_RX: u64 = 1 << 18;
    pub(super) const CTRL_VLAN: u64 = 1 << 19;
    pub(super) const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub(super) const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub(super) const MQ: u64 = 1 << 22;
    pub(super) const CTRL_MAC_ADDR: u64 = 1 << 23;
}

const FEATURE_NAMES: &[(u32, &str)] = &[
    (0, "NET_F_CSUM"),
    (1, "NET_F_GUEST_CSUM"),
    (2, "NET_F_CTRL_GUEST_OFFLOADS"),
    (3, "NET_F_MTU"),
    (5, "NET_F_MAC"),
    (7, "NET_F_GUEST_TSO4"),
    (8, "NET_F_GUEST_TSO6"),
    (9, "NET_F_GUEST_ECN"),
    (11, "NET_F_HOST_TSO4"),
    (12, "NET_F_HOST_TSO6"),
    (13, "NET_F_HOST_ECN"),
    (15, "NET_F_MRG_RXBUF"),
    (16, "NET_F_STATUS"),
    (17, "NET_F_CTRL_VQ"),
    (18, "NET_F_CTRL_RX"),
    (19, "NET_F_CTRL_VLAN"),
    (20, "NET_F_CTRL_RX_EXTRA"),
    (21, "NET_F_GUEST_ANNOUNCE"),
    (22, "NET_F_MQ"),
    (23, "NET_F_CTRL_MAC_ADDR"),
];

/// Each offload, for frames of the guest and for frames to it.
const OFFLOADS: [(Offloads, u64, u64); 4] = [
    (Offloads::CSUM, feature::CSUM, feature::GUEST_CSUM),
    (Offloads::TSO4, feature::HOST_TSO4, feature::GUEST_TSO4),
    (Offloads::TSO6, feature::HOST_TSO6, feature::GUEST_TSO6),
    (Offloads::ECN, feature::HOST_ECN, feature::GUEST_ECN),
];

/// Bits of `status` in the configuration.
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;

/// Bytes of the header in front of a frame (5.1.6).
const HEADER: usize = NetHeader::SIZE + 2;
/// An Ethernet header: less is no frame.
const MIN_FRAME: usize = 14;
/// Descriptors of the control queue.
const CONTROL_SIZE: u16 = 64;
/// Frames that the card takes from its port before other devices have their turn.
const SHARE: usize = 256;

/// The tag of the port's notifications.
const PORT: Tag = Tag(0);

/// How the card is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// Its address.
    pub mac: MacAddress,
    /// Descriptors of a receive queue, a power of two up to 1024.
    pub rx_queue_size: u16,
    /// The same of a transmit queue.
    pub tx_queue_size: u16,
    /// Offers as many queue pairs as the port has.
    pub mq: bool,
    /// Offers to spread large frames over several buffers.
    pub mrg_rxbuf: bool,
    /// Offers the control queue.
    pub ctrl_vq: bool,
    /// The offloads that are offered if the port has them: for the guest's frames, for frames to it.
    pub offloads: (Offloads, Offloads),
    /// The MTU that the guest is told of.
    pub host_mtu: Option<u16>,
}

impl NetOptions {
    /// Everything offered, with queues of 256.
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            rx_queue_size: 256,
            tx_queue_size: 256,
            mq: false,
            mrg_rxbuf: true,
            ctrl_vq: true,
            offloads: (Offloads::all(), Offloads::all()),
            host_mtu: None,
        }
    }
}

/// The card.
pub struct Net {
    port: NetPort,
    options: NetOptions,
    notifier: Notifier,
    /// Queue pairs that there are.
    pairs: u16,
    /// Those of them that the driver uses.
    pairs_used: u16,
    filter: Filter,
    /// The offload features for frames to the guest that are on.
    guest_offloads: u64,
    /// What the monitor's set_link says.
    plugged: bool,
    /// The link that the driver knows of.
    link: bool,
    /// The driver is asked to announce the guest's addresses.
    announce: bool,
    /// The state was restored, so that the guest may be somewhere else now.
    restored: bool,
    paused: bool,
    /// Kept for their room.
    chains: Vec<Chain>,
    pieces: Pieces,
}

/// A vector to reuse; between calls nothing in it is of any meaning.
#[derive(Default)]
struct Pieces(Vec<libc::iovec>);

// SAFETY: the pointers are followed only by the function that has just put them there.
unsafe impl Send for Pieces {}

impl Net {
    /// A card on `port`.
    pub fn new(port: NetPort, options: NetOptions, attach: &Attach) -> Self {
        let most = if options.mq && options.ctrl_vq { port.queues() } else { 1 };
        let mut this = Self {
            notifier: attach.notifier(PORT),
            pairs: u16::try_from(most).unwrap_or(u16::MAX).clamp(1, 256),
            pairs_used: 1,
            filter: Filter::new(options.mac),
            guest_offloads: 0,
            plugged: true,
            link: port.link(),
            announce: false,
            restored: false,
            paused: false,
            chains: Vec::new(),
            pieces: Pieces::default(),
            port,
            options,
        };
        this.port.set_notifier(this.notifier.clone());
        this
    }

    /// The address that the guest has given the card, or its own.
    pub fn mac(&self) -> MacAddress {
        self.filter.mac
    }

    /// The backend, if there is one.
    pub fn port(&self) -> &NetPort {
        &self.port
    }

    /// Plugs the cable in or pulls it.
    pub fn set_link(&mut self, up: bool, io: &mut Io<'_>) {
        self.plugged = up;
        self.follow_link(io);
    }

    /// Takes the backend away: the cable leads nowhere and the link is down.
    pub fn unplug(&mut self, io: &mut Io<'_>) {
        self.port = NetPort::default();
        self.set_link(false, io);
    }

    fn follow_link(&mut self, io: &mut Io<'_>) {
        let link = self.plugged && self.port.link();
        if std::mem::replace(&mut self.link, link) != link {
            io.config_changed();
        }
    }

    /// The control queue's number: behind the pairs that the driver knows of.
    fn control_queue(&self, io: &Io<'_>) -> usize {
        if io.has(feature::MQ) { 2 * usize::from(self.pairs) } else { 2 }
    }

    fn apply_offloads(&mut self) {
        let on = |guest| self.guest_offloads & guest != 0;
        let offloads = OFFLOADS.iter().filter(|(_, _, guest)| on(guest)).map(|(o, ..)| *o);
        let offloads = offloads.collect();
        self.port.set_offloads(offloads);
    }

    /// Gives the guest the frames that there are.
    fn receive(&mut self, io: &mut Io<'_>) {
        if self.paused || !io.is_active() {
            return;
        }
        for pair in 0..self.pairs_used {
            let queue = 2 * usize::from(pair);
            if !io.queues()[queue].is_ready() {
                continue;
            }
            let (mut left, mut room) = (SHARE, true);
            let Self { port, filter, chains, plugged, .. } = self;
            port.receive(pair.into(), &mut |header, frame| {
                if left == 0 {
                    return false;
                }
                left -= 1;
                if !*plugged || !filter.wants(frame) {
                    return true;
                }
                room = deliver(io, queue, header, frame, chains);
                room
            });
            if left < SHARE {
                io.signal(queue);
            }
            if left == 0 && room {
                self.notifier.notify();
            }
        }
        // It is when there is nothing more to read that a peer turns out to be gone.
        self.follow_link(io);
    }

    /// Sends what the guest has put into a transmit queue.
    fn transmit(&mut self, queue: usize, io: &mut Io<'_>) {
        let pair = queue / 2;
        let mut left = io.queues()[queue].size();
        loop {
            io.disable_bell(queue);
            while let Some(chain) = io.pop(queue) {
                if self.send(pair, &chain, io.ram()) == Sent::Busy {
                    io.unpop(queue, chain);
                    return io.signal(queue);
                }
                io.push(queue, chain, 0);
                left -= 1;
                if left == 0 {
                    io.queues()[queue].bell().ring();
                    return io.signal(queue);
                }
            }
            if !io.enable_bell(queue) {
                return io.signal(queue);
            }
        }
    }

    fn send(&mut self, pair: usize, chain: &Chain, ram: &GuestRam) -> Sent {
        let len = (chain.readable_len() as usize).saturating_sub(HEADER);
        let Some(header) = chain.read_array::<{ NetHeader::SIZE }>(ram, 0) else {
            return Sent::Done;
        };
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) || !self.plugged {
            return Sent::Done;
        }
        self.pieces.0.clear();
        for segment in parts(chain.readable(), HEADER as u32, len as u32) {
            let Some(slice) = segment.slice(ram) else { return Sent::Done };
            let iov_base = slice.ptr_guard().as_ptr().cast_mut().cast();
            self.pieces.0.push(libc::iovec { iov_base, iov_len: slice.len() });
        }
        // SAFETY: the slices are of guest RAM, which stays mapped as long as `ram` is borrowed; the
        // guest may write to it.
        let frame = unsafe { Gather::from_raw(&self.pieces.0) };
        self.port.send(pair, &NetHeader::from_bytes(header), frame)
    }
}

/// Puts a frame into the guest's buffers; false: there is not enough room.
fn deliver(
    io: &mut Io<'_>,
    queue: usize,
    header: &NetHeader,
    frame: &[IoSlice<'_>],
    chains: &mut Vec<Chain>,
) -> bool {
    let total = HEADER + frame.iter().map(|piece| piece.len()).sum::<usize>();
    let several = io.has(feature::MRG_RXBUF);
    let mut room = 0;
    chains.clear();
    while room < total {
        let chain = match io.pop(queue) {
            Some(chain) => chain,
            // The driver rings when it has put buffers there; it may have done so just now.
            None if io.enable_bell(queue) => continue,
            None => {
                let all = chains.len() >= io.queues()[queue].size().into();
                while let Some(chain) = chains.pop() {
                    io.unpop(queue, chain);
                }
                // More than fits into all buffers that there can be is lost.
                return all || !io.is_active();
            }
        };
        room += chain.writable_len() as usize;
        chains.push(chain);
        if !several && room < total {
            chains.drain(..).for_each(|chain| io.unpop(queue, chain));
            return true;
        }
    }
    io.disable_bell(queue);
    let mut about = [0; HEADER];
    about[..NetHeader::SIZE].copy_from_slice(&header.to_bytes());
    about[NetHeader::SIZE..].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    let (mut at, mut place) = (0, 0);
    let ram = io.ram();
    for mut bytes in std::iter::once(&about[..]).chain(frame.iter().map(|piece| &piece[..])) {
        while !bytes.is_empty() {
            let Some(chain) = chains.get(place) else { break };
            let written = chain.write_at(ram, at, bytes);
            at += written as u32;
            bytes = &bytes[written..];
            if !bytes.is_empty() {
                (at, place) = (0, place + 1);
            }
        }
    }
    let mut left = total;
    let used = chains.drain(..).map(|chain| {
        let written = left.min(chain.writable_len() as usize);
        left -= written;
        (chain, written as u32)
    });
    io.push_all(queue, used);
    true
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        NET
    }

    fn features(&self) -> u64 {
        use feature::{
            CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, CTRL_VQ,
            GUEST_ANNOUNCE, MAC, MQ, MRG_RXBUF, MTU, STATUS,
        };
        let mut features = MAC | STATUS;
        if self.options.mrg_rxbuf {
            features |= MRG_RXBUF;
        }
        if self.options.host_mtu.is_some() {
            features |= MTU;
        }
        let capable = self.port.capabilities();
        let (ours, guests) = self.options.offloads;
        // Nothing goes without checksums (5.1.3.1).
        let with_csum = |set: Offloads| {
            if set.contains(Offloads::CSUM) { set } else { Offloads::empty() }
        };
        let (ours, guests) = (with_csum(ours & capable), with_csum(guests & capable));
        for (offload, host, guest) in OFFLOADS {
            if ours.contains(offload) {
                features |= host;
            }
            if guests.contains(offload) {
                features |= guest;
            }
        }
        if self.options.ctrl_vq {
            features |= CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR;
            features |= GUEST_ANNOUNCE;
            if !guests.is_empty() {
                features |= CTRL_GUEST_OFFLOADS;
            }
            if self.pairs > 1 {
                features |= MQ;
            }
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let pair = [self.options.rx_queue_size, self.options.tx_queue_size];
        let mut sizes = pair.repeat(self.pairs.into());
        if self.options.ctrl_vq {
            sizes.push(CONTROL_SIZE);
        }
        sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.filter.mac.0);
        let mut status = 0;
        if self.link {
            status |= LINK_UP;
        }
        if self.announce {
            status |= ANNOUNCE;
        }
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.options.host_mtu.unwrap_or(0).to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, io: &mut Io<'_>) {
        self.guest_offloads = io.features() & control::GUEST_OFFLOADS;
        self.apply_offloads();
        self.follow_link(io);
    }

    fn notify(&mut self, queue: usize, io: &mut Io<'_>) {
        if queue == self.control_queue(io) {
            self.control(queue, io);
        } else if queue % 2 == 1 {
            self.transmit(queue, io);
        } else {
            io.disable_bell(queue);
            self.receive(io);
        }
    }

    fn event(&mut self, _tag: Tag, _now: VmTime, io: &mut Io<'_>) {
        self.follow_link(io);
        self.receive(io);
        if !self.paused && io.is_active() {
            for pair in 0..self.pairs_used.into() {
                if io.queues()[2 * pair + 1].is_ready() {
                    self.transmit(2 * pair + 1, io);
                }
            }
        }
    }

    fn reset(&mut self) -> Paused {
        self.pairs_used = 1;
        self.filter = Filter::new(self.options.mac);
        self.guest_offloads = 0;
        self.announce = false;
        self.apply_offloads();
        Paused::Done
    }

    fn pause(&mut self, _io: &mut Io<'_>) -> Paused {
        self.paused = true;
        Paused::Done
    }

    fn resume(&mut self, io: &mut Io<'_>) {
        self.paused = false;
        if std::mem::take(&mut self.restored) {
            self.apply_offloads();
            if io.has(feature::GUEST_ANNOUNCE) {
                self.announce = true;
                io.config_changed();
            }
        }
        self.follow_link(io);
        // The port may have told of frames while nobody asked for them.
        self.notifier.notify();
    }

    fn state(&self) -> Option<&dyn ErasedSnapshot> {
        Some(self)
    }

    fn state_mut(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }

    fn feature_names(&self) -> &'static [(u32, &'static str)] {
        FEATURE_NAMES
    }
}

/// The saved state: frames on their way and what is behind the port are not part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetV1 {
    mac: [u8; 6],
    pairs_used: u16,
    guest_offloads: u64,
    plugged: bool,
    link: bool,
    announce: bool,
    filter: filter::FilterV1,
}

impl Snapshot for Net {
    const KIND: &'static str = "virtio-net";
    const VERSION: u32 = 1;
    type State = NetV1;

    fn save(&self) -> NetV1 {
        let Self {
            port: _,
            options: _,
            notifier: _,
            pairs: _,
            pairs_used,
            filter,
            guest_offloads,
            plugged,
            link,
            announce,
            restored: _,
            paused: _,
            chains: _,
            pieces: _,
        } = self;
        NetV1 {
            mac: filter.mac.0,
            pairs_used: *pairs_used,
            guest_offloads: *guest_offloads,
            plugged: *plugged,
            link: *link,
            announce: *announce,
            filter: filter.save(),
        }
    }

    fn restore(&mut self, state: NetV1) -> Result<(), StateError> {
        let NetV1 { mac, pairs_used, guest_offloads, plugged, link, announce, filter } = state;
        let damaged = |cause| StateError::Damaged { kind: Self::KIND, cause };
        if !(1..=self.pairs).contains(&pairs_used) {
            return Err(damaged(format!("{pairs_used} queue pairs")));
        }
        self.filter = Filter::restore(MacAddress(mac), filter).map_err(damaged)?;
        self.pairs_used = pairs_used;
        self.guest_offloads = guest_offloads & control::GUEST_OFFLOADS;
        self.plugged = plugged;
        self.link = link;
        self.announce = announce;
        self.restored = true;
        Ok(())
    }
}
