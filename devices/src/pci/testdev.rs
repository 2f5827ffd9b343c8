//! A small device for tests of the bus, `pci-testdev`.
//!
//! It has the ID of QEMU's device of this name, and of each kind of BAR one:
//!
//! | BAR | what |
//! |---|---|
//! | 0 | memory, 4 KiB: the registers |
//! | 1 | ports, 32: the registers |
//! | 2 | memory, 64 bits, prefetchable, 4 KiB and more: a page of scratch memory, repeated |
//! | 4 | memory, 4 KiB: MSI-X table and pending bits, eight vectors |
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | identity, reads 0x54534554 |
//! | 0x04 | reads the complement of what was written |
//! | 0x08 | raise: each bit an interrupt; by MSI-X, MSI or INTx, whichever the guest has turned on |
//! | 0x0C | interrupts raised by INTx; writing 1 acknowledges, INTx is low once none is left |
//! | 0x10 | how often the doorbell at this offset was written |

use std::os::fd::OwnedFd;
use std::sync::Arc;

use board::device::{Attach, Region, Tag};
use board::pci::{BarDoorbell, BarInfo, Effects, Pin};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::{Device, PciFunction, Readiness, VmTime, Watch};
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use super::bar::Bar;
use super::config::Identity;
use super::function::{PciConfig, PciConfigV1, PciLines};
use super::i440fx::SUBSYSTEM;
use super::msix::Layout;

const VECTORS: u16 = 8;
const SCRATCH: usize = 4096;

const IDENTITY: u64 = 0x00;
const COMPLEMENT: u64 = 0x04;
const RAISE: u64 = 0x08;
const STATUS: u64 = 0x0C;
const DOORBELL: u64 = 0x10;
const MAGIC: u32 = 0x5453_4554;

const MSIX_BAR: u8 = 4;
const RUNG: Tag = Tag(0);

/// The device.
pub struct TestDevice {
    config: PciConfig,
    complement: u32,
    status: u32,
    rings: u32,
    scratch: Box<[u8]>,
    /// The doorbell of BAR 0, where the host has fds left for it.
    bell: Option<(Arc<OwnedFd>, Watch)>,
}

impl TestDevice {
    /// A device whose BAR 2 has `size` bytes, a power of two from 4096 on.
    pub fn new(attach: &Attach, lines: PciLines, size: u64) -> Self {
        let identity = Identity {
            vendor: 0x1B36,
            device: 0x0005,
            revision: 0,
            class: 0x00_FF00,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            pin: Some(Pin::A),
        };
        let (layout, table) = Layout::whole_bar(MSIX_BAR, VECTORS);
        let mut config = PciConfig::new(&identity, lines);
        config.add_bar(0, Bar::Memory32 { size: 4096, prefetchable: false });
        config.add_bar(1, Bar::Io { size: 32 });
        config.add_bar(2, Bar::Memory64 { size, prefetchable: true });
        config.add_bar(MSIX_BAR, Bar::Memory32 { size: table, prefetchable: false });
        config.add_msix(VECTORS, layout);
        config.add_msi(4);
        let scratch = vec![0; SCRATCH].into_boxed_slice();
        let bell = Self::bell(attach);
        Self { config, complement: 0, status: 0, rings: 0, scratch, bell }
    }

    fn bell(attach: &Attach) -> Option<(Arc<OwnedFd>, Watch)> {
        use std::os::fd::AsRawFd;
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).ok()?;
        let watch = attach.watch(fd.as_raw_fd(), Readiness::READ, RUNG).ok()?;
        Some((Arc::new(fd), watch))
    }

    fn raise(&mut self, bits: u32) {
        let set = |n: &u8| bits >> n & 1 != 0;
        if let Some(chip) = self.config.msix().filter(|chip| chip.enabled()) {
            (0..32).filter(set).for_each(|n| chip.vector(n.into()).notify());
        } else if let Some(chip) = self.config.msi().filter(|chip| chip.enabled()) {
            (0..32).filter(set).for_each(|n| chip.notify(n));
        } else {
            self.status |= bits;
            self.config.set_intx(self.status != 0);
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            IDENTITY => MAGIC,
            COMPLEMENT => !self.complement,
            STATUS => self.status,
            DOORBELL => self.rings,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            COMPLEMENT => self.complement = value,
            RAISE => self.raise(value),
            STATUS => {
                self.status &= !value;
                self.config.set_intx(self.status != 0);
            }
            DOORBELL => self.rings = self.rings.wrapping_add(1),
            _ => {}
        }
    }
}

impl Device for TestDevice {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match region.0 {
            0 | 1 => {
                let register = self.register(offset & !3).to_le_bytes();
                for (at, byte) in ((offset & 3) as usize..4).zip(data) {
                    *byte = register[at];
                }
            }
            2 => {
                for (at, byte) in (offset as usize..).zip(data) {
                    *byte = self.scratch[at % SCRATCH];
                }
            }
            _ => {
                if let Some(chip) = self.config.msix() {
                    chip.read(offset, data);
                }
            }
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        match (region.0, data) {
            (0 | 1, &[a, b, c, d]) => self.set_register(offset, u32::from_le_bytes([a, b, c, d])),
            (2, data) => {
                for (at, byte) in (offset as usize..).zip(data) {
                    self.scratch[at % SCRATCH] = *byte;
                }
            }
            (4, data) => {
                if let Some(chip) = self.config.msix() {
                    chip.write(offset, data);
                }
            }
            _ => {}
        }
    }

    fn event(&mut self, _tag: Tag, _now: VmTime) {
        let Some((fd, watch)) = &self.bell else { return };
        let mut count = [0; 8];
        // WouldBlock: the event was spurious.
        if rustix::io::read(&**fd, &mut count).is_ok() {
            self.rings = self.rings.wrapping_add(u64::from_ne_bytes(count) as u32);
        }
        watch.drained(Readiness::READ);
    }

    fn reset(&mut self) {
        (self.complement, self.status, self.rings) = (0, 0, 0);
        self.scratch.fill(0);
        self.config.reset();
    }

    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

impl PciFunction for TestDevice {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        self.config.write(offset, data)
    }

    fn bars(&self) -> Vec<BarInfo> {
        self.config.bars()
    }

    fn doorbells(&self) -> Vec<BarDoorbell> {
        let bell = |(fd, _): &(Arc<OwnedFd>, Watch)| BarDoorbell {
            bar: 0,
            offset: DOORBELL,
            width: 4,
            value: None,
            eventfd: fd.clone(),
        };
        self.bell.iter().map(bell).collect()
    }
}

/// The saved state of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestDeviceV1 {
    config: PciConfigV1,
    complement: u32,
    status: u32,
    rings: u32,
    scratch: Vec<u8>,
}

impl Snapshot for TestDevice {
    const KIND: &'static str = "pci-testdev";
    const VERSION: u32 = 1;
    type State = TestDeviceV1;

    fn save(&self) -> TestDeviceV1 {
        let Self { config, complement, status, rings, scratch, bell: _ } = self;
        TestDeviceV1 {
            config: config.save(),
            complement: *complement,
            status: *status,
            rings: *rings,
            scratch: scratch.to_vec(),
        }
    }

    fn restore(&mut self, state: TestDeviceV1) -> Result<(), StateError> {
        let TestDeviceV1 { config, complement, status, rings, scratch } = state;
        if scratch.len() != SCRATCH {
            let cause = format!("{} bytes of scratch memory", scratch.len());
            return Err(StateError::Damaged { kind: Self::KIND, cause });
        }
        self.config.restore(Self::KIND, config)?;
        (self.complement, self.status, self.rings) = (complement, status, rings);
        self.scratch.copy_from_slice(&scratch);
        Ok(())
    }
}
