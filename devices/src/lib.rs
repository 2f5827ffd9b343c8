//! The chips of a PC, and the host backends that they talk to.
//!
//! A chip has two layers: a pure register machine, which has no locks and does no I/O, and thin
//! glue that gives it its lines, timers and backend.

pub mod block;
pub mod chardev;
pub mod chip;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod net;
pub mod pci;
pub mod virtio;
