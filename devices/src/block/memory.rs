//! Storage without a file: memory, for tests and fuzzing, and nothing at all, for benchmarks.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use super::error::BlockError;
use super::image::{Image, ImageInfo};
use super::segments::{Source, Target};
use super::storage::Storage;

/// The most bytes that a write may make it long: a damaged image must not fill the memory.
const MAX: u64 = 1 << 28;

/// Bytes in memory.
#[derive(Default)]
pub struct Memory(Mutex<Vec<u8>>);

impl Memory {
    /// `len` zeros.
    pub fn with_len(len: usize) -> Self {
        Self(Mutex::new(vec![0; len]))
    }

    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(bytes))
    }

    /// The bytes now.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn room(end: Option<u64>) -> io::Result<usize> {
    match end {
        Some(end) if end <= MAX => Ok(end as usize),
        _ => Err(io::Error::from_raw_os_error(libc::EFBIG)),
    }
}

impl Storage for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = room(Some(len))?;
        self.lock().resize(len, 0);
        Ok(())
    }

    fn read(&self, offset: u64, target: &Target<'_>) -> io::Result<()> {
        let bytes = self.lock();
        let there = (bytes.len() as u64).saturating_sub(offset).min(target.len() as u64) as usize;
        if there > 0 {
            let at = offset as usize;
            target.slice(0, there).copy_from(&bytes[at..at + there]);
        }
        target.slice(there, target.len() - there).zero();
        Ok(())
    }

    fn write(&self, offset: u64, source: &Source<'_>) -> io::Result<()> {
        let mut bytes = self.lock();
        let end = room(offset.checked_add(source.len() as u64))?;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        source.copy_to(&mut bytes[offset as usize..end]);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        let mut bytes = self.lock();
        let total = bytes.len() as u64;
        let end = offset.saturating_add(len).min(total);
        if offset < end {
            bytes[offset as usize..end as usize].fill(0);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) {
        // It is memory; zeroing it cannot fail.
        let _ = self.zero(offset, len, true);
    }
}

/// A disk that swallows what is written and reads as zeros without touching the memory given.
pub struct Null(pub u64);

impl Image for Null {
    fn size(&self) -> u64 {
        self.0
    }

    fn read(&self, _: u64, _: &Target<'_>) -> io::Result<()> {
        Ok(())
    }

    fn read_now(&self, _: u64, _: &Target<'_>) -> io::Result<bool> {
        Ok(true)
    }

    fn write(&self, _: u64, _: &Source<'_>) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn resize(&self, _: u64) -> Result<(), BlockError> {
        Err(BlockError::Refused("a null disk has no other size".into()))
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: "null-co",
            virtual_size: self.0,
            actual_size: 0,
            cluster_size: None,
            backing_file: None,
        }
    }
}
