//! Firmware images (`--bios`), which end at 4 GiB, where the reset vector is.

use std::path::Path;
use std::sync::Arc;

use board::GuestRam;
use board::memory::{MemoryMap, Rom};

use super::image::Image;
use super::{BootError, layout};

/// The unit of a flash image.
const UNIT: u64 = 64 << 10;
const MAX_SIZE: u64 = 16 << 20;
/// The end of the image appears so large below 1 MiB as well, at most.
const SHADOW: u64 = 128 << 10;

/// A firmware image.
#[derive(Clone, Debug)]
pub struct Firmware {
    rom: Arc<Rom>,
}

impl Firmware {
    /// Reads the image.
    ///
    /// # Errors
    /// [`BootError`] if the file cannot be read or its size is not a multiple of 64 KiB up to
    /// 16 MiB.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let image = Image::open(path, "--bios")?;
        if image.size > MAX_SIZE || !image.size.is_multiple_of(UNIT) {
            return Err(BootError::FirmwareSize { path: image.path, size: image.size });
        }
        let rom = Rom::new(&image.head(MAX_SIZE)?)?;
        Ok(Self { rom: Arc::new(rom) })
    }

    /// Adds the image to `map`, where it ends at 4 GiB.
    pub fn map(&self, map: &mut MemoryMap) {
        map.add_rom(&self.rom, layout::FOUR_GIB - self.rom.size(), "pc.bios");
    }

    /// Copies the last 128 KiB to the RAM that ends at 1 MiB. To be called at each reset: as on a
    /// machine whose firmware has unlocked its shadow RAM, the guest can write to the copy.
    ///
    /// # Errors
    /// [`BootError::RamTooSmall`] if there is no RAM up to 1 MiB.
    pub fn shadow(&self, ram: &GuestRam) -> Result<(), BootError> {
        if ram.size() < layout::ONE_MIB {
            return Err(BootError::RamTooSmall { ram: ram.size() });
        }
        let image = self.rom.bytes();
        let copy = &image[image.len() - image.len().min(SHADOW as usize)..];
        ram.write(layout::ONE_MIB - copy.len() as u64, copy)?;
        Ok(())
    }
}
