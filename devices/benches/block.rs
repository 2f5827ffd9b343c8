//! The block layer without a guest or a device: requests as a queue of 32 would make them.
//!
//! `cargo bench -p devices --bench block [FOLDER]`: the images are made in FOLDER, or in the folder
//! for temporary files. CPU time is the whole process's, user and system.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use board::device::Notifier;
use board::{Clock, EventLoop, EventTarget, GuestRam, Tag, VmTime};
use devices::block::{
    Aio, Channel, Disks, DriveOptions, FileMode, Format, GuestRange, HostFile, ImageOptions, Op,
    Request, qcow2,
};

const SIZE: u64 = 256 << 20;
const DEPTH: u64 = 32;
const TIME: Duration = Duration::from_millis(1500);

struct Deaf;

impl EventTarget for Deaf {
    fn event(&self, _: Tag, _: VmTime) {}
}

fn cpu_seconds() -> f64 {
    // SAFETY: a zeroed rusage is a valid one, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Keeps the queue full for a while; requests, and seconds of the clock and of the CPU.
fn drive(channel: &mut Channel, op: Op, len: u32, random: bool) -> (u64, f64, f64) {
    let slots = SIZE / u64::from(len);
    let mut state = 1_u64;
    let mut number = 0_u64;
    let mut next = |token: u64| {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        let slot = if random { (state >> 20) % slots } else { number % slots };
        number += 1;
        let gpa = token * u64::from(len);
        let buffers = vec![GuestRange { gpa, len }];
        Request { op, offset: slot * u64::from(len), buffers, token }
    };
    let (start, cpu) = (Instant::now(), cpu_seconds());
    channel.submit((0..DEPTH).map(&mut next).collect::<Vec<_>>());
    let (mut ends, mut done) = (Vec::new(), 0);
    while channel.in_flight() > 0 {
        channel.wait();
        channel.take(&mut ends);
        done += ends.len() as u64;
        if start.elapsed() < TIME {
            let more: Vec<_> = ends.iter().map(|end| next(end.token)).collect();
            channel.submit(more);
        }
        ends.clear();
    }
    (done, start.elapsed().as_secs_f64(), cpu_seconds() - cpu)
}

fn image(folder: &Path, name: &str) -> Option<ImageOptions> {
    let file = folder.join(format!("vmm-bench.{name}"));
    let mut image = ImageOptions::new(&file);
    match name {
        "null" => image.null = Some(SIZE),
        "raw" => {
            std::fs::File::create(&file).ok()?.set_len(SIZE).ok()?;
            image.format = Some(Format::Raw);
        }
        _ => {
            std::fs::File::create(&file).ok()?;
            let storage = HostFile::open(&file, FileMode { write: true, ..FileMode::default() });
            let create = qcow2::CreateOptions { size: SIZE, ..Default::default() };
            qcow2::create(&storage.ok()?, &create).ok()?;
            image.format = Some(Format::Qcow2);
        }
    }
    Some(image)
}

fn main() {
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let folder = given.map_or_else(std::env::temp_dir, PathBuf::from);
    let ram = GuestRam::new(64 << 20).expect("memory");
    let events = EventLoop::new(Clock::running()).expect("a loop");
    let deaf: Arc<dyn EventTarget> = Arc::new(Deaf);
    println!(
        "{:6} {:9} {:18} {:>11} {:>9} {:>8}",
        "image", "aio", "what", "requests/s", "MiB/s", "CPU us"
    );
    for name in ["null", "raw", "qcow2"] {
        for (word, aio) in [("threads", Aio::Threads), ("io_uring", Aio::IoUring)] {
            let Some(options) = image(&folder, name) else {
                println!("NOT RUN: {name}: no file can be made in {}", folder.display());
                continue;
            };
            let file = options.file.clone();
            let disks = Disks::new(Arc::new(|_| ()), Arc::new(|_| ()));
            let drive_options = DriveOptions::new("d", Some(ImageOptions { aio, ..options }));
            let disk = match disks.add(drive_options) {
                Ok(disk) => disk,
                Err(error) => {
                    println!("NOT RUN: {name} {word}: {error}");
                    continue;
                }
            };
            let notifier = Notifier::new(&events.handle(), Arc::downgrade(&deaf), Tag(0));
            let claim = disk.claim(&ram, "bench", notifier.clone()).expect("nobody has it");
            let mut channel = claim.channel(notifier);
            for (what, op, len, random) in [
                ("write, 1 MiB", Op::Write, 1 << 20, false),
                ("read, 1 MiB", Op::Read, 1 << 20, false),
                ("random read, 4 KiB", Op::Read, 4096, true),
                ("random write, 4 KiB", Op::Write, 4096, true),
            ] {
                let (done, seconds, cpu) = drive(&mut channel, op, len, random);
                println!(
                    "{name:6} {word:9} {what:18} {:11.0} {:9.0} {:8.2}",
                    done as f64 / seconds,
                    done as f64 * f64::from(len) / seconds / f64::from(1 << 20),
                    cpu * 1e6 / done as f64,
                );
            }
            drop((channel, claim, disk, disks));
            let _ = std::fs::remove_file(file);
        }
    }
}
