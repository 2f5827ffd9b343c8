//! The engine, driven as a device's queue drives it.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use board::device::{Notifier, Paused};
use board::{Clock, EventLoop, EventTarget, GuestRam, Tag, VmTime};

use super::*;

struct Ears;

impl EventTarget for Ears {
    fn event(&self, _: Tag, _: VmTime) {}
}

/// A guest's RAM, a drive and one channel to it.
struct Bench {
    ram: GuestRam,
    disk: Arc<Disk>,
    channel: Channel,
    notifier: Notifier,
    _ears: Arc<Ears>,
    _events: EventLoop,
}

impl Bench {
    fn new(disk: Arc<Disk>) -> Self {
        let ram = GuestRam::new(1 << 20).unwrap();
        let events = EventLoop::new(Clock::running()).unwrap();
        let ears = Arc::new(Ears);
        let target = Arc::downgrade(&ears) as std::sync::Weak<dyn EventTarget>;
        let notifier = Notifier::new(&events.handle(), target, Tag(0));
        let claim = disk.claim(&ram, "test", notifier.clone()).unwrap();
        let channel = claim.channel(notifier.clone());
        Self { ram, disk, channel, notifier, _ears: ears, _events: events }
    }

    fn finish(&mut self) -> Vec<Completion> {
        let mut all = Vec::new();
        while self.channel.in_flight() > 0 {
            self.channel.wait();
            self.channel.take(&mut all);
        }
        all.sort_by_key(|completion| completion.token);
        all
    }

    fn one(&mut self, op: Op, offset: u64, buffers: &[(u64, u32)]) -> Status {
        self.channel.submit([request(op, offset, buffers, 1)]);
        self.finish()[0].status
    }
}

fn request(op: Op, offset: u64, buffers: &[(u64, u32)], token: u64) -> Request {
    let buffers = buffers.iter().map(|(gpa, len)| GuestRange { gpa: *gpa, len: *len }).collect();
    Request { op, offset, buffers, token }
}

#[test]
fn data_goes_both_ways_in_pieces_and_is_marked() {
    let mut bench = Bench::new(Disk::memory(vec![0; 1 << 16]).unwrap());
    bench.ram.write(0x1000, &[0xAA; 512]).unwrap();
    bench.ram.write(0x3000, &[0xBB; 512]).unwrap();
    assert_eq!(bench.one(Op::Write, 4096, &[(0x1000, 512), (0x3000, 512)]), Status::Done);
    bench.ram.log_dirty(true);
    assert_eq!(bench.one(Op::Read, 4608, &[(0x8000, 100), (0x9000, 412)]), Status::Done);
    assert_eq!(bench.ram.take_dirty()[0][0], 0b11 << 8);
    let mut data = [0; 412];
    bench.ram.read(0x9000, &mut data).unwrap();
    assert_eq!(data, [0xBB; 412]);
    assert_eq!(bench.one(Op::WriteZeroes { len: 512, unmap: true }, 4608, &[]), Status::Done);
    assert_eq!(bench.one(Op::Read, 4608, &[(0x8000, 512)]), Status::Done);
    bench.ram.read(0x8000, &mut data).unwrap();
    assert_eq!(data, [0; 412]);
    let stats = bench.disk.stats();
    assert_eq!((stats.read.requests, stats.write.bytes), (2, 1024));
    assert!(stats.idle.is_some());
}

#[test]
fn what_makes_no_sense_ends_in_an_error() {
    let mut bench = Bench::new(Disk::memory(vec![0; 1 << 16]).unwrap());
    for (op, offset, buffers) in [
        (Op::Read, 1, &[(0, 512)][..]),
        (Op::Read, 0, &[(0, 511)]),
        (Op::Read, 1 << 16, &[(0, 512)]),
        (Op::Read, u64::MAX - 511, &[(0, 512)]),
        (Op::Read, 0, &[(u64::MAX - 100, 512)]),
        (Op::Write, 0, &[(0xFFF00, 512)]),
        (Op::Discard { len: 1 << 17 }, 0, &[]),
        (Op::WriteZeroes { len: u64::MAX - 511, unmap: false }, 1024, &[]),
    ] {
        assert_eq!(bench.one(op, offset, buffers), Status::Error, "{op:?} {offset}");
    }
    let stats = bench.disk.stats();
    assert_eq!((stats.read.invalid, stats.write.invalid, stats.unmap.invalid), (5, 1, 2));
}

#[test]
fn one_device_a_drive() {
    let bench = Bench::new(Disk::null(8).unwrap());
    let error = bench.disk.claim(&bench.ram, "second", bench.notifier.clone()).err().unwrap();
    assert!(error.to_string().contains("in use by test"), "{error}");
    let disk = bench.disk.clone();
    drop(bench);
    assert_eq!(disk.owner(), None);
}

/// An image whose requests wait at a gate and then do as told.
struct Gated {
    open: Mutex<bool>,
    opened: Condvar,
    errno: Mutex<Option<i32>>,
}

impl Gated {
    fn new(open: bool, errno: Option<i32>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::new(open), opened: Condvar::new(), errno: Mutex::new(errno) })
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn pass(&self) -> io::Result<()> {
        drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
        match *self.errno.lock().unwrap() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl Image for Gated {
    fn size(&self) -> u64 {
        1 << 20
    }
    fn read(&self, _: u64, _: &Target<'_>) -> io::Result<()> {
        self.pass()
    }
    fn write(&self, _: u64, _: &Source<'_>) -> io::Result<()> {
        self.pass()
    }
    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.pass()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.pass()
    }
    fn flush(&self) -> io::Result<()> {
        self.pass()
    }
    fn resize(&self, _: u64) -> Result<(), BlockError> {
        Ok(())
    }
    fn info(&self) -> ImageInfo {
        Null(0).info()
    }
}

#[test]
fn a_pause_hands_back_what_was_not_started() {
    let image = Gated::new(false, None);
    let mut bench = Bench::new(Disk::plain("gated", image.clone()).unwrap());
    bench.channel.submit((0..10).map(|n| request(Op::Read, 0, &[(0, 512)], n)));
    assert_eq!(bench.channel.in_flight(), 10);
    assert_eq!(bench.channel.pause(), Paused::Pending);
    image.open();
    let ends = bench.finish();
    assert_eq!(bench.channel.pause(), Paused::Done);
    assert_eq!(ends.len(), 10);
    let again: Vec<_> = ends.iter().filter(|end| end.status == Status::Again).collect();
    // The two threads may have taken one each.
    assert!(again.len() >= 8, "{ends:?}");
    bench.channel.resume();
    bench.channel.submit(again.iter().map(|end| request(Op::Read, 0, &[(0, 512)], end.token)));
    assert!(bench.finish().iter().all(|end| end.status == Status::Done));
}

#[test]
fn a_cancelled_request_is_not_heard_of_again() {
    let image = Gated::new(false, None);
    let mut bench = Bench::new(Disk::plain("gated", image.clone()).unwrap());
    bench.channel.submit((0..4).map(|n| request(Op::Read, 0, &[(0, 512)], n)));
    bench.channel.cancel();
    assert_eq!(bench.channel.in_flight(), 0);
    bench.channel.submit([request(Op::Flush, 0, &[], 99)]);
    image.open();
    let ends = bench.finish();
    assert_eq!(ends, [Completion { token: 99, status: Status::Done }]);
}

#[test]
fn errors_become_what_was_asked_for() {
    for (policy, errno, status) in [
        (OnError::Report, libc::EIO, Status::Error),
        (OnError::Ignore, libc::EIO, Status::Done),
        (OnError::Stop, libc::EIO, Status::Again),
        (OnError::Enospc, libc::EIO, Status::Error),
        (OnError::Enospc, libc::ENOSPC, Status::Again),
    ] {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = reports.clone();
        let disk = Disk::start(DiskParts {
            name: "d0".into(),
            image: Some(Gated::new(true, Some(errno))),
            behaviour: Behaviour {
                on_read_error: OnError::Report,
                on_write_error: policy,
                write_through: false,
                discard: true,
                detect_zeroes: false,
                direct: false,
                aio: Aio::Threads,
                on_error: Arc::new(move |report| sink.lock().unwrap().push(report)),
            },
            limits: Limits::default(),
            properties: Disk::null(0).unwrap().properties(),
            threads: 1,
        });
        let mut bench = Bench::new(disk.unwrap());
        assert_eq!(bench.one(Op::Write, 0, &[(0, 512)]), status, "{policy:?}");
        assert_eq!(bench.one(Op::Read, 0, &[(0, 512)]), Status::Error);
        let reports = reports.lock().unwrap();
        assert_eq!(reports[0].nospace, errno == libc::ENOSPC);
        assert!(reports[0].write && !reports[1].write);
    }
}

#[test]
fn limits_hold_requests_back_and_let_them_go_when_lifted() {
    let mut bench = Bench::new(Disk::null(1 << 11).unwrap());
    let limits = Limits { iops: Rate { average: 1, burst: 0 }, ..Limits::default() };
    bench.disk.set_limits(limits).unwrap();
    bench.channel.submit((0..100).map(|n| request(Op::Write, 0, &[(0, 512)], n)));
    // A flush has no limit.
    bench.channel.submit([request(Op::Flush, 0, &[], 100)]);
    let mut ends = Vec::new();
    while !ends.iter().any(|end: &Completion| end.token == 100) {
        bench.channel.wait();
        bench.channel.take(&mut ends);
    }
    assert!(bench.channel.in_flight() > 0);
    bench.disk.set_limits(Limits::default()).unwrap();
    ends.extend(bench.finish());
    assert_eq!(ends.len(), 101);
}

#[test]
fn a_resize_waits_for_what_is_under_way_and_moves_the_bounds() {
    let mut bench = Bench::new(Disk::memory(vec![0; 4096]).unwrap());
    assert_eq!(bench.one(Op::Read, 4096, &[(0, 512)]), Status::Error);
    bench.disk.resize(8192).unwrap();
    assert_eq!(bench.disk.properties().sectors, 16);
    assert_eq!(bench.one(Op::Read, 4096, &[(0, 512)]), Status::Done);
    assert!(bench.disk.resize(1000).is_err());
}

#[test]
fn an_empty_drive_fails_requests() {
    let mut bench = Bench::new(Disk::memory(vec![0; 4096]).unwrap());
    let taken = bench.disk.replace(false, |image| {
        image.take();
        Ok::<_, ()>(())
    });
    assert!(taken.is_ok());
    assert_eq!(bench.one(Op::Read, 0, &[(0, 512)]), Status::Error);
    assert_eq!(bench.disk.properties().sectors, 0);
}
