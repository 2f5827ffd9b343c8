//! Multiboot 1 (Multiboot Specification 0.6.96): ELF of either width, or the header's own addresses
//! ("a.out kludge"), entered in 32-bit protected mode.
//!
//! A kernel that requires a video mode (flag 2) is started without one: the information structure
//! says that there is none.

use std::ops::Range;

use board::GuestRam;
use board::vcpu::gpr;

use super::elf::{Elf, is_elf, zero};
use super::image::{Image, le32};
use super::{BootConfig, BootError, Entry, Extent, Loaded, Protocol, e820, layout};

/// The header lies in so many bytes at the start of the file.
pub(super) const SEARCH: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1BAD_B002;
/// EAX at entry.
const BOOTLOADER_MAGIC: u32 = 0x2BAD_B002;

/// Header flags 0 to 2: page-aligned modules, memory information, video mode.
const KNOWN_REQUIREMENTS: u32 = 0b111;
/// Header flags that a loader must understand or refuse.
const REQUIREMENTS: u32 = 0xFFFF;
/// Header flag: the address fields are valid and take the place of the ELF headers.
const ADDRESSES: u32 = 1 << 16;

/// Information flags.
mod info {
    pub(super) const MEMORY: u32 = 1 << 0;
    pub(super) const CMDLINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
    /// Bytes of the structure up to and including the fields of the last flag, 12.
    pub(super) const SIZE: usize = 116;
}

const LOADER_NAME: &str = concat!("vmm ", env!("CARGO_PKG_VERSION"));
const PAGE: u64 = 4096;
/// Where a kernel may lie below the tables.
const BASE_MEMORY: Range<u64> = layout::MULTIBOOT_FLOOR..layout::EBDA;

/// A multiboot header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    offset: u64,
    flags: u32,
}

/// Looks for a header in `head`, the first [`SEARCH`] bytes of a file.
pub(super) fn find_header(head: &[u8]) -> Option<Header> {
    (0..head.len().saturating_sub(11)).step_by(4).find_map(|offset| {
        let (magic, flags) = (le32(head, offset), le32(head, offset + 4));
        let checksum = le32(head, offset + 8);
        let sum = magic.wrapping_add(flags).wrapping_add(checksum);
        (magic == HEADER_MAGIC && sum == 0).then_some(Header { offset: offset as u64, flags })
    })
}

/// Loads a multiboot kernel.
pub(super) fn load(
    image: &Image,
    header: Header,
    config: &BootConfig<'_>,
    ram: &GuestRam,
) -> Result<Loaded, BootError> {
    let unknown = header.flags & REQUIREMENTS & !KNOWN_REQUIREMENTS;
    if unknown != 0 {
        return Err(image.malformed(format!(
            "its multiboot header requires features {unknown:#x}, which version 0.6.96 lacks"
        )));
    }
    let (kernel, entry) = if header.flags & ADDRESSES != 0 {
        load_by_addresses(image, header, ram)?
    } else {
        load_elf(image, ram)?
    };

    let mut cmdline = image.path.clone();
    if !config.cmdline.is_empty() {
        cmdline = cmdline + " " + config.cmdline;
    }
    let modules = config.initrd.map(modules).unwrap_or_default();
    // Boot data and modules follow the kernel, clear of base memory's tables.
    let at = (kernel.address + kernel.size).max(layout::ONE_MIB).next_multiple_of(PAGE);
    let mut data = BootData::new(at);
    let cmdline_at = data.add_string(&cmdline);
    let loader_name = data.add_string(LOADER_NAME);
    let strings: Vec<_> = modules.iter().map(|module| data.add_string(&module.string)).collect();
    let map: Vec<u8> =
        e820::kernel_map(ram, config.ecam).into_iter().flat_map(memory_map_entry).collect();
    let map_at = data.add(&map);
    let list_at = data.add(&vec![0; modules.len() * 16]);

    let mut end = at + data.bytes.len() as u64;
    image.check_room(at, end - at, ram)?;
    for (index, (module, string)) in modules.iter().zip(strings).enumerate() {
        let file = Image::open(module.path.as_ref(), "--initrd")?;
        let start = end.next_multiple_of(PAGE);
        end = load_module(&file, start, ram)?;
        let entry = [start as u32, end as u32, string, 0];
        data.put(list_at + index as u32 * 16, &entry);
    }
    data.put_info(&[
        (0, info::MEMORY | info::CMDLINE | info::MODULES | info::MEMORY_MAP | info::LOADER_NAME),
        (4, (layout::EBDA >> 10) as u32),
        (8, (ram.low_size().saturating_sub(layout::ONE_MIB) >> 10) as u32),
        (16, cmdline_at),
        (20, modules.len() as u32),
        (24, list_at),
        (44, map.len() as u32),
        (48, map_at),
        (64, loader_name),
    ]);
    ram.write(at, &data.bytes)?;

    Ok(Loaded {
        entry: Entry::protected(entry, &[(gpr::RAX, BOOTLOADER_MAGIC), (gpr::RBX, at as u32)]),
        protocol: Protocol::Multiboot,
        kernel,
        initrd: None,
        cmdline: Extent { address: cmdline_at.into(), size: cmdline.len() as u64 + 1 },
    })
}

/// Loads by the ELF headers; gives back where, and the entry point.
fn load_elf(image: &Image, ram: &GuestRam) -> Result<(Extent, u32), BootError> {
    if !is_elf(&image.head(4)?) {
        return Err(image.malformed(
            "its multiboot header gives no load address (flag 16), and it is no ELF file",
        ));
    }
    let elf = Elf::parse(image)?;
    let kernel = elf.extent(image, BASE_MEMORY, ram)?;
    let entry = elf.physical_entry(image)?;
    elf.load(image, ram)?;
    // The segments, and with them the entry point, lie below 3 GiB.
    Ok((kernel, entry as u32))
}

/// Loads by the header's address fields (3.1.3).
fn load_by_addresses(
    image: &Image,
    header: Header,
    ram: &GuestRam,
) -> Result<(Extent, u32), BootError> {
    let fields = image.read(header.offset + 12, 20, "multiboot header")?;
    let [header_address, load, load_end, bss_end, entry] =
        [0, 4, 8, 12, 16].map(|offset| u64::from(le32(&fields, offset)));
    // The header lies as far into the file as into the loaded image, less what is not loaded.
    let offset = header_address
        .checked_sub(load)
        .and_then(|distance| header.offset.checked_sub(distance))
        .ok_or_else(|| {
            image.malformed(format!(
                "its multiboot header is at {header_address:#x}, which no byte of the file loaded \
                 at {load:#x} can be"
            ))
        })?;
    let length = match load_end {
        0 => image.size - offset,
        end => end.checked_sub(load).ok_or_else(|| {
            image.malformed(format!("its multiboot load ends at {end:#x}, before its start"))
        })?,
    };
    image.require(offset, length, "multiboot load area")?;
    let size = length.max(bss_end.saturating_sub(load));
    image.check_address(load, size, &BASE_MEMORY)?;
    image.check_room(load, size, ram)?;
    if entry.wrapping_sub(load) >= size {
        return Err(image.malformed(format!("its entry point {entry:#x} is not loaded")));
    }
    image.load(offset, length, ram, load)?;
    zero(ram, load + length, size - length)?;
    Ok((Extent { address: load, size }, entry as u32))
}

/// Loads a module at `start` and gives back its end.
fn load_module(file: &Image, start: u64, ram: &GuestRam) -> Result<u64, BootError> {
    let room = ram.low_size().saturating_sub(start);
    if file.size > room {
        return Err(BootError::InitrdTooLarge {
            path: file.path.clone(),
            size: file.size,
            room,
            from: start,
            to: ram.low_size(),
            remedy: "give a larger -m, or smaller modules",
        });
    }
    file.load(0, file.size, ram, start)?;
    Ok(start + file.size)
}

/// A module: its file, and the string that the kernel gets for it.
#[derive(Debug, PartialEq, Eq)]
struct Module {
    path: String,
    string: String,
}

/// Takes `file args,file args` apart. Two commas stand for one in a name.
fn modules(list: &str) -> Vec<Module> {
    list.replace(",,", "\0")
        .split(',')
        .map(|module| {
            let string = module.trim_start().replace('\0', ",");
            let path = string.split(' ').next().unwrap_or_default().to_owned();
            Module { path, string }
        })
        .collect()
}

/// The files that a list of modules names.
pub(super) fn module_paths(list: &str) -> impl Iterator<Item = String> {
    modules(list).into_iter().map(|module| module.path)
}

/// An entry of the memory map (3.3, "mmap_*"): the size of what follows, then an E820 entry.
fn memory_map_entry(entry: e820::Entry) -> impl Iterator<Item = u8> {
    let entry = entry.to_bytes();
    (entry.len() as u32).to_le_bytes().into_iter().chain(entry)
}

/// The information structure (3.3) and all that it points to.
struct BootData {
    at: u64,
    bytes: Vec<u8>,
}

impl BootData {
    fn new(at: u64) -> Self {
        Self { at, bytes: vec![0; info::SIZE] }
    }

    /// Appends `data` at a multiple of 4 and gives back its guest address.
    fn add(&mut self, data: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let address = self.at as u32 + self.bytes.len() as u32;
        self.bytes.extend_from_slice(data);
        address
    }

    fn add_string(&mut self, string: &str) -> u32 {
        self.add(&[string.as_bytes(), &[0]].concat())
    }

    /// Fills in dwords at a guest address that [`BootData::add`] gave.
    fn put(&mut self, address: u32, values: &[u32]) {
        let mut offset = (address - self.at as u32) as usize;
        for value in values {
            self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            offset += 4;
        }
    }

    /// Fills in fields of the information structure, by offset.
    fn put_info(&mut self, fields: &[(u32, u32)]) {
        for &(offset, value) in fields {
            self.put(self.at as u32 + offset, &[value]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_separated_by_commas_and_named_by_their_first_word() {
        let module = |path: &str, string: &str| Module { path: path.into(), string: string.into() };
        assert_eq!(
            modules("a.bin one two, b,,c.bin"),
            [module("a.bin", "a.bin one two"), module("b,c.bin", "b,c.bin")]
        );
    }
}
