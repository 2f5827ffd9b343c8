//! `--daemonize`: the program goes into the background once its machine is made.
//!
//! The shell's process waits at a pipe until the one in the background says that it is ready, so
//! that its exit status tells whether there is a machine; until then errors go to the terminal.
//! The working directory stays: the kernel is read again at each reset, and paths that are given
//! to the monitor mean what they meant.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

use rustix::process::setsid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::Error;

/// Where a process is after [`fork`].
#[derive(Debug)]
pub enum Side {
    /// In front: what there is to do is [`Front::wait`].
    Front(Front),
    /// In the background, where the machine is to be made.
    Background(Background),
}

/// The process that the shell waits for.
#[derive(Debug)]
pub struct Front(PipeReader);

/// The process that is to stay.
#[derive(Debug)]
pub struct Background {
    front: PipeWriter,
    null: File,
}

/// Makes a process in a session of its own, which no terminal controls.
///
/// # Errors
/// When the host has no process or fd left.
///
/// # Safety
/// The process must have one thread: locks that others hold would be held for ever in the new one.
pub unsafe fn fork() -> Result<Side, Error> {
    let (reader, writer) = io::pipe().map_err(Error::host("make a pipe"))?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(Error::host("open /dev/null"))?;
    // SAFETY: the caller has one thread.
    if !unsafe { fork_once() }? {
        return Ok(Side::Front(Front(reader)));
    }
    drop(reader);
    setsid().map_err(|e| Error::host("start a session")(e.into()))?;
    // Who leads a session gets a terminal by opening one; a child of his does not.
    // SAFETY: as above.
    if !unsafe { fork_once() }? {
        std::process::exit(0);
    }
    Ok(Side::Background(Background { front: writer, null }))
}

/// Whether this is the child.
///
/// # Safety
/// As [`fork`].
unsafe fn fork_once() -> Result<bool, Error> {
    // SAFETY: with one thread the child is a complete copy.
    match unsafe { libc::fork() } {
        -1 => Err(Error::host("start a process")(io::Error::last_os_error())),
        pid => Ok(pid == 0),
    }
}

impl Front {
    /// Waits until the other process is ready (`true`), or has ended, having said why.
    pub fn wait(mut self) -> bool {
        self.0.read_exact(&mut [0]).is_ok()
    }
}

impl Background {
    /// Leaves the terminal, and lets the process in front end.
    pub fn ready(mut self) {
        for dup2 in [dup2_stdin, dup2_stdout, dup2_stderr] {
            // It has no reason to fail: both fds are open.
            let _ = dup2(self.null.as_fd());
        }
        // The process in front may have been ended; the machine runs all the same.
        let _ = self.front.write_all(&[0]);
    }
}
