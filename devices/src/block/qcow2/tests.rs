//! A qcow2 image in memory against a flat model, and across simulated crashes.

use std::collections::HashMap;
use std::sync::Mutex;

use super::super::memory::Memory;
use super::super::raw::Raw;
use super::entry::{COPIED, OFFSET, decode, refcount};
use super::*;

/// A seeded stream of random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn write_mode() -> OpenOptions {
    OpenOptions { write: true, punch: true }
}

fn new_image(size: u64, cluster_bits: u32) -> Arc<Memory> {
    let storage = Arc::new(Memory::default());
    let options = CreateOptions { size, cluster_bits: Some(cluster_bits), backing: None };
    create(&*storage, &options).unwrap();
    storage
}

fn open(storage: &Arc<Memory>) -> Qcow2 {
    Qcow2::open("x", storage.clone(), None, write_mode()).unwrap()
}

/// Counts the references to each cluster. Gives those with too low a refcount, and how many have
/// too high a one.
pub(super) fn check(bytes: &[u8]) -> (Vec<String>, usize) {
    let header = Header::parse(&bytes[..bytes.len().min(4096)], bytes.len() as u64).unwrap();
    let (bits, cluster) = (header.cluster_bits, header.cluster_size());
    let word = |at: u64| bytes.get(at as usize..at as usize + 8).map_or(0, |w| be64(w, 0));
    let mut wanted: HashMap<u64, u64> = HashMap::new();
    let mut refer = |at: u64, len: u64| {
        for number in at >> bits..=(at + len - 1) >> bits {
            *wanted.entry(number).or_default() += 1;
        }
    };
    refer(0, 1);
    refer(header.l1_offset, u64::from(header.l1_size) * 8);
    let table_len = u64::from(header.reftable_clusters) * cluster;
    refer(header.reftable_offset, table_len);
    let blocks: Vec<u64> =
        (0..table_len / 8).map(|index| word(header.reftable_offset + index * 8)).collect();
    blocks.iter().filter(|block| **block != 0).for_each(|block| refer(*block, 1));
    let mut faults = Vec::new();
    for index in 0..u64::from(header.l1_size) {
        let entry = word(header.l1_offset + index * 8);
        let table = entry & OFFSET;
        if table == 0 {
            continue;
        }
        refer(table, 1);
        for index in 0..cluster / 8 {
            let entry = word(table + index * 8);
            match decode(entry, bits, header.version) {
                None => faults.push(format!("bad entry {entry:#x}")),
                Some(Cluster::Data { host, .. } | Cluster::Zero(Some(host))) => {
                    refer(host, 1);
                    if entry & COPIED == 0 {
                        faults.push(format!("{host:#x} is not marked as our own"));
                    }
                }
                Some(Cluster::Compressed(packed)) => refer(packed.host, packed.len),
                Some(_) => {}
            }
        }
    }
    let entries = (cluster * 8) >> header.refcount_order;
    let count = |number: u64| match blocks.get((number / entries) as usize) {
        None | Some(0) => 0,
        Some(block) => match bytes.get(*block as usize..(block + cluster) as usize) {
            None => 0,
            Some(data) => refcount(data, header.refcount_order, (number % entries) as usize),
        },
    };
    let end = bytes.len() as u64 >> bits;
    let mut leaked = 0;
    for number in 0..end.max(wanted.keys().max().copied().unwrap_or(0) + 1) {
        let (has, needs) = (count(number), wanted.get(&number).copied().unwrap_or(0));
        if has < needs {
            faults.push(format!("cluster {number} has {has}, needs {needs}"));
        }
        leaked += usize::from(has > needs);
    }
    (faults, leaked)
}

use super::entry::Cluster;

/// Carries out a random operation on the image and on the model.
fn step(random: &mut Random, image: &Qcow2, model: &mut [u8], tag: u8) {
    let sectors = model.len() as u64 / 512;
    let first = random.below(sectors);
    let most = 1 + random.below(64);
    let count = 1 + random.below((sectors - first).min(most));
    let (from, len) = (first * 512, count * 512);
    let range = from as usize..(from + len) as usize;
    match random.below(10) {
        0..=4 => {
            let data: Vec<u8> = (0..len).map(|n| tag ^ (n / 512) as u8 | 1).collect();
            image.write(from, &Source::new(&data)).unwrap();
            model[range].copy_from_slice(&data);
        }
        5 => {
            image.zero(from, len, random.below(2) == 0).unwrap();
            model[range].fill(0);
        }
        6 => {
            image.discard(from, len).unwrap();
            // What is left of it is anyone's guess: zeros or the old contents.
            let mut data = vec![0xEE; len as usize];
            image.read(from, &Target::new(&mut data)).unwrap();
            for (new, old) in data.iter().zip(&model[range.clone()]) {
                assert!(new == old || *new == 0);
            }
            model[range].copy_from_slice(&data);
        }
        7 => image.flush().unwrap(),
        _ => {
            let mut data = vec![0xEE; len as usize];
            image.read(from, &Target::new(&mut data)).unwrap();
            assert!(data == model[range], "{from:#x}+{len:#x}");
        }
    }
}

#[test]
fn random_operations_agree_with_a_flat_model() {
    for (seed, bits) in (0..24).zip([9, 10, 12, 16].into_iter().cycle()) {
        let mut random = Random(seed);
        let size = (512 << random.below(8)) * (1 + random.below(300));
        let storage = new_image(size, bits);
        let mut model = vec![0; size as usize];
        for round in 0..3 {
            let image = open(&storage);
            for n in 0..200 {
                step(&mut random, &image, &mut model, (n + round) as u8);
            }
            drop(image);
            assert_eq!(check(&storage.bytes()), (vec![], 0), "seed {seed}");
        }
    }
}

#[test]
fn an_overlay_shows_its_base_until_it_is_written() {
    for bits in [9, 12] {
        let mut random = Random(7);
        let mut model: Vec<u8> = (0..300 * 512).map(|n| (n / 100) as u8).collect();
        let base =
            Raw::new("b", Arc::new(Memory::new(model[..200 * 512].to_vec())), false).unwrap();
        model[200 * 512..].fill(0);
        let storage = Arc::new(Memory::default());
        let options = CreateOptions {
            size: model.len() as u64,
            cluster_bits: Some(bits),
            backing: Some(("base".into(), "raw".into())),
        };
        create(&*storage, &options).unwrap();
        let said = backing("x", &*storage).unwrap().unwrap();
        assert_eq!((said.file.as_str(), said.format.as_deref()), ("base", Some("raw")));
        let image = Qcow2::open("x", storage.clone(), Some(Arc::new(base)), write_mode()).unwrap();
        let original = model.clone();
        for n in 0..600 {
            step(&mut random, &image, &mut model, n as u8);
        }
        let mut own = 0;
        image
            .own_ranges(&mut |_, len| {
                own += len;
                Ok(())
            })
            .unwrap();
        assert!(own > 0);
        image.forget().unwrap();
        let mut data = vec![1; model.len()];
        image.read(0, &Target::new(&mut data)).unwrap();
        assert!(data == original);
        drop(image);
        assert_eq!(check(&storage.bytes()), (vec![], 0));
    }
}

/// What reached the file, in order.
#[derive(Clone)]
enum Effect {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Sync,
}

/// Memory that takes notes.
struct Recorder(Memory, Mutex<Vec<Effect>>);

impl Storage for Recorder {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn read(&self, offset: u64, target: &Target<'_>) -> io::Result<()> {
        self.0.read(offset, target)
    }
    fn write(&self, offset: u64, source: &Source<'_>) -> io::Result<()> {
        let mut data = vec![0; source.len()];
        source.copy_to(&mut data);
        self.1.lock().unwrap().push(Effect::Write(offset, data));
        self.0.write(offset, source)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.lock().unwrap().push(Effect::Sync);
        Ok(())
    }
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.1.lock().unwrap().push(Effect::Zero(offset, len));
        self.0.zero(offset, len, unmap)
    }
    fn discard(&self, offset: u64, len: u64) {
        let _ = self.zero(offset, len, true);
    }
}

/// The process dies: all effects up to a moment are there. The host dies: those since the last sync
/// may be there or not.
#[test]
fn a_crash_at_any_moment_leaves_nothing_but_leaks_and_all_that_was_flushed() {
    let (seeds, crashes) = if std::env::var_os("VMM_SOAK").is_some() { (40, 60) } else { (3, 10) };
    for seed in 0..seeds {
        let mut random = Random(seed + 100);
        let bits = [9, 12][seed as usize % 2];
        let size = 512 * (600 + random.below(2000));
        let start = new_image(size, bits);
        let first = start.bytes();
        let recorder = Arc::new(Recorder(Memory::new(first.clone()), Mutex::default()));
        let image = Qcow2::open("x", recorder.clone(), None, write_mode()).unwrap();
        // Each range with what it was made; no two writes write the same.
        let mut changes = Vec::new();
        // After how many effects, how many changes had been flushed.
        let mut flushed = vec![(0, 0)];
        for n in 0..150_u64 {
            let sectors = size / 512;
            let at = random.below(sectors);
            let count = 1 + random.below((sectors - at).min(40));
            let (from, len) = (at * 512, count * 512);
            let value = match random.below(8) {
                0 => {
                    image.flush().unwrap();
                    flushed.push((recorder.1.lock().unwrap().len(), changes.len()));
                    continue;
                }
                1 => {
                    image.zero(from, len, true).unwrap();
                    0
                }
                _ => {
                    image.write(from, &Source::new(&vec![n as u8 + 1; len as usize])).unwrap();
                    n as u8 + 1
                }
            };
            changes.push((from as usize..(from + len) as usize, value));
        }
        let effects = recorder.1.lock().unwrap().clone();
        drop(image);
        for crash in 0..crashes {
            let end = random.below(effects.len() as u64 + 1) as usize;
            let power = crash % 2 == 1;
            let synced =
                effects[..end].iter().rposition(|e| matches!(e, Effect::Sync)).unwrap_or(0);
            let disk = Memory::new(first.clone());
            for (index, effect) in effects[..end].iter().enumerate() {
                if power && index > synced && random.below(2) == 0 {
                    continue;
                }
                match effect {
                    Effect::Write(at, data) => disk.write_bytes(*at, data).unwrap(),
                    Effect::Zero(at, len) => disk.zero(*at, *len, true).unwrap(),
                    Effect::Sync => {}
                }
            }
            let bytes = disk.bytes();
            assert_eq!(check(&bytes).0, [""; 0], "seed {seed}, {end} effects, power {power}");
            let (_, kept) = *flushed.iter().rfind(|(at, _)| *at <= end).unwrap();
            let again = Qcow2::open("x", Arc::new(Memory::new(bytes)), None, write_mode()).unwrap();
            let mut data = vec![0; size as usize];
            again.read(0, &Target::new(&mut data)).unwrap();
            // Each byte is what was flushed, or what some later change made of it.
            let mut sound = vec![0; size as usize];
            for (range, value) in &changes[..kept] {
                sound[range.clone()].fill(*value);
            }
            for (range, value) in &changes[kept..] {
                for at in range.clone().filter(|at| data[*at] == *value) {
                    sound[at] = *value;
                }
            }
            let wrong = data.iter().zip(&sound).position(|(has, should)| has != should);
            assert_eq!(wrong, None, "seed {seed}, {end} effects, power {power}");
        }
    }
}

#[test]
fn threads_do_not_disturb_each_other() {
    let size = 4 << 20;
    let storage = new_image(size, 12);
    let image = Arc::new(open(&storage));
    let part = size / 4 + 1536;
    let threads: Vec<_> = (0..4_u64)
        .map(|n| {
            let image = image.clone();
            std::thread::spawn(move || {
                // Neighbours share clusters, and never a sector.
                let mut random = Random(n);
                let first = n * (part - 1536);
                let mut model = vec![0; (part - 1536) as usize];
                for round in 0..300 {
                    let sectors = model.len() as u64 / 512;
                    let at = random.below(sectors);
                    let count = 1 + random.below((sectors - at).min(24));
                    let range = (at * 512) as usize..((at + count) * 512) as usize;
                    let data = vec![round as u8; range.len()];
                    match random.below(12) {
                        0 => image.flush().unwrap(),
                        1 => {
                            image.zero(first + at * 512, count * 512, true).unwrap();
                            model[range].fill(0);
                        }
                        _ => {
                            image.write(first + at * 512, &Source::new(&data)).unwrap();
                            model[range].copy_from_slice(&data);
                        }
                    }
                }
                let mut data = vec![0; model.len()];
                image.read(first, &Target::new(&mut data)).unwrap();
                assert!(data == model, "thread {n}");
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(image);
    assert_eq!(check(&storage.bytes()), (vec![], 0));
}

#[test]
fn growing_takes_tables_along() {
    let storage = new_image(1 << 20, 9);
    let image = open(&storage);
    image.write(0, &Source::new(&[7; 1 << 20])).unwrap();
    image.resize(24 << 20).unwrap();
    assert!(image.resize(512).is_err());
    let data = vec![9; 23 << 20];
    image.write(1 << 20, &Source::new(&data)).unwrap();
    drop(image);
    assert_eq!(check(&storage.bytes()), (vec![], 0));
    let image = open(&storage);
    assert_eq!(image.size(), 24 << 20);
    let mut data = vec![0; 24 << 20];
    image.read(0, &Target::new(&mut data)).unwrap();
    assert!(data[..1 << 20].iter().all(|b| *b == 7) && data[1 << 20..].iter().all(|b| *b == 9));
}

#[test]
fn what_is_not_there_is_refused_with_its_name() {
    let storage = new_image(1 << 20, 16);
    let good = storage.bytes();
    let refusal = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        let storage = Arc::new(Memory::new(bytes));
        match Qcow2::open("disk.qcow2", storage, None, write_mode()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{at} {value:?}"),
        }
    };
    for (at, value, expected) in [
        (79, &[0x10_u8][..], "subclusters"),
        (79, &[0x04], "data file"),
        (79, &[0x80], "feature 7"),
        (79, &[0x01], "qemu-img check -r all"),
        (79, &[0x02], "corrupt"),
        (35, &[2], "encrypted"),
        (23, &[30], "2^30"),
        (0, b"XXXX", "no qcow2 header"),
        (24, &[0x7F], "too short for its size"),
        (40, &[0x7F], "L1 table lies at"),
        (48, &[0x7F], "refcount table lies at"),
        (56, &[0x7F], "clusters"),
        (99, &[9], "2^9 bits"),
        (100, &[1], "header claims"),
    ] {
        let text = refusal(at, value);
        assert!(text.contains(expected) && text.contains("disk.qcow2"), "{at}: {text}");
    }
}
