//! Character devices: the bytes between a chip (or the monitor) and the host.
//!
//! A [`BackendSpec`] says what was asked for, [`Chardevs`] opens it, and a frontend holds a
//! [`CharPort`] of the [`Chardev`] that comes of it. Several frontends share a multiplexed one.

mod backend;
mod buffer;
mod error;
mod host;
mod mux;
mod path;
mod pty;
mod registry;
mod socket;
mod source;
mod spec;
mod state;
mod stdio;
pub mod terminal;
#[cfg(test)]
mod tests;

use board::device::Notifier;

pub use backend::{Chardev, ChardevInfo, Host, HotKey};
pub use error::ChardevError;
pub use registry::Chardevs;
pub use spec::{BackendKind, BackendSpec, SocketAddress, SocketRole};

/// The end of a character device that a frontend holds: a UART, a debug console, the monitor.
///
/// Nothing here blocks. Backpressure goes both ways: a frontend keeps what `write` did not take,
/// and what it does not `read` stays with the backend, which in the end stops reading the host.
pub trait CharPort: Send {
    /// Names who is to hear that there is input again, room for output again, a break or a change
    /// of focus. What there is already is told at once.
    fn set_notifier(&mut self, notifier: Notifier);

    /// Takes bytes from the front of `data` and returns how many. When that is fewer than all, the
    /// notifier comes once there is room again. While there is nobody at the far end, output is
    /// taken and thrown away.
    fn write(&mut self, data: &[u8]) -> usize;

    /// Fills `data` from its front with input and returns how many bytes. When that is fewer than
    /// `data` has room for, the notifier comes once there is input again.
    fn read(&mut self, data: &mut [u8]) -> usize;

    /// Whether a break condition has come since the last call (Ctrl-A b on a terminal).
    fn take_break(&mut self) -> bool;

    /// Whether the far end has turned to this port (`true`) or away from it since the last call:
    /// a client connects, also in place of an earlier one, or goes; Ctrl-A c gives the terminal to
    /// this frontend or to another. A port begins without focus; where somebody is at the far end
    /// already, it comes with the first notification.
    fn take_focus(&mut self) -> Option<bool> {
        None
    }

    /// The columns of the terminal at the far end, now; `None` when it is none or does not say.
    fn width(&self) -> Option<u16> {
        None
    }
}

/// A port that swallows output and never has input: the backend `null`.
#[derive(Debug, Default)]
pub struct NullPort;

impl CharPort for NullPort {
    fn set_notifier(&mut self, _notifier: Notifier) {}

    fn write(&mut self, data: &[u8]) -> usize {
        data.len()
    }

    fn read(&mut self, _data: &mut [u8]) -> usize {
        0
    }

    fn take_break(&mut self) -> bool {
        false
    }
}
