//! The architecture around the instructions: segments, interrupts, tasks.

pub(crate) mod interrupt;
pub(crate) mod segment;
pub(crate) mod task;
