//! The registers by which ACPI's methods learn of PCI devices that come and are to go.
//!
//! The layout is that of QEMU (docs/specs/acpi_pci_hotplug): 32-bit registers, a bit a slot.
//!
//! | offset | name | access |
//! |---|---|---|
//! | 0x00 | PCIU | slots into which a device was plugged; reading clears |
//! | 0x04 | PCID | slots whose device is to be given up; cleared by its ejection |
//! | 0x08 | B0EJ | writing ejects; reads 0 |
//! | 0x0C | RMV | slots whose device can be pulled out |
//! | 0x10 | BSEL | the bus; there is one |
//!
//! That something has happened says general-purpose event [`GPE`]. A guest's ejection is a request
//! to the machine, which pulls the device out before the vCPU goes on.

use std::sync::Arc;

use board::device::{Region, Tag};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::{Device, SystemControl, SystemRequest, VmTime};
use serde::{Deserialize, Serialize};

/// The general-purpose event, whose method is `\_GPE._E01`.
pub const GPE: u8 = 1;
/// Bytes of the one region.
pub const SIZE: u64 = 0x14;

const UP: u64 = 0x00;
const DOWN: u64 = 0x04;
const EJECT: u64 = 0x08;
const REMOVABLE: u64 = 0x0C;

/// The host bridge and the ISA bridge stay where they are.
const SLOTS: u32 = !0b11;

/// The registers.
pub struct PciHotplug {
    up: u32,
    down: u32,
    system: Arc<dyn SystemControl>,
}

impl PciHotplug {
    /// The one region, [`SIZE`] bytes, best mapped with width [`board::Width::Dword`].
    pub const REGISTERS: Region = Region(0);

    /// Registers that hand ejections to `system`.
    pub fn new(system: Arc<dyn SystemControl>) -> Self {
        Self { up: 0, down: 0, system }
    }

    /// The event that a device was plugged into `slot`.
    pub const fn plugged(slot: u8) -> Tag {
        Tag((slot & 0x1F) as u32)
    }

    /// The event that the device in `slot` is to be given up.
    pub const fn unplug_wanted(slot: u8) -> Tag {
        Tag(0x20 | (slot & 0x1F) as u32)
    }
}

impl Device for PciHotplug {
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let register = match offset & !3 {
            UP => self.up,
            DOWN => self.down,
            REMOVABLE => SLOTS,
            _ => 0,
        };
        let bytes = register.to_le_bytes();
        for (at, byte) in ((offset & 3) as usize..4).zip(data.iter_mut()) {
            *byte = bytes[at];
            if offset & !3 == UP {
                self.up &= !(0xFF << (at * 8));
            }
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        if offset & !3 != EJECT {
            return;
        }
        let mut slots = 0;
        for (at, &byte) in ((offset & 3) as usize..4).zip(data) {
            slots |= u32::from(byte) << (at * 8);
        }
        let slots = slots & SLOTS;
        self.down &= !slots;
        if slots != 0 {
            self.system.request(SystemRequest::EjectPci { slots });
        }
    }

    fn event(&mut self, tag: Tag, _now: VmTime) {
        let slot = 1 << (tag.0 & 0x1F) & SLOTS;
        if tag.0 & 0x20 == 0 { self.up |= slot } else { self.down |= slot }
    }

    fn reset(&mut self) {
        (self.up, self.down) = (0, 0);
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// The saved registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHotplugV1 {
    up: u32,
    down: u32,
}

impl Snapshot for PciHotplug {
    const KIND: &'static str = "acpi-pci-hotplug";
    const VERSION: u32 = 1;
    type State = PciHotplugV1;

    fn save(&self) -> PciHotplugV1 {
        let Self { up, down, system: _ } = self;
        PciHotplugV1 { up: *up, down: *down }
    }

    fn restore(&mut self, state: PciHotplugV1) -> Result<(), StateError> {
        let PciHotplugV1 { up, down } = state;
        if (up | down) & !SLOTS != 0 {
            let cause = format!("slots {:#x} are none of devices", (up | down) & !SLOTS);
            return Err(StateError::Damaged { kind: Self::KIND, cause });
        }
        (self.up, self.down) = (up, down);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::chip::testing::{Bench, Random, Requests};
    use super::*;

    fn bench() -> (Bench, Arc<Requests>) {
        let requests = Arc::new(Requests::default());
        let system = requests.clone();
        (Bench::plug(|_| PciHotplug::new(system)), requests)
    }

    fn register(bench: &Bench, offset: u64) -> u32 {
        let mut data = [0; 4];
        bench.slot.lock().read(PciHotplug::REGISTERS, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn event(bench: &Bench, tag: Tag) {
        bench.slot.lock().event(tag, bench.clock.now());
    }

    #[test]
    fn a_new_device_is_read_once() {
        let (bench, _) = bench();
        event(&bench, PciHotplug::plugged(5));
        event(&bench, PciHotplug::plugged(31));
        assert_eq!(register(&bench, UP), 1 << 5 | 1 << 31);
        assert_eq!((register(&bench, UP), register(&bench, DOWN)), (0, 0));
        event(&bench, PciHotplug::plugged(2));
        event(&bench, PciHotplug::plugged(9));
        assert_eq!(bench.read(PciHotplug::REGISTERS, UP), 4, "a byte clears that byte");
        assert_eq!(register(&bench, UP), 1 << 9);
    }

    #[test]
    fn a_device_is_wanted_back_until_it_is_ejected() {
        let (bench, requests) = bench();
        event(&bench, PciHotplug::unplug_wanted(4));
        event(&bench, PciHotplug::unplug_wanted(6));
        assert_eq!((register(&bench, DOWN), register(&bench, DOWN)), (0x50, 0x50));
        bench.slot.lock().write(PciHotplug::REGISTERS, EJECT, &0x10_u32.to_le_bytes());
        assert_eq!(requests.take(), [SystemRequest::EjectPci { slots: 0x10 }]);
        assert_eq!((register(&bench, DOWN), register(&bench, EJECT)), (0x40, 0));
        // The chipset stays, and no slot is no request.
        for slots in [0_u32, 3] {
            bench.slot.lock().write(PciHotplug::REGISTERS, EJECT, &slots.to_le_bytes());
        }
        assert_eq!((requests.take(), register(&bench, REMOVABLE)), (vec![], 0xFFFF_FFFC));
        bench.slot.lock().reset();
        assert_eq!(register(&bench, DOWN), 0);
    }

    #[test]
    fn any_accesses_leave_a_state_that_can_be_restored() {
        let (bench, _) = bench();
        let mut random = Random::new(6);
        for _ in 0..2_000 {
            let (offset, len) = (random.below(0x18), 1 << random.below(3));
            match random.below(3) {
                0 => event(&bench, Tag(random.below(64) as u32)),
                1 => bench.slot.lock().read(PciHotplug::REGISTERS, offset, &mut [0; 4][..len]),
                _ => {
                    let data = random.next().to_le_bytes();
                    bench.slot.lock().write(PciHotplug::REGISTERS, offset, &data[..len]);
                }
            }
        }
        event(&bench, PciHotplug::plugged(7));
        let (other, _) = self::bench();
        bench.copy_to(&other);
        assert_eq!(register(&other, UP) >> 7 & 1, 1);
        let mut device = other.slot.lock();
        let snapshot = device.snapshot().unwrap();
        let mut state = snapshot.save_value();
        state["down"] = 1.into();
        assert!(snapshot.restore_value(1, state).is_err());
    }
}
