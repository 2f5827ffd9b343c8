//! Files that are loaded into guest memory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use board::GuestRam;
use board::memory::{LOW_RAM_END, NotRam};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{BootError, layout};

/// A regular file that is not empty.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    /// How the user named it.
    pub(super) path: String,
    /// Bytes.
    pub(super) size: u64,
}

impl Image {
    /// Opens `path`, which was given to `option`.
    pub(super) fn open(path: &Path, option: &'static str) -> Result<Self, BootError> {
        let name = path.display().to_string();
        let failed = |cause| BootError::Open { option, path: name.clone(), cause };
        // The type is asked for before opening: opening a pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        let what = if kind.is_file() {
            None
        } else if kind.is_dir() {
            Some("a directory")
        } else if kind.is_fifo() {
            Some("a pipe")
        } else if kind.is_socket() {
            Some("a socket")
        } else {
            Some("a device")
        };
        if let Some(what) = what {
            return Err(BootError::NotAFile { option, path: name, what });
        }
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        if size == 0 {
            return Err(BootError::Empty { option, path: name });
        }
        Ok(Self { file, path: name, size })
    }

    /// Checks that the `length` bytes at `offset` are in the file; `what` is what they hold.
    pub(super) fn require(
        &self,
        offset: u64,
        length: u64,
        what: &'static str,
    ) -> Result<(), BootError> {
        let end = offset.saturating_add(length);
        if end > self.size {
            return Err(BootError::Truncated {
                path: self.path.clone(),
                what,
                end,
                size: self.size,
            });
        }
        Ok(())
    }

    /// The `length` bytes at `offset`, which hold `what`. They are in the file, so that a header
    /// cannot ask for more memory than the file has bytes.
    pub(super) fn read(
        &self,
        offset: u64,
        length: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, BootError> {
        self.require(offset, length, what)?;
        let mut data = vec![0; length as usize];
        self.file.read_exact_at(&mut data, offset).map_err(|cause| self.unreadable(cause))?;
        Ok(data)
    }

    /// At most `length` bytes from the start of the file.
    pub(super) fn head(&self, length: u64) -> Result<Vec<u8>, BootError> {
        self.read(0, length.min(self.size), "start")
    }

    /// Reads the `length` bytes at `offset` straight into guest memory. The caller has checked
    /// both ranges.
    pub(super) fn load(
        &self,
        offset: u64,
        length: u64,
        ram: &GuestRam,
        address: u64,
    ) -> Result<(), BootError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset)).map_err(|cause| self.unreadable(cause))?;
        let (mut address, mut left) = (address, length as usize);
        while left > 0 {
            match ram.map().read_volatile_from(GuestAddress(address), &mut file, left) {
                Ok(0) => return Err(self.unreadable(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    address += count as u64;
                    left -= count;
                }
                Err(GuestMemoryError::IOError(cause)) => return Err(self.unreadable(cause)),
                Err(_) => return Err(NotRam(address).into()),
            }
        }
        Ok(())
    }

    /// Checks that the kernel's `size` bytes at `start` lie beside the loader's data: above the
    /// tables, or within `allowed` below them.
    pub(super) fn check_address(
        &self,
        start: u64,
        size: u64,
        allowed: &Range<u64>,
    ) -> Result<(), BootError> {
        let within = start >= allowed.start && start.saturating_add(size) <= allowed.end;
        if within || start >= layout::ACPI_TABLES_END {
            return Ok(());
        }
        Err(BootError::LowAddress { path: self.path.clone(), start })
    }

    /// Checks that the `size` bytes of guest memory at `start` are RAM below 4 GiB.
    pub(super) fn check_room(
        &self,
        start: u64,
        size: u64,
        ram: &GuestRam,
    ) -> Result<(), BootError> {
        const MIB: u64 = 1 << 20;
        let end = start.saturating_add(size);
        if end <= ram.low_size() {
            return Ok(());
        }
        let remedy = if end <= LOW_RAM_END {
            format!("give at least -m {}M", end.div_ceil(MIB))
        } else {
            format!("link it to end below {LOW_RAM_END:#x}")
        };
        Err(BootError::NoRoom { path: self.path.clone(), start, end, ram: ram.size(), remedy })
    }

    /// A value in the file that cannot be.
    pub(super) fn malformed(&self, what: impl Into<String>) -> BootError {
        BootError::Malformed { path: self.path.clone(), what: what.into() }
    }

    fn unreadable(&self, cause: io::Error) -> BootError {
        BootError::Read { path: self.path.clone(), cause }
    }
}

/// The little-endian field of 2 bytes at `offset` of a header that was read whole.
pub(super) fn le16(data: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([data[offset], data[offset + 1]])
}

/// As [`le16`], 4 bytes.
pub(super) fn le32(data: &[u8], offset: usize) -> u32 {
    u32::from(le16(data, offset)) | u32::from(le16(data, offset + 2)) << 16
}

/// As [`le16`], 8 bytes.
pub(super) fn le64(data: &[u8], offset: usize) -> u64 {
    u64::from(le32(data, offset)) | u64::from(le32(data, offset + 4)) << 32
}
