//! Fuzz targets: functions of bytes that panic when something is wrong.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use board::Entropy;

use crate::block::Disk;
use crate::chardev::NullPort;
use crate::net::testing::{GUEST, Guest, MAC};
use crate::net::{
    GuestForward, MAX_FRAME, MacAddress, NetHeader, NetdevKind, NetdevSpec, Netdevs, Offloads,
    Target, UserConfig,
};
use crate::virtio::balloon::{Balloon, BalloonOptions};
use crate::virtio::blk::{Blk, BlkOptions};
use crate::virtio::console::{Console, PortSpec};
use crate::virtio::driver::{Rig, poke};
use crate::virtio::net::{Net, NetOptions};
use crate::virtio::rng::Rng;

/// A cursor over a target's bytes, which gives zeros behind their end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }

    /// A number of the sizes that are interesting: small, at RAM's end, or anything.
    fn interesting(&mut self) -> u64 {
        match self.byte() % 8 {
            0..4 => self.byte().into(),
            4 => Rig::BUFFERS + self.number(2),
            5 => (4 << 20) - u64::from(self.byte() % 32),
            6 => u64::MAX - u64::from(self.byte()),
            _ => self.number(8),
        }
    }
}

/// Sets a device of 4 MiB up as a driver does, then writes to its rings, its registers and its
/// memory what `bytes` say.
pub(crate) fn mangle(rig: &mut Rig, bytes: &[u8]) {
    let mut input = Input(bytes);
    let features = if input.byte() & 1 == 0 { u64::MAX } else { input.number(4) };
    let mut rings = rig.start(features, 1 << (input.byte() % 6));
    let mut actions = 0;
    while !input.is_empty() && actions < 200 && !rings.is_empty() {
        actions += 1;
        let count = rings.len();
        let ring = &mut rings[usize::from(input.byte()) % count];
        match input.byte() % 12 {
            // A descriptor, of the table or of one that may become an indirect one.
            0..4 => {
                let place = u64::from(input.byte() % 64);
                let base = if input.byte() % 4 == 0 { Rig::BUFFERS } else { ring.descriptors };
                let (address, len) = (input.interesting(), input.interesting() as u32);
                let (flags, next) = (u16::from(input.byte() % 8), input.byte() % 40);
                let bytes = crate::virtio::driver::descriptor(address, len, flags, next.into());
                poke(&rig.ram, base + 16 * place, &bytes);
            }
            4..6 => ring.publish(input.byte().into()),
            6 => poke(&rig.ram, ring.avail + 2, &input.number(2).to_le_bytes()[..2]),
            7 => {
                while ring.take().is_some() && actions < 200 {
                    actions += 1;
                }
            }
            8 => poke(&rig.ram, Rig::BUFFERS + input.number(2), &[input.byte(); 8]),
            9 => {
                let offset = u64::from(input.byte()) * 2;
                rig.write(offset, input.interesting() as u32);
            }
            10 => {
                rig.read(u64::from(input.byte()) * 2);
            }
            _ => {
                let queue = u32::from(input.byte()) % count as u32;
                rig.kick(queue);
            }
        }
    }
    for queue in 0..rings.len() as u32 {
        rig.kick(queue);
    }
    // Whatever has happened: a reset brings the device back.
    rig.write(0x70, 0);
    rig.turn();
    let saved = |rig: &Rig| rig.slot.lock().snapshot().map(|s| s.save_value());
    assert!(saved(rig).is_some());
}

/// virtio-rng: rings, registers.
pub fn virtio_rng(bytes: &[u8]) {
    let mut rig = Rig::new(4 << 20, |_, _| Box::new(Rng::new(Entropy::seeded(1, "rng"))));
    mangle(&mut rig, bytes);
}

/// virtio-blk: rings, registers, requests.
///
/// # Panics
/// When the host has no threads left.
pub fn virtio_blk(bytes: &[u8]) {
    let disk = Disk::memory(vec![0; 1 << 16]).unwrap();
    let options = BlkOptions { queues: 2, ..BlkOptions::default() };
    let mut rig = Rig::new(4 << 20, |attach, ram| {
        Box::new(Blk::new(&disk, ram, "blk", options, attach).unwrap())
    });
    mangle(&mut rig, bytes);
}

/// virtio-balloon: rings, registers, page numbers.
pub fn virtio_balloon(bytes: &[u8]) {
    let options = BalloonOptions { deflate_on_oom: true, free_page_reporting: true };
    let mut rig = Rig::new(4 << 20, |_, _| Box::new(Balloon::new(options, Box::new(|_| ()))));
    mangle(&mut rig, bytes);
}

/// virtio-console: rings, registers, control messages.
pub fn virtio_console(bytes: &[u8]) {
    let mut rig = Rig::new(4 << 20, |attach, _| {
        let port = |number| PortSpec {
            number,
            console: number == 0,
            name: Some("port".to_owned()),
            port: Box::new(NullPort),
        };
        Box::new(Console::new(vec![port(0), port(2)], 3, attach))
    });
    mangle(&mut rig, bytes);
}

/// The user network with one way out: a port of this host's where nobody reads.
fn closed_network(listener: &TcpListener) -> NetdevKind {
    let target = Target::Tcp(listener.local_addr().unwrap());
    let server = SERVER;
    NetdevKind::User(UserConfig {
        restrict: true,
        guest_forwards: vec![GuestForward { server, port: 7, target }],
        ..UserConfig::default()
    })
}

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

/// The user network's parsers and its TCP: frames, some of which make sense.
///
/// # Panics
/// When the network does what it must not, or the host has no fd left.
pub fn user_net(bytes: &[u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut input = Input(bytes);
    let offloads = Offloads::from_bits_truncate(input.byte());
    let mut guest = Guest::new(closed_network(&listener), offloads);
    let (mut seq, mut ack) = (0_u32, 0_u32);
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let protocol = match choice % 8 {
            0 => 1,
            1 => 17,
            2..7 => 6,
            _ => input.byte(),
        };
        let mut payload: Vec<u8> = match protocol {
            17 => vec![0, 68, 0, 67, 0, 0, 0, 0],
            6 => {
                let mut tcp = vec![0x30, input.byte() % 4, 0, 7];
                let wild = input.byte();
                let seq = if wild % 8 == 0 { input.number(4) as u32 } else { seq };
                let ack = if wild % 8 == 1 { input.number(4) as u32 } else { ack };
                tcp.extend(seq.to_be_bytes());
                tcp.extend(ack.to_be_bytes());
                let options = input.byte() % 3 * 4;
                tcp.extend([(5 + options / 4) << 4, input.byte()]);
                tcp.extend([input.byte(), input.byte(), 0, 0, 0, 0]);
                tcp
            }
            _ => Vec::new(),
        };
        for _ in 0..input.byte() % 64 {
            payload.push(input.byte());
        }
        if choice & 0x80 != 0 {
            payload.resize(payload.len() + 40 * usize::from(input.byte()), 0x5A);
        }
        if protocol == 17 {
            payload[4..6].copy_from_slice(&(input.interesting() as u16).to_be_bytes());
        }
        let to = if protocol == 6 { SERVER.octets() } else { [10, 0, 2, input.byte() % 4] };
        let mut frame = vec![0x52, 0x55, 10, 0, 2, 2];
        frame.extend(MAC);
        frame.extend(if input.byte() == 0 { [8, 6] } else { [8, 0] });
        let fragment = if input.byte() % 4 == 0 { input.number(2) as u16 } else { 0 };
        let total =
            if input.byte() % 8 == 0 { input.number(2) as usize } else { 20 + payload.len() };
        let mut ip = vec![0x45, 0];
        ip.extend((total as u16).to_be_bytes());
        ip.extend([0, 1]);
        ip.extend(fragment.to_be_bytes());
        ip.extend([64, protocol, 0, 0]);
        ip.extend(GUEST.octets());
        ip.extend(to);
        let sum = internet_checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
        frame.extend(payload);
        if choice & 0x40 != 0 {
            let place = input.number(2) as usize % frame.len();
            frame[place] = input.byte();
            frame.truncate(input.number(2) as usize % 2000);
        }
        let flags = NetHeader::NEEDS_CSUM * u8::from(choice & 0x20 == 0);
        guest.room = usize::from(input.byte() % 16);
        guest.send_with(NetHeader { flags, ..NetHeader::default() }, &frame);
        guest.receive();
        guest.events.turn(Some(Duration::ZERO)).unwrap();
        guest.receive();
        while let Some((_, frame)) = guest.inbox.pop_front() {
            assert!(frame.len() >= 42 && frame.len() <= MAX_FRAME, "{} bytes", frame.len());
            // Go on where the network is.
            if frame[12..14] == [8, 0] && frame[23] == 6 {
                let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
                (seq, ack) = (number(42), number(38).wrapping_add(1));
            }
        }
    }
    assert!(guest.netdev.with_user(|user| user.connections()).unwrap() <= 1024);
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    !((sum & 0xFFFF) + (sum >> 16)) as u16
}

/// virtio-net: rings, registers, the control queue, on the user network.
///
/// # Panics
/// When the host has no fd left.
pub fn virtio_net(bytes: &[u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::new(4 << 20, |attach, _| {
        let mut netdevs = Netdevs::new(attach.event_loop());
        let kind = closed_network(&listener);
        let netdev = netdevs.add(&NetdevSpec { id: "n".to_owned(), kind }).unwrap();
        let options = NetOptions::new(MacAddress(MAC));
        Box::new(Net::new(netdev.attach().unwrap(), options, attach))
    });
    mangle(&mut rig, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::testing::Random;

    fn seeded(seed: u64, count: u64, target: fn(&[u8])) {
        let mut random = Random::new(seed);
        let count = if std::env::var_os("VMM_SOAK").is_some() { count * 100 } else { count };
        for _ in 0..count {
            let bytes: Vec<u8> = (0..random.below(800)).map(|_| random.byte()).collect();
            target(&bytes);
        }
    }

    #[test]
    fn random_rings_do_rng_no_harm() {
        seeded(1, 300, virtio_rng);
    }

    #[test]
    fn random_rings_do_blk_no_harm() {
        seeded(2, 200, virtio_blk);
    }

    #[test]
    fn random_frames_do_the_user_network_no_harm() {
        seeded(5, 200, user_net);
    }

    #[test]
    fn random_rings_do_net_no_harm() {
        seeded(6, 200, virtio_net);
    }

    #[test]
    fn random_rings_do_balloon_no_harm() {
        seeded(3, 200, virtio_balloon);
    }

    #[test]
    fn random_rings_do_console_no_harm() {
        seeded(4, 200, virtio_console);
    }
}
