//! The console language: the command table, HMP, QMP and line editing. Bytes in, bytes out.
//!
//! [`Hmp`], [`Qmp`] and [`gdb::Gdb`] are sessions: the caller feeds them what it read from a character device and
//! writes out what they give back. Commands act on the machine through [`Control`] only, which the
//! caller implements. HMP's syntax and output, and QMP's names and errors, are QEMU's (7.2), so
//! that scripts written for its monitor go on working.

mod args;
pub mod block;
mod commands;
mod complete;
mod control;
mod disas;
mod error;
mod event;
mod expr;
mod format;
pub mod gdb;
mod hmp;
mod json;
mod keys;
mod line;
mod qmp;
mod reference;
mod registers;
pub mod reply;
mod schema;
pub mod state;
mod table;
mod text;
pub mod virtio;

pub use args::{Args, Value};
pub use control::Control;
pub use disas::{Instruction, instruction};
pub use error::CommandError;
pub use event::{BlockIoError, Cause, Event, PanicAction};
pub use format::{Format, Style};
pub use hmp::Hmp;
pub use qmp::Qmp;
pub use reference::reference;
pub use reply::Reply;
pub use schema::{Enum, Member, Object, Type};
pub use table::{Arg, ArgKind, Command, Complete, Outcome, QmpForm, commands};
