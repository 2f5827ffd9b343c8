//! An fd of the host that is read and written without ever waiting.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// The most that is written at once to an fd that might block: what a terminal or a pipe that
/// poll calls writable has room for.
const SMALL_WRITE: usize = 256;

/// How the fd is kept from blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// It cannot block: its open file description, which is ours alone, has O_NONBLOCK, or it is
    /// a regular file.
    Plain,
    /// A socket: each call says MSG_DONTWAIT.
    Socket,
    /// Each call asks poll first, and writes are small.
    Poll,
}

/// One direction, or both, of a peer.
#[derive(Debug)]
pub(super) struct HostFd {
    fd: OwnedFd,
    method: Method,
}

impl HostFd {
    /// An fd that does not block.
    pub(super) fn nonblocking(fd: OwnedFd) -> Self {
        Self { fd, method: Method::Plain }
    }

    /// A socket, blocking or not.
    pub(super) fn socket(fd: OwnedFd) -> Self {
        Self { fd, method: Method::Socket }
    }

    /// An fd whose open file description other processes share, such as the shell's terminal.
    /// O_NONBLOCK would hit them too, so a description of our own is opened where that can be.
    ///
    /// # Errors
    /// EBADF for an fd that is not open, EMFILE.
    pub(super) fn shared(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<Self> {
        let method = match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
            // A new description would start at offset 0; and a file does not block.
            FileType::RegularFile | FileType::BlockDevice | FileType::Directory => Method::Plain,
            FileType::Socket => Method::Socket,
            _ => {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                if let Ok(own) = rustix::fs::open(path, flags, Mode::empty()) {
                    return Ok(Self::nonblocking(own));
                }
                // No /proc, or a terminal of another user (after su).
                Method::Poll
            }
        };
        Ok(Self { fd: fd.try_clone_to_owned()?, method })
    }

    /// A second fd for the same end, for the other direction.
    ///
    /// # Errors
    /// EMFILE.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, method: self.method })
    }

    /// Reads what there is, at most `data.len()` bytes; 0 is the end of the input.
    ///
    /// # Errors
    /// WouldBlock when there is nothing; others as read says.
    pub(super) fn read(&self, data: &mut [u8]) -> io::Result<usize> {
        retry(|| match self.method {
            Method::Plain => rustix::io::read(&self.fd, &mut *data),
            Method::Socket => {
                rustix::net::recv(&self.fd, &mut *data, RecvFlags::DONTWAIT).map(|(_, n)| n)
            }
            Method::Poll => {
                self.ready(PollFlags::IN)?;
                rustix::io::read(&self.fd, &mut *data)
            }
        })
    }

    /// Writes from the front of `data` and returns how many bytes.
    ///
    /// # Errors
    /// WouldBlock when there is no room; others as write says.
    pub(super) fn write(&self, data: &[u8]) -> io::Result<usize> {
        retry(|| match self.method {
            Method::Plain => rustix::io::write(&self.fd, data),
            Method::Socket => {
                rustix::net::send(&self.fd, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
            Method::Poll => {
                self.ready(PollFlags::OUT)?;
                rustix::io::write(&self.fd, &data[..data.len().min(SMALL_WRITE)])
            }
        })
    }

    fn ready(&self, what: PollFlags) -> rustix::io::Result<()> {
        let mut fds = [PollFd::new(&self.fd, what)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
            0 => Err(Errno::AGAIN),
            _ => Ok(()),
        }
    }
}

impl From<File> for HostFd {
    /// A file that was opened with O_NONBLOCK.
    fn from(file: File) -> Self {
        Self::nonblocking(file.into())
    }
}

impl AsRawFd for HostFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for HostFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    use rustix::fs::fcntl_getfl;

    use super::*;

    fn would_block(result: io::Result<usize>) -> bool {
        result.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn a_shared_pipe_is_read_without_waiting_and_stays_blocking_for_others() {
        let (reader, mut writer) = io::pipe().unwrap();
        let host = HostFd::shared(reader.as_fd(), OFlags::RDONLY).unwrap();
        let mut data = [0; 8];
        assert!(would_block(host.read(&mut data)));
        assert!(!fcntl_getfl(&reader).unwrap().contains(OFlags::NONBLOCK));
        writer.write_all(b"ab").unwrap();
        assert_eq!(host.read(&mut data).unwrap(), 2);
        drop(writer);
        assert_eq!(host.read(&mut data).unwrap(), 0);
    }

    #[test]
    fn a_shared_socket_does_not_wait_either() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let host = HostFd::shared(ours.as_fd(), OFlags::RDONLY).unwrap();
        assert!(would_block(host.read(&mut [0; 8])));
        assert!(!fcntl_getfl(&ours).unwrap().contains(OFlags::NONBLOCK));
        assert_eq!(host.write(b"xy").unwrap(), 2);
        let mut data = [0; 2];
        theirs.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"xy");
        while host.write(&[0; 4096]).is_ok() {}
        assert!(would_block(host.write(b"z")));
    }

    #[test]
    fn poll_keeps_a_blocking_pipe_from_blocking() {
        let (reader, writer) = io::pipe().unwrap();
        let from = HostFd { fd: reader.into(), method: Method::Poll };
        let to = HostFd { fd: writer.into(), method: Method::Poll };
        assert!(would_block(from.read(&mut [0; 8])));
        let mut total = 0;
        while let Ok(n) = to.write(&[7; 1000]) {
            total += n;
        }
        assert!(total >= 4096);
        assert!(would_block(to.write(b"z")));
        assert_eq!(from.read(&mut [0; 8]).unwrap(), 8);
    }

    #[test]
    fn a_shared_file_keeps_its_offset() {
        let path = std::env::temp_dir().join(format!("chardev-offset-{}", std::process::id()));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"before ").unwrap();
        let host = HostFd::shared(file.as_fd(), OFlags::WRONLY).unwrap();
        assert_eq!(host.write(b"after").unwrap(), 5);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before after");
    }
}
