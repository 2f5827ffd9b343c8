//! A guest for tests and fuzz targets: it makes frames by hand and takes those that come.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use board::{Clock, EventLoop};

use super::frame::{Gather, NetHeader, Offloads};
use super::{NetPort, Netdev, NetdevKind, NetdevSpec, Netdevs, Sent};

/// A frame with its header.
pub(crate) type Frame = (NetHeader, Vec<u8>);

/// A guest on a backend. Fuzz targets use part of it.
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) struct Guest {
    pub(crate) events: EventLoop,
    pub(crate) netdevs: Netdevs,
    pub(crate) netdev: Arc<Netdev>,
    pub(crate) port: NetPort,
    /// What has come and was not looked at yet.
    pub(crate) inbox: VecDeque<Frame>,
    /// Frames that it has room for.
    pub(crate) room: usize,
}

#[cfg_attr(not(test), allow(dead_code))]
impl Guest {
    /// A guest that takes `offloads`.
    pub(crate) fn new(kind: NetdevKind, offloads: Offloads) -> Self {
        let events = EventLoop::new(Clock::running()).unwrap();
        let mut netdevs = Netdevs::new(&events.handle());
        let netdev = netdevs.add(&NetdevSpec { id: "n".to_owned(), kind }).unwrap();
        let mut port = netdev.attach().unwrap();
        port.set_offloads(offloads);
        let inbox = VecDeque::new();
        Self { events, netdevs, netdev, port, inbox, room: usize::MAX }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.send_with(NetHeader::default(), frame);
    }

    pub(crate) fn send_with(&mut self, header: NetHeader, frame: &[u8]) {
        let middle = frame.len().min(30);
        let pieces = [IoSlice::new(&frame[..middle]), IoSlice::new(&frame[middle..])];
        assert_eq!(self.port.send(0, &header, Gather::new(&pieces)), Sent::Done);
    }

    /// Takes what has come.
    pub(crate) fn receive(&mut self) {
        let Self { port, inbox, room, .. } = self;
        port.receive(0, &mut |header, pieces| {
            if *room == 0 {
                return false;
            }
            *room -= 1;
            let frame = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            inbox.push_back((*header, frame));
            true
        });
    }

    /// Lets the loop turn until `found` gives something of a frame; others are dropped.
    ///
    /// # Panics
    /// When nothing comes in some ten seconds.
    pub(crate) fn until<R>(&mut self, mut found: impl FnMut(&Frame) -> Option<R>) -> R {
        for _ in 0..10_000 {
            self.receive();
            while let Some(frame) = self.inbox.pop_front() {
                if let Some(result) = found(&frame) {
                    return result;
                }
            }
            self.events.turn(Some(Duration::from_millis(1))).unwrap();
        }
        panic!("no such frame comes");
    }

    /// Lets the loop turn a little and takes what has come.
    pub(crate) fn settle(&mut self) {
        for _ in 0..5 {
            self.events.turn(Some(Duration::from_millis(1))).unwrap();
            self.receive();
        }
    }
}

/// The guest's address.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Its Ethernet address.
pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
