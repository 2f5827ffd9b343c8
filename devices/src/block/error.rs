//! What can be wrong with a disk image, or with asking for one.

use std::io;

/// Why a disk cannot be had, or changed. Each message has the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The host refuses a file.
    #[error("cannot {what} {path} ({cause}): {}", remedy(.cause))]
    File {
        /// "open", "create" ...
        what: &'static str,
        /// The file.
        path: String,
        /// The system's error.
        cause: io::Error,
    },
    /// Another process uses the image in a way that excludes ours.
    #[error(
        "{path} is in use: another process holds its \"{lock}\" lock; end that process, or open the image with {way_out}"
    )]
    Locked {
        /// The file.
        path: String,
        /// The permission that is contended, in qemu-img's words.
        lock: &'static str,
        /// What would work.
        way_out: &'static str,
    },
    /// The image is not what its format asks for.
    #[error("{path} is a damaged {format} image ({cause}): qemu-img check tells more")]
    Damaged {
        /// The file.
        path: String,
        /// The format.
        format: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// The image is sound but needs what is not there.
    #[error("{path}: {what}")]
    Unsupported {
        /// The file.
        path: String,
        /// What, and what to do.
        what: String,
    },
    /// No drive of that name.
    #[error("there is no drive '{name}': {hint}")]
    NoSuchDrive {
        /// The name.
        name: String,
        /// The nearest, or how to make one.
        hint: String,
    },
    /// The name is taken.
    #[error("there are two drives named '{name}': give one of them another id")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A device has the drive already.
    #[error("drive '{name}' is in use by {owner}: give each device a drive of its own")]
    InUse {
        /// The drive.
        name: String,
        /// The device.
        owner: String,
    },
    /// What was asked for makes no sense for this drive.
    #[error("{0}")]
    Refused(String),
    /// A read or write failed while the image was opened or changed.
    #[error("{path}: {what} failed ({cause})")]
    Io {
        /// The file.
        path: String,
        /// What was being done.
        what: &'static str,
        /// The system's error.
        cause: io::Error,
    },
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "check the path, or make an image with qemu-img create",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "change its permissions, or add readonly=on"
        }
        io::ErrorKind::IsADirectory => "name a file in it",
        io::ErrorKind::InvalidInput => "its file system has no direct I/O: leave out cache=none",
        _ => "check the file",
    }
}
