//! The software CPU as the machine's accelerator: crate `cpu` executes, `devices` has the local
//! APICs, and here one is given to the other.

use std::sync::Arc;

use board::memory::MemoryMap;
use board::{Accel, AccelError, LoopHandle};
use cpu::{Apics, SoftAccel};
use devices::chip::apic_bus::LocalApics;

/// The software CPU over the memory of `map`. The timers of its local APICs run on `events`, whose
/// clock its time-stamp counters follow.
///
/// # Errors
/// [`AccelError::Host`].
pub fn open(map: &MemoryMap, events: &LoopHandle) -> Result<Arc<dyn Accel>, AccelError> {
    let bus = LocalApics::new();
    let (apics, timers) = (bus.clone(), events.clone());
    let make = Box::new(move |id, kicker| Box::new(apics.add(id, kicker, &timers)) as Box<_>);
    let accel = SoftAccel::new(events.clock().clone(), Some(Apics { make, bus }));
    accel.set_memory(map)?;
    Ok(Arc::new(accel))
}
