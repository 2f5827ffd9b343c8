//! Images without a format: the disk's bytes are the file's.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::BlockError;
use super::image::{Image, ImageInfo, Place, Run, write_zeros};
use super::probe::{self, Probed};
use super::segments::{Source, Target};
use super::storage::Storage;

/// Bytes at the start of a disk that tell formats apart.
const HEAD: usize = 512;

/// A raw image.
pub struct Raw {
    path: String,
    storage: Arc<dyn Storage>,
    size: AtomicU64,
    /// The format was guessed: the guest must not be able to change what is guessed next time.
    guarded: bool,
}

impl Raw {
    /// The disk in `storage`. A file that ends within a sector counts as if it were padded by zeros.
    ///
    /// With `guarded`, nothing can be written that would make the file look like an image with a
    /// format: a guest could else have the host open any file as its backing file.
    ///
    /// # Errors
    /// When the size cannot be told.
    pub fn new(path: &str, storage: Arc<dyn Storage>, guarded: bool) -> Result<Self, BlockError> {
        let len = storage.len().map_err(|cause| BlockError::Io {
            path: path.to_owned(),
            what: "asking for its size",
            cause,
        })?;
        let size = AtomicU64::new(len.next_multiple_of(512));
        Ok(Self { path: path.to_owned(), storage, size, guarded })
    }

    fn forbids(&self, offset: u64, source: &Source<'_>) -> io::Result<bool> {
        if !self.guarded || offset >= HEAD as u64 || source.is_empty() {
            return Ok(false);
        }
        let mut head = [0; HEAD];
        self.storage.read_bytes(0, &mut head)?;
        let at = offset as usize;
        let count = source.len().min(HEAD - at);
        source.slice(0, count).copy_to(&mut head[at..]);
        Ok(probe::probe(&head) != Probed::Raw)
    }
}

impl Image for Raw {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn read(&self, offset: u64, target: &Target<'_>) -> io::Result<()> {
        self.storage.read(offset, target)
    }

    fn read_now(&self, offset: u64, target: &Target<'_>) -> io::Result<bool> {
        self.storage.read_now(offset, target)
    }

    fn write(&self, offset: u64, source: &Source<'_>) -> io::Result<()> {
        if self.forbids(offset, source)? {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        self.storage.write(offset, source)
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        match self.storage.zero(offset, len, unmap) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                write_zeros(offset, len, &mut |at, zeros| self.storage.write(at, zeros))
            }
            other => other,
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage.discard(offset, len);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.storage.sync()
    }

    fn resize(&self, size: u64) -> Result<(), BlockError> {
        self.storage.set_len(size).map_err(|cause| BlockError::Io {
            path: self.path.clone(),
            what: "changing its size",
            cause,
        })?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn place(&self, offset: u64, len: u64, write: bool) -> Option<Place> {
        if write && self.guarded && offset < HEAD as u64 {
            return None;
        }
        Some(Place { fd: self.storage.fd()?, runs: vec![Run { offset, len }], lease: None })
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: "raw",
            virtual_size: self.size(),
            actual_size: self.storage.allocated(),
            cluster_size: None,
            backing_file: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    #[test]
    fn a_guessed_raw_image_cannot_become_another_format() {
        let storage = Arc::new(Memory::with_len(4096));
        let raw = Raw::new("x", storage.clone(), true).unwrap();
        let mut sector = [0; 512];
        sector[..4].copy_from_slice(b"QFI\xFB");
        sector[7] = 3;
        let refused = raw.write(0, &Source::new(&sector)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        raw.write(512, &Source::new(&sector)).unwrap();
        sector[0] = 0;
        raw.write(0, &Source::new(&sector)).unwrap();
        let open = Raw::new("x", storage, false).unwrap();
        sector[0] = b'Q';
        open.write(0, &Source::new(&sector)).unwrap();
    }

    #[test]
    fn a_ragged_end_is_padded() {
        let raw = Raw::new("x", Arc::new(Memory::with_len(1000)), false).unwrap();
        assert_eq!(raw.size(), 1024);
        let mut data = [1; 512];
        raw.read(512, &Target::new(&mut data)).unwrap();
        assert_eq!(data, [0; 512]);
    }
}
