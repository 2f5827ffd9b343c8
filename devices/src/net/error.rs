//! What can go wrong between a network specification and its host.

use std::io;

/// Why a network backend cannot be had, or changed. Each message has the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The host refuses.
    #[error("netdev '{id}': cannot {what} ({cause}): {remedy}")]
    Host {
        /// The backend.
        id: String,
        /// What was tried.
        what: String,
        /// The system's error.
        cause: io::Error,
        /// What to do.
        remedy: String,
    },
    /// A script did not succeed.
    #[error("netdev '{id}': {script} failed ({status}): see what it printed, or give script=no")]
    Script {
        /// The backend.
        id: String,
        /// The script.
        script: String,
        /// How it ended.
        status: String,
    },
    /// An address or option that does not fit the others.
    #[error("netdev '{id}': {problem}: {remedy}")]
    Conflict {
        /// The backend.
        id: String,
        /// What does not fit.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The name is taken.
    #[error("Duplicate ID '{id}' for netdev: give one of them another id")]
    Duplicate {
        /// The name.
        id: String,
    },
    /// There is no such backend.
    #[error("there is no netdev '{id}': {hint}")]
    NoSuchId {
        /// The name.
        id: String,
        /// The nearest, or how to make one.
        hint: String,
    },
    /// A card has it.
    #[error("netdev '{id}' is in use by a network card: give each card a netdev of its own")]
    InUse {
        /// The backend.
        id: String,
    },
    /// A forward that cannot be made or is not there. The text is what the monitor prints.
    #[error("{0}")]
    Forward(String),
}
