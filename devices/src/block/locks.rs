//! Image locks that qemu-img and QEMU heed (QEMU, docs/system/images.rst, "Disk image file locking").
//!
//! Each permission on an image has a bit. Who uses one holds a shared lock on the byte 100 + bit of
//! the file; who does not want others to use one, on the byte 200 + bit. Whoever opens an image
//! takes its locks first and looks for contrary ones of others then, so that of two who open it at
//! once at least one notices. The locks belong to the open file description: they end with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::error::BlockError;

/// The permissions, by their bits.
const NAMES: [&str; 4] = ["consistent read", "write", "write unchanged", "resize"];
const READ: u8 = 1;
const WRITE: u8 = 1 << 1;
const RESIZE: u8 = 1 << 3;
/// First byte of the permissions in use.
const USED: i64 = 100;
/// First byte of those that others are not to use.
const UNSHARED: i64 = 200;

fn request(kind: i32, byte: i64) -> libc::flock {
    // SAFETY: a flock is plain data, for which all zeros are valid; l_pid has to be 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

fn take(file: &File, byte: i64) -> io::Result<()> {
    let lock = request(libc::F_RDLCK, byte);
    // SAFETY: the call reads a flock, which outlives it.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether another description of the file holds a lock on the byte.
fn is_taken(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = request(libc::F_WRLCK, byte);
    // SAFETY: the call reads and writes a flock, which outlives it.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } {
        0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Locks an image for one writer, or for readers whom nobody may disturb. The locks end when the
/// description does. A file system without locks has none to offer.
///
/// # Errors
/// [`BlockError::Locked`] when another process has it open in a way that excludes this.
pub(super) fn lock_image(file: &File, path: &str, write: bool) -> Result<(), BlockError> {
    let used = if write { READ | WRITE | RESIZE } else { READ };
    let unshared = WRITE | RESIZE;
    let bits = |set: u8| (0..4_u8).filter(move |bit| set & 1 << bit != 0);
    let bytes = |first: i64, set| bits(set).map(move |bit| (first + i64::from(bit), bit));
    for (byte, bit) in bytes(USED, used).chain(bytes(UNSHARED, unshared)) {
        match take(file, byte) {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => return Err(held(path, bit, write)),
            // NFS without a lock daemon and the like: as QEMU, go on without.
            Err(_) => return Ok(()),
        }
    }
    for (byte, bit) in bytes(UNSHARED, used).chain(bytes(USED, unshared)) {
        if matches!(is_taken(file, byte), Ok(true)) {
            return Err(held(path, bit, write));
        }
    }
    Ok(())
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn held(path: &str, bit: u8, write: bool) -> BlockError {
    BlockError::Locked {
        path: path.to_owned(),
        lock: NAMES[usize::from(bit)],
        way_out: if write {
            "readonly=on or snapshot=on where nobody writes"
        } else {
            "locking=off"
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_or_many_readers() {
        let dir = std::env::temp_dir().join(format!("vmm-locks-{}", std::process::id()));
        std::fs::write(&dir, b"x").unwrap();
        let open = || File::options().read(true).write(true).open(&dir).unwrap();
        let (first, second, third) = (open(), open(), open());
        lock_image(&first, "x", false).unwrap();
        lock_image(&second, "x", false).unwrap();
        let error = lock_image(&third, "x", true).unwrap_err().to_string();
        assert!(error.contains("\"write\" lock"), "{error}");
        drop((first, second, third));
        let (first, second) = (open(), open());
        lock_image(&first, "x", true).unwrap();
        assert!(lock_image(&second, "x", false).is_err());
        drop(first);
        drop(second);
        lock_image(&open(), "x", true).unwrap();
        std::fs::remove_file(&dir).unwrap();
    }
}
