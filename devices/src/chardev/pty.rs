//! The backend `pty`: a pseudo-terminal that programs such as screen or minicom open at their leisure.
//!
//! While no program has it open, output is thrown away: nobody may ever come to read it, and the
//! guest must not wait for that. The kernel tells the master's holder when the last program closes
//! the terminal, but not when one opens it; inotify does, without a timer that polls.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::ChardevError;
use super::host::HostFd;
use super::source::{Peer, Source};

/// A pseudo-terminal's master end.
pub(super) struct Pty {
    master: OwnedFd,
    name: String,
    /// Tells of the other end's being opened.
    opens: OwnedFd,
}

impl Pty {
    /// A new pseudo-terminal, its other end in raw mode and closed.
    ///
    /// # Errors
    /// When the host has no pty or inotify instance left.
    pub(super) fn open(label: &str) -> Result<Self, ChardevError> {
        Self::new().map_err(|source| ChardevError::Host {
            label: label.to_owned(),
            source,
            limit: "ptys (kernel.pty.max) or inotify instances (fs.inotify.max_user_instances)",
        })
    }

    fn new() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = rustix::fs::open(&name, flags, Mode::empty())?;
        let mut modes = tcgetattr(&terminal)?;
        modes.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &modes)?;
        // From here on the master knows that the other end is closed.
        drop(terminal);
        let opens = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&opens, &name, WatchFlags::OPEN)?;
        Ok(Self { master, name: name.to_string_lossy().into_owned(), opens })
    }

    /// The path of the other end.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Source for Pty {
    fn arrivals(&self) -> Option<RawFd> {
        Some(self.opens.as_raw_fd())
    }

    fn accept(&mut self) -> io::Result<Peer> {
        let mut space = [MaybeUninit::uninit(); 512];
        while rustix::io::read(&self.opens, &mut space).is_ok() {}
        let mut state = [PollFd::new(&self.master, PollFlags::IN)];
        poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let state = state[0].revents();
        // A program that has closed it again may have left input.
        if state.contains(PollFlags::HUP) && !state.contains(PollFlags::IN) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let fd = HostFd::nonblocking(self.master.try_clone()?);
        Ok(Peer {
            input: Some(fd.try_clone()?),
            output: Some(fd),
            filename: self.filename(),
            hangs_up: true,
        })
    }

    fn filename(&self) -> String {
        format!("pty:{}", self.name)
    }
}
