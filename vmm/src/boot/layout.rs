//! Where boot data lies in guest memory when a kernel is loaded without firmware.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0010` | `0x001F` | MP floating pointer, where Linux looks first |
//! | `0x040E` | `0x0414` | BIOS data area: EBDA segment, KiB of base memory |
//! | `0x0500` | `0x0527` | GDT of the 64-bit entry |
//! | `0x6000` | `0x6FFF` | PVH start info, module list and memory map |
//! | `0x7000` | `0x7FFF` | zero page of the Linux boot protocol |
//! | `0x9000` | `0xEFFF` | page tables of the 64-bit entry |
//! | `0x2_0000` | `0x2_FFFF` | command line |
//! | `0x9_FC00` | `0x9_FFFF` | EBDA: MP floating pointer, where the MP specification puts it |
//! | `0xE_0000` | `0xE_FFFF` | RSDP, ACPI tables, MP configuration table |
//! | `0xF_0000` | `0xF_FFFF` | nothing, but kernels take it for the BIOS |
//! | `0x10_0000` | | the kernel, from here on up; the initrd as high as the kernel takes it |
//!
//! A multiboot kernel may lie lower, from [`MULTIBOOT_FLOOR`] on; its boot data follows it.

use std::ops::Range;

/// The MP floating pointer for Linux, which scans the first KiB before anything else.
pub const MP_POINTER: u64 = 0x10;
/// BIOS data area: segment of the EBDA, 16 bits.
pub const BDA_EBDA_SEGMENT: u64 = 0x40E;
/// BIOS data area: KiB of base memory, 16 bits.
pub const BDA_BASE_MEMORY: u64 = 0x413;
/// GDT of the 64-bit entry.
pub const GDT: u64 = 0x500;
/// PVH: `hvm_start_info`, one page with all that it points to.
pub const START_INFO: u64 = 0x6000;
/// Linux `struct boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables: one PML4, one page-directory-pointer table, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, in bytes with its NUL.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// The extended BIOS data area, which ends base memory.
pub const EBDA: u64 = 0x9_FC00;
/// End of base memory.
pub const BASE_MEMORY_END: u64 = 0xA_0000;
/// The RSDP, then the tables.
pub const ACPI_TABLES: u64 = 0xE_0000;
/// End of the tables' room. A kernel linked to 1 MiB may begin here: linkers like to put the file's
/// headers on the page before it.
pub const ACPI_TABLES_END: u64 = 0xF_0000;
/// End of the first MiB.
pub const ONE_MIB: u64 = 0x10_0000;
/// End of the 32-bit address space.
pub const FOUR_GIB: u64 = 0x1_0000_0000;

/// Where base memory is free for a kernel's segments once the boot data above lies below it.
pub const FREE_BASE_MEMORY: Range<u64> = CMDLINE + CMDLINE_SIZE..EBDA;
/// The lowest address of a multiboot kernel: above the interrupt vectors and the BIOS data area.
pub const MULTIBOOT_FLOOR: u64 = 0x500;
