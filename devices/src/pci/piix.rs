//! The bridge to the ISA bus, Intel 82371SB (PIIX3, 290550-002, 2.2), and the power management
//! function of its successor, 82371AB (PIIX4, 290562-001, 7).
//!
//! The bridge has PIRQRCA to PIRQRCD, by which firmware leads PCI interrupts to the 8259As. The
//! power management function says where the ACPI registers are, at a place that cannot be
//! changed, and that firmware need not set up system management mode, which there is none of.

use std::sync::Arc;

use board::device::Region;
use board::pci::{BarInfo, Effects};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::{Device, PciFunction};

use super::config::{Identity, offset};
use super::function::{PciConfig, PciConfigV1, PciLines};
use super::i440fx::SUBSYSTEM;
use super::router::{PIRQS, Router};

const PIRQRCA: u16 = 0x60;

/// PMBASE, 32 bits: bit 0 says that it is in I/O space.
const PMBASE: u16 = 0x40;
/// DEVACTB, whose bit 25 (APMC_EN) firmware takes for "SMM is set up".
const DEVACTB_HIGH: u16 = 0x5B;
const APMC_EN: u8 = 1 << 1;
/// PMREGMISC bit 0: the registers at PMBASE are there.
const PMREGMISC: u16 = 0x80;

/// The ISA bridge, function 0.
pub struct IsaBridge {
    config: PciConfig,
    router: Arc<Router>,
}

impl IsaBridge {
    /// The bridge after reset, with the routes of `router`.
    pub fn new(lines: PciLines, router: Arc<Router>) -> Self {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x7000,
            revision: 0,
            class: 0x06_0100,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            pin: None,
        };
        let mut config = PciConfig::new(&identity, lines);
        config.space().set_multi_function();
        Self { config, router }
    }
}

impl Device for IsaBridge {
    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn write(&mut self, _region: Region, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {
        // The routes are reset with the bus.
        self.config.reset();
    }

    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// Which PIRQRC an offset is.
fn pirqrc(offset: u16) -> Option<usize> {
    let index = usize::from(offset.checked_sub(PIRQRCA)?);
    (index < PIRQS).then_some(index)
}

impl PciFunction for IsaBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
        for (at, byte) in (offset..).zip(data) {
            if let Some(index) = pirqrc(at) {
                *byte = self.router.route(index);
            }
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        for (at, &value) in (offset..).zip(data) {
            if let Some(index) = pirqrc(at) {
                self.router.set_route(index, value);
            }
        }
        self.config.write(offset, data)
    }

    fn bars(&self) -> Vec<BarInfo> {
        Vec::new()
    }
}

impl Snapshot for IsaBridge {
    const KIND: &'static str = "piix3-isa";
    const VERSION: u32 = 1;
    type State = PciConfigV1;

    fn save(&self) -> PciConfigV1 {
        // The routes are saved with the bus.
        let Self { config, router: _ } = self;
        config.save()
    }

    fn restore(&mut self, state: PciConfigV1) -> Result<(), StateError> {
        self.config.restore(Self::KIND, state)
    }
}

/// The power management function, function 3.
pub struct PowerManagement {
    config: PciConfig,
}

impl PowerManagement {
    /// The function, for ACPI registers at port `base`; their interrupt is ISA interrupt `sci`.
    pub fn new(lines: PciLines, base: u16, sci: u8) -> Self {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x7113,
            revision: 3,
            class: 0x06_8000,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            pin: None,
        };
        let mut config = PciConfig::new(&identity, lines);
        let space = config.space();
        space.define(PMBASE, &(u32::from(base) | 1).to_le_bytes());
        space.define(DEVACTB_HIGH, &[APMC_EN]);
        space.define(PMREGMISC, &[1]);
        space.define(offset::INTERRUPT_LINE, &[sci]);
        Self { config }
    }
}

impl Device for PowerManagement {
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

impl PciFunction for PowerManagement {
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

impl Snapshot for PowerManagement {
    const KIND: &'static str = "piix4-pm";
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

#[cfg(test)]
mod tests {
    use board::IrqLine;

    use super::super::i440fx::HostBridge;
    use super::super::router::Outputs;
    use super::super::testing;
    use super::*;

    fn read(function: &mut dyn PciFunction, offset: u16) -> u32 {
        let mut data = [0; 4];
        function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn firmware_leads_interrupts_by_pirqrc() {
        let gsis = [0; PIRQS].map(|_| IrqLine::unconnected());
        let router = Router::new(Outputs { gsis, isa: Vec::new() });
        let mut bridge = IsaBridge::new(testing::lines().0, router.clone());
        assert_eq!(read(&mut bridge, 0), 0x7000_8086);
        assert_eq!(read(&mut bridge, 0x0C) >> 16, 0x80, "it has more functions");
        assert_eq!(read(&mut bridge, 0x60), 0x8080_8080);
        let _ = bridge.config_write(0x60, &[10, 10, 11, 0x7B]);
        assert_eq!(read(&mut bridge, 0x60), 0x0B0B_0A0A);
        assert_eq!((router.route(0), router.route(3)), (10, 11));
    }

    #[test]
    fn the_acpi_registers_are_where_they_are() {
        let mut pm = PowerManagement::new(testing::lines().0, 0x600, 9);
        let _ = pm.config_write(0x40, &0xB001_u32.to_le_bytes());
        let _ = pm.config_write(0x80, &[0]);
        assert_eq!((read(&mut pm, 0x40), read(&mut pm, 0x80)), (0x601, 1));
        assert_eq!((read(&mut pm, 0x58), read(&mut pm, 0x3C)), (0x0200_0000, 9));
        let saved = pm.save();
        PowerManagement::new(testing::lines().0, 0x600, 9).restore(saved.clone()).unwrap();
        assert!(PowerManagement::new(testing::lines().0, 0x700, 9).restore(saved).is_err());
    }

    #[test]
    fn the_host_bridge_keeps_its_attribute_map() {
        let mut host = HostBridge::new(testing::lines().0);
        assert_eq!((read(&mut host, 0x58), read(&mut host, 0x5C)), (0, 0));
        for at in [0x58, 0x5C] {
            let _ = host.config_write(at, &[0xFF; 4]);
        }
        assert_eq!((read(&mut host, 0x58), read(&mut host, 0x5C)), (0x3333_3000, 0x3333_3333));
        let saved = host.save();
        host.reset();
        assert_eq!(read(&mut host, 0x5C), 0);
        host.restore(saved).unwrap();
        assert_eq!(read(&mut host, 0x5C), 0x3333_3333);
    }
}
