//! Damaged headers: whatever they say, a loader answers with a machine that can be entered or
//! with an error.

use super::images::{Segment, bzimage, elf, multiboot_header, multiboot_kludge, pvh_kernel};
use super::*;

/// Sebastiano Vigna's SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Damages some bytes: with noise, or with a number that is often a boundary.
    fn damage(&mut self, image: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(image.len());
            let width = (1 << self.below(4)).min(image.len() - at);
            let value = match self.below(4) {
                0 => self.next(),
                1 => u64::MAX >> self.below(64),
                2 => 1 << self.below(64),
                _ => image.len() as u64 - self.below(3) as u64,
            };
            image[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        if self.below(8) == 0 {
            image.truncate(1 + self.below(image.len()));
        }
    }
}

#[test]
fn damaged_headers_neither_panic_nor_leave_ram() {
    const ROUNDS: usize = 4000;
    const SEED: u64 = 0x2026_1123;
    let mut text = multiboot_header(3, &[]);
    text.extend([0; 16]);
    let whole = [
        bzimage(),
        pvh_kernel(),
        elf(true, 0x10_0000, &[Segment::load(0x10_0000, b"text", 0x1000)]),
        multiboot_kludge(),
        elf(false, 0x10_0000, &[Segment::load(0x10_0000, &text, 0x1000)]),
    ];
    let ram = GuestRam::new(4 * MIB).unwrap();
    let initrd = TestFile::new(&[3; 3000]);
    let (file, initrd) = (TestFile::new(b""), initrd.path());
    let path = file.path();
    let config = BootConfig {
        kernel: path.as_ref(),
        initrd: Some(&initrd),
        cmdline: "quiet",
        rsdp: None,
        ecam: None,
    };
    let mut random = Random(SEED);
    let (mut loaded, mut refused) = (0, 0);
    for whole in &whole {
        for _ in 0..ROUNDS {
            let mut image = whole.clone();
            random.damage(&mut image);
            file.set(&image);
            match load(&config, &ram) {
                Ok(result) => {
                    loaded += 1;
                    let extents = [Some(result.kernel), result.initrd, Some(result.cmdline)];
                    for extent in extents.into_iter().flatten() {
                        assert!(ram.contains(extent.address, extent.size), "{result:x?}");
                    }
                    assert!(ram.contains(result.entry.address(), 1), "{result:x?}");
                }
                Err(error) => {
                    refused += 1;
                    let text = error.to_string();
                    assert!((1..=2).contains(&text.lines().count()), "{text}");
                    assert!(!matches!(error, BootError::NotRam(_)), "an unforeseen {text}");
                }
            }
        }
    }
    // Both outcomes are common, so that both are tested.
    assert!(loaded > ROUNDS / 4 && refused > ROUNDS / 4, "{loaded} loaded, {refused} refused");
}
