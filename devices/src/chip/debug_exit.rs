//! isa-debug-exit: a guest's test program ends the process with a status of its choice.
//!
//! A write of `value` makes the status `(value << 1) | 1`, of which the host keeps 8 bits: it is
//! never 0, which stays for a machine that was turned off (QEMU, `hw/misc/debugexit.c`).

use std::sync::Arc;

use board::{Device, Region, SystemControl, SystemRequest};

/// The port, as wide as the user wishes.
pub struct DebugExit {
    system: Arc<dyn SystemControl>,
}

impl DebugExit {
    /// The one region.
    pub const PORT: Region = Region(0);

    /// A port that ends the process by `system`.
    pub fn new(system: Arc<dyn SystemControl>) -> Self {
        Self { system }
    }
}

impl Device for DebugExit {
    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _region: Region, _offset: u64, data: &[u8]) {
        // Only the lowest byte is left of the status.
        self.system.request(SystemRequest::Exit(data[0] << 1 | 1));
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::super::testing::Requests;
    use super::*;

    #[test]
    fn the_status_is_odd_and_has_eight_bits() {
        let requests = Arc::new(Requests::default());
        let mut port = DebugExit::new(requests.clone());
        for data in [&[0][..], &[0x10], &[0xFF, 0xFF], &[0x81, 2, 3, 4]] {
            port.write(DebugExit::PORT, 0, data);
        }
        let statuses = [0x01, 0x21, 0xFF, 0x03].map(SystemRequest::Exit);
        assert_eq!(requests.take(), statuses);
        let mut data = [0xFF; 2];
        port.read(DebugExit::PORT, 0, &mut data);
        assert_eq!(data, [0, 0]);
    }
}
