//! What can be wrong with a command line.

use devices::chardev::ChardevError;

use crate::cpuid::CpuError;

/// Why a command line is refused. Each message has the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that is not understood, or not in range.
    #[error("{option}: '{value}' is not {expected}")]
    BadValue {
        /// The option.
        option: String,
        /// What was given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A key that the option does not have.
    #[error("{option} has no property '{key}': {}", hint(.near, "it has", .known))]
    UnknownKey {
        /// The option.
        option: String,
        /// The key.
        key: String,
        /// The closest one that it has.
        near: Option<String>,
        /// All that it has.
        known: String,
    },
    /// A key that the option needs.
    #[error("{option} lacks {key}: add {key}=VALUE")]
    MissingKey {
        /// The option.
        option: String,
        /// The key.
        key: String,
    },
    /// A name that is not known.
    #[error("{option}: there is no '{name}': {}", hint(.near, "known are", .known))]
    UnknownName {
        /// The option.
        option: &'static str,
        /// What was given.
        name: String,
        /// The closest known one.
        near: Option<String>,
        /// All names.
        known: String,
    },
    /// Options that contradict each other.
    #[error("{0}")]
    Conflict(String),
    /// A file that an option names cannot be read.
    #[error("{option}: cannot read {path} ({cause}): check the path and its permissions")]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        path: String,
        /// The system's error.
        cause: std::io::Error,
    },
    /// A character backend.
    #[error(transparent)]
    Chardev(#[from] ChardevError),
    /// A CPU model.
    #[error(transparent)]
    Cpu(#[from] CpuError),
}

fn hint(near: &Option<String>, there_are: &str, known: &str) -> String {
    match near {
        Some(name) => format!("did you mean '{name}'?"),
        None => format!("{there_are} {known}"),
    }
}
