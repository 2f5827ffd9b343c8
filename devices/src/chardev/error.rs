//! What can go wrong between a backend specification and its host.

use std::io;
use std::path::PathBuf;

/// Why a character backend cannot be had. Each message is one line with the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ChardevError {
    /// The specification names no backend that there is.
    #[error("unknown character backend '{name}': {hint}")]
    Unknown {
        /// What was written.
        name: String,
        /// The nearest known name, or all of them.
        hint: String,
    },
    /// An option that the backend does not have.
    #[error("character backend '{backend}' has no option '{option}': {hint}")]
    Option {
        /// The backend's name.
        backend: &'static str,
        /// What was written.
        option: String,
        /// The nearest known option, or all of them.
        hint: String,
    },
    /// An option's value that is not of its type.
    #[error("'{value}' is no value for '{option}': give {wanted}")]
    Value {
        /// The option's name.
        option: String,
        /// What was written.
        value: String,
        /// What is accepted.
        wanted: &'static str,
    },
    /// Something that the backend cannot do without is not there.
    #[error("character backend '{backend}' lacks {what}: write {example}")]
    Missing {
        /// The backend's name.
        backend: &'static str,
        /// What is lacking.
        what: &'static str,
        /// A specification that would do.
        example: &'static str,
    },
    /// Options that exclude each other, or a backend.
    #[error("{problem}: {remedy}")]
    Conflict {
        /// What does not go together.
        problem: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// A second backend of the same name.
    #[error("there are two character backends named '{id}': give one of them another id")]
    Duplicate {
        /// The name.
        id: String,
    },
    /// `chardev:ID` names no backend.
    #[error("there is no character backend with the id '{id}': {hint}")]
    NoSuchId {
        /// The name.
        id: String,
        /// The nearest known id, or how to make one.
        hint: String,
    },
    /// A second frontend wants a backend that only one can have.
    #[error(
        "character backend '{label}' is already in use: share it by mux=on (mon:... on a line)"
    )]
    InUse {
        /// The backend's name.
        label: String,
    },
    /// Two backends want the one terminal.
    #[error(
        "stdio is already used by '{by}': share it by 'mon:stdio', or use pty or unix:PATH here"
    )]
    StdioInUse {
        /// The backend that has it.
        by: String,
    },
    /// A path cannot be opened.
    #[error("cannot open '{}': {}: {}", path.display(), cause(source), remedy(source))]
    Open {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no FIFO to open.
    #[error("there is no pipe '{}': make the pair of it by 'mkfifo {0}.in {0}.out'", path.display())]
    NoPipe {
        /// The path without a suffix.
        path: PathBuf,
    },
    /// A socket cannot be listened on.
    #[error("cannot listen on {address}: {}: {remedy}", cause(source))]
    Listen {
        /// The address as `unix:PATH` or `tcp:HOST:PORT`.
        address: String,
        /// The cause.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A server does not answer.
    #[error(
        "cannot connect to {address}: {}: start the server first, or add ',server=on' to be the server",
        cause(source)
    )]
    Connect {
        /// The address as `unix:PATH` or `tcp:HOST:PORT`.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The host has run out of something.
    #[error(
        "cannot set up character backend '{label}': {}: raise the limit on {limit}",
        cause(source)
    )]
    Host {
        /// The backend's name.
        label: String,
        /// The cause.
        source: io::Error,
        /// What there may be too few of.
        limit: &'static str,
    },
}

/// What has gone wrong, without the number that the standard library adds.
pub(super) fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create it, or the directory that it is to lie in",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a path that you may write to"
        }
        io::ErrorKind::IsADirectory => "give the name of a file in it",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on the disk",
        _ if error.raw_os_error() == Some(libc::ENXIO) => "start its reader first",
        _ => "choose another path",
    }
}
