//! The backends `file` and `pipe`: what has a path and is opened once.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use super::ChardevError;
use super::host::HostFd;
use super::source::Peer;

/// Never waits: a FIFO without a reader is an error, and no terminal becomes ours.
const ALWAYS: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Opens a file for output.
///
/// # Errors
/// With the cause and the path.
pub(super) fn open_file(path: &Path, append: bool) -> Result<Peer, ChardevError> {
    let how = if append { OFlags::APPEND } else { OFlags::TRUNC };
    let flags = OFlags::WRONLY | OFlags::CREATE | how | ALWAYS;
    let file = open(path, flags, Mode::from_raw_mode(0o666))
        .map_err(|e| ChardevError::Open { path: path.to_owned(), source: e.into() })?;
    Ok(Peer {
        input: None,
        output: Some(HostFd::nonblocking(file)),
        filename: "file".to_owned(),
        hangs_up: false,
    })
}

/// Opens `PATH.in` and `PATH.out` where they exist, else `PATH` for both directions. A FIFO is
/// opened for reading and writing, so that it outlives the programs at its other end.
///
/// # Errors
/// With the cause and the path.
pub(super) fn open_pipe(path: &Path) -> Result<Peer, ChardevError> {
    let (to_us, from_us) = (with_suffix(path, ".in"), with_suffix(path, ".out"));
    let both_ways = |path: &Path| {
        open(path, OFlags::RDWR | ALWAYS, Mode::empty())
            .map(HostFd::nonblocking)
            .map_err(|e| ChardevError::Open { path: path.to_owned(), source: e.into() })
    };
    let (input, output) = if to_us.exists() || from_us.exists() {
        (both_ways(&to_us)?, both_ways(&from_us)?)
    } else {
        let fd = both_ways(path).map_err(|error| match error {
            ChardevError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ChardevError::NoPipe { path: path.to_owned() }
            }
            other => other,
        })?;
        let second = fd
            .try_clone()
            .map_err(|source| ChardevError::Open { path: path.to_owned(), source })?;
        (second, fd)
    };
    Ok(Peer {
        input: Some(input),
        output: Some(output),
        filename: "pipe".to_owned(),
        hangs_up: false,
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
