//! The software CPU as the machine's accelerator: crate `cpu` executes, `devices` has the local
//! APICs, and here one is given to the other.

use std::sync::Arc;

use board::memory::MemoryMap;
use board::{Accel, AccelError, LoopHandle};
use cpu::{Apics, Counting, SoftAccel};
use devices::chip::apic_bus::LocalApics;

use crate::config::{Config, Icount};

/// The software CPU over the memory of `map`. The timers of its local APICs run on `events`, whose
/// clock its time-stamp counters follow, or with `--icount` its vCPU drives.
///
/// # Errors
/// [`AccelError::Host`].
pub fn open(
    config: &Config,
    map: &MemoryMap,
    events: &LoopHandle,
) -> Result<Arc<dyn Accel>, AccelError> {
    let bus = LocalApics::new();
    let (apics, timers) = (bus.clone(), events.clone());
    let make = Box::new(move |id, kicker| Box::new(apics.add(id, kicker, &timers)) as Box<_>);
    let mut accel =
        SoftAccel::new(events.clock().clone(), Some(Apics { make, bus })).seeded(config.seed);
    if let Some(Icount { shift, sleep }) = config.icount {
        // The paravirtual clock's wall clock starts with the RTC, and goes with the machine's clock.
        let base = u64::try_from(config.rtc.start_nanos()).unwrap_or(0);
        let clock = events.clock().clone();
        accel = accel
            .counting(Counting { events: events.clone(), shift, sleep })
            .with_wall_clock(Box::new(move || base.saturating_add(clock.now().nanos())));
    }
    accel.set_memory(map)?;
    Ok(Arc::new(accel))
}
