//! A file, or a block device, of the host.
//!
//! With direct I/O there are two descriptions of the file: one past the page cache, for transfers
//! whose addresses, lengths and offsets are aligned as the host asks for, and one through it for
//! the rest, such as an image's tables. Linux keeps the two coherent.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use super::segments::{Source, Target};
use super::storage::Storage;

/// Alignment that direct I/O has everywhere.
const DIRECT_ALIGN: usize = 4096;
/// The most pieces of one vectored call (Linux, UIO_MAXIOV).
const MAX_PIECES: usize = 1024;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileMode {
    /// Not only for reading.
    pub write: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Flushes do nothing.
    pub no_flush: bool,
}

/// An open file.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    direct: Option<File>,
    no_flush: bool,
    device: bool,
}

impl HostFile {
    /// Opens `path`, a regular file or a block device.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::InvalidInput`] without direct I/O where it is asked for.
    pub fn open(path: &Path, mode: FileMode) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode.write).custom_flags(libc::O_CLOEXEC);
        let file = options.open(path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("it is neither a file nor a block device"));
        }
        let direct = match mode.direct {
            true => Some(options.custom_flags(libc::O_CLOEXEC | libc::O_DIRECT).open(path)?),
            false => None,
        };
        Ok(Self { file, direct, no_flush: mode.no_flush, device: kind.is_block_device() })
    }

    /// A file that nobody else has a name for.
    pub fn anonymous(file: File) -> Self {
        Self { file, direct: None, no_flush: true, device: false }
    }

    /// The file itself, for its locks.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The description for a transfer whose memory is `aligned`.
    fn description(&self, offset: u64, aligned: impl FnOnce(usize) -> bool) -> RawFd {
        match &self.direct {
            Some(direct) if offset.is_multiple_of(DIRECT_ALIGN as u64) && aligned(DIRECT_ALIGN) => {
                direct.as_raw_fd()
            }
            _ => self.file.as_raw_fd(),
        }
    }
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Calls `transfer` with what is left until nothing is, or it says 0.
fn all(
    pieces: &[libc::iovec],
    offset: u64,
    mut transfer: impl FnMut(&[libc::iovec], i64) -> io::Result<usize>,
) -> io::Result<usize> {
    let total: usize = pieces.iter().map(|piece| piece.iov_len).sum();
    let mut done = 0;
    let mut rest: Vec<libc::iovec>;
    let mut left = pieces;
    while done < total {
        let at = i64::try_from(offset + done as u64)
            .map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let count = match transfer(&left[..left.len().min(MAX_PIECES)], at) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        done += count;
        if done < total {
            let mut skip = done;
            let from = pieces
                .iter()
                .position(|piece| {
                    let inside = skip < piece.iov_len;
                    if !inside {
                        skip -= piece.iov_len;
                    }
                    inside
                })
                .unwrap_or(pieces.len());
            rest = pieces[from..].to_vec();
            if let Some(first) = rest.first_mut() {
                // SAFETY: `skip` lies inside this piece.
                first.iov_base = unsafe { first.iov_base.cast::<u8>().add(skip) }.cast();
                first.iov_len -= skip;
            }
            left = &rest;
        }
    }
    Ok(done)
}

impl Storage for HostFile {
    fn len(&self) -> io::Result<u64> {
        if self.device {
            return Ok(seek(&self.file, SeekFrom::End(0))?);
        }
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn read(&self, offset: u64, target: &Target<'_>) -> io::Result<()> {
        let fd = self.description(offset, |align| target.is_aligned(align));
        let done = all(target.pieces(), offset, |pieces, at| {
            // SAFETY: the pieces are writable memory that stays borrowed during the call.
            checked(unsafe { libc::preadv(fd, pieces.as_ptr(), pieces.len() as i32, at) })
        })?;
        if done < target.len() {
            target.slice(done, target.len() - done).zero();
        }
        Ok(())
    }

    fn read_now(&self, offset: u64, target: &Target<'_>) -> io::Result<bool> {
        if self.direct.is_some() || target.pieces().len() > MAX_PIECES {
            return Ok(false);
        }
        let pieces = target.pieces();
        // SAFETY: as in `read`.
        let done = unsafe {
            libc::preadv2(
                self.file.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len() as i32,
                offset as i64,
                libc::RWF_NOWAIT,
            )
        };
        // Whatever stands in the way, a plain read will say so.
        Ok(done == target.len() as isize)
    }

    fn write(&self, offset: u64, source: &Source<'_>) -> io::Result<()> {
        let fd = self.description(offset, |align| source.is_aligned(align));
        let done = all(source.pieces(), offset, |pieces, at| {
            // SAFETY: the pieces are readable memory that stays borrowed during the call.
            checked(unsafe { libc::pwritev(fd, pieces.as_ptr(), pieces.len() as i32, at) })
        })?;
        match done == source.len() {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.no_flush {
            return Ok(());
        }
        self.file.sync_data()
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let keep = FallocateFlags::KEEP_SIZE;
        let flags = match unmap {
            true => FallocateFlags::PUNCH_HOLE | keep,
            false => FallocateFlags::ZERO_RANGE | keep,
        };
        match fallocate(&self.file, flags, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            other => Ok(other?),
        }
    }

    fn discard(&self, offset: u64, len: u64) {
        // It is a hint: where the file system has no holes, nothing is lost.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(&self.file, flags, offset, len);
    }

    fn grows(&self) -> bool {
        !self.device
    }

    fn allocated(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.blocks() * 512)
    }

    fn fd(&self) -> Option<RawFd> {
        // Direct I/O needs a look at each transfer's alignment.
        self.direct.is_none().then(|| self.file.as_raw_fd())
    }
}
