//! Uncompressed ELF64 kernels: by PVH where they have its note (Xen `docs/misc/pvh.pandoc`), else
//! by the 64-bit Linux boot protocol.

use board::GuestRam;
use board::vcpu::gpr;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::elf::Elf;
use super::image::{Image, le32};
use super::linux::{load_initrd, write_command_line, write_zero_page};
use super::{BootConfig, BootError, Entry, Extent, Loaded, Protocol, e820, layout};

/// Xen's note with the 32-bit entry point.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Loads an ELF64 kernel.
pub(super) fn load(
    image: &Image,
    elf: &Elf,
    initrd: Option<&Image>,
    config: &BootConfig<'_>,
    ram: &GuestRam,
) -> Result<Loaded, BootError> {
    let kernel = elf.extent(image, layout::FREE_BASE_MEMORY, ram)?;
    let way = Way::find(image, elf)?;
    let cmdline = write_command_line(ram, image, config.cmdline, u64::MAX)?;
    let floor = (kernel.address + kernel.size).max(layout::ONE_MIB);
    let initrd =
        initrd.map(|initrd| load_initrd(ram, initrd, floor, layout::FOUR_GIB)).transpose()?;
    elf.load(image, ram)?;

    let (entry, protocol) = match way {
        Way::Pvh(entry) => {
            write_start_info(ram, cmdline, initrd, config)?;
            let start_info = layout::START_INFO as u32;
            (Entry::protected(entry, &[(gpr::RBX, start_info)]), Protocol::Pvh)
        }
        Way::Linux64(entry) => {
            // As much of a header as the kernel looks at; it was never part of a bzImage.
            let header = setup_header {
                boot_flag: 0xAA55,
                header: u32::from_le_bytes(*b"HdrS"),
                loadflags: 1,
                ..setup_header::default()
            };
            write_zero_page(ram, header, initrd, config)?;
            (Entry::long(entry, layout::ZERO_PAGE, ram)?, Protocol::Linux64)
        }
    };
    Ok(Loaded { entry, protocol, kernel, initrd, cmdline })
}

/// The way into the kernel, with the physical address of its entry point.
enum Way {
    Pvh(u32),
    Linux64(u64),
}

impl Way {
    fn find(image: &Image, elf: &Elf) -> Result<Self, BootError> {
        let Some(note) = elf.note(image, b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY)? else {
            return Ok(Self::Linux64(elf.physical_entry(image)?));
        };
        if note.len() < 4 {
            return Err(image.malformed("its PVH note holds no address"));
        }
        let entry = le32(&note, 0);
        if !elf.contains(entry.into()) {
            return Err(image.malformed(format!("its PVH entry point {entry:#x} is in no segment")));
        }
        Ok(Self::Pvh(entry))
    }
}

/// Writes the start info, the module list and the memory map one after the other.
fn write_start_info(
    ram: &GuestRam,
    cmdline: Extent,
    initrd: Option<Extent>,
    config: &BootConfig<'_>,
) -> Result<(), BootError> {
    let modules: Vec<_> = initrd
        .map(|initrd| hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size,
            ..hvm_modlist_entry::default()
        })
        .into_iter()
        .collect();
    let map: Vec<_> = e820::kernel_map(ram, config.ecam)
        .into_iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let modules_at = layout::START_INFO + size_of::<hvm_start_info>() as u64;
    let map_at = modules_at + size_of_val(&modules[..]) as u64;
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        flags: 0,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { modules_at },
        cmdline_paddr: cmdline.address,
        rsdp_paddr: config.rsdp.unwrap_or(0),
        memmap_paddr: map_at,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    let bytes: Vec<u8> = std::iter::once(info.as_slice())
        .chain(modules.iter().map(ByteValued::as_slice))
        .chain(map.iter().map(ByteValued::as_slice))
        .flatten()
        .copied()
        .collect();
    ram.write(layout::START_INFO, &bytes)?;
    Ok(())
}
