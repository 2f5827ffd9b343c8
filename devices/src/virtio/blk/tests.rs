use super::super::driver::{Buffer, Rig, Ring, peek, poke};
use super::super::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::*;

const HEADER_AT: u64 = Rig::BUFFERS;
const STATUS_AT: u64 = Rig::BUFFERS + 0x100;
const DATA_AT: u64 = Rig::BUFFERS + 0x1000;
const ALL: u64 = u64::MAX;

fn rig_with(disk: &Arc<Disk>, options: BlkOptions) -> Rig {
    Rig::new(8 << 20, |attach, ram| Box::new(Blk::new(disk, ram, "blk", options, attach).unwrap()))
}

/// A device on 64 KiB of which sector `n` is filled with `n`.
fn rig() -> (Rig, Arc<Disk>) {
    let bytes = (0..128).flat_map(|sector| [sector; 512]).collect();
    let disk = Disk::memory(bytes).unwrap();
    (rig_with(&disk, BlkOptions::default()), disk)
}

/// One request with `data`; its status.
fn request(
    rig: &mut Rig,
    ring: &mut Ring,
    queue: u32,
    (kind, sector): (u32, u64),
    data: &[Buffer],
) -> u8 {
    put_request(rig, ring, (kind, sector), data);
    rig.kick(queue);
    rig.until(|_| ring.take().is_some());
    peek::<1>(&rig.ram, STATUS_AT)[0]
}

fn put_request(rig: &Rig, ring: &mut Ring, (kind, sector): (u32, u64), data: &[Buffer]) -> u16 {
    poke(&rig.ram, HEADER_AT, &u128::from(kind).to_le_bytes());
    poke(&rig.ram, HEADER_AT + 8, &sector.to_le_bytes());
    poke(&rig.ram, STATUS_AT, &[0xEE]);
    let mut chain = vec![Buffer::out(HEADER_AT, 16)];
    chain.extend(data);
    chain.push(Buffer::room(STATUS_AT, 1));
    ring.add(&chain).unwrap()
}

#[test]
fn reads_and_writes_reach_their_sectors() {
    let (mut rig, _) = rig();
    let mut ring = rig.start(ALL, 128).remove(0);
    let halves = [Buffer::room(DATA_AT, 512), Buffer::room(DATA_AT + 512, 512)];
    assert_eq!(request(&mut rig, &mut ring, 0, (kind::IN, 7), &halves), OK);
    assert_eq!(peek::<2>(&rig.ram, DATA_AT + 511), [7, 8]);
    poke(&rig.ram, DATA_AT, &[0xAB; 512]);
    assert_eq!(request(&mut rig, &mut ring, 0, (kind::OUT, 8), &[Buffer::out(DATA_AT, 512)]), OK);
    assert_eq!(request(&mut rig, &mut ring, 0, (kind::FLUSH, 0), &[]), OK);
    assert_eq!(
        request(&mut rig, &mut ring, 0, (kind::IN, 8), &[Buffer::room(DATA_AT + 512, 512)]),
        OK
    );
    assert_eq!(peek::<512>(&rig.ram, DATA_AT + 512), [0xAB; 512]);
}

#[test]
fn the_bounds_of_the_disk_are_errors_and_not_more() {
    let (mut rig, _) = rig();
    let mut ring = rig.start(ALL, 128).remove(0);
    for (sector, len) in [(128, 512), (127, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100)] {
        let data = [Buffer::room(DATA_AT, len)];
        assert_eq!(request(&mut rig, &mut ring, 0, (kind::IN, sector), &data), IOERR, "{sector}");
    }
    assert_eq!(request(&mut rig, &mut ring, 0, (77, 0), &[]), UNSUPP);
    assert_eq!(request(&mut rig, &mut ring, 0, (kind::IN, 1), &[Buffer::room(DATA_AT, 512)]), OK);
}

#[test]
fn discard_and_write_zeroes_take_one_range() {
    let (mut rig, _) = rig();
    let mut ring = rig.start(ALL, 128).remove(0);
    let range = |sector: u64, sectors: u32, flags: u32| {
        let words = [
            sector.to_le_bytes().to_vec(),
            sectors.to_le_bytes().into(),
            flags.to_le_bytes().into(),
        ];
        words.concat()
    };
    let data = [Buffer::out(DATA_AT, 16)];
    for (kind, bytes, status) in [
        (kind::WRITE_ZEROES, range(3, 2, 0), OK),
        (kind::WRITE_ZEROES, range(9, 1, UNMAP), OK),
        (kind::WRITE_ZEROES, range(3, 2, 2), UNSUPP),
        (kind::DISCARD, range(20, 4, 0), OK),
        (kind::DISCARD, range(20, 4, UNMAP), UNSUPP),
        (kind::DISCARD, range(126, 4, 0), IOERR),
        (kind::DISCARD, range(u64::MAX, 1, 0), IOERR),
        (kind::DISCARD, range(0, u32::MAX, 0), IOERR),
    ] {
        poke(&rig.ram, DATA_AT, &bytes);
        assert_eq!(request(&mut rig, &mut ring, 0, (kind, 0), &data), status, "{kind} {bytes:?}");
    }
    let five = [Buffer::room(DATA_AT, 5 * 512)];
    assert_eq!(request(&mut rig, &mut ring, 0, (kind::IN, 2), &five), OK);
    let sectors = peek::<2560>(&rig.ram, DATA_AT);
    assert_eq!([0, 512, 1024, 1536].map(|at| sectors[at]), [2, 0, 0, 5]);
}

#[test]
fn the_serial_number_is_twenty_bytes_without_an_end() {
    let disk = Disk::null(8).unwrap();
    let serial = Some("0123456789abcdefghijKLM".to_owned());
    let mut rig = rig_with(&disk, BlkOptions { serial, ..BlkOptions::default() });
    let mut ring = rig.start(ALL, 128).remove(0);
    assert_eq!(
        request(&mut rig, &mut ring, 0, (kind::GET_ID, 0), &[Buffer::room(DATA_AT, 20)]),
        OK
    );
    assert_eq!(&peek::<21>(&rig.ram, DATA_AT), b"0123456789abcdefghij\0");
    assert_eq!(request(&mut rig, &mut ring, 0, (kind::GET_ID, 0), &[Buffer::room(DATA_AT, 4)]), OK);
}

#[test]
fn a_request_without_header_or_status_needs_a_reset() {
    use super::super::Status;
    for chain in [
        vec![Buffer::out(HEADER_AT, 15), Buffer::room(STATUS_AT, 1)],
        vec![Buffer::out(HEADER_AT, 16)],
        vec![Buffer::room(STATUS_AT, 1)],
    ] {
        let (mut rig, _) = rig();
        let mut ring = rig.start(ALL, 128).remove(0);
        ring.add(&chain);
        rig.kick(0);
        assert!(rig.status().contains(Status::NEEDS_RESET), "{chain:?}");
    }
}

#[test]
fn each_queue_works_by_itself() {
    let disk = Disk::memory(vec![5; 65536]).unwrap();
    let options = BlkOptions { queues: 3, ..BlkOptions::default() };
    let mut rig = rig_with(&disk, options);
    assert_ne!(rig.offered() & feature::MQ, 0);
    assert_eq!(rig.config::<2>(34), [3, 0]);
    let mut rings = rig.start(ALL, 64);
    assert_eq!(rings.len(), 3);
    for (queue, ring) in (0..).zip(&mut rings) {
        let data = [Buffer::room(DATA_AT, 512)];
        assert_eq!(request(&mut rig, ring, queue, (kind::IN, 0), &data), OK);
    }
}

#[test]
fn a_new_size_is_a_change_of_the_configuration() {
    let (mut rig, disk) = rig();
    rig.start(ALL, 128);
    assert_eq!(rig.config::<8>(0), 128_u64.to_le_bytes());
    let generation = rig.read(0xFC);
    disk.resize(1 << 20).unwrap();
    rig.turn();
    assert_eq!(rig.config::<8>(0), 2048_u64.to_le_bytes());
    assert_eq!((rig.interrupts() & 2, rig.read(0xFC)), (2, generation + 1));
}

#[test]
fn a_drive_has_one_device() {
    let disk = Disk::null(8).unwrap();
    let _first = rig_with(&disk, BlkOptions::default());
    Rig::new(1 << 20, |attach, ram| {
        let second = Blk::new(&disk, ram, "second", BlkOptions::default(), attach);
        assert!(second.is_err_and(|e| e.to_string().contains("blk")));
        Box::new(
            Blk::new(&Disk::null(8).unwrap(), ram, "x", BlkOptions::default(), attach).unwrap(),
        )
    });
}

#[test]
fn every_request_ends_whatever_is_done_to_the_device() {
    let (mut rig, _) = rig();
    for round in 0..30 {
        let mut ring = rig.start(F_EVENT_IDX | F_INDIRECT_DESC, 64).remove(0);
        for sector in 0..10 {
            put_request(&rig, &mut ring, (kind::IN, sector), &[Buffer::room(DATA_AT, 4096)]);
        }
        rig.write(0x50, 0);
        rig.events.turn(Some(std::time::Duration::ZERO)).unwrap();
        match round % 3 {
            0 => {
                rig.write(0x70, 0);
                rig.until(|rig| rig.read(0x70) == 0);
                continue;
            }
            1 => {
                while rig.slot.lock().pause() == Paused::Pending {
                    std::thread::yield_now();
                }
                rig.slot.lock().resume();
            }
            _ => {}
        }
        let mut left = 10;
        rig.until(|_| {
            left -= std::iter::from_fn(|| ring.take()).count();
            left == 0
        });
    }
}

#[test]
fn what_was_in_flight_is_done_after_a_restore() {
    let (mut rig, _) = rig();
    let mut ring = rig.start(ALL, 64).remove(0);
    put_request(&rig, &mut ring, (kind::IN, 9), &[Buffer::room(DATA_AT, 512)]);
    // As if the drive had it when the machine was saved.
    let head = with_chain(&rig);
    let (mut other, _) = self::rig();
    other.start(ALL, 64);
    rig.copy_to(&other, 8 << 20);
    other.slot.lock().resume();
    other.until(|rig| peek::<1>(&rig.ram, STATUS_AT)[0] != 0xEE);
    assert_eq!((head, peek::<1>(&other.ram, STATUS_AT)[0]), (0, OK));
    assert_eq!(peek::<2>(&other.ram, DATA_AT), [9, 9]);
    let positions = super::super::with_core(&other.slot, |core, _| core.queues()[0].positions());
    assert_eq!(positions, Some((1, 1)));
}

/// Takes the chain out of the ring and holds it.
fn with_chain(rig: &Rig) -> u16 {
    super::super::with_device(&rig.slot, |blk: &mut Blk, io| {
        let chain = io.pop(0).unwrap();
        let head = chain.head();
        blk.held.push_back(Pending { queue: 0, chain });
        head
    })
    .unwrap()
}
