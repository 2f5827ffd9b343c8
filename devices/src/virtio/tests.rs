//! The core and the MMIO transport, with a device that copies.

use super::driver::{Buffer, Rig, Ring, descriptor, peek, poke};
use super::*;
use crate::chip::testing::Random;
use board::device::Paused;

/// Copies what it reads to what it may write, and counts what it is told.
#[derive(Default)]
struct Copier {
    config: [u8; 8],
    stuck: bool,
    active: u32,
    resets: u32,
}

impl VirtioDevice for Copier {
    fn kind(&self) -> Kind {
        ENTROPY
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![8, 256]
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8], io: &mut Io<'_>) {
        if let Some(to) = self.config.get_mut(offset..offset + data.len()) {
            to.copy_from_slice(data);
            io.config_changed();
        }
    }
    fn activate(&mut self, _io: &mut Io<'_>) {
        self.active += 1;
    }
    fn notify(&mut self, queue: usize, io: &mut Io<'_>) {
        io.serve(queue, |io, chain| {
            let mut data = vec![0; chain.readable_len().min(4096) as usize];
            chain.read_at(io.ram(), 0, &mut data);
            let written = chain.write_at(io.ram(), 0, &data);
            io.push(queue, chain, written as u32);
        });
    }
    fn event(&mut self, _tag: board::Tag, _now: board::VmTime, io: &mut Io<'_>) {
        io.drained();
    }
    fn reset(&mut self) -> Paused {
        self.resets += 1;
        if self.stuck { Paused::Pending } else { Paused::Done }
    }
}

fn rig() -> Rig {
    Rig::new(4 << 20, |_, _| Box::<Copier>::default())
}

const BOTH: u64 = F_INDIRECT_DESC | F_EVENT_IDX;
const A: u64 = Rig::BUFFERS;
const B: u64 = Rig::BUFFERS + 0x1000;

#[test]
fn registers_say_what_it_is() {
    let rig = rig();
    assert_eq!(
        [0, 4, 8, 0x34, 0xB0].map(|r| rig.read(r)),
        [0x7472_6976, 2, 4, 8, u32::MAX],
        "magic, version, id, size of queue 0, no shared memory"
    );
    assert_eq!(rig.offered(), 1 << 5 | BOTH | F_VERSION_1);
    let mut byte = [0xFF];
    rig.slot.lock().read(mmio::VirtioMmio::REGISTERS, 0, &mut byte);
    assert_eq!(byte, [0], "registers are read whole");
}

#[test]
fn features_that_are_not_offered_or_too_old_are_not_agreed_upon() {
    let rig = rig();
    for (words, agreed) in [([0, 0], false), ([0, 1], true), ([1, 1], false), ([1 << 5, 1], true)] {
        rig.write(0x70, 0);
        rig.write(0x70, 3);
        for (word, value) in (0..).zip(words) {
            rig.write(0x24, word);
            rig.write(0x20, value);
        }
        rig.write(0x70, 11);
        assert_eq!(rig.status().contains(Status::FEATURES_OK), agreed, "{words:x?}");
        rig.write(0x70, 15);
        assert_eq!(rig.status().contains(Status::DRIVER_OK), agreed);
    }
}

#[test]
fn chains_go_round_with_every_choice_of_features() {
    for features in [0, F_INDIRECT_DESC, F_EVENT_IDX, BOTH] {
        let mut rig = rig();
        let mut rings = rig.start(features, 8);
        let ring = &mut rings[0];
        for turn in 0_u32..40 {
            poke(&rig.ram, A, &turn.to_le_bytes());
            let chain = [
                Buffer::out(A, 3),
                Buffer::out(A + 3, 1),
                Buffer::room(B, 2),
                Buffer::room(B + 2, 9),
            ];
            let head = match features & F_INDIRECT_DESC != 0 && turn % 2 == 0 {
                true => ring.add_indirect(A + 0x800, &chain),
                false => ring.add(&chain),
            };
            rig.kick(0);
            assert_eq!(ring.take(), Some((head.unwrap(), 4)), "{features:#x} {turn}");
            assert_eq!(peek(&rig.ram, B), turn.to_le_bytes());
            assert_eq!((rig.line.level(), rig.interrupts()), (true, 1));
            assert!(!rig.line.level());
        }
        assert!(rig.status().contains(Status::DRIVER_OK));
    }
}

#[test]
fn interrupts_come_only_when_the_driver_wants_them() {
    let mut rig = rig();
    let mut rings = rig.start(F_EVENT_IDX, 8);
    let pair = [Buffer::out(A, 1), Buffer::room(B, 1)];
    // The driver asks for the one after the next.
    poke(&rig.ram, rings[0].avail + 4 + 16, &2_u16.to_le_bytes());
    for expected in [0, 0, 1, 0] {
        rings[0].add(&pair);
        rig.kick(0);
        assert_eq!(rig.interrupts(), expected);
    }
    let mut rings = rig.start(0, 8);
    rings[0].add(&pair);
    poke(&rig.ram, rings[0].avail, &[1]);
    rig.kick(0);
    assert_eq!((rings[0].take().is_some(), rig.interrupts()), (true, 0));
    poke(&rig.ram, rings[0].avail, &[0]);
    rings[0].add(&pair);
    rig.kick(0);
    assert_eq!(rig.interrupts(), 1);
}

#[test]
fn a_new_cause_while_the_line_is_high_is_an_edge_of_its_own() {
    let mut rig = rig();
    let mut rings = rig.start(0, 8);
    rings[0].add(&[Buffer::out(A, 1), Buffer::room(B, 1)]);
    rig.kick(0);
    rig.line.take_edges();
    rig.write(0x100, 7);
    assert_eq!((rig.read(0x60), rig.line.take_edges(), rig.read(0xFC)), (3, 0, 1));
    rig.write(0x64, 1);
    assert_eq!((rig.line.take_edges(), rig.line.level()), (1, true));
    rig.write(0x64, 2);
    assert!(!rig.line.level());
}

/// What makes a device need a reset, and what it does until then.
fn breaks(name: &str, spoil: impl FnOnce(&Rig, &mut Ring)) {
    let mut rig = rig();
    let mut rings = rig.start(BOTH, 8);
    spoil(&rig, &mut rings[0]);
    rig.kick(0);
    assert!(rig.status().contains(Status::NEEDS_RESET), "{name}");
    assert_eq!((rig.interrupts(), rings[0].take()), (2, None), "{name}");
    rings[1].add(&[Buffer::room(B, 4)]);
    rig.kick(1);
    assert_eq!(rings[1].take(), None, "{name}: a broken device does nothing");
    let mut rings = rig.start(BOTH, 8);
    rings[0].add(&[Buffer::out(A, 4), Buffer::room(B, 4)]);
    rig.kick(0);
    assert!(rings[0].take().is_some(), "{name}: a reset helps");
}

#[test]
fn what_a_driver_must_not_do_needs_a_reset() {
    let at = |ring: &Ring, index: u64| ring.descriptors + 16 * index;
    breaks("head beyond the table", |_, ring| ring.publish(8));
    breaks("index too far ahead", |rig, ring| poke(&rig.ram, ring.avail + 2, &[9, 0]));
    breaks("a loop", |rig, ring| {
        poke(&rig.ram, at(ring, 0), &descriptor(A, 1, 1, 1));
        poke(&rig.ram, at(ring, 1), &descriptor(A, 1, 1, 0));
        ring.publish(0);
    });
    breaks("next beyond the table", |rig, ring| {
        poke(&rig.ram, at(ring, 0), &descriptor(A, 1, 1, 8));
        ring.publish(0);
    });
    for (address, len) in [(4 << 20, 1), ((4 << 20) - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
        breaks("not RAM", |rig, ring| {
            poke(&rig.ram, at(ring, 0), &descriptor(address, len, 0, 0));
            ring.publish(0);
        });
        breaks("a table that is not RAM", |rig, ring| {
            poke(&rig.ram, at(ring, 0), &descriptor(address, len & !15 | 16, 4, 0));
            ring.publish(0);
        });
    }
    breaks("readable after writable", |_, ring| {
        ring.add(&[Buffer::room(B, 1), Buffer::out(A, 1)]);
    });
    for (what, len, flags) in [("no table", 0, 4), ("half a descriptor", 24, 4), ("next", 16, 5)] {
        breaks(what, |rig, ring| {
            poke(&rig.ram, at(ring, 0), &descriptor(A, len, flags, 1));
            ring.publish(0);
        });
    }
    breaks("a table in a table", |rig, ring| {
        poke(&rig.ram, A, &descriptor(A, 16, 4, 0));
        poke(&rig.ram, at(ring, 0), &descriptor(A, 16, 4, 0));
        ring.publish(0);
    });
    breaks("a loop in a table", |rig, ring| {
        poke(&rig.ram, A, &descriptor(B, 1, 1, 0));
        poke(&rig.ram, at(ring, 0), &descriptor(A, 16, 4, 0));
        ring.publish(0);
    });
    breaks("a giant chain", |_, ring| {
        ring.add_indirect(0x20_0000, &vec![Buffer::out(A, 1); MAX_SEGMENTS + 1]);
    });
    breaks("4 GiB", |_, ring| {
        ring.add_indirect(0x20_0000, &vec![Buffer::out(0, 4 << 20); 1024]);
    });
}

#[test]
fn an_indirect_table_without_the_feature_needs_a_reset() {
    let mut rig = rig();
    let mut rings = rig.start(0, 8);
    rings[0].add_indirect(A, &[Buffer::room(B, 1)]);
    rig.kick(0);
    assert!(rig.status().contains(Status::NEEDS_RESET));
}

#[test]
fn rings_outside_ram_need_a_reset_and_do_not_change_while_ready() {
    let rig = rig();
    for (register, address) in [(0x80, 4 << 20), (0x90, (4 << 20) - 2), (0xA0, 0xFFFF_F000_u32)] {
        rig.negotiate(0);
        rig.show(1, &Ring::new(&rig.ram, 0x1000, 8));
        rig.write(0x44, 0);
        rig.write(register, address);
        rig.write(0x44, 1);
        assert_eq!(rig.read(0x44), 0);
        assert!(rig.status().contains(Status::NEEDS_RESET));
    }
    rig.negotiate(0);
    let ring = Ring::new(&rig.ram, 0x1000, 8);
    rig.show(0, &ring);
    rig.write(0x80, 0x7000_0000);
    rig.write(0x38, 4);
    let layout = rig.slot.with(|d: &mut mmio::VirtioMmio| d.core().0.queues()[0].layout()).unwrap();
    assert_eq!((layout.descriptors, layout.size), (ring.descriptors, 8));
}

#[test]
fn a_driver_that_never_stops_lets_others_have_their_turn() {
    let mut rig = rig();
    let mut rings = rig.start(0, 8);
    // The same chain over and over, a full ring each time that the loop looks.
    rings[0].add(&[Buffer::room(B, 1)]);
    for _ in 0..7 {
        rings[0].publish(0);
    }
    rig.write(0x50, 0);
    rig.turn();
    assert_eq!(peek::<2>(&rig.ram, rings[0].used + 2), [8, 0]);
    assert!(!rig.status().contains(Status::NEEDS_RESET));
}

#[test]
fn a_reset_ends_only_when_nothing_is_in_flight() {
    let mut rig = Rig::new(4 << 20, |_, _| Box::new(Copier { stuck: true, ..Copier::default() }));
    rig.start(0, 8);
    let counts =
        |rig: &Rig| with_device(&rig.slot, |d: &mut Copier, _| (d.active, d.resets)).unwrap();
    assert_eq!(counts(&rig), (1, 0));
    rig.write(0x70, 0);
    assert_ne!(rig.read(0x70), 0, "the driver sees that it is not over");
    let mut rings = rig.start(0, 8);
    rings[0].add(&[Buffer::room(B, 1)]);
    rig.kick(0);
    assert_eq!((rings[0].take(), counts(&rig)), (None, (1, 1)));
    rig.slot.lock().event(board::Tag(0), board::VmTime(0));
    rig.turn();
    assert_eq!(counts(&rig), (2, 1));
    assert!(rings[0].take().is_some(), "what was put there meanwhile is done");
}

#[test]
fn a_stopped_machine_takes_no_buffers() {
    let mut rig = rig();
    let mut rings = rig.start(0, 8);
    assert_eq!(rig.slot.lock().pause(), Paused::Done);
    rings[0].add(&[Buffer::room(B, 1)]);
    rig.kick(0);
    assert_eq!(rings[0].take(), None);
    rig.slot.lock().resume();
    rig.turn();
    assert!(rings[0].take().is_some());
}

#[test]
fn a_restored_device_goes_on_where_it_was() {
    let mut rig = rig();
    let mut rings = rig.start(BOTH, 8);
    for _ in 0..5 {
        rings[0].add(&[Buffer::out(A, 1), Buffer::room(B, 1)]);
        rig.kick(0);
        rings[0].take();
    }
    rings[0].add(&[Buffer::out(A, 1), Buffer::room(B, 3)]);
    let mut other = self::rig();
    rig.copy_to(&other, 4 << 20);
    assert_eq!((other.line.take_edges(), other.read(0x60)), (0, rig.read(0x60)));
    other.slot.lock().resume();
    other.turn();
    assert_eq!(peek::<2>(&other.ram, rings[0].used + 2), [6, 0]);
    assert_eq!(other.status(), rig.status());
}

#[test]
fn damaged_states_are_refused_and_change_nothing() {
    let mut rig = rig();
    rig.start(BOTH, 8);
    let mut device = rig.slot.lock();
    let snapshot = device.snapshot().unwrap();
    let good = snapshot.save_value();
    for (path, value) in [
        ("/core/device_id", 2_u64),
        ("/core/features", 1 << 40),
        ("/core/queues/0/size", 7),
        ("/core/queues/1/descriptors", 8),
        ("/core/queues/1/used", 1 << 40),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(path).unwrap() = value.into();
        assert!(snapshot.restore_value(1, bad).is_err(), "{path}");
        assert_eq!(snapshot.save_value(), good, "{path}");
    }
}

#[test]
fn random_registers_and_rings_do_no_harm() {
    let mut random = Random::new(12);
    for _ in 0..400 {
        let bytes: Vec<u8> = (0..random.below(600)).map(|_| random.byte()).collect();
        crate::fuzz::mangle(&mut rig(), &bytes);
    }
}
