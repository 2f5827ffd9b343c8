use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use super::super::driver::{Buffer, Rig, Ring, peek, poke};
use super::*;
use crate::net::{NetdevKind, NetdevSpec, Netdevs, StreamAddress, StreamRole, UserConfig};

const ALL: u64 = u64::MAX;
const MAC_ADDR: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const RX: u32 = 0;
const TX: u32 = 1;
const CONTROL: u32 = 2;

fn rig_on(kind: NetdevKind) -> Rig {
    Rig::new(8 << 20, |attach, _| {
        let mut netdevs = Netdevs::new(attach.event_loop());
        let netdev = netdevs.add(&NetdevSpec { id: "n".into(), kind }).unwrap();
        let options = NetOptions::new(MAC_ADDR);
        Box::new(Net::new(netdev.attach().unwrap(), options, attach))
    })
}

/// A card whose frames go to and come from a socket, each behind its length.
fn rig() -> (Rig, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let address = StreamAddress::Fd(theirs.as_raw_fd());
    let role = StreamRole::Client { reconnect: 0 };
    (rig_on(NetdevKind::Stream { name: "stream", address, role }), ours)
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0xFF; 6];
    frame.extend((6..len).map(|n| (n as u8).wrapping_mul(3) ^ seed));
    frame
}

fn put(peer: &mut UnixStream, frame: &[u8]) {
    peer.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    peer.write_all(frame).unwrap();
}

fn get(peer: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    peer.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

/// Puts a frame into the transmit queue, its header apart.
fn transmit(rig: &Rig, ring: &mut Ring, at: u64, frame: &[u8]) {
    poke(&rig.ram, at, &[0; HEADER]);
    poke(&rig.ram, at + 0x100, frame);
    let (half, rest) = (frame.len() as u32 / 2, frame.len() as u32 - frame.len() as u32 / 2);
    let chain = [
        Buffer::out(at, HEADER as u32),
        Buffer::out(at + 0x100, half),
        Buffer::out(at + 0x100 + u64::from(half), rest),
    ];
    ring.add(&chain).unwrap();
}

fn bytes(rig: &Rig, at: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    assert_eq!(rig.ram.read(at, &mut data), Ok(()));
    data
}

#[test]
fn frames_go_out_and_come_in() {
    let (mut rig, mut peer) = rig();
    let mut rings = rig.start(ALL, 64);
    assert_eq!(rings.len(), 3);
    transmit(&rig, &mut rings[1], Rig::BUFFERS, &frame(1514, 1));
    transmit(&rig, &mut rings[1], Rig::BUFFERS + 0x1000, &frame(60, 2));
    rig.kick(TX);
    assert_eq!((get(&mut peer), get(&mut peer)), (frame(1514, 1), frame(60, 2)));
    assert!(rings[1].take().is_some() && rings[1].take().is_some());

    let room = Rig::BUFFERS + 0x4000;
    rings[0].add(&[Buffer::room(room, 2048)]);
    rig.kick(RX);
    put(&mut peer, &frame(100, 3));
    let mut used = None;
    rig.until(|_| {
        used = rings[0].take();
        used.is_some()
    });
    assert_eq!(used.map(|(_, len)| len), Some(112));
    assert_eq!(bytes(&rig, room, 112)[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bytes(&rig, room + 12, 100), frame(100, 3));
}

#[test]
fn a_frame_takes_several_buffers_or_waits_for_them() {
    let (mut rig, mut peer) = rig();
    let mut rings = rig.start(ALL, 64);
    put(&mut peer, &frame(150, 1));
    put(&mut peer, &frame(20, 2));
    rig.turn();
    let room = |n: u64| Rig::BUFFERS + 0x1000 * n;
    rings[0].add(&[Buffer::room(room(0), 64)]);
    rig.kick(RX);
    assert!(rings[0].take().is_none(), "one is not enough");
    for n in 1..4 {
        rings[0].add(&[Buffer::room(room(n), 64)]);
    }
    rig.kick(RX);
    let lens: Vec<u32> = (0..4).map(|_| rings[0].take().unwrap().1).collect();
    assert_eq!(lens, [64, 64, 34, 32]);
    assert_eq!(bytes(&rig, room(0) + 10, 2), [3, 0]);
    let mut got = bytes(&rig, room(0) + 12, 52);
    got.extend(bytes(&rig, room(1), 64));
    got.extend(bytes(&rig, room(2), 34));
    assert_eq!(got, frame(150, 1));
    assert_eq!(bytes(&rig, room(3) + 12, 20), frame(20, 2));

    // A driver that does not know of several gets what fits, and loses the rest.
    let (mut rig, mut peer) = self::rig();
    let mut rings = rig.start(!feature::MRG_RXBUF, 64);
    rings[0].add(&[Buffer::room(room(0), 64)]);
    put(&mut peer, &frame(150, 1));
    put(&mut peer, &frame(20, 2));
    rig.until(|_| rings[0].take().is_some());
    assert_eq!(bytes(&rig, room(0) + 12, 20), frame(20, 2));
}

#[test]
fn a_slow_peer_loses_nothing() {
    let (mut rig, mut peer) = rig();
    let mut rings = rig.start(ALL, 64);
    let (mut sent, mut used) = (0_u32, 0);
    while sent < 2000 {
        let at = Rig::BUFFERS + 0x2000 * u64::from(sent % 16);
        if sent - used == 16 {
            break;
        }
        transmit(&rig, &mut rings[1], at, &frame(1514, sent as u8));
        sent += 1;
        rig.kick(TX);
        while rings[1].take().is_some() {
            used += 1;
        }
    }
    assert!(sent < 2000, "the socket has a bound");
    peer.set_nonblocking(true).unwrap();
    let (mut stream, mut at) = (Vec::<u8>::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    let mut seen = 0_u32;
    rig.until(|_| {
        while let Ok(len) = peer.read(&mut buffer) {
            stream.extend(&buffer[..len]);
        }
        while stream.len() - at >= 1518 {
            assert_eq!(stream[at + 4..at + 1518], frame(1514, seen as u8));
            at += 1518;
            seen += 1;
        }
        seen == sent
    });
    rig.turn();
    while rings[1].take().is_some() {
        used += 1;
    }
    assert_eq!(used, sent);
}

/// A command; its answer.
fn command(rig: &mut Rig, ring: &mut Ring, bytes: &[u8]) -> u8 {
    let at = Rig::BUFFERS + 0x8000;
    poke(&rig.ram, at, bytes);
    poke(&rig.ram, at + 0x800, &[0xEE]);
    ring.add(&[Buffer::out(at, bytes.len() as u32), Buffer::room(at + 0x800, 1)]).unwrap();
    rig.kick(CONTROL);
    assert!(ring.take().is_some());
    peek::<1>(&rig.ram, at + 0x800)[0]
}

#[test]
fn the_driver_commands_modes_and_addresses() {
    let (mut rig, mut peer) = rig();
    let mut rings = rig.start(ALL, 64);
    assert_eq!(rig.config::<6>(0), MAC_ADDR.0);
    for (bytes, answer) in [
        (&[0, 0, 0][..], 0),
        (&[0, 5, 1], 0),
        (&[0, 9, 1], 1),
        (&[0, 0], 1),
        (&[1, 1, 2, 0, 0, 0, 0, 9], 0),
        (&[1, 1, 2], 1),
        (&[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0], 0),
        (&[1, 0, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0], 1),
        (&[2, 0, 7, 0], 0),
        (&[2, 1, 0, 16], 1),
        (&[3, 0], 0),
        // There is one pair only, and the backend has no offloads.
        (&[4, 0, 1, 0], 1),
        (&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1),
        (&[9, 0], 1),
        (&[1], 1),
    ] {
        assert_eq!(command(&mut rig, &mut rings[2], bytes), answer, "{bytes:?}");
    }
    assert_eq!(rig.config::<6>(0), [2, 0, 0, 0, 0, 9]);
    let room = Rig::BUFFERS + 0x4000;
    rings[0].add(&[Buffer::room(room, 2048)]);
    put(&mut peer, &frame(60, 1));
    let mut wanted = frame(60, 2);
    wanted[..6].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
    put(&mut peer, &wanted);
    rig.until(|_| rings[0].take().is_some());
    assert_eq!(bytes(&rig, room + 12, 60), wanted, "broadcasts are off");

    // The state goes over to another card.
    let (other, _peer) = self::rig();
    rig.copy_to(&other, 8 << 20);
    assert_eq!(other.config::<6>(0), [2, 0, 0, 0, 0, 9]);
    rig.write(0x70, 0);
    assert_eq!(rig.config::<6>(0), MAC_ADDR.0);
}

#[test]
fn the_link_is_seen_and_announced() {
    let (mut rig, peer) = rig();
    rig.start(ALL, 64);
    assert_eq!(rig.config::<2>(6), [1, 0]);
    rig.interrupts();
    crate::virtio::with_device(&rig.slot, |net: &mut Net, io| net.set_link(false, io)).unwrap();
    assert_eq!((rig.config::<2>(6), rig.interrupts()), ([0, 0], 2));
    crate::virtio::with_device(&rig.slot, |net: &mut Net, io| net.set_link(true, io)).unwrap();
    assert_eq!((rig.config::<2>(6), rig.interrupts()), ([1, 0], 2));
    // The other end goes.
    drop(peer);
    rig.until(|rig| rig.config::<2>(6) == [0, 0]);
}

#[test]
fn offloads_are_those_of_the_backend() {
    let (rig, _peer) = rig();
    assert_eq!(rig.offered() & (feature::CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4), 0);
    let mut rig = rig_on(NetdevKind::User(UserConfig::default()));
    let offered = rig.offered();
    for (wanted, bits) in [
        (true, feature::CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4 | feature::MRG_RXBUF),
        (false, feature::HOST_TSO6),
        (false, feature::MQ),
    ] {
        assert_eq!(offered & bits == bits, wanted, "{bits:#x}");
    }
    let mut rings = rig.start(ALL, 64);
    let offloads = feature::GUEST_CSUM.to_le_bytes();
    let mut bytes = vec![5, 0];
    bytes.extend(offloads);
    assert_eq!(command(&mut rig, &mut rings[2], &bytes), 0);
    bytes[2..].copy_from_slice(&feature::GUEST_TSO6.to_le_bytes());
    assert_eq!(command(&mut rig, &mut rings[2], &bytes), 1);
}
