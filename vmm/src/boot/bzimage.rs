//! bzImage by its 64-bit entry (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").

use board::GuestRam;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::image::{Image, le16};
use super::linux::{load_initrd, write_command_line, write_zero_page};
use super::{BootConfig, BootError, Entry, Extent, Loaded, Protocol, layout};

/// Where the setup header starts in the file.
const SETUP_HEADER: u64 = 0x1F1;
const BOOT_FLAG: usize = 0x1FE;
/// The second byte of the jump over the header; the header ends so many bytes after
/// [`SIGNATURE`].
const JUMP_LENGTH: usize = 0x201;
const SIGNATURE: usize = 0x202;
const VERSION: usize = 0x206;

/// The first protocol version with `xloadflags`.
const FIRST_WITH_XLOADFLAGS: u16 = 0x020C;
/// `xloadflags`: the kernel has a 64-bit entry at offset 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: initrd, command line and zero page may lie anywhere.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
const ENTRY_64: u64 = 0x200;
/// `loadflags`: the protected-mode part is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `setup_sects` when the field is 0.
const DEFAULT_SETUP_SECTS: u64 = 4;
const SECTOR: u64 = 512;

/// Whether `head`, the start of a file, is a bzImage's.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.len() >= VERSION + 2
        && le16(head, BOOT_FLAG) == 0xAA55
        && &head[SIGNATURE..SIGNATURE + 4] == b"HdrS"
}

/// Loads a bzImage whose first bytes are `head`.
pub(super) fn load(
    image: &Image,
    head: &[u8],
    initrd: Option<&Image>,
    config: &BootConfig<'_>,
    ram: &GuestRam,
) -> Result<Loaded, BootError> {
    let header = read_header(image, head)?;
    let (start, init_size) = (header.pref_address, u64::from(header.init_size));

    let sectors = match header.setup_sects {
        0 => DEFAULT_SETUP_SECTS,
        sectors => sectors.into(),
    };
    let payload = (1 + sectors) * SECTOR;
    // The last paragraph may be partial; what follows it, such as a signature, is not loaded.
    let announced = u64::from(header.syssize) * 16;
    image.require(payload, announced.saturating_sub(15).max(1), "protected-mode code")?;
    let length = announced.min(image.size - payload);
    if length <= ENTRY_64 {
        return Err(image.malformed("its protected-mode code ends before the 64-bit entry"));
    }

    if start < layout::ONE_MIB {
        return Err(BootError::LowAddress { path: image.path.clone(), start });
    }
    // init_size is what the kernel uses before it looks at the memory map.
    let size = init_size.max(length);
    image.check_room(start, size, ram)?;

    let cmdline = write_command_line(ram, image, config.cmdline, header.cmdline_size.into())?;
    let ceiling = if header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 {
        layout::FOUR_GIB
    } else {
        u64::from(header.initrd_addr_max) + 1
    };
    let initrd =
        initrd.map(|initrd| load_initrd(ram, initrd, start + size, ceiling)).transpose()?;
    image.load(payload, length, ram, start)?;

    let header = setup_header {
        code32_start: start as u32,
        loadflags: header.loadflags | LOADED_HIGH,
        ..header
    };
    write_zero_page(ram, header, initrd, config)?;
    Ok(Loaded {
        entry: Entry::long(start + ENTRY_64, layout::ZERO_PAGE, ram)?,
        protocol: Protocol::Linux64,
        kernel: Extent { address: start, size: length },
        initrd,
        cmdline,
    })
}

/// The setup header, as long as the kernel says that it is and zeros from there on.
fn read_header(image: &Image, head: &[u8]) -> Result<setup_header, BootError> {
    let version = le16(head, VERSION);
    let end = (SIGNATURE + usize::from(head[JUMP_LENGTH])) as u64;
    let length = (end - SETUP_HEADER).min(size_of::<setup_header>() as u64);
    let bytes = image.read(SETUP_HEADER, length, "setup header")?;
    let mut header = setup_header::default();
    header.as_mut_slice()[..bytes.len()].copy_from_slice(&bytes);
    if version < FIRST_WITH_XLOADFLAGS || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry {
            path: image.path.clone(),
            major: version >> 8,
            minor: version & 0xFF,
        });
    }
    Ok(header)
}
