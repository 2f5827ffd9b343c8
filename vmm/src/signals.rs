//! The signals that the program acts on: those that ask it to end, and the terminal's new size.
//!
//! They are the main loop's: it reads them from an fd. While the machine is being made they keep
//! their default, so that Ctrl-C ends the wait for a socket's client. Other threads are born with them
//! blocked: one that blocked them itself could take one before, and a new size would be lost.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What a signal means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The program is to end.
    End,
    /// The terminal has another size.
    Resized,
}

/// The fd that signals are read from.
#[derive(Debug)]
pub struct Signals(File);

fn ours() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by sigemptyset, which cannot fail for a valid pointer.
    let mut set = unsafe { set.assume_init() };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGWINCH] {
        // SAFETY: `set` is a live, initialised set.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    set
}

/// Blocks the signals in this thread, and gives the mask that it had.
fn block() -> libc::sigset_t {
    let mut old = MaybeUninit::uninit();
    // SAFETY: both sets are live; the call initialises `old`, and fails only for a wrong `how`.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &ours(), old.as_mut_ptr());
        old.assume_init()
    }
}

/// While it lives, threads that this one makes are born with the signals blocked.
#[must_use]
pub struct Held(libc::sigset_t);

/// Holds the signals back from threads to be made.
pub fn hold() -> Held {
    Held(block())
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the set is the initialised one that this thread had; no old set is asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

impl Signals {
    /// Makes the signals readable, and keeps them from ending the program by themselves.
    ///
    /// # Errors
    /// When no fd is left.
    pub fn new() -> io::Result<Self> {
        block();
        // SAFETY: the set is live and initialised; -1 asks for a new fd.
        let fd = unsafe { libc::signalfd(-1, &ours(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just made `fd`, which nobody else owns.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// A signal that has come; `None` when there is no other.
    pub fn take(&self) -> Option<Signal> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        // A signalfd gives whole records or EAGAIN.
        (&self.0).read_exact(&mut info).ok()?;
        // `ssi_signo` comes first.
        let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        Some(if number == libc::SIGWINCH as u32 { Signal::Resized } else { Signal::End })
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
