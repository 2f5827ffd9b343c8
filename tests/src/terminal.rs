//! A pseudo-terminal that a test looks at from the keyboard's and the screen's side.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

use crate::Transcript;

/// A terminal.
pub struct Terminal {
    keyboard: File,
    screen: Transcript,
    line: File,
}

impl Terminal {
    /// A new terminal in the state that a shell leaves it in.
    #[expect(clippy::new_without_default, reason = "it opens a device")]
    pub fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("the host has a pseudo-terminal left");
        grantpt(&master).expect("it is ours");
        unlockpt(&master).expect("it is ours");
        let path = ptsname(&master, Vec::new()).expect("it has a name");
        Self::join(master, path.into_string().expect("the name is ASCII").into())
    }

    fn join(master: OwnedFd, path: PathBuf) -> Self {
        let line = Self::open(&path);
        let keyboard = File::from(master);
        let screen = Transcript::of(keyboard.try_clone().expect("the host has an fd left"));
        Self { keyboard, screen, line }
    }

    /// Opens a terminal by its path without being controlled by it.
    pub fn open(path: &std::path::Path) -> File {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        options.open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The end that programs have as stdin and stdout.
    pub fn line(&self) -> File {
        self.line.try_clone().expect("the host has an fd left")
    }

    /// Types.
    pub fn send(&self, text: &str) {
        (&self.keyboard).write_all(text.as_bytes()).expect("the terminal takes input");
    }

    /// Waits for `text` on the screen.
    ///
    /// # Panics
    /// With what is there, if it does not come.
    pub fn wait_for(&self, text: &str, deadline: Instant) -> String {
        self.screen.wait_for(text, deadline)
    }

    /// What a shell would notice if it were not put back: modes, characters, speeds, and whether
    /// reads block.
    pub fn settings(&self) -> String {
        let termios = tcgetattr(&self.line).expect("it is a terminal");
        let flags = fcntl_getfl(&self.line).expect("it is open") & OFlags::NONBLOCK;
        format!("{termios:?} {flags:?}")
    }
}
