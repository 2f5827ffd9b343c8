//! The host bridge, function 0 of device 0: Intel 82441FX (290549-001, 3.2), which firmware and
//! kernels know.
//!
//! Of its registers there are those that firmware sets. The programmable attribute map (PAM, at
//! 0x59 to 0x5F) keeps what is written and changes nothing: the memory from 640 KiB to 1 MiB is RAM
//! at all times, into which the machine has copied the firmware, as if it had been unlocked
//! already. The subsystem is the one by which firmware tells a virtual machine.

use board::device::Region;
use board::pci::{BarInfo, Effects};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::{Device, PciFunction};

use super::config::Identity;
use super::function::{PciConfig, PciConfigV1, PciLines};

const PAM0: u16 = 0x59;
const SMRAM: u16 = 0x72;

/// Vendor and device of the platform's subsystems.
pub const SUBSYSTEM: (u16, u16) = (0x1AF4, 0x1100);

/// The host bridge.
pub struct HostBridge {
    config: PciConfig,
}

impl HostBridge {
    /// The bridge after reset.
    pub fn new(lines: PciLines) -> Self {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x1237,
            revision: 0x02,
            class: 0x06_0000,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            pin: None,
        };
        let mut config = PciConfig::new(&identity, lines);
        let space = config.space();
        // Two bits of a half byte, for reads and for writes; the lower half of PAM0 is reserved.
        space.allow(PAM0, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        space.define(SMRAM, &[0x02]);
        space.allow(SMRAM, &[0x78]);
        Self { config }
    }
}

impl Device for HostBridge {
    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn write(&mut self, _region: Region, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {
        self.config.reset();
    }

    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        self.config.write(offset, data)
    }

    fn bars(&self) -> Vec<BarInfo> {
        Vec::new()
    }
}

impl Snapshot for HostBridge {
    const KIND: &'static str = "i440fx";
    const VERSION: u32 = 1;
    type State = PciConfigV1;

    fn save(&self) -> PciConfigV1 {
        let Self { config } = self;
        config.save()
    }

    fn restore(&mut self, state: PciConfigV1) -> Result<(), StateError> {
        self.config.restore(Self::KIND, state)
    }
}
