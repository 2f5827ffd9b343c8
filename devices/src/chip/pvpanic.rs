//! pvpanic: the guest's kernel tells the machine that it has panicked.
//!
//! Source: QEMU, `docs/specs/pvpanic.rst`. One port: a read gives the events that the machine
//! understands, a write of one of them reports it.

use std::sync::Arc;

use board::{Device, Region, SystemControl, SystemRequest};

/// The kernel has panicked and does nothing further.
const PANICKED: u8 = 1 << 0;
/// The kernel has panicked and has loaded its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// The port.
pub struct PvPanic {
    system: Arc<dyn SystemControl>,
}

impl PvPanic {
    /// The one region, one byte.
    pub const PORT: Region = Region(0);

    /// A port that reports to `system`.
    pub fn new(system: Arc<dyn SystemControl>) -> Self {
        Self { system }
    }
}

impl Device for PvPanic {
    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = PANICKED | CRASH_LOADED;
    }

    fn write(&mut self, _region: Region, _offset: u64, data: &[u8]) {
        // A kernel that says both has no crash kernel that could still run.
        if data[0] & PANICKED != 0 {
            self.system.request(SystemRequest::Panicked);
        } else if data[0] & CRASH_LOADED != 0 {
            self.system.request(SystemRequest::CrashLoaded);
        }
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::super::testing::Requests;
    use super::*;

    #[test]
    fn events_are_announced_and_reported() {
        let requests = Arc::new(Requests::default());
        let mut port = PvPanic::new(requests.clone());
        let mut data = [0];
        port.read(PvPanic::PORT, 0, &mut data);
        assert_eq!(data, [3]);
        for value in [0, 4, 0xFC, 2, 1, 3] {
            port.write(PvPanic::PORT, 0, &[value]);
        }
        use SystemRequest::{CrashLoaded, Panicked};
        assert_eq!(requests.take(), [CrashLoaded, Panicked, Panicked]);
    }
}
