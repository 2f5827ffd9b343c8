//! Device models apart from any guest: rings are driven as a driver would, on the MMIO transport.
//! Prints requests a second, bytes a second, and the CPU time of a request.
//!
//! `cargo bench -p devices --features fuzz --bench virtio`

use std::time::{Duration, Instant};

use board::Entropy;
use devices::block::Disk;
use devices::virtio::blk::{Blk, BlkOptions};
use devices::virtio::driver::{Buffer, Rig, Ring, poke};
use devices::virtio::rng::Rng;

/// How long each row runs.
const ROW: Duration = Duration::from_millis(500);
const HEADER: u64 = Rig::BUFFERS;
const STATUS: u64 = Rig::BUFFERS + 16;
const TABLES: u64 = Rig::BUFFERS + 0x1000;
const DATA: u64 = Rig::BUFFERS + 0x10_0000;
const ALL_FEATURES: u64 = u64::MAX;
const NO_FEATURES: u64 = 0;

/// User and system time of this process.
fn cpu_time() -> Duration {
    // SAFETY: an all-zero rusage is valid, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|t| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000))
        .sum()
}

/// Keeps `depth` requests in flight on queue 0 for a while and prints what that gave.
fn row(
    name: &str,
    rig: &mut Rig,
    ring: &mut Ring,
    depth: u64,
    bytes: u64,
    mut put: impl FnMut(&mut Ring, u64),
) {
    let (start, cpu) = (Instant::now(), cpu_time());
    let (mut flying, mut done, mut notifications) = (0, 0_u64, 0_u64);
    while start.elapsed() < ROW {
        while flying < depth {
            put(ring, done + flying);
            flying += 1;
        }
        if ring.wants_ring() {
            rig.write(0x50, 0);
            notifications += 1;
        }
        let before = flying;
        while flying == before {
            rig.events.turn(Some(Duration::from_millis(100))).expect("epoll works");
            while ring.take().is_some() {
                flying -= 1;
                done += 1;
            }
        }
        rig.interrupts();
    }
    let (time, cpu) = (start.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    println!(
        "{name:44} {depth:>5} {:>12.0} {:>10.0} {:>10.2} {:>12.2}",
        done as f64 / time,
        (done * bytes) as f64 / time / 1e6,
        cpu / done as f64 * 1e6,
        notifications as f64 / done as f64,
    );
    while flying > 0 {
        rig.events.turn(Some(Duration::from_millis(100))).expect("epoll works");
        while ring.take().is_some() {
            flying -= 1;
        }
    }
}

fn blk(features: u64, kind: u32, bytes: u32, depth: u64, name: &str) {
    let disk = Disk::null(1 << 24).expect("it has threads");
    let mut rig = Rig::new(64 << 20, |attach, ram| {
        let options = BlkOptions::default();
        Box::new(Blk::new(&disk, ram, "bench", options, attach).expect("it is free"))
    });
    let mut ring = rig.start(features, 256).remove(0);
    poke(&rig.ram, HEADER, &u128::from(kind).to_le_bytes());
    let moved = if kind == 4 { 0 } else { bytes.into() };
    row(name, &mut rig, &mut ring, depth, moved, |ring, n| {
        let at = DATA + n % 64 * u64::from(bytes);
        let data = if kind == 0 { Buffer::room(at, bytes) } else { Buffer::out(at, bytes) };
        let chain = [Buffer::out(HEADER, 16), data, Buffer::room(STATUS, 1)];
        match features {
            NO_FEATURES => ring.add(&chain),
            _ => ring.add_indirect(TABLES + n % 256 * 64, &chain),
        };
    });
}

fn rng(depth: u64, bytes: u32, name: &str) {
    let mut rig = Rig::new(64 << 20, |_, _| Box::new(Rng::new(Entropy::seeded(1, "rng"))));
    let mut ring = rig.start(ALL_FEATURES, 8).remove(0);
    row(name, &mut rig, &mut ring, depth, bytes.into(), |ring, _| {
        ring.add(&[Buffer::room(DATA, bytes)]);
    });
}

fn main() {
    println!(
        "{:44} {:>5} {:>12} {:>10} {:>10} {:>12}",
        "device, request", "depth", "requests/s", "MB/s", "CPU us/rq", "kicks/rq"
    );
    rng(1, 16, "rng (seeded), 16 bytes: the core alone");
    rng(8, 16, "rng (seeded), 16 bytes: the core alone");
    for depth in [1, 32] {
        blk(ALL_FEATURES, 0, 4096, depth, "blk (null), read 4 KiB, indirect, event idx");
    }
    blk(ALL_FEATURES, 0, 4096, 128, "blk (null), read 4 KiB, indirect, event idx");
    blk(NO_FEATURES, 0, 4096, 32, "blk (null), read 4 KiB, no features");
    blk(ALL_FEATURES, 1, 4096, 32, "blk (null), write 4 KiB, indirect, event idx");
    blk(ALL_FEATURES, 0, 65536, 32, "blk (null), read 64 KiB, indirect, event idx");
    blk(ALL_FEATURES, 4, 4096, 32, "blk (null), flush");
}
