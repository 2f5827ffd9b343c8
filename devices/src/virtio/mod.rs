//! Virtio 1.2: one core over crate `virtio-queue`, the transports, and the devices.
//!
//! A transport owns the core, which owns the device, so that there is one lock: that of the slot.
//! Queues are worked on by the loop's thread, which their doorbells wake.

pub mod balloon;
pub mod blk;
mod chain;
pub mod console;
mod core;
mod device;
#[cfg(any(test, feature = "fuzz"))]
pub mod driver;
pub mod mmio;
pub mod net;
pub mod pci;
mod queue;
pub mod rng;
#[cfg(test)]
mod tests;

pub use chain::{Chain, MAX_SEGMENTS, Malformed, Segment, parts};
pub use core::{
    Cause, Core, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, FIRST_CORE_TAG, Interrupt, Io,
    RingOptions, Status,
};
pub use device::{
    BALLOON, BLOCK, CONSOLE, ENTROPY, Kind, NET, NINE_P, VSOCK, VirtioDevice, read_bytes,
};
pub use queue::{Layout, Queue};

use std::any::Any;

use board::Slot;

/// Locks the slot and calls `act` with its virtio device, if it is a `D`, on whichever transport.
pub fn with_device<D: VirtioDevice, R>(
    slot: &Slot,
    act: impl FnOnce(&mut D, &mut Io<'_>) -> R,
) -> Option<R> {
    with_core(slot, |core, interrupt| core.with(interrupt, act)).flatten()
}

/// Locks the slot and calls `act` with what is behind its transport, if it has a virtio device.
pub fn with_core<R>(
    slot: &Slot,
    act: impl FnOnce(&mut Core, &mut dyn Interrupt) -> R,
) -> Option<R> {
    let device: &mut dyn Any = &mut **slot.lock();
    let (core, interrupt) = if device.is::<mmio::VirtioMmio>() {
        device.downcast_mut::<mmio::VirtioMmio>()?.core()
    } else {
        device.downcast_mut::<pci::VirtioPci>()?.core()
    };
    Some(act(core, interrupt))
}
