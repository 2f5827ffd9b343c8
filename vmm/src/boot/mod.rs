//! Boot loaders: kernels without firmware (bzImage, ELF64 by PVH or the Linux 64-bit protocol,
//! multiboot 1), firmware images, and the state in which vCPUs start.
//!
//! A loader reads a file straight into guest RAM, writes the data that its boot protocol wants
//! beside it (see [`layout`]) and says how the boot vCPU enters.

mod bzimage;
pub mod e820;
mod elf;
mod entry;
mod error;
mod firmware;
mod image;
pub mod layout;
mod linux;
mod multiboot;
mod vmlinux;

use std::path::{Path, PathBuf};

use board::GuestRam;

pub use entry::{Entry, reset_state};
pub use error::BootError;
pub use firmware::Firmware;
use image::Image;

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig<'a> {
    /// `--kernel`.
    pub kernel: &'a Path,
    /// `--initrd`: a file, or for a multiboot kernel modules as `file args,file args`.
    pub initrd: Option<&'a str>,
    /// `--append`.
    pub cmdline: &'a str,
    /// Guest address of the ACPI RSDP, if the machine has one.
    pub rsdp: Option<u64>,
    /// Addresses of PCI's configuration space, which no BAR may take.
    pub ecam: Option<e820::Entry>,
}

/// The boot protocol by which a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux, 64-bit entry.
    Linux64,
    /// PVH, 32-bit entry.
    Pvh,
    /// Multiboot 1, 32-bit entry.
    Multiboot,
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// A kernel in guest memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// How the boot vCPU enters it.
    pub entry: Entry,
    /// Its boot protocol.
    pub protocol: Protocol,
    /// Where it lies: for ELF, from its first to its last segment.
    pub kernel: Extent,
    /// Where the initrd lies; multiboot modules are not counted as one.
    pub initrd: Option<Extent>,
    /// Where the command line lies, its NUL included.
    pub cmdline: Extent,
}

/// The files that `--initrd` may mean: one, or for a multiboot kernel a list of modules.
pub fn initrd_files(initrd: &str) -> Vec<PathBuf> {
    let modules = multiboot::module_paths(initrd).map(PathBuf::from);
    std::iter::once(initrd.into()).chain(modules).collect()
}

/// Loads a kernel with its initrd and command line.
///
/// Can be called again to load the machine anew when it is reset.
///
/// # Errors
/// [`BootError`] names the file, what is wrong with it and what to do. Guest memory is then in no
/// defined state.
pub fn load(config: &BootConfig<'_>, ram: &GuestRam) -> Result<Loaded, BootError> {
    if ram.size() < layout::ONE_MIB {
        return Err(BootError::RamTooSmall { ram: ram.size() });
    }
    let image = Image::open(config.kernel, "--kernel")?;
    let head = image.head(multiboot::SEARCH)?;
    let initrd = || config.initrd.map(|path| Image::open(path.as_ref(), "--initrd")).transpose();
    if bzimage::is_bzimage(&head) {
        return bzimage::load(&image, &head, initrd()?.as_ref(), config, ram);
    }
    if let Some(header) = multiboot::find_header(&head) {
        return multiboot::load(&image, header, config, ram);
    }
    if elf::is_elf(&head) {
        let elf = elf::Elf::parse(&image)?;
        if !elf.is_64_bit {
            return Err(BootError::Elf32WithoutMultiboot { path: image.path });
        }
        return vmlinux::load(&image, &elf, initrd()?.as_ref(), config, ram);
    }
    Err(unknown_format(image, &head))
}

/// Says what a file is instead of a kernel.
fn unknown_format(image: Image, head: &[u8]) -> BootError {
    const UNPACK: &str = "unpack it first";
    const FIRMWARE: &str = "give a kernel; boot loaders and firmware start by --bios";
    let signatures: [(&[u8], &str, &str); 8] = [
        (b"\x1F\x8B", "is compressed with gzip", UNPACK),
        (b"\xFD7zXZ\0", "is compressed with xz", UNPACK),
        (b"\x28\xB5\x2F\xFD", "is compressed with zstd", UNPACK),
        (b"\x04\x22\x4D\x18", "is compressed with lz4", UNPACK),
        (b"BZh", "is compressed with bzip2", UNPACK),
        (b"MZ", "is an EFI or Windows program", FIRMWARE),
        (b"QFI\xFB", "is a qcow2 disk image", FIRMWARE),
        (b"070701", "is a cpio archive", "give it to --initrd, and a kernel to --kernel"),
    ];
    let known = signatures.iter().find(|(signature, ..)| head.starts_with(signature));
    let (found, remedy) = match known {
        Some((_, found, remedy)) => ((*found).to_owned(), *remedy),
        None => {
            let first: Vec<_> = head.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            (format!("starts with the bytes {}", first.join(" ")), "give a kernel built for x86-64")
        }
    };
    BootError::NotAKernel { path: image.path, found, remedy }
}

#[cfg(test)]
mod tests;
