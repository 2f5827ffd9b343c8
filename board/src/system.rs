//! Requests that a chip makes of the machine as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a guest can ask of the machine through one of its chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemRequest {
    /// A reset: i8042 pulse, port 0x92, port 0xCF9, the ACPI reset register.
    Reset,
    /// Power-off: ACPI S5.
    PowerOff,
    /// isa-debug-exit: the process ends with this status.
    Exit(u8),
    /// pvpanic bit 0: the guest's kernel has panicked.
    Panicked,
    /// pvpanic bit 1: the guest has panicked and loaded its crash kernel, which runs on.
    CrashLoaded,
    /// ACPI's _EJ0: the guest has given up the PCI devices in these slots, a bit a slot.
    EjectPci {
        /// The slots.
        slots: u32,
    },
}

/// The machine, as the chips that reset it or turn it off see it.
pub trait SystemControl: Send + Sync {
    /// Takes note of a request and makes the vCPUs leave the guest; the main loop carries it out.
    /// Never blocks. The vCPU whose access caused it does not execute another instruction before
    /// the request is carried out.
    fn request(&self, request: SystemRequest);
}

/// The A20 gate as a wire that port 0x92 and the i8042 both drive: the last writer wins.
///
/// KVM cannot mask address line 20, so the gate's level is kept for guests that read it back and
/// does not change the addresses that reach memory.
#[derive(Clone, Debug)]
pub struct A20Gate(Arc<AtomicBool>);

impl A20Gate {
    /// An open gate: address line 20 is passed on. Firmware leaves it so.
    pub fn open() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Whether address line 20 is passed on.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Opens or closes the gate.
    pub fn set(&self, open: bool) {
        self.0.store(open, Ordering::Relaxed);
    }
}
