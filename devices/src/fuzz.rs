//! Fuzz targets: functions of bytes that panic when something is wrong.

use crate::block::Disk;
use crate::chardev::NullPort;
use crate::virtio::balloon::{Balloon, BalloonOptions};
use crate::virtio::blk::{Blk, BlkOptions};
use crate::virtio::console::{Console, PortSpec};
use crate::virtio::driver::{Rig, poke};
use crate::virtio::rng::{EntropySource, Rng};

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

/// Random numbers that are none.
struct Constant;

impl EntropySource for Constant {
    fn fill(&mut self, data: &mut [u8]) {
        data.fill(0xA5);
    }
}

/// virtio-rng: rings, registers.
pub fn virtio_rng(bytes: &[u8]) {
    let mut rig = Rig::new(4 << 20, |_, _| Box::new(Rng::new(Box::new(Constant))));
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
    fn random_rings_do_balloon_no_harm() {
        seeded(3, 200, virtio_balloon);
    }

    #[test]
    fn random_rings_do_console_no_harm() {
        seeded(4, 200, virtio_console);
    }
}
