//! Where the peers of a character device come from.

use std::io;
use std::os::fd::RawFd;

use super::host::HostFd;

/// Somebody at the far end.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) input: Option<HostFd>,
    pub(super) output: Option<HostFd>,
    /// What `info chardev` shows while this peer is there.
    pub(super) filename: String,
    /// The end of its input means that it is gone: a socket or a pty, but not stdin.
    pub(super) hangs_up: bool,
}

/// Where peers come from, one at a time.
pub(super) trait Source: Send {
    /// The fd that becomes readable when there may be a peer, if more than the first can come.
    fn arrivals(&self) -> Option<RawFd> {
        None
    }

    /// The peer that has come.
    ///
    /// # Errors
    /// WouldBlock when there is none, after which the fd is drained.
    fn accept(&mut self) -> io::Result<Peer> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// What `info chardev` shows while there is no peer.
    fn filename(&self) -> String;
}

/// A backend that has its one peer from the start, or none at all.
pub(super) struct Fixed(pub(super) String);

impl Source for Fixed {
    fn filename(&self) -> String {
        self.0.clone()
    }
}
