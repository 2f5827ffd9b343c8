//! The backend `stdio`: the terminal, or whatever stdin and stdout are.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;

use super::ChardevError;
use super::host::HostFd;
use super::source::{Peer, Source};
use super::terminal::{SignalKeys, Terminal};

/// Which backend has stdin and stdout: there is only one pair.
static OWNER: Mutex<Option<String>> = Mutex::new(None);

/// stdin and stdout. Dropping it puts the terminal's modes back.
pub(super) struct Stdio {
    _terminal: Option<Terminal>,
    _claim: Claim,
}

struct Claim;

impl Claim {
    fn new(label: &str) -> Result<Self, ChardevError> {
        let mut owner = OWNER.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(by) = &*owner {
            return Err(ChardevError::StdioInUse { by: by.clone() });
        }
        *owner = Some(label.to_owned());
        Ok(Self)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *OWNER.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Source for Stdio {
    fn filename(&self) -> String {
        "stdio".to_owned()
    }
}

/// Opens stdin and stdout for the backend `label`.
///
/// # Errors
/// When another backend has them.
pub(super) fn open(label: &str, signal: bool) -> Result<(Stdio, Peer), ChardevError> {
    let claim = Claim::new(label)?;
    let failed = |source| ChardevError::Host {
        label: label.to_owned(),
        source,
        limit: "open files (ulimit -n)",
    };
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let peer = peer(stdin, stdout).map_err(failed)?;
    let keys = if signal { SignalKeys::Act } else { SignalKeys::Pass };
    let terminal = Terminal::enter_raw(stdin, keys).map_err(failed)?;
    Ok((Stdio { _terminal: terminal, _claim: claim }, peer))
}

/// The runtime has opened /dev/null in place of an fd that was closed at the start.
pub(super) fn peer(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>) -> io::Result<Peer> {
    Ok(Peer {
        input: Some(HostFd::shared(stdin, OFlags::RDONLY)?),
        output: Some(HostFd::shared(stdout, OFlags::WRONLY)?),
        filename: "stdio".to_owned(),
        hangs_up: false,
    })
}
