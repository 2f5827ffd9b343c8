//! What both ways into a Linux kernel by its 64-bit entry have in common: the zero page, the
//! command line and the initrd (Linux `Documentation/arch/x86/{boot,zero-page}.rst`).

use board::GuestRam;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use super::image::Image;
use super::{BootConfig, BootError, Extent, e820, layout};

/// `type_of_loader`: a loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xFF;

/// Writes the zero page round `header`, in which it fills what a loader has to fill.
pub(super) fn write_zero_page(
    ram: &GuestRam,
    header: setup_header,
    initrd: Option<Extent>,
    config: &BootConfig<'_>,
) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, ..boot_params::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.setup_data = 0;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.address as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
        params.ext_ramdisk_image = (initrd.address >> 32) as u32;
        params.ext_ramdisk_size = (initrd.size >> 32) as u32;
    }
    params.acpi_rsdp_addr = config.rsdp.unwrap_or(0);
    let map = e820::kernel_map(ram, config.ecam);
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.size, r#type: entry.kind as u32 };
    }
    params.e820_table = table;
    ram.write(layout::ZERO_PAGE, params.as_slice())?;
    Ok(())
}

/// Writes the command line with its NUL. `limit` is the most that `kernel` takes, without NUL.
pub(super) fn write_command_line(
    ram: &GuestRam,
    kernel: &Image,
    cmdline: &str,
    limit: u64,
) -> Result<Extent, BootError> {
    let limit = limit.min(layout::CMDLINE_SIZE - 1);
    let length = cmdline.len() as u64;
    if length > limit {
        return Err(BootError::CommandLineTooLong { path: kernel.path.clone(), length, limit });
    }
    ram.write(layout::CMDLINE, cmdline.as_bytes())?;
    ram.write(layout::CMDLINE + length, &[0])?;
    Ok(Extent { address: layout::CMDLINE, size: length + 1 })
}

/// Loads the initrd as high as it may lie between `floor` and `ceiling`, the kernel's own limit.
pub(super) fn load_initrd(
    ram: &GuestRam,
    initrd: &Image,
    floor: u64,
    ceiling: u64,
) -> Result<Extent, BootError> {
    let to = ceiling.min(ram.low_size());
    match to.checked_sub(initrd.size).map(|address| address & !0xFFF) {
        Some(address) if address >= floor => {
            initrd.load(0, initrd.size, ram, address)?;
            Ok(Extent { address, size: initrd.size })
        }
        _ => Err(BootError::InitrdTooLarge {
            path: initrd.path.clone(),
            size: initrd.size,
            room: to.saturating_sub(floor),
            from: floor,
            to,
            remedy: if ceiling < ram.low_size() {
                "the kernel takes it no higher: make the initrd smaller"
            } else {
                "give a larger -m, or a smaller initrd"
            },
        }),
    }
}
