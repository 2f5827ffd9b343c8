//! ELF executables of 32 and 64 bits (System V ABI, "Object Files"), loaded by physical address.

use std::ops::Range;

use board::GuestRam;

use super::image::{Image, le16, le32, le64};
use super::{BootError, Extent};

const ELFCLASS32: u8 = 1;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// An ELF file's headers.
#[derive(Debug)]
pub(super) struct Elf {
    /// ELFCLASS64.
    pub(super) is_64_bit: bool,
    entry: u64,
    /// Segments with memory, in the file's order.
    segments: Vec<Segment>,
    /// Offset and length of each segment of notes.
    notes: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    file_size: u64,
    physical: u64,
    virtual_: u64,
    memory_size: u64,
}

/// Whether `head`, the start of a file, is an ELF file's.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7FELF")
}

impl Elf {
    /// Parses and checks the headers: whatever is loaded later is in the file.
    pub(super) fn parse(image: &Image) -> Result<Self, BootError> {
        let ident = image.read(0, 16, "ELF identification")?;
        let is_64_bit = match ident[4] {
            ELFCLASS32 => false,
            ELFCLASS64 => true,
            class => return Err(image.malformed(format!("it has ELF class {class}"))),
        };
        let header = image.read(0, if is_64_bit { 64 } else { 52 }, "ELF header")?;
        let machine = le16(&header, 18);
        if ident[5] != ELFDATA2LSB || ![EM_386, EM_X86_64].contains(&machine) {
            let machine = if ident[5] == ELFDATA2LSB { machine } else { machine.swap_bytes() };
            return Err(BootError::WrongMachine {
                path: image.path.clone(),
                machine: machine_name(machine),
            });
        }
        let kind = le16(&header, 16);
        if kind != ET_EXEC && kind != ET_DYN {
            return Err(BootError::NotAKernel {
                path: image.path.clone(),
                found: format!("is an ELF file of type {kind}, no executable"),
                remedy: "give the linked kernel, not an object file, a module or a core dump",
            });
        }

        let (entry, table, entry_size, count) = if is_64_bit {
            (le64(&header, 24), le64(&header, 32), le16(&header, 54), le16(&header, 56))
        } else {
            let word = |offset| u64::from(le32(&header, offset));
            (word(24), word(28), le16(&header, 42), le16(&header, 44))
        };
        let expected = if is_64_bit { 56 } else { 32 };
        if count > 0 && entry_size != expected {
            return Err(image.malformed(format!(
                "its program headers have {entry_size} bytes each in place of {expected}"
            )));
        }
        let length = u64::from(count) * u64::from(expected);
        let table = image.read(table, length, "program header table")?;
        let mut elf = Self { is_64_bit, entry, segments: Vec::new(), notes: Vec::new() };
        for header in table.chunks_exact(expected.into()) {
            elf.add(image, le32(header, 0), Segment::parse(header, is_64_bit))?;
        }
        if elf.segments.is_empty() {
            return Err(image.malformed("it has no segment to load"));
        }
        Ok(elf)
    }

    fn add(&mut self, image: &Image, kind: u32, segment: Segment) -> Result<(), BootError> {
        match kind {
            PT_LOAD if segment.memory_size > 0 => {
                image.require(segment.offset, segment.file_size, "loadable segment")?;
                if segment.file_size > segment.memory_size {
                    return Err(image.malformed(format!(
                        "the segment at {:#x} has {:#x} bytes in the file and {:#x} in memory",
                        segment.physical, segment.file_size, segment.memory_size
                    )));
                }
                self.segments.push(segment);
            }
            PT_NOTE => {
                image.require(segment.offset, segment.file_size, "note segment")?;
                self.notes.push((segment.offset, segment.file_size));
            }
            PT_INTERP => {
                return Err(BootError::NotAKernel {
                    path: image.path.clone(),
                    found: "is a program for an operating system".into(),
                    remedy: "give a kernel; programs go into its initrd",
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// The entry point as a physical address. Some kernels give the virtual one.
    pub(super) fn physical_entry(&self, image: &Image) -> Result<u64, BootError> {
        let within = |start: u64, size: u64| self.entry.wrapping_sub(start) < size;
        if self.segments.iter().any(|s| within(s.physical, s.memory_size)) {
            return Ok(self.entry);
        }
        self.segments
            .iter()
            .find(|s| within(s.virtual_, s.memory_size))
            .map(|s| s.physical + (self.entry - s.virtual_))
            .ok_or_else(|| {
                image.malformed(format!("its entry point {:#x} lies in no segment", self.entry))
            })
    }

    /// Whether physical address `address` lies in a segment.
    pub(super) fn contains(&self, address: u64) -> bool {
        self.segments.iter().any(|s| address.wrapping_sub(s.physical) < s.memory_size)
    }

    /// From the first to the last byte that the segments take. `allowed` is where they may lie
    /// below the tables.
    pub(super) fn extent(
        &self,
        image: &Image,
        allowed: Range<u64>,
        ram: &GuestRam,
    ) -> Result<Extent, BootError> {
        let (mut start, mut end) = (u64::MAX, 0);
        for segment in &self.segments {
            let address = segment.physical;
            let last = address.saturating_add(segment.memory_size);
            image.check_address(address, segment.memory_size, &allowed)?;
            image.check_room(address, segment.memory_size, ram)?;
            start = start.min(address);
            end = end.max(last);
        }
        Ok(Extent { address: start, size: end - start })
    }

    /// Reads the segments into guest memory, where [`Elf::extent`] has found room for them.
    pub(super) fn load(&self, image: &Image, ram: &GuestRam) -> Result<(), BootError> {
        for segment in &self.segments {
            image.load(segment.offset, segment.file_size, ram, segment.physical)?;
            zero(
                ram,
                segment.physical + segment.file_size,
                segment.memory_size - segment.file_size,
            )?;
        }
        Ok(())
    }

    /// The descriptor of the first note with this name and type.
    pub(super) fn note(
        &self,
        image: &Image,
        name: &[u8],
        kind: u32,
    ) -> Result<Option<Vec<u8>>, BootError> {
        /// More than any kernel's notes; it bounds what a header can make us read.
        const MOST: u64 = 1 << 20;
        for &(offset, length) in &self.notes {
            let notes = image.read(offset, length.min(MOST), "note segment")?;
            let mut rest = &notes[..];
            while rest.len() >= 12 {
                let (name_size, size) = (le32(rest, 0) as usize, le32(rest, 4) as usize);
                let found = le32(rest, 8);
                let descriptor = 12 + name_size.next_multiple_of(4);
                let end = descriptor + size;
                if end > rest.len() {
                    break;
                }
                if found == kind && &rest[12..12 + name_size] == name {
                    return Ok(Some(rest[descriptor..end].to_vec()));
                }
                rest = &rest[end.next_multiple_of(4).min(rest.len())..];
            }
        }
        Ok(None)
    }
}

impl Segment {
    fn parse(header: &[u8], is_64_bit: bool) -> Self {
        if is_64_bit {
            Self {
                offset: le64(header, 8),
                virtual_: le64(header, 16),
                physical: le64(header, 24),
                file_size: le64(header, 32),
                memory_size: le64(header, 40),
            }
        } else {
            let word = |offset| u64::from(le32(header, offset));
            Self {
                offset: word(4),
                virtual_: word(8),
                physical: word(12),
                file_size: word(16),
                memory_size: word(20),
            }
        }
    }
}

/// Zeroes guest memory. It is not zero of itself when a machine is reset and loaded again.
pub(super) fn zero(ram: &GuestRam, start: u64, size: u64) -> Result<(), BootError> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let end = start + size;
    let mut address = start;
    while address < end {
        let count = (end - address).min(ZEROS.len() as u64);
        ram.write(address, &ZEROS[..count as usize])?;
        address += count;
    }
    Ok(())
}

fn machine_name(machine: u16) -> String {
    match machine {
        8 => "MIPS".into(),
        20 | 21 => "PowerPC".into(),
        22 => "S/390".into(),
        40 => "Arm".into(),
        183 => "AArch64".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("machine {other}"),
    }
}
