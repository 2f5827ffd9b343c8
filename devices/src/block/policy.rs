//! What becomes of a request that failed: `werror=`, `rerror=`.

use std::io;

/// What to do about an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The guest sees it.
    #[default]
    Report,
    /// The guest hears that all went well.
    Ignore,
    /// The machine stops, and does the request again when it goes on.
    Stop,
    /// As `Stop` where the host's disk is full, as `Report` otherwise.
    Enospc,
}

impl OnError {
    /// QEMU's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Ignore => "ignore",
            Self::Stop => "stop",
            Self::Enospc => "enospc",
        }
    }

    /// What it comes to for `error`: never `Enospc`.
    pub(super) fn resolve(self, error: &io::Error) -> Self {
        match self {
            Self::Enospc if is_full(error) => Self::Stop,
            Self::Enospc => Self::Report,
            other => other,
        }
    }
}

/// Whether the host has no room left.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A request has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReport {
    /// The drive.
    pub drive: String,
    /// It was no read.
    pub write: bool,
    /// What was done: never [`OnError::Enospc`].
    pub action: OnError,
    /// The host has no room left.
    pub nospace: bool,
    /// The system's words.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enospc_stops_only_when_the_disk_is_full() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let broken = io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(OnError::Enospc.resolve(&full), OnError::Stop);
        assert_eq!(OnError::Enospc.resolve(&broken), OnError::Report);
        assert_eq!(OnError::Ignore.resolve(&full), OnError::Ignore);
    }
}
