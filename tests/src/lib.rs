//! Integration tests that boot guests, and the harness they share.
//!
//! A test names a guest, gives itself a time limit, and says what it expects of it:
//!
//! ```no_run
//! use tests::{Vmm, on_each_accel};
//!
//! on_each_accel(|accel| {
//!     let machine = Vmm::new(accel).guest("hello").start();
//!     machine.wait_for("Hello");
//!     machine.finish().succeeded();
//! });
//! ```
//!
//! The limit is for the whole life of a machine and generous, since the host may be busy; it only
//! keeps a test that hangs from hanging the others. Timing itself is never asserted.

mod accel;
mod files;
mod gdb;
mod machine;
mod monitor;
mod rig;
mod terminal;
mod transcript;

pub use accel::{Accel, emulates_ring0, on_each_accel, reasons, with_kvm};
pub use files::{TempDir, file_of, guest, image, notice, program, repository, soak};
pub use gdb::Gdb;
pub use machine::{Finished, Machine, Vmm};
pub use monitor::{Hmp, Qmp};
pub use rig::{Access, Record, Rig};
pub use terminal::Terminal;
pub use transcript::Transcript;
