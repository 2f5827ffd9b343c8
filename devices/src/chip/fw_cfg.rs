//! fw_cfg: numbered items and named files that the host gives to firmware and kernels.
//!
//! Source: QEMU, `docs/specs/fw_cfg.rst`. The x86 form: selector (16 bits, little-endian) and data
//! share ports 0x510 and 0x511; the DMA address register, big-endian, is at 0x514 to 0x51B.
//!
//! All items are read-only: a DMA write is answered by the error bit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use board::memory::NotRam;
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::{Device, GuestRam, Region};
use serde::{Deserialize, Serialize};

/// Selectors of the items that have a fixed one.
pub mod key {
    #![allow(missing_docs)]
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const UUID: u16 = 0x02;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NOGRAPHIC: u16 = 0x04;
    pub const NB_CPUS: u16 = 0x05;
    pub const MACHINE_ID: u16 = 0x06;
    pub const KERNEL_ADDR: u16 = 0x07;
    pub const KERNEL_SIZE: u16 = 0x08;
    pub const KERNEL_CMDLINE: u16 = 0x09;
    pub const INITRD_ADDR: u16 = 0x0A;
    pub const INITRD_SIZE: u16 = 0x0B;
    pub const BOOT_DEVICE: u16 = 0x0C;
    pub const NUMA: u16 = 0x0D;
    pub const BOOT_MENU: u16 = 0x0E;
    pub const MAX_CPUS: u16 = 0x0F;
    pub const KERNEL_ENTRY: u16 = 0x10;
    pub const KERNEL_DATA: u16 = 0x11;
    pub const INITRD_DATA: u16 = 0x12;
    pub const CMDLINE_ADDR: u16 = 0x13;
    pub const CMDLINE_SIZE: u16 = 0x14;
    pub const CMDLINE_DATA: u16 = 0x15;
    pub const SETUP_ADDR: u16 = 0x16;
    pub const SETUP_SIZE: u16 = 0x17;
    pub const SETUP_DATA: u16 = 0x18;
    pub const FILE_DIR: u16 = 0x19;
    /// The first file; the others follow in the order of their names.
    pub const FILE_FIRST: u16 = 0x20;
}

/// Files at most: selectors 0x20 to 0x3FFF, of which bit 14 once asked for writing.
const MAX_FILES: usize = 0x3FE0;

/// Bytes of a file's name with its terminating zero.
const NAME_SIZE: usize = 56;

/// What the item `ID` says: the ports are there (bit 0) and DMA is (bit 1).
const ID: u32 = 0b11;

/// What the DMA address register reads.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

/// The contents of an item: bytes in memory or a mapped file.
/// The contents of an item.
enum Blob {
    Bytes(Box<[u8]>),
    /// Read when the guest reads it, so that a large kernel takes no memory of ours.
    File {
        file: File,
        size: usize,
    },
}

impl Blob {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::File { size, .. } => *size,
        }
    }

    /// Fills `data` from `offset` on, which lies within the item with all of `data`. What the host
    /// does not give, because the file has become shorter, is zeros.
    fn read_at(&self, offset: usize, data: &mut [u8]) {
        match self {
            Self::Bytes(bytes) => data.copy_from_slice(&bytes[offset..offset + data.len()]),
            Self::File { file, .. } => {
                data.fill(0);
                let _ = file.read_exact_at(data, offset as u64);
            }
        }
    }
}

/// Why a file cannot be given to the guest.
#[derive(Debug, thiserror::Error)]
pub enum FwCfgError {
    /// The name is empty, too long or not ASCII.
    #[error(
        "fw_cfg file name {0:?}: give 1 to 55 ASCII characters, such as opt/org.example/config"
    )]
    Name(String),
    /// There is a file of this name.
    #[error("fw_cfg file {0} is there already: give it once, or another name")]
    Duplicate(String),
    /// Beyond what a guest can address.
    #[error("fw_cfg file {name}: {cause}: give less")]
    TooMuch {
        /// The file's name.
        name: String,
        /// Which limit.
        cause: &'static str,
    },
}

/// The type of a range in the e820 map (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// RAM.
    Ram = 1,
    /// Anything that is not for use.
    Reserved = 2,
    /// ACPI tables, RAM once they have been read.
    Acpi = 3,
    /// ACPI non-volatile storage.
    Nvs = 4,
}

/// What is given to the guest, collected before the machine starts.
#[derive(Default)]
pub struct FwCfgItems {
    fixed: BTreeMap<u16, Blob>,
    files: BTreeMap<String, Blob>,
}

impl FwCfgItems {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the item with selector `key`, one of [`key`]. Signature, ID and file directory are set
    /// by [`FwCfg::new`].
    pub fn set(&mut self, key: u16, data: impl Into<Box<[u8]>>) {
        self.fixed.insert(key, Blob::Bytes(data.into()));
    }

    /// Sets an item to the contents of a file, which are read when the guest reads them.
    ///
    /// # Errors
    /// When the file's size cannot be had.
    pub fn set_file(&mut self, key: u16, file: File) -> io::Result<()> {
        let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        self.fixed.insert(key, Blob::File { file, size });
        Ok(())
    }

    /// Sets an item that is a 16-bit number.
    pub fn set_u16(&mut self, key: u16, value: u16) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets an item that is a 32-bit number.
    pub fn set_u32(&mut self, key: u16, value: u32) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets an item that is a 64-bit number.
    pub fn set_u64(&mut self, key: u16, value: u64) {
        self.set(key, value.to_le_bytes());
    }

    /// Adds a file.
    ///
    /// # Errors
    /// A bad or known name, a file of 4 GiB or more, or more than 16,352 files.
    pub fn add_file(&mut self, name: &str, data: impl Into<Box<[u8]>>) -> Result<(), FwCfgError> {
        let data = data.into();
        if name.is_empty() || name.len() >= NAME_SIZE || !name.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        if self.files.contains_key(name) {
            return Err(FwCfgError::Duplicate(name.to_owned()));
        }
        let too_much = |cause| Err(FwCfgError::TooMuch { name: name.to_owned(), cause });
        if u32::try_from(data.len()).is_err() {
            return too_much("a file has less than 4 GiB");
        }
        if self.files.len() == MAX_FILES {
            return too_much("there are 16352 files already");
        }
        self.files.insert(name.to_owned(), Blob::Bytes(data));
        Ok(())
    }

    /// Adds the memory map, ranges of (address, bytes, type), as the file `etc/e820`.
    ///
    /// # Errors
    /// As [`FwCfgItems::add_file`].
    pub fn add_e820(&mut self, ranges: &[(u64, u64, E820Type)]) -> Result<(), FwCfgError> {
        let mut file = Vec::with_capacity(ranges.len() * 20);
        for (address, bytes, kind) in ranges {
            file.extend(address.to_le_bytes());
            file.extend(bytes.to_le_bytes());
            file.extend((*kind as u32).to_le_bytes());
        }
        self.add_file("etc/e820", file)
    }

    /// All items by selector, the directory among them.
    fn finish(self) -> BTreeMap<u16, Blob> {
        let Self { fixed: mut items, files } = self;
        let mut directory = Vec::with_capacity(4 + files.len() * (8 + NAME_SIZE));
        directory.extend((files.len() as u32).to_be_bytes());
        for (selector, (name, data)) in (key::FILE_FIRST..).zip(files) {
            // `add_file` has seen to it that size and name fit.
            directory.extend((data.len() as u32).to_be_bytes());
            directory.extend(selector.to_be_bytes());
            directory.extend([0; 2]);
            let mut padded = [0; NAME_SIZE];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(padded);
            items.insert(selector, data);
        }
        items.insert(key::SIGNATURE, Blob::Bytes(Box::new(*b"QEMU")));
        items.insert(key::ID, Blob::Bytes(Box::new(ID.to_le_bytes())));
        items.insert(key::FILE_DIR, Blob::Bytes(directory.into()));
        items
    }
}

/// Bytes that a DMA command copies at a time.
const CHUNK: usize = 64 << 10;

/// Bits of the control field of a DMA command.
mod dma {
    pub(super) const ERROR: u32 = 1 << 0;
    pub(super) const READ: u32 = 1 << 1;
    pub(super) const SKIP: u32 = 1 << 2;
    pub(super) const SELECT: u32 = 1 << 3;
    pub(super) const WRITE: u32 = 1 << 4;
}

/// The device.
pub struct FwCfg {
    items: BTreeMap<u16, Blob>,
    ram: GuestRam,
    selector: u16,
    /// Bytes of the selected item that have been read, at most its size.
    offset: usize,
    /// The upper half of the address of the next DMA command.
    dma_high: u32,
}

impl FwCfg {
    /// Ports 0x510 and 0x511, to be mapped with width [`board::Width::Word`].
    pub const SELECTOR_AND_DATA: Region = Region(0);
    /// Ports 0x514 to 0x51B, to be mapped with width [`board::Width::Dword`] or wider.
    pub const DMA: Region = Region(1);

    /// A device that offers `items` and reads and writes `ram` by DMA.
    pub fn new(items: FwCfgItems, ram: GuestRam) -> Self {
        Self { items: items.finish(), ram, selector: 0, offset: 0, dma_high: 0 }
    }

    fn select(&mut self, selector: u16) {
        // Bit 14 once selected an item for writing.
        self.selector = selector & !0x4000;
        self.offset = 0;
    }

    /// The selected item, and how many of its bytes have not been read.
    fn rest(&self) -> Option<(&Blob, usize)> {
        let item = self.items.get(&self.selector)?;
        Some((item, item.len().saturating_sub(self.offset)))
    }

    /// Carries out the DMA command at `address`, whose control field tells how it went.
    fn dma(&mut self, address: u64) {
        // Control, length and address, all big-endian. A command that is no RAM gets no answer.
        let mut command = [0; 16];
        if self.ram.read(address, &mut command).is_ok() {
            let [c0, c1, c2, c3, l0, l1, l2, l3, buffer @ ..] = command;
            let control = u32::from_be_bytes([c0, c1, c2, c3]);
            let length = u32::from_be_bytes([l0, l1, l2, l3]);
            let result = self.run(control, length as usize, u64::from_be_bytes(buffer));
            let answer = if result.is_ok() { 0 } else { dma::ERROR };
            // The command was read from there, so that this is RAM.
            let _ = self.ram.write(address, &answer.to_be_bytes());
        }
    }

    fn run(&mut self, control: u32, length: usize, buffer: u64) -> Result<(), DmaError> {
        if control & dma::SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let taken = self.rest().map_or(0, |(_, rest)| length.min(rest));
        if control & dma::READ != 0 {
            if !self.ram.contains(buffer, length as u64) {
                return Err(DmaError);
            }
            self.copy(buffer, taken)?;
            self.zero(buffer + taken as u64, length - taken)?;
        } else if control & dma::WRITE != 0 {
            return Err(DmaError);
        } else if control & dma::SKIP == 0 {
            return Ok(());
        }
        self.offset += taken;
        Ok(())
    }

    /// Copies the next `length` bytes of the item, which has as many, to `address`.
    fn copy(&self, mut address: u64, length: usize) -> Result<(), DmaError> {
        let Some((item, _)) = self.rest() else { return Ok(()) };
        let mut chunk = vec![0; length.min(CHUNK)];
        let mut offset = self.offset;
        let end = self.offset + length;
        while offset < end {
            let part = &mut chunk[..(end - offset).min(CHUNK)];
            item.read_at(offset, part);
            self.ram.write(address, part)?;
            address += part.len() as u64;
            offset += part.len();
        }
        Ok(())
    }

    /// Beyond its end an item is zeros.
    fn zero(&self, mut address: u64, mut length: usize) -> Result<(), DmaError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while length > 0 {
            let chunk = length.min(ZEROS.len());
            self.ram.write(address, &ZEROS[..chunk])?;
            address += chunk as u64;
            length -= chunk;
        }
        Ok(())
    }
}

/// The error bit of a DMA command.
struct DmaError;

impl From<NotRam> for DmaError {
    fn from(_: NotRam) -> Self {
        Self
    }
}

impl Device for FwCfg {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        if region == Self::DMA {
            for (byte, at) in data.iter_mut().zip(offset as usize..) {
                *byte = DMA_SIGNATURE.get(at).copied().unwrap_or(0xFF);
            }
            return;
        }
        // Either port gives data, a byte at a time.
        match data {
            [byte] => {
                *byte = 0;
                if let Some((item, 1..)) = self.rest() {
                    item.read_at(self.offset, std::slice::from_mut(byte));
                    self.offset += 1;
                }
            }
            wider => wider.fill(0xFF),
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        match (region, offset, data) {
            (Self::SELECTOR_AND_DATA, 0, &[low, high]) => {
                self.select(u16::from_le_bytes([low, high]));
            }
            (Self::DMA, 0, &[a, b, c, d]) => self.dma_high = u32::from_be_bytes([a, b, c, d]),
            (Self::DMA, 4, &[a, b, c, d]) => {
                let high = std::mem::take(&mut self.dma_high);
                self.dma(u64::from(high) << 32 | u64::from(u32::from_be_bytes([a, b, c, d])));
            }
            (Self::DMA, 0, &[a, b, c, d, e, f, g, h]) => {
                self.dma_high = 0;
                self.dma(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.select(0);
        self.dma_high = 0;
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// A saved [`FwCfg`]. The items are part of the machine's configuration and are not saved.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct FwCfgV1 {
    pub selector: u16,
    pub offset: u64,
    pub dma_high: u32,
}

impl Snapshot for FwCfg {
    const KIND: &'static str = "fw_cfg";
    const VERSION: u32 = 1;
    type State = FwCfgV1;

    fn save(&self) -> FwCfgV1 {
        let Self { items: _, ram: _, selector, offset, dma_high } = *self;
        FwCfgV1 { selector, offset: offset as u64, dma_high }
    }

    fn restore(&mut self, state: FwCfgV1) -> Result<(), StateError> {
        let FwCfgV1 { selector, offset, dma_high } = state;
        // The item may be shorter than it was where the state was saved.
        self.select(selector);
        let size = self.items.get(&self.selector).map_or(0, Blob::len);
        self.offset = size.min(usize::try_from(offset).unwrap_or(usize::MAX));
        self.dma_high = dma_high;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use board::memory::PAGE_SIZE;

    use super::super::testing::Random;
    use super::*;

    const RAM: u64 = 64 * PAGE_SIZE;
    const COMMAND: u64 = 0x1000;

    fn items() -> FwCfgItems {
        let mut items = FwCfgItems::new();
        items.set_u64(key::RAM_SIZE, RAM);
        items.set_u16(key::NB_CPUS, 2);
        items.set_u32(key::KERNEL_ADDR, 0x10_0000);
        items.add_file("opt/b", b"second".to_vec()).unwrap();
        items.add_file("etc/a", vec![0xA5; 10_000]).unwrap();
        items
    }

    fn fw_cfg() -> FwCfg {
        FwCfg::new(items(), GuestRam::new(RAM).unwrap())
    }

    fn select(device: &mut FwCfg, selector: u16) {
        device.write(FwCfg::SELECTOR_AND_DATA, 0, &selector.to_le_bytes());
    }

    fn data(device: &mut FwCfg, len: usize) -> Vec<u8> {
        let mut data = vec![0xCC; len];
        for byte in data.chunks_mut(1) {
            device.read(FwCfg::SELECTOR_AND_DATA, 1, byte);
        }
        data
    }

    /// Runs a DMA command and returns its control field.
    fn dma(device: &mut FwCfg, control: u32, length: u32, buffer: u64) -> u32 {
        let mut command = control.to_be_bytes().to_vec();
        command.extend(length.to_be_bytes());
        command.extend(buffer.to_be_bytes());
        device.ram.write(COMMAND, &command).unwrap();
        device.write(FwCfg::DMA, 0, &[0; 4]);
        device.write(FwCfg::DMA, 4, &(COMMAND as u32).to_be_bytes());
        let mut answer = [0; 4];
        device.ram.read(COMMAND, &mut answer).unwrap();
        u32::from_be_bytes(answer)
    }

    fn ram(device: &FwCfg, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        device.ram.read(address, &mut data).unwrap();
        data
    }

    #[test]
    fn numbered_items_are_little_endian_and_zeros_beyond_their_end() {
        let mut device = fw_cfg();
        assert_eq!(data(&mut device, 6), b"QEMU\0\0");
        for (selector, expected) in [
            (key::ID, vec![3, 0, 0, 0]),
            (key::RAM_SIZE, RAM.to_le_bytes().to_vec()),
            (key::NB_CPUS | 0x4000, vec![2, 0, 0]),
            (key::KERNEL_ADDR, vec![0, 0, 0x10, 0, 0]),
            (0x3FFF, vec![0, 0]),
            (0x8003, vec![0]),
        ] {
            select(&mut device, selector);
            assert_eq!(data(&mut device, expected.len()), expected, "item {selector:#x}");
        }
    }

    #[test]
    fn a_selection_starts_at_the_beginning() {
        let mut device = fw_cfg();
        assert_eq!(data(&mut device, 2), b"QE");
        select(&mut device, 0);
        assert_eq!(data(&mut device, 2), b"QE");
        device.write(FwCfg::SELECTOR_AND_DATA, 1, b"X");
        device.write(FwCfg::SELECTOR_AND_DATA, 0, &[1]);
        assert_eq!(data(&mut device, 2), b"MU", "writes of a byte change nothing");
        let mut wide = [0; 2];
        device.read(FwCfg::SELECTOR_AND_DATA, 0, &mut wide);
        assert_eq!(wide, [0xFF; 2]);
        device.reset();
        assert_eq!(data(&mut device, 4), b"QEMU");
    }

    #[test]
    fn the_directory_is_sorted_and_big_endian() {
        let mut device = fw_cfg();
        select(&mut device, key::FILE_DIR);
        assert_eq!(data(&mut device, 4), [0, 0, 0, 2]);
        let entry = |size: u32, selector: u16, name: &str| {
            let mut entry = size.to_be_bytes().to_vec();
            entry.extend(selector.to_be_bytes());
            entry.extend([0, 0]);
            entry.extend(name.as_bytes());
            entry.resize(64, 0);
            entry
        };
        assert_eq!(data(&mut device, 64), entry(10_000, 0x20, "etc/a"));
        assert_eq!(data(&mut device, 64), entry(6, 0x21, "opt/b"));
        select(&mut device, 0x21);
        assert_eq!(data(&mut device, 7), b"second\0");
    }

    #[test]
    fn e820_entries_are_packed() {
        let mut items = FwCfgItems::new();
        let ranges = [(0, 0x9FC00, E820Type::Ram), (0xF_0000, 0x1_0000, E820Type::Reserved)];
        items.add_e820(&ranges).unwrap();
        let mut device = FwCfg::new(items, GuestRam::new(RAM).unwrap());
        select(&mut device, key::FILE_FIRST);
        let mut expected = vec![0; 8];
        expected.extend(0x9FC00_u64.to_le_bytes());
        expected.extend([1, 0, 0, 0]);
        expected.extend(0xF_0000_u64.to_le_bytes());
        expected.extend(0x1_0000_u64.to_le_bytes());
        expected.extend([2, 0, 0, 0]);
        assert_eq!(data(&mut device, 40), expected);
    }

    #[test]
    fn bad_and_double_names_are_refused() {
        let mut items = items();
        let long = "x".repeat(NAME_SIZE);
        for name in ["", "a b", "\u{e4}", "a\0", &long] {
            let error = items.add_file(name, []).unwrap_err();
            assert!(matches!(error, FwCfgError::Name(_)), "{name:?}");
        }
        items.add_file(&long[1..], []).unwrap();
        let error = items.add_file("opt/b", []).unwrap_err().to_string();
        assert!(error.contains("opt/b") && error.contains("another name"), "{error}");
    }

    #[test]
    fn the_dma_register_reads_as_a_signature() {
        let mut device = fw_cfg();
        let mut data = [0; 8];
        device.read(FwCfg::DMA, 0, &mut data);
        assert_eq!(&data, b"QEMU CFG");
        device.read(FwCfg::DMA, 4, &mut data[..4]);
        assert_eq!(&data[..4], b" CFG");
    }

    #[test]
    fn dma_reads_pad_with_zeros_and_go_on_where_they_stopped() {
        let mut device = fw_cfg();
        device.ram.write(0x4000, &[0xFF; 32]).unwrap();
        assert_eq!(dma(&mut device, 0x21 << 16 | dma::SELECT | dma::READ, 3, 0x4000), 0);
        assert_eq!(dma(&mut device, dma::READ, 8, 0x4003), 0);
        assert_eq!(ram(&device, 0x4000, 12), b"second\0\0\0\0\0\xFF");
        assert_eq!(dma(&mut device, 0x20 << 16 | dma::SELECT | dma::READ, 30_000, 0x5001), 0);
        let read = ram(&device, 0x5000, 30_002);
        assert_eq!((read[0], read[30_001]), (0, 0));
        assert!(read[1..10_001].iter().all(|byte| *byte == 0xA5));
        assert!(read[10_001..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn dma_skips_and_selects() {
        let mut device = fw_cfg();
        assert_eq!(dma(&mut device, 0x21 << 16 | dma::SELECT | dma::SKIP, 4, 0), 0);
        assert_eq!(data(&mut device, 3), b"nd\0");
        assert_eq!(dma(&mut device, 0x21 << 16 | dma::SELECT, 100, u64::MAX), 0);
        assert_eq!(data(&mut device, 2), b"se");
        assert_eq!(dma(&mut device, dma::SKIP, u32::MAX, 0), 0);
        assert_eq!(data(&mut device, 1), [0]);
    }

    #[test]
    fn a_dma_command_takes_one_write_of_64_bits_as_well() {
        let mut device = fw_cfg();
        let mut command = (dma::SELECT | dma::READ).to_be_bytes().to_vec();
        command.extend(4_u32.to_be_bytes());
        command.extend(0x4000_u64.to_be_bytes());
        device.ram.write(COMMAND, &command).unwrap();
        device.write(FwCfg::DMA, 0, &COMMAND.to_be_bytes());
        assert_eq!(ram(&device, 0x4000, 4), b"QEMU");
    }

    #[test]
    fn dma_writes_and_buffers_outside_ram_are_errors() {
        let mut device = fw_cfg();
        assert_eq!(dma(&mut device, 0x21 << 16 | dma::SELECT | dma::WRITE, 4, 0x4000), dma::ERROR);
        let read = 0x21 << 16 | dma::SELECT | dma::READ;
        for buffer in [RAM, RAM - 3, u64::MAX, u64::MAX - 3] {
            assert_eq!(dma(&mut device, read, 4, buffer), dma::ERROR);
        }
        assert_eq!(ram(&device, RAM - 3, 3), [0; 3]);
        assert_eq!(data(&mut device, 2), b"se", "nothing was read");
        assert_eq!(dma(&mut device, read, 4, RAM - 4), 0);
    }

    #[test]
    fn a_command_outside_ram_is_ignored() {
        let mut device = fw_cfg();
        for address in [RAM, RAM - 15, u64::MAX - 3] {
            device.write(FwCfg::DMA, 0, &address.to_be_bytes());
        }
        device.write(FwCfg::DMA, 0, &[0xFF; 4]);
        device.write(FwCfg::DMA, 4, &[0xFF; 4]);
        assert_eq!(data(&mut device, 4), b"QEMU");
    }

    #[test]
    fn a_restored_device_goes_on_in_the_item() {
        let mut device = fw_cfg();
        select(&mut device, 0x21);
        data(&mut device, 2);
        let mut copy = fw_cfg();
        copy.restore(device.save()).unwrap();
        assert_eq!(data(&mut copy, 5), b"cond\0");
        copy.restore(FwCfgV1 { selector: 0x21, offset: u64::MAX, dma_high: 0 }).unwrap();
        assert_eq!(data(&mut copy, 1), [0]);
    }

    #[test]
    fn no_sequence_of_accesses_does_harm() {
        let mut device = fw_cfg();
        let mut random = Random::new(1);
        for _ in 0..50_000 {
            let region = Region(random.below(2) as u16);
            let offset = random.below(9);
            let mut bytes = random.next().to_le_bytes();
            let len = 1 << random.below(4);
            match random.below(4) {
                0 => device.read(region, offset, &mut bytes[..len]),
                1 => device.write(region, offset, &bytes[..len]),
                2 => select(&mut device, random.below(0x28) as u16),
                _ => {
                    let control = random.below(0x28_0000) as u32;
                    let buffer = [random.below(2 * RAM), random.next()][random.below(2) as usize];
                    dma(&mut device, control, random.below(3 * PAGE_SIZE) as u32, buffer);
                }
            }
        }
        assert!(device.offset <= 10_000);
    }
}
