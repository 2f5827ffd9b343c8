//! What can go wrong with a command. HMP prints the message as a line, QMP puts it in `desc`.

use std::io;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The command line does not parse; HMP adds where to find help.
    #[error("{0}")]
    Syntax(String),
    /// No such HMP command.
    #[error("unknown command: '{name}'{}", did_you_mean(.nearest))]
    UnknownCommand {
        /// What was typed.
        name: String,
        /// The known command closest to it, if one is close.
        nearest: Option<String>,
    },
    /// No such QMP command.
    #[error("The command {0} has not been found")]
    CommandNotFound(String),
    /// A QMP command came at the wrong time of the capabilities negotiation.
    #[error("{0}")]
    Negotiation(&'static str),
    /// A required argument is not there.
    #[error("Parameter '{0}' is missing")]
    Missing(&'static str),
    /// An argument that the command does not have.
    #[error("Parameter '{0}' is unexpected")]
    Unexpected(String),
    /// An argument of the wrong JSON type.
    #[error("Invalid parameter type for '{name}', expected: {expected}")]
    WrongType {
        /// The argument.
        name: &'static str,
        /// The JSON type that it should have.
        expected: &'static str,
    },
    /// An argument of the right type with a value that makes no sense here.
    #[error("Parameter '{name}' expects {expected}")]
    BadValue {
        /// The argument.
        name: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// No device has this id.
    #[error("Device '{0}' not found")]
    DeviceNotFound(String),
    /// No memory at an address, or no page maps it.
    #[error("Cannot access memory at address {0:#x}")]
    Unmapped(u64),
    /// A range that is to be saved is not all there.
    #[error("Invalid addr {addr:#018x}/size {size} specified")]
    BadRange {
        /// First byte of the chunk that could not be read.
        addr: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// A file of the host cannot be opened or written.
    #[error("Could not {what} '{path}': {}", os_words(.source))]
    File {
        /// "open" or "write".
        what: &'static str,
        /// As the user gave it.
        path: String,
        /// What the host said.
        source: io::Error,
    },
    /// The machine is in a state that only a reset leaves.
    #[error("Resetting the Virtual Machine is required")]
    NeedsReset,
    /// A plain remark, which HMP prints as it is.
    #[error("{0}")]
    Remark(String),
    /// The machine declined; the text gives the cause and the next step.
    #[error("{0}")]
    Refused(String),
}

/// `strerror`'s words without Rust's "(os error N)".
/// What the host said, without its number.
pub(crate) fn os_words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!("; did you mean '{name}'?"))
}
