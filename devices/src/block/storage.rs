//! Where the bytes of an image lie: a file of the host, or memory.

use std::io;
use std::os::fd::RawFd;

use super::segments::{Source, Target};

/// Bytes at offsets. All methods may be called from any thread and may block.
#[allow(clippy::len_without_is_empty, reason = "nobody asks whether an image is empty")]
pub trait Storage: Send + Sync {
    /// Bytes there are.
    ///
    /// # Errors
    /// The host's.
    fn len(&self) -> io::Result<u64>;

    /// Makes it longer, with zeros, or shorter.
    ///
    /// # Errors
    /// The host's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reads; what lies past the end reads as zeros.
    ///
    /// # Errors
    /// The host's.
    fn read(&self, offset: u64, target: &Target<'_>) -> io::Result<()>;

    /// Reads if that takes no waiting for a disk; `false`: it would, and `target` is undefined.
    ///
    /// # Errors
    /// The host's.
    fn read_now(&self, _offset: u64, _target: &Target<'_>) -> io::Result<bool> {
        Ok(false)
    }

    /// Writes, past the end too.
    ///
    /// # Errors
    /// The host's.
    fn write(&self, offset: u64, source: &Source<'_>) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The host's.
    fn sync(&self) -> io::Result<()>;

    /// Makes a range read as zeros, without its space if `unmap`. The end does not move.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where that is no cheaper than writing zeros; the host's.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Gives back the space of a range, where that can be done. Its contents are undefined then.
    fn discard(&self, offset: u64, len: u64);

    /// What lies past the end is a hole that reads as zeros once the end has moved.
    fn grows(&self) -> bool {
        true
    }

    /// Bytes that it takes on the host.
    fn allocated(&self) -> u64 {
        self.len().unwrap_or(0)
    }

    /// The file for I/O that goes past this trait.
    fn fd(&self) -> Option<RawFd> {
        None
    }

    /// Fills `data` from `offset` on.
    ///
    /// # Errors
    /// As [`Storage::read`].
    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.read(offset, &Target::new(data))
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`Storage::write`].
    fn write_bytes(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(offset, &Source::new(data))
    }
}
