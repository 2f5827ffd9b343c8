//! A disk image as a flat row of bytes, whatever its format.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::error::BlockError;
use super::segments::{Source, Target};

/// A run of an image's bytes that lies in one piece in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Where a range of an image lies, for I/O that goes past [`Image`].
#[derive(Debug)]
pub struct Place {
    /// The file.
    pub fd: RawFd,
    /// The runs, which together are the range.
    pub runs: Vec<Run>,
    /// While it lives, nothing of this place is given to another use.
    pub lease: Option<Arc<()>>,
}

/// What the monitor tells about an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The format's name.
    pub format: &'static str,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes that the file takes on the host.
    pub actual_size: u64,
    /// Bytes of a cluster, in formats that have them.
    pub cluster_size: Option<u64>,
    /// What the image names as its backing file.
    pub backing_file: Option<String>,
}

/// A disk. Methods may be called from any thread, several at a time; they block. The caller keeps
/// ranges inside [`Image::size`] and offsets and lengths multiples of 512.
pub trait Image: Send + Sync {
    /// Bytes, a multiple of 512.
    fn size(&self) -> u64;

    /// Reads.
    ///
    /// # Errors
    /// The host's; EIO for a damaged image.
    fn read(&self, offset: u64, target: &Target<'_>) -> io::Result<()>;

    /// Reads if that takes no waiting for a disk; `false`: it would, and `target` is undefined.
    ///
    /// # Errors
    /// As [`Image::read`].
    fn read_now(&self, _offset: u64, _target: &Target<'_>) -> io::Result<bool> {
        Ok(false)
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`Image::read`].
    fn write(&self, offset: u64, source: &Source<'_>) -> io::Result<()>;

    /// Makes a range read as zeros; with `unmap` its space may be given back.
    ///
    /// # Errors
    /// As [`Image::read`].
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// The contents of a range are of no use any more.
    ///
    /// # Errors
    /// As [`Image::read`].
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes all that was written before durable.
    ///
    /// # Errors
    /// As [`Image::read`].
    fn flush(&self) -> io::Result<()>;

    /// Makes the disk `size` bytes long. Nothing else is under way.
    ///
    /// # Errors
    /// When the format or the host cannot.
    fn resize(&self, size: u64) -> Result<(), BlockError>;

    /// Where a range lies if it can be read, or for `write` also be written, in place. Takes no
    /// waiting.
    fn place(&self, _offset: u64, _len: u64, _write: bool) -> Option<Place> {
        None
    }

    /// What it is.
    fn info(&self) -> ImageInfo;

    /// Calls `each` with the ranges whose contents are in this image rather than in one that it is
    /// based on.
    ///
    /// # Errors
    /// What `each` says; EIO for a damaged image.
    fn own_ranges(&self, each: &mut dyn FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
        each(0, self.size())
    }

    /// Forgets all that [`Image::own_ranges`] names, so that the image it is based on shows again.
    ///
    /// # Errors
    /// As [`Image::read`].
    fn forget(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes zeros where nothing is cheaper.
pub(super) fn write_zeros(
    offset: u64,
    len: u64,
    write: &mut dyn FnMut(u64, &Source<'_>) -> io::Result<()>,
) -> io::Result<()> {
    const CHUNK: u64 = 1 << 18;
    let zeros = vec![0; len.min(CHUNK) as usize];
    let mut at = 0;
    while at < len {
        let count = (len - at).min(CHUNK);
        write(offset + at, &Source::new(&zeros[..count as usize]))?;
        at += count;
    }
    Ok(())
}
