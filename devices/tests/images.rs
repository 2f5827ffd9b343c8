//! Images against qemu-img and qemu-io: what one writes the other reads, and finds sound.
//!
//! Without qemu-img on the host these say so and pass, unless `CI` is set.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use devices::block::{
    BlockError, CacheMode, Disks, DriveOptions, Format, Image, ImageOptions, Source, Target, open,
};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vmm-images-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether qemu-img is there; a CI without it is wrong.
fn have_qemu_img() -> bool {
    let there = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(there || std::env::var_os("CI").is_none(), "no qemu-img: scripts/packages.sh test");
    if !there {
        eprintln!("skipped: there is no qemu-img; scripts/packages.sh test installs it");
    }
    there
}

fn qemu_img(args: &[&str]) -> Result<String, String> {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What `qemu-img check` finds: errors, and leaked clusters.
fn check(path: &Path) -> (u64, u64) {
    let args = ["check", "--output=json", text(path)];
    let output = Command::new("qemu-img").args(args).output().unwrap();
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |key: &str| -> u64 {
        let Some(at) = report.find(&format!("\"{key}\":")) else { return 0 };
        let digits = report[at + key.len() + 3..].trim_start();
        digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    assert!(report.contains("\"check-errors\""), "{report} {output:?}");
    (number("corruptions") + number("check-errors"), number("leaks"))
}

fn options(path: &Path, write: bool) -> ImageOptions {
    ImageOptions { readonly: !write, discard: true, ..ImageOptions::new(path) }
}

fn refusal(path: &Path, write: bool) -> BlockError {
    open(&options(path, write)).err().unwrap()
}

fn contents(image: &dyn Image) -> Vec<u8> {
    let mut data = vec![0; image.size() as usize];
    image.read(0, &Target::new(&mut data)).unwrap();
    data
}

fn compare(path: &Path, model: &[u8], folder: &Folder) {
    let raw = folder.file("compare.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(path), text(&raw)]).unwrap();
    assert!(std::fs::read(&raw).unwrap() == model, "{} differs", path.display());
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ z >> 31) % limit
    }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len / 512).flat_map(|_| [random.below(256) as u8; 512]).collect()
}

/// Random writes, zeroes and discards.
fn work(image: &dyn Image, model: &mut [u8], seed: u64, count: u64) {
    let mut random = Random(seed);
    for n in 0..count {
        let sectors = model.len() as u64 / 512;
        let at = random.below(sectors);
        let len = 1 + random.below((sectors - at).min(400));
        let range = (at * 512) as usize..((at + len) * 512) as usize;
        match random.below(8) {
            0 => {
                image.zero(at * 512, len * 512, n % 2 == 0).unwrap();
                model[range].fill(0);
            }
            1 => {
                image.discard(at * 512, len * 512).unwrap();
                image.read(at * 512, &Target::new(&mut model[range])).unwrap();
            }
            2 => image.flush().unwrap(),
            _ => {
                let data = vec![n as u8 | 1; range.len()];
                image.write(at * 512, &Source::new(&data)).unwrap();
                model[range].copy_from_slice(&data);
            }
        }
    }
}

#[test]
fn images_of_every_kind_take_writes_and_stay_sound() {
    if !have_qemu_img() {
        return;
    }
    let folder = Folder::new("kinds");
    const SIZE: usize = 5 << 20;
    let base = folder.file("base.raw");
    let original = pattern(SIZE, 1);
    std::fs::write(&base, &original).unwrap();
    for (name, extra) in [
        ("plain", &["-o", "compat=1.1"][..]),
        ("v2", &["-o", "compat=0.10"]),
        ("small", &["-o", "cluster_size=512"]),
        ("large", &["-o", "cluster_size=2M"]),
        ("bits1", &["-o", "refcount_bits=1"]),
        ("bits64", &["-o", "refcount_bits=64"]),
        ("zlib", &["-c"]),
        ("zstd", &["-c", "-o", "compression_type=zstd"]),
    ] {
        let path = folder.file(name);
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
        args.extend(extra);
        args.extend([text(&base), text(&path)]);
        qemu_img(&args).unwrap();
        let image = open(&options(&path, true)).unwrap().image;
        let mut model = contents(&*image);
        assert!(model == original, "{name}");
        work(&*image, &mut model, 5, 120);
        assert!(contents(&*image) == model, "{name}");
        drop(image);
        assert_eq!(check(&path), (0, 0), "{name}");
        compare(&path, &model, &folder);
    }
}

#[test]
fn chains_are_read_through_and_committed() {
    if !have_qemu_img() {
        return;
    }
    let folder = Folder::new("chain");
    let (base, middle, top) = (folder.file("base.raw"), folder.file("middle"), folder.file("top"));
    let mut model = pattern(3 << 20, 2);
    std::fs::write(&base, &model).unwrap();
    let create = |path: &Path, base: &str, format: &str, size: &str| {
        qemu_img(&["create", "-f", "qcow2", "-b", base, "-F", format, text(path), size]).unwrap();
    };
    create(&middle, "base.raw", "raw", "4M");
    create(&top, "middle", "qcow2", "5M");
    model.resize(4 << 20, 0);
    let image = open(&options(&middle, true)).unwrap().image;
    work(&*image, &mut model, 3, 40);
    drop(image);
    model.resize(5 << 20, 0);
    let image = open(&options(&top, true)).unwrap().image;
    work(&*image, &mut model, 4, 40);
    assert!(contents(&*image) == model);
    drop(image);
    assert_eq!((check(&middle), check(&top)), ((0, 0), (0, 0)));
    compare(&top, &model, &folder);
    let disks = Disks::new(Arc::new(|_| ()), Arc::new(|_| ()));
    let mut drive = DriveOptions::new("d", Some(options(&top, true)));
    disks.add(drive.clone()).unwrap();
    disks.commit("d").unwrap();
    assert!(contents(&*disks.get("d").unwrap().image().unwrap()) == model);
    disks.remove("d").unwrap();
    compare(&middle, &model, &folder);
    assert_eq!((check(&middle), check(&top)), ((0, 0), (0, 0)));
    // A throwaway overlay leaves the file alone until it is committed.
    drive.image.as_mut().unwrap().snapshot = true;
    let disk = disks.add(drive).unwrap();
    let before = std::fs::read(&top).unwrap();
    work(&*disk.image().unwrap(), &mut model, 6, 40);
    assert!(std::fs::read(&top).unwrap() == before);
    disks.commit("d").unwrap();
    drop(disk);
    disks.remove("d").unwrap();
    compare(&top, &model, &folder);
}

#[test]
fn a_disk_in_use_is_locked_both_ways() {
    if !have_qemu_img() {
        return;
    }
    let folder = Folder::new("locks");
    let path = folder.file("disk");
    qemu_img(&["create", "-f", "qcow2", text(&path), "1M"]).unwrap();
    let image = open(&options(&path, true)).unwrap().image;
    let refused = qemu_img(&["info", text(&path)]).unwrap_err();
    assert!(refused.contains("lock"), "{refused}");
    assert!(matches!(refusal(&path, true), BlockError::Locked { .. }));
    drop(image);
    let reader = open(&options(&path, false)).unwrap().image;
    qemu_img(&["info", text(&path)]).unwrap();
    let output = Command::new("qemu-io").args(["-c", "write 0 512", text(&path)]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
    drop(reader);
    // And the other way round: qemu-io has it open as long as its input is.
    let mut other = Command::new("qemu-io");
    other.arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut other = other.spawn().unwrap();
    let mut input = other.stdin.take().unwrap();
    let mut output = other.stdout.take().unwrap();
    input.write_all(b"write 0 512\n").unwrap();
    let (mut said, mut byte) = (String::new(), [0]);
    while !said.contains("wrote") && output.read(&mut byte).unwrap() == 1 {
        said.push(byte[0].into());
    }
    let refused = refusal(&path, true).to_string();
    assert!(refused.contains("in use"), "{refused}");
    drop(input);
    other.wait().unwrap();
    open(&options(&path, true)).unwrap();
}

#[test]
fn other_formats_and_missing_files_are_named() {
    if !have_qemu_img() {
        return;
    }
    let folder = Folder::new("others");
    for format in ["vmdk", "vdi", "vhdx", "qed"] {
        let path = folder.file(format);
        qemu_img(&["create", "-f", format, text(&path), "1M"]).unwrap();
        let refused = refusal(&path, false).to_string();
        assert!(refused.contains(format) && refused.contains("qemu-img convert"), "{refused}");
    }
    let refused = refusal(&folder.file("nothing"), true).to_string();
    assert!(refused.contains("cannot open") && refused.contains("qemu-img create"), "{refused}");
    let sub = folder.file("sub");
    qemu_img(&["create", "-f", "qcow2", "-o", "extended_l2=on", text(&sub), "1M"]).unwrap();
    assert!(refusal(&sub, true).to_string().contains("subclusters"));
    let ring = folder.file("ring");
    qemu_img(&["create", "-f", "qcow2", text(&ring), "1M"]).unwrap();
    qemu_img(&["rebase", "-u", "-b", text(&ring), "-F", "qcow2", text(&ring)]).unwrap();
    let refused = refusal(&ring, true).to_string();
    assert!(refused.contains("circle"), "{refused}");
}

/// The victim of the next test: writes, and says what is flushed.
#[test]
#[ignore = "the next test runs it"]
fn victim() {
    let Ok(path) = std::env::var("VICTIM_IMAGE") else { return };
    let seed: u64 = std::env::var("VICTIM_SEED").unwrap().parse().unwrap();
    let image = open(&options(Path::new(&path), true)).unwrap().image;
    let mut random = Random(seed);
    let sectors = image.size() / 512;
    // The last eighth is only zeroed and discarded, and written by nobody who looks.
    let safe = sectors / 8 * 7;
    for n in 1_u64.. {
        // Each record says where it is and which it is.
        for _ in 0..1 + random.below(6) {
            let at = random.below(safe - 16);
            let record = |k| [at + k, n].map(u64::to_le_bytes).concat().repeat(32);
            let data: Vec<u8> = (0..8).flat_map(record).collect();
            image.write(at * 512, &Source::new(&data)).unwrap();
            println!("wrote {at} {n}");
        }
        let at = (safe + random.below(sectors - safe - 256)) * 512;
        match random.below(3) {
            0 => image.write(at, &Source::new(&[1; 65536])).unwrap(),
            1 => image.discard(at, 131_072).unwrap(),
            _ => image.zero(at, 131_072, true).unwrap(),
        }
        image.flush().unwrap();
        println!("flushed {n}");
    }
}

/// kill -9 at a random moment: the image is sound but for leaks, and what was flushed is there.
#[test]
fn a_killed_process_leaves_what_it_flushed() {
    if !have_qemu_img() {
        return;
    }
    let count = if std::env::var_os("VMM_SOAK").is_some_and(|v| v != "0") { 200 } else { 6 };
    let folder = Folder::new("kill");
    for seed in 0..count {
        let path = folder.file("disk");
        let size = if seed % 2 == 0 { "64M" } else { "600M" };
        let cluster = ["cluster_size=64k", "cluster_size=4k"][seed as usize / 2 % 2];
        let _ = std::fs::remove_file(&path);
        qemu_img(&["create", "-f", "qcow2", "-o", cluster, text(&path), size]).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "victim"])
            .env("VICTIM_IMAGE", &path)
            .env("VICTIM_SEED", seed.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = 1 + Random(seed + 1000).below(400) as usize;
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let (mut log, mut line) = (Vec::new(), String::new());
        while log.len() < lines && reader.read_line(&mut line).unwrap() > 0 {
            log.push(std::mem::take(&mut line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said meanwhile counts as well.
        while reader.read_line(&mut line).unwrap_or(0) > 0 {
            log.push(std::mem::take(&mut line));
        }
        assert_eq!(check(&path).0, 0, "seed {seed}: {cluster} {size}");
        let mut newest = HashMap::new();
        let mut pending = Vec::new();
        for line in log.iter().filter(|line| line.ends_with('\n')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["wrote", at, n] => pending.push((at.parse().unwrap(), n.parse().unwrap())),
                ["flushed", _] => {
                    for (at, n) in pending.drain(..) {
                        let (at, n): (u64, u64) = (at, n);
                        newest.extend((at..at + 8).map(|sector| (sector, n)));
                    }
                }
                _ => {}
            }
        }
        let image = open(&options(&path, false)).unwrap().image;
        for (sector, n) in newest {
            let mut data = [0; 512];
            image.read(sector * 512, &Target::new(&mut data)).unwrap();
            let at = u64::from_le_bytes(data[..8].try_into().unwrap());
            let has = u64::from_le_bytes(data[8..16].try_into().unwrap());
            assert!(at == sector && has >= n, "seed {seed}: sector {sector} has {has} of {n}");
        }
    }
}

/// A device's queue on a drive, with a second of random reads and writes.
#[test]
fn both_engines_carry_out_many_requests_at_once() {
    use board::device::Notifier;
    use board::{Clock, EventLoop, EventTarget, GuestRam, Tag, VmTime};
    use devices::block::{Aio, GuestRange, Op, Request, Status};
    struct Deaf;
    impl EventTarget for Deaf {
        fn event(&self, _: Tag, _: VmTime) {}
    }
    let folder = Folder::new("engines");
    let events = EventLoop::new(Clock::running()).unwrap();
    let deaf: Arc<dyn EventTarget> = Arc::new(Deaf);
    for (name, aio, qcow2) in [
        ("raw-threads", Aio::Threads, false),
        ("raw-ring", Aio::IoUring, false),
        ("qcow2-threads", Aio::Threads, true),
        ("qcow2-ring", Aio::IoUring, true),
    ] {
        let path = folder.file(name);
        const SIZE: u64 = 8 << 20;
        if qcow2 {
            if !have_qemu_img() {
                continue;
            }
            qemu_img(&["create", "-f", "qcow2", text(&path), "8M"]).unwrap();
        } else {
            std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
        }
        let format = if qcow2 { Format::Qcow2 } else { Format::Raw };
        let image = ImageOptions { aio, format: Some(format), ..options(&path, true) };
        let disks = Disks::new(Arc::new(|_| ()), Arc::new(|_| ()));
        let disk = match disks.add(DriveOptions::new("d", Some(image))) {
            Ok(disk) => disk,
            Err(error) => {
                assert!(aio == Aio::IoUring, "{error}");
                eprintln!("skipped: {error}");
                continue;
            }
        };
        let ram = GuestRam::new(1 << 20).unwrap();
        let notifier = Notifier::new(&events.handle(), Arc::downgrade(&deaf), Tag(0));
        let mut channel = disk.claim(&ram, "test", notifier.clone()).unwrap().channel(notifier);
        let mut model = vec![0; SIZE as usize];
        let mut random = Random(3);
        let mut ends = Vec::new();
        let mut all = |channel: &mut devices::block::Channel, requests: Vec<Request>| {
            channel.submit(requests);
            while channel.in_flight() > 0 {
                channel.wait();
                channel.take(&mut ends);
            }
            assert!(ends.drain(..).all(|end| end.status == Status::Done), "{name}");
        };
        for round in 0..60_u64 {
            // Each slot of the disk and of RAM is used once a round.
            let slot = |n: u64| (n * 61 + round * 7) % 1024 * 8192;
            let mut requests = Vec::new();
            for n in 0..64_u64 {
                let (gpa, len) = (n * 8192, 512 * (1 + random.below(16)) as u32);
                let write = random.below(2) == 0;
                if write {
                    ram.write(gpa, &vec![(round * 64 + n) as u8; len as usize]).unwrap();
                    let at = slot(n) as usize;
                    model[at..at + len as usize].fill((round * 64 + n) as u8);
                }
                let op = if write { Op::Write } else { Op::Read };
                let buffers = vec![GuestRange { gpa, len }];
                requests.push(Request { op, offset: slot(n), buffers, token: n });
            }
            all(&mut channel, requests);
            if round % 10 == 0 {
                all(
                    &mut channel,
                    vec![Request { op: Op::Flush, offset: 0, buffers: vec![], token: 0 }],
                );
            }
        }
        for at in (0..SIZE).step_by(512 << 10) {
            let buffers = vec![GuestRange { gpa: 0, len: 512 << 10 }];
            all(&mut channel, vec![Request { op: Op::Read, offset: at, buffers, token: 1 }]);
            let mut data = vec![0; 512 << 10];
            ram.read(0, &mut data).unwrap();
            assert!(data == model[at as usize..at as usize + (512 << 10)], "{name} {at:#x}");
        }
        disk.quietly(|_| ());
        drop((channel, disk));
        disks.remove("d").unwrap();
        if qcow2 {
            assert_eq!(check(&path), (0, 0));
        }
    }
}

#[test]
fn every_cache_mode_reads_what_it_wrote() {
    let folder = Folder::new("cache");
    for (name, direct, no_flush, write_through) in [
        ("writeback", false, false, false),
        ("none", true, false, false),
        ("unsafe", false, true, false),
        ("writethrough", false, false, true),
    ] {
        let path = folder.file(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let mut options = options(&path, true);
        options.format = Some(Format::Raw);
        options.cache = CacheMode { direct, no_flush, write_through };
        let image = match open(&options) {
            Ok(opened) => opened.image,
            // File systems without direct I/O.
            Err(error) => {
                assert!(direct && error.to_string().contains("cache=none"), "{error}");
                continue;
            }
        };
        let mut model = vec![0; 1 << 20];
        work(&*image, &mut model, 9, 60);
        assert!(contents(&*image) == model, "{name}");
        drop(image);
        assert!(std::fs::read(&path).unwrap() == model, "{name}");
    }
}
