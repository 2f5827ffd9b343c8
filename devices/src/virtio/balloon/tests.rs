use std::sync::{Arc, Mutex};

use super::super::driver::{Buffer, Rig, peek, poke};
use super::super::{Status, with_device};
use super::*;

const AT: u64 = Rig::BUFFERS;
const PAGE: u64 = 0x20_0000;

fn rig() -> (Rig, Arc<Mutex<Vec<u64>>>) {
    let changes = Arc::<Mutex<Vec<u64>>>::default();
    let log = changes.clone();
    let options = BalloonOptions { deflate_on_oom: true, free_page_reporting: true };
    let on_change = Box::new(move |bytes| log.lock().unwrap().push(bytes));
    (Rig::new(4 << 20, |_, _| Box::new(Balloon::new(options, on_change))), changes)
}

#[test]
fn pages_that_are_given_are_gone() {
    let (mut rig, _) = rig();
    let mut rings = rig.start(u64::MAX, 16);
    for page in 0..6 {
        poke(&rig.ram, PAGE + page * PAGE_SIZE, &[7; 16]);
    }
    let first = (PAGE / PAGE_SIZE) as u32;
    // Out of order, one twice, one beyond RAM.
    let numbers = [first + 2, first + 1, first + 4, first + 1, u32::MAX];
    poke(&rig.ram, AT, &numbers.map(u32::to_le_bytes).concat());
    rings[0].add(&[Buffer::out(AT, 20)]);
    rig.kick(0);
    assert!(rings[0].take().is_some());
    let left: Vec<u8> = (0..6).map(|n| peek::<1>(&rig.ram, PAGE + n * PAGE_SIZE)[0]).collect();
    assert_eq!(left, [7, 0, 0, 7, 0, 7]);
    rings[1].add(&[Buffer::out(AT, 20)]);
    rig.kick(1);
    assert!(rings[1].take().is_some());
    poke(&rig.ram, PAGE + PAGE_SIZE, &[9]);
    assert_eq!(peek(&rig.ram, PAGE + PAGE_SIZE), [9]);
}

#[test]
fn a_target_is_a_change_of_the_configuration_and_the_guest_answers() {
    let (mut rig, changes) = rig();
    rig.start(u64::MAX, 16);
    with_device(&rig.slot, |balloon: &mut Balloon, io| balloon.set_target(1 << 20, io)).unwrap();
    assert_eq!((rig.config::<4>(0), rig.interrupts()), ([0, 1, 0, 0], 2));
    rig.write(0x104, 256);
    rig.write(0x104, 256);
    rig.write(0x104, 200);
    assert_eq!(*changes.lock().unwrap(), [1 << 20, 200 << 12]);
    rig.write(0x70, 0);
    assert_eq!(rig.config::<8>(0), [0, 1, 0, 0, 0, 0, 0, 0], "the wish outlives a reset");
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let (mut rig, _) = rig();
    let mut rings = rig.start(u64::MAX, 16);
    let ask = |rig: &Rig| with_device(&rig.slot, |b: &mut Balloon, io| b.stats(io)).unwrap();
    assert_eq!(ask(&rig), [None; 10]);
    let mut bytes = Vec::new();
    for (tag, value) in [(4_u16, 1000_u64), (5, 2000), (99, 1)] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    poke(&rig.ram, AT, &bytes);
    rings[2].add(&[Buffer::out(AT, bytes.len() as u32)]);
    rig.kick(2);
    assert_eq!(rings[2].take(), None, "the device keeps the buffer");
    let other = self::rig().0;
    rig.copy_to(&other, 4 << 20);
    assert_eq!(ask(&rig)[4..6], [Some(1000), Some(2000)]);
    assert!(rings[2].take().is_some());
    assert_eq!(rig.interrupts(), 1);
    other.slot.lock().resume();
    ask(&other);
    assert_eq!(peek::<2>(&other.ram, rings[2].used + 2), [1, 0]);
}

#[test]
fn free_pages_are_dropped_and_the_queue_is_where_the_features_say() {
    for (features, queue) in [(u64::MAX, 3), (!F_STATS_VQ, 2)] {
        let (mut rig, _) = rig();
        let mut rings = rig.start(features, 16);
        poke(&rig.ram, PAGE, &[7; 8192]);
        rings[queue].add(&[Buffer::room(PAGE, 4096)]);
        rig.kick(queue as u32);
        assert!(rings[queue].take().is_some());
        assert_eq!([peek::<1>(&rig.ram, PAGE), peek::<1>(&rig.ram, PAGE + 4096)], [[0], [7]]);
        assert!(!rig.status().contains(Status::NEEDS_RESET));
    }
}
