//! Virtio over PCI, without the legacy interface (Virtio 1.2, 4.1).
//!
//! | BAR | offset | what |
//! |---|---|---|
//! | 1 | 0 | MSI-X table and pending bits |
//! | 4 | 0x0000 | common configuration |
//! | 4 | 0x1000 | ISR status |
//! | 4 | 0x2000 | device-specific configuration |
//! | 4 | 0x3000 | a doorbell a queue, 4 bytes apart |

use board::device::{Attach, Paused, Tag};
use board::pci::{BarDoorbell, BarInfo, Effects, PciFunction, Pin};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::time::VmTime;
use board::{Device, GuestRam, Region};
use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::core::{Cause, Core, CoreV1, Interrupt, RingOptions, is_driven};
use super::device::VirtioDevice;
use super::mmio::word;
use crate::pci::bar::Bar;
use crate::pci::config::Identity;
use crate::pci::function::{PciConfig, PciConfigV1, PciLines};
use crate::pci::msix::Layout;

/// The vendor of all virtio devices.
const VENDOR: u16 = 0x1AF4;
/// Device ids begin here (4.1.2).
const FIRST_DEVICE: u16 = 0x1040;
/// The subsystem that QEMU's devices have.
const SUBSYSTEM: u16 = 0x1100;
/// A device that is not transitional has revision 1 or higher (4.1.2.1).
const REVISION: u8 = 1;

const MSIX_BAR: u8 = 1;
const BAR: u8 = 4;
const BAR_SIZE: u64 = 0x4000;
/// The places in the BAR, each of 4 KiB.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PLACE: u64 = 0x1000;
/// Bytes between two queues' doorbells.
const NOTIFY_MULTIPLIER: u32 = 4;

/// The capability id of vendors, and virtio's types of it (4.1.4).
const VENDOR_CAPABILITY: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Bits of the ISR status.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// No MSI-X vector is assigned.
const NO_VECTOR: u16 = 0xFFFF;

/// Offsets of the common configuration (4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0C;
    pub(super) const CONFIG_MSIX_VECTOR: usize = 0x10;
    pub(super) const NUM_QUEUES: usize = 0x12;
    pub(super) const DEVICE_STATUS: usize = 0x14;
    pub(super) const CONFIG_GENERATION: usize = 0x15;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: usize = 0x1A;
    pub(super) const QUEUE_ENABLE: usize = 0x1C;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 0x1E;
    pub(super) const QUEUE_DESC: usize = 0x20;
    pub(super) const QUEUE_DRIVER: usize = 0x28;
    pub(super) const QUEUE_DEVICE: usize = 0x30;
    pub(super) const SIZE: usize = 0x38;
}

/// The function's interrupts, and which vector is for what.
struct PciInterrupt {
    config: PciConfig,
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl Interrupt for PciInterrupt {
    fn raise(&mut self, cause: Cause) {
        if let Some(msix) = self.config.msix().filter(|msix| msix.enabled()) {
            let vector = match cause {
                Cause::Queue(queue) => self.queue_vectors.get(queue).copied(),
                Cause::Config => Some(self.config_vector),
            };
            // One that is not there sends nothing.
            return msix.vector(vector.unwrap_or(NO_VECTOR)).notify();
        }
        self.isr |= match cause {
            Cause::Queue(_) => ISR_QUEUE,
            Cause::Config => ISR_CONFIG,
        };
        self.config.set_intx(true);
    }

    fn reset(&mut self) {
        self.isr = 0;
        self.config.set_intx(false);
        self.config_vector = NO_VECTOR;
        self.queue_vectors.fill(NO_VECTOR);
    }
}

impl PciInterrupt {
    /// The vector that is assigned when the driver asks for `vector`.
    fn assign(&self, vector: u16) -> u16 {
        let there = self.config.msix().is_some_and(|msix| vector < msix.vectors());
        if there { vector } else { NO_VECTOR }
    }
}

/// What the transport needs of the machine.
pub struct PciParts {
    /// Guest RAM.
    pub ram: GuestRam,
    /// The function's interrupts.
    pub lines: PciLines,
    /// The rings' features.
    pub options: RingOptions,
    /// `vectors=`: MSI-X vectors; one a queue and one for the configuration otherwise, and with 0
    /// no MSI-X.
    pub vectors: Option<u16>,
}

/// A virtio device on the PCI transport.
pub struct VirtioPci {
    core: Core,
    interrupt: PciInterrupt,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    /// Offset of the capability that is a window to the BAR, in configuration space.
    window: u16,
    /// Whether queue notifications may bypass the device.
    doorbells: bool,
}

impl VirtioPci {
    /// The device.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        parts: PciParts,
        attach: &Attach,
    ) -> std::io::Result<Self> {
        let PciParts { ram, lines, options, vectors } = parts;
        let core = Core::new(device, ram, options, attach)?;
        let kind = core.kind();
        let [base, sub, interface] = kind.class.map(u32::from);
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind.id,
            revision: REVISION,
            class: base << 16 | sub << 8 | interface,
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
            pin: Some(Pin::A),
        };
        let mut config = PciConfig::new(&identity, lines);
        let queues = core.queues().len() as u16;
        let vectors = vectors.unwrap_or(queues + 1);
        if vectors > 0 {
            let (layout, size) = Layout::whole_bar(MSIX_BAR, vectors);
            config.add_bar(MSIX_BAR, Bar::Memory32 { size, prefetchable: false });
            config.add_msix(vectors, layout);
        }
        config.add_bar(BAR, Bar::Memory64 { size: BAR_SIZE, prefetchable: true });
        for (kind, offset) in [(CFG_COMMON, COMMON), (CFG_ISR, ISR), (CFG_DEVICE, DEVICE)] {
            config.add_capability(VENDOR_CAPABILITY, &capability(kind, offset, &[]), &[]);
        }
        let notify = capability(CFG_NOTIFY, NOTIFY, &NOTIFY_MULTIPLIER.to_le_bytes());
        config.add_capability(VENDOR_CAPABILITY, &notify, &[]);
        // BAR, offset, length and data of the window are the driver's to write (4.1.4.9).
        let mut writable = [0; 18];
        writable[2] = 0xFF;
        writable[6..].fill(0xFF);
        let window = capability(CFG_PCI, 0, &[0; 4]);
        let window = config.add_capability(VENDOR_CAPABILITY, &window, &writable);
        let interrupt = PciInterrupt {
            config,
            isr: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues.into()],
        };
        Ok(Self {
            core,
            interrupt,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            window: window.into(),
            doorbells: !is_driven(attach),
        })
    }

    /// The device behind the transport, with how it interrupts.
    pub fn core(&mut self) -> (&mut Core, &mut dyn Interrupt) {
        (&mut self.core, &mut self.interrupt)
    }

    fn common(&self) -> [u8; common::SIZE] {
        let mut bytes = [0; common::SIZE];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(common::DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        let offered = word(self.core.offered(), self.device_feature_select);
        put(common::DEVICE_FEATURE, &offered.to_le_bytes());
        put(common::DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        let accepted = word(self.core.accepted(), self.driver_feature_select);
        put(common::DRIVER_FEATURE, &accepted.to_le_bytes());
        put(common::CONFIG_MSIX_VECTOR, &self.interrupt.config_vector.to_le_bytes());
        put(common::NUM_QUEUES, &(self.core.queues().len() as u16).to_le_bytes());
        put(common::DEVICE_STATUS, &[self.core.status().bits()]);
        put(common::CONFIG_GENERATION, &[self.core.generation()]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        let index = usize::from(self.queue_select);
        // A queue that is not there has size 0.
        let Some(queue) = self.core.queues().get(index) else { return bytes };
        let layout = queue.layout();
        put(common::QUEUE_SIZE, &layout.size.to_le_bytes());
        put(common::QUEUE_MSIX_VECTOR, &self.interrupt.queue_vectors[index].to_le_bytes());
        put(common::QUEUE_ENABLE, &u16::from(queue.is_ready()).to_le_bytes());
        put(common::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
        put(common::QUEUE_DESC, &layout.descriptors.to_le_bytes());
        put(common::QUEUE_DRIVER, &layout.avail.to_le_bytes());
        put(common::QUEUE_DEVICE, &layout.used.to_le_bytes());
        bytes
    }

    fn write_common(&mut self, offset: usize, data: &[u8]) {
        if data.len() == 8 {
            self.write_common(offset, &data[..4]);
            return self.write_common(offset + 4, &data[4..]);
        }
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        let queue = usize::from(self.queue_select);
        match (offset, data.len()) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value,
            (common::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value,
            (common::DRIVER_FEATURE, 4) => self.core.accept(self.driver_feature_select, value),
            (common::CONFIG_MSIX_VECTOR, 2) => {
                self.interrupt.config_vector = self.interrupt.assign(value as u16);
            }
            (common::DEVICE_STATUS, 1) => {
                self.core.set_status(value as u8, &mut self.interrupt);
            }
            (common::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (common::QUEUE_MSIX_VECTOR, 2) => {
                let vector = self.interrupt.assign(value as u16);
                if let Some(place) = self.interrupt.queue_vectors.get_mut(queue) {
                    *place = vector;
                }
            }
            // A driver does not write 0 (4.1.4.3.2).
            (common::QUEUE_ENABLE, 2) if value == 1 => {
                self.core.set_ready(queue, true, &mut self.interrupt);
            }
            (_, len) => {
                let Some(ring) = self.core.setup(queue) else { return };
                let (low, high) = (Some(value), Some(value));
                match (offset, len) {
                    (common::QUEUE_SIZE, 2) => ring.set_size(value as u16),
                    (common::QUEUE_DESC, 4) => ring.set_desc_table_address(low, None),
                    (0x24, 4) => ring.set_desc_table_address(None, high),
                    (common::QUEUE_DRIVER, 4) => ring.set_avail_ring_address(low, None),
                    (0x2C, 4) => ring.set_avail_ring_address(None, high),
                    (common::QUEUE_DEVICE, 4) => ring.set_used_ring_address(low, None),
                    (0x34, 4) => ring.set_used_ring_address(None, high),
                    _ => {}
                }
            }
        }
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        let at = (offset % PLACE) as usize;
        data.fill(0);
        match offset - at as u64 {
            COMMON => super::read_bytes(&self.common(), at, data),
            ISR if at == 0 => {
                // Reading acknowledges (4.1.4.5).
                data[0] = std::mem::take(&mut self.interrupt.isr);
                self.interrupt.config.set_intx(false);
            }
            DEVICE => self.core.read_config(at, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        let at = (offset % PLACE) as usize;
        match offset - at as u64 {
            COMMON => self.write_common(at, data),
            DEVICE => self.core.write_config(at, data, &mut self.interrupt),
            NOTIFY => {
                if let Some(queue) = self.core.queues().get(at / NOTIFY_MULTIPLIER as usize) {
                    queue.ring();
                }
            }
            _ => {}
        }
    }

    /// Where an access to configuration space at `offset` goes by way of the window: the offset
    /// into the BAR and how many bytes. Only accesses to its data, and of the length that the driver
    /// has set, go anywhere.
    fn through_window(&self, offset: u16) -> Option<(u64, usize)> {
        if offset != self.window + 16 {
            return None;
        }
        let mut capability = [0; 16];
        for (at, dword) in (self.window..).step_by(4).zip(capability.chunks_mut(4)) {
            self.interrupt.config.read(at, dword);
        }
        let [.., o0, o1, o2, o3, l0, l1, l2, l3] = capability;
        let at = u32::from_le_bytes([o0, o1, o2, o3]);
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let fits = matches!(len, 1 | 2 | 4) && at % len.max(1) == 0;
        (capability[4] == BAR && fits && u64::from(at) < BAR_SIZE)
            .then_some((at.into(), len as usize))
    }
}

/// A capability's bytes behind its id and its link.
fn capability(kind: u8, offset: u64, more: &[u8]) -> Vec<u8> {
    let length = 16 + more.len() as u8;
    // The window is to no place as yet.
    let (bar, size) = if kind == CFG_PCI { (0, 0) } else { (BAR, PLACE) };
    let mut body = vec![length, kind, bar, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((size as u32).to_le_bytes());
    body.extend(more);
    body
}

impl Device for VirtioPci {
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        match region.0 as u8 {
            BAR => self.read_bar(offset, data),
            _ => {
                data.fill(0);
                if let Some(msix) = self.interrupt.config.msix() {
                    msix.read(offset, data);
                }
            }
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        match region.0 as u8 {
            BAR => self.write_bar(offset, data),
            _ => {
                if let Some(msix) = self.interrupt.config.msix() {
                    msix.write(offset, data);
                }
            }
        }
    }

    fn event(&mut self, tag: Tag, now: VmTime) {
        self.core.event(tag, now, &mut self.interrupt);
    }

    fn reset(&mut self) {
        self.core.reset(&mut self.interrupt);
        self.interrupt.config.reset();
        (self.device_feature_select, self.driver_feature_select) = (0, 0);
        self.queue_select = 0;
    }

    fn pause(&mut self) -> Paused {
        self.core.pause(&mut self.interrupt)
    }

    fn resume(&mut self) {
        self.core.resume(&mut self.interrupt);
    }

    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        match self.through_window(offset) {
            Some((at, len)) => {
                let mut bytes = [0; 4];
                self.read_bar(at, &mut bytes[..len]);
                super::read_bytes(&bytes, 0, data);
            }
            None => self.interrupt.config.read(offset, data),
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        let effects = self.interrupt.config.write(offset, data);
        if let Some((at, len)) = self.through_window(offset) {
            let mut bytes = [0; 4];
            bytes[..data.len()].copy_from_slice(data);
            self.write_bar(at, &bytes[..len]);
        }
        effects
    }

    fn bars(&self) -> Vec<BarInfo> {
        self.interrupt.config.bars()
    }

    fn doorbells(&self) -> Vec<BarDoorbell> {
        let queues = self.core.queues().iter().filter(|_| self.doorbells);
        let bell = |(offset, queue): (u64, &super::Queue)| BarDoorbell {
            bar: BAR,
            offset,
            width: 2,
            value: None,
            eventfd: queue.bell().eventfd().clone(),
        };
        (NOTIFY..).step_by(NOTIFY_MULTIPLIER as usize).zip(queues).map(bell).collect()
    }
}

/// The saved state of the transport and what is behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VirtioPciV1 {
    config: PciConfigV1,
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    core: CoreV1,
}

impl Snapshot for VirtioPci {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u32 = 1;
    type State = VirtioPciV1;

    fn save(&self) -> VirtioPciV1 {
        let Self {
            core,
            interrupt: PciInterrupt { config, isr, config_vector, queue_vectors },
            device_feature_select,
            driver_feature_select,
            queue_select,
            window: _,
            doorbells: _,
        } = self;
        VirtioPciV1 {
            config: config.save(),
            isr: *isr,
            config_vector: *config_vector,
            queue_vectors: queue_vectors.clone(),
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            queue_select: *queue_select,
            core: core.save(),
        }
    }

    fn restore(&mut self, state: VirtioPciV1) -> Result<(), StateError> {
        let VirtioPciV1 {
            config,
            isr,
            config_vector,
            queue_vectors,
            device_feature_select,
            driver_feature_select,
            queue_select,
            core,
        } = state;
        if queue_vectors.len() != self.interrupt.queue_vectors.len() {
            let cause = format!("vectors of {} queues", queue_vectors.len());
            return Err(StateError::Damaged { kind: Self::KIND, cause });
        }
        let before = self.interrupt.config.save();
        self.interrupt.config.restore(Self::KIND, config)?;
        if let Err(error) = self.core.restore(core) {
            // It was its own state a moment ago.
            let _ = self.interrupt.config.restore(Self::KIND, before);
            return Err(error);
        }
        self.interrupt.isr = isr;
        self.interrupt.config_vector = self.interrupt.assign(config_vector);
        let vectors = queue_vectors.into_iter().map(|vector| self.interrupt.assign(vector));
        self.interrupt.queue_vectors = vectors.collect();
        self.device_feature_select = device_feature_select;
        self.driver_feature_select = driver_feature_select;
        self.queue_select = queue_select;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
