//! What the tests of PCI share.

use std::sync::{Arc, Mutex};

use board::IrqLine;
use board::irq::{IrqProbe, Msi, MsiSink};

use super::function::PciLines;

/// A local APIC that writes down the messages it gets, address and data.
#[derive(Default)]
pub(super) struct Sink(Mutex<Vec<(u64, u32)>>);

impl Sink {
    pub(super) fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MsiSink for Sink {
    fn send(&self, msi: Msi) {
        self.0.lock().unwrap().push((msi.address, msi.data));
    }
}

/// Lines that end in a sink and a probe.
pub(super) fn lines() -> (PciLines, Arc<Sink>, Arc<IrqProbe>) {
    let sink = Arc::new(Sink::default());
    let (intx, probe) = IrqLine::probe();
    (PciLines { intx, msi: sink.clone() }, sink, probe)
}
