use std::io;

use board::memory::{ByteSize, NotRam};

/// Why a machine cannot be started with the files that were given.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The fields are what the messages say.
pub enum BootError {
    /// The file cannot be opened.
    #[error("cannot open {path}: {cause}\ncheck the path given to {option}")]
    Open { option: &'static str, path: String, cause: io::Error },

    /// It is a directory, a pipe or a device.
    #[error("{path} is {what}: give {option} a regular file")]
    NotAFile { option: &'static str, path: String, what: &'static str },

    /// It has no bytes.
    #[error("{path} is empty: build or fetch it again, or give {option} another file")]
    Empty { option: &'static str, path: String },

    /// Reading it failed.
    #[error("cannot read {path}: {cause}\ncheck the disk, and that nothing is writing to the file")]
    Read { path: String, cause: io::Error },

    /// Something that its header announces lies beyond its end.
    #[error(
        "{path} is truncated: its {what} ends at byte {end}, the file has {size}\n\
         build or fetch it again"
    )]
    Truncated { path: String, what: &'static str, end: u64, size: u64 },

    /// No loader knows its format.
    #[error("{path} is not a bzImage, ELF or multiboot image: it {found}\n{remedy}")]
    NotAKernel { path: String, found: String, remedy: &'static str },

    /// A field has a value that cannot be.
    #[error("{path} cannot be loaded: {what}\nbuild or fetch it again")]
    Malformed { path: String, what: String },

    /// A bzImage that can only be entered in 16-bit or 32-bit mode.
    #[error(
        "{path} has no 64-bit entry (boot protocol {major}.{minor:02}): it is a 32-bit kernel, or \
         older than Linux 3.8\ngive a kernel built for x86-64"
    )]
    No64BitEntry { path: String, major: u16, minor: u16 },

    /// An ELF32 file can only be loaded by its multiboot header.
    #[error(
        "{path} is a 32-bit ELF file without a multiboot header in its first 8192 bytes\n\
         give a 64-bit kernel, or link the header to the start of the file"
    )]
    Elf32WithoutMultiboot { path: String },

    /// An ELF file for another CPU.
    #[error("{path} is an ELF file for {machine}, not for x86: give a kernel built for x86-64")]
    WrongMachine { path: String, machine: String },

    /// What the kernel needs is not RAM.
    #[error(
        "{path} needs RAM from {start:#x} to {end:#x}, but the machine has {ram}: {remedy}",
        ram = ByteSize(*.ram)
    )]
    NoRoom { path: String, start: u64, end: u64, ram: u64, remedy: String },

    /// The kernel wants to lie where the loader puts its data.
    #[error(
        "{path} wants to be loaded at {start:#x}, where boot data, tables or the BIOS area lie\n\
         link it to 1 MiB (0x100000) or above"
    )]
    LowAddress { path: String, start: u64 },

    /// The initrd does not fit.
    #[error(
        "initrd {path} ({size} bytes) does not fit: {room} bytes are free between {from:#x} and \
         {to:#x}\n{remedy}"
    )]
    InitrdTooLarge { path: String, size: u64, room: u64, from: u64, to: u64, remedy: &'static str },

    /// The command line is longer than the kernel takes.
    #[error("the command line has {length} bytes, but {path} takes {limit}: shorten --append")]
    CommandLineTooLong { path: String, length: u64, limit: u64 },

    /// Less RAM than boot data or firmware alone needs.
    #[error(
        "{ram} of RAM are too little to start from: give at least -m 1M",
        ram = ByteSize(*.ram)
    )]
    RamTooSmall { ram: u64 },

    /// A firmware image of a size that cannot be mapped.
    #[error(
        "{path} has {size} bytes, but firmware is a multiple of 64 KiB up to 16 MiB\n\
         give --bios a flash or ROM image, such as SeaBIOS's bios.bin"
    )]
    FirmwareSize { path: String, size: u64 },

    /// The tables of so many CPUs do not fit below 1 MiB.
    #[error("the ACPI tables of {cpus} CPUs do not fit in {room} bytes: give a smaller --smp")]
    TooManyCpus { cpus: usize, room: u64 },

    /// The host gave no memory for the firmware.
    #[error(transparent)]
    Memory(#[from] board::memory::MemoryError),

    /// A write went beyond RAM; the checks before it should have said more.
    #[error("cannot place boot data: {0}: give a larger -m")]
    NotRam(#[from] NotRam),
}
