//! Interrupt lines and message-signalled interrupts.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whatever interrupt lines end in: an interrupt controller, or a test that looks on.
pub trait IrqSink: Send + Sync {
    /// Sets the level of input `pin`. Called from any thread, with a device's lock held; it may
    /// take the controller's lock and notify a vCPU, and calls no device.
    fn set_irq(&self, pin: u32, level: bool);
}

/// A wire from a chip to one input of a controller. Clones are the same wire.
#[derive(Clone)]
pub struct IrqLine {
    sink: Option<Arc<dyn IrqSink>>,
    pin: u32,
}

impl IrqLine {
    /// A line to input `pin` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        Self { sink: Some(sink), pin }
    }

    /// A line that ends nowhere.
    pub fn unconnected() -> Self {
        Self { sink: None, pin: 0 }
    }

    /// A line that ends in a probe which shows its level and counts its rising edges.
    pub fn probe() -> (Self, Arc<IrqProbe>) {
        let probe = Arc::new(IrqProbe::default());
        (Self::new(probe.clone(), 0), probe)
    }

    /// The controller's input that this line drives.
    pub fn pin(&self) -> u32 {
        self.pin
    }

    /// Drives the line high or low. Setting the level that it has is no edge.
    pub fn set(&self, level: bool) {
        if let Some(sink) = &self.sink {
            sink.set_irq(self.pin, level);
        }
    }

    /// Drives the line low, then high: one edge, and the line stays high.
    pub fn edge(&self) {
        self.set(false);
        self.set(true);
    }
}

/// One input that several chips drive: it is high while any of them drives it high.
pub struct SharedLine {
    line: IrqLine,
    /// One bit a chip.
    levels: Mutex<u64>,
    users: AtomicU32,
}

impl SharedLine {
    /// Shares `line`.
    pub fn new(line: IrqLine) -> Arc<Self> {
        Arc::new(Self { line, levels: Mutex::new(0), users: AtomicU32::new(0) })
    }

    /// The line for one more chip, of at most 64.
    pub fn share(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(self.clone(), self.users.fetch_add(1, Ordering::Relaxed) % 64)
    }
}

impl IrqSink for SharedLine {
    fn set_irq(&self, pin: u32, level: bool) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *levels;
        *levels = before & !(1 << pin) | u64::from(level) << pin;
        // Under the lock, so that the input sees the levels in their order.
        if (before != 0) != (*levels != 0) {
            self.line.set(*levels != 0);
        }
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sink {
            Some(_) => write!(f, "IrqLine({})", self.pin),
            None => write!(f, "IrqLine(unconnected)"),
        }
    }
}

/// The end of a line made by [`IrqLine::probe`].
#[derive(Debug, Default)]
pub struct IrqProbe {
    level: AtomicBool,
    edges: AtomicU32,
}

impl IrqProbe {
    /// The line's level now.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }

    /// Rising edges since the last call.
    pub fn take_edges(&self) -> u32 {
        self.edges.swap(0, Ordering::Relaxed)
    }
}

impl IrqSink for IrqProbe {
    fn set_irq(&self, _pin: u32, level: bool) {
        if level && !self.level.swap(level, Ordering::Relaxed) {
            self.edges.fetch_add(1, Ordering::Relaxed);
        }
        self.level.store(level, Ordering::Relaxed);
    }
}

/// A message-signalled interrupt: a write of `data` to `address` (Intel SDM vol. 3, 11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Address, 0xFEEx_xxxx for an interrupt.
    pub address: u64,
    /// Vector, delivery mode and trigger mode.
    pub data: u32,
}

/// Whatever delivers messages to local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers `msi`. What no local APIC accepts is dropped, as on the bus.
    fn send(&self, msi: Msi);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_counts_rising_edges_only() {
        let (line, probe) = IrqLine::probe();
        line.set(true);
        line.set(true);
        assert_eq!((probe.level(), probe.take_edges()), (true, 1));
        line.edge();
        assert_eq!((probe.level(), probe.take_edges()), (true, 1));
        line.set(false);
        assert_eq!((probe.level(), probe.take_edges()), (false, 0));
        IrqLine::unconnected().set(true);
    }

    #[test]
    fn a_shared_line_is_high_while_any_chip_drives_it() {
        let (line, probe) = IrqLine::probe();
        let shared = SharedLine::new(line);
        let (a, b) = (shared.share(), shared.share());
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!((probe.level(), probe.take_edges()), (true, 1));
        b.set(false);
        assert!(!probe.level());
    }
}
