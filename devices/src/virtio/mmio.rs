//! Virtio over MMIO (Virtio 1.2, 4.2): 256 bytes of registers, the configuration behind them.

use std::os::fd::AsFd;
use std::sync::Arc;

use board::accel::{Doorbell, Doorbells, Space};
use board::device::{Attach, Paused, Tag};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::time::VmTime;
use board::{Device, GuestRam, IrqLine, Region};
use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::core::{Cause, Core, CoreV1, Interrupt, RingOptions, is_driven};
use super::device::VirtioDevice;
use crate::chip::glue::Pin;

/// `virt` in little-endian letters.
const MAGIC: u32 = 0x7472_6976;
/// The version of the register layout without the legacy interface.
const VERSION: u32 = 2;
/// The vendor id that QEMU's devices have on this transport.
const VENDOR: u32 = 0x554D_4551;

/// Register offsets (4.2.2).
mod reg {
    pub(super) const MAGIC_VALUE: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00C;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0A0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0A4;
    /// Length and base of shared memory regions, of which there is none.
    pub(super) const SHM: std::ops::RangeInclusive<u64> = 0x0B0..=0x0BC;
    pub(super) const CONFIG_GENERATION: u64 = 0x0FC;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Bits of InterruptStatus.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The interrupt line and what it stands for.
struct MmioInterrupt {
    isr: u8,
    pin: Pin,
}

impl Interrupt for MmioInterrupt {
    fn raise(&mut self, cause: Cause) {
        self.isr |= match cause {
            Cause::Queue(_) => ISR_QUEUE,
            Cause::Config => ISR_CONFIG,
        };
        self.pin.set(true);
    }

    fn reset(&mut self) {
        self.isr = 0;
        self.pin.set(false);
    }
}

impl MmioInterrupt {
    fn acknowledge(&mut self, bits: u8) {
        self.isr &= !bits;
        // What has come since the driver read the status is an edge of its own: the line may be
        // edge-triggered.
        self.pin.set(false);
        self.pin.set(self.isr != 0);
    }
}

/// What the transport needs of the machine.
pub struct MmioParts {
    /// Guest RAM.
    pub ram: GuestRam,
    /// The interrupt line.
    pub line: IrqLine,
    /// The address of the registers.
    pub base: u64,
    /// Where doorbells are hung up; without, each ring is an access to the registers.
    pub doorbells: Option<Arc<dyn Doorbells>>,
    /// The rings' features.
    pub options: RingOptions,
}

/// A virtio device on the MMIO transport.
pub struct VirtioMmio {
    core: Core,
    interrupt: MmioInterrupt,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    base: u64,
    doorbells: Option<Arc<dyn Doorbells>>,
}

impl VirtioMmio {
    /// The one region.
    pub const REGISTERS: Region = Region(0);
    /// Its bytes.
    pub const SIZE: u64 = 0x200;

    /// The device.
    ///
    /// # Errors
    /// When the process has no fd left, or the accelerator no doorbell.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        parts: MmioParts,
        attach: &Attach,
    ) -> std::io::Result<Self> {
        let MmioParts { ram, line, base, doorbells, options } = parts;
        let core = Core::new(device, ram, options, attach)?;
        let this = Self {
            core,
            interrupt: MmioInterrupt { isr: 0, pin: Pin::new(line) },
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            base,
            doorbells: doorbells.filter(|_| !is_driven(attach)),
        };
        if let Some(doorbells) = &this.doorbells {
            for (index, queue) in (0..).zip(this.core.queues()) {
                let bell = queue.bell().eventfd().as_fd();
                doorbells.add(this.doorbell(index), bell).map_err(std::io::Error::other)?;
            }
        }
        Ok(this)
    }

    fn doorbell(&self, queue: u64) -> Doorbell {
        let address = self.base + reg::QUEUE_NOTIFY;
        Doorbell { space: Space::Mmio, address, width: 4, value: Some(queue) }
    }

    /// The device behind the transport, with how it interrupts.
    pub fn core(&mut self) -> (&mut Core, &mut dyn Interrupt) {
        (&mut self.core, &mut self.interrupt)
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.core.queues().get(self.queue_sel as usize);
        match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.core.kind().id.into(),
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => word(self.core.offered(), self.device_features_sel),
            reg::QUEUE_SIZE_MAX => queue.map_or(0, |q| q.max_size().into()),
            reg::QUEUE_READY => queue.is_some_and(|q| q.is_ready()).into(),
            reg::INTERRUPT_STATUS => self.interrupt.isr.into(),
            reg::STATUS => self.core.status().bits().into(),
            reg::CONFIG_GENERATION => self.core.generation().into(),
            // A region of length -1 is not there (4.2.2.1).
            offset if reg::SHM.contains(&offset) => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let queue = self.queue_sel as usize;
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES => self.core.accept(self.driver_features_sel, value),
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_READY => self.core.set_ready(queue, value & 1 != 0, &mut self.interrupt),
            reg::QUEUE_NOTIFY => {
                if let Some(queue) = self.core.queues().get(value as usize) {
                    queue.ring();
                }
            }
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value as u8),
            reg::STATUS => self.core.set_status(value as u8, &mut self.interrupt),
            _ => {
                let Some(ring) = self.core.setup(queue) else { return };
                let (low, high) = (Some(value), Some(value));
                match offset {
                    reg::QUEUE_SIZE => ring.set_size(value.try_into().unwrap_or(0)),
                    reg::QUEUE_DESC_LOW => ring.set_desc_table_address(low, None),
                    reg::QUEUE_DESC_HIGH => ring.set_desc_table_address(None, high),
                    reg::QUEUE_DRIVER_LOW => ring.set_avail_ring_address(low, None),
                    reg::QUEUE_DRIVER_HIGH => ring.set_avail_ring_address(None, high),
                    reg::QUEUE_DEVICE_LOW => ring.set_used_ring_address(low, None),
                    reg::QUEUE_DEVICE_HIGH => ring.set_used_ring_address(None, high),
                    _ => {}
                }
            }
        }
    }
}

/// Word 0 or 1 of feature bits; there are no others.
pub(super) fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl Device for VirtioMmio {
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        if offset >= reg::CONFIG {
            return self.core.read_config((offset - reg::CONFIG) as usize, data);
        }
        data.fill(0);
        // Registers are 32 bits wide and are read whole (4.2.2.2).
        if data.len() == 4 {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        if offset >= reg::CONFIG {
            let offset = (offset - reg::CONFIG) as usize;
            return self.core.write_config(offset, data, &mut self.interrupt);
        }
        if let Ok(value) = data.try_into() {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }

    fn event(&mut self, tag: Tag, now: VmTime) {
        self.core.event(tag, now, &mut self.interrupt);
    }

    fn reset(&mut self) {
        self.core.reset(&mut self.interrupt);
        (self.device_features_sel, self.driver_features_sel, self.queue_sel) = (0, 0, 0);
    }

    fn pause(&mut self) -> Paused {
        self.core.pause(&mut self.interrupt)
    }

    fn resume(&mut self) {
        self.core.resume(&mut self.interrupt);
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        let Some(doorbells) = &self.doorbells else { return };
        for (index, queue) in (0..).zip(self.core.queues()) {
            // One that was not added is not there.
            let _ = doorbells.remove(self.doorbell(index), queue.bell().eventfd().as_fd());
        }
    }
}

/// The saved state of the transport and what is behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VirtioMmioV1 {
    interrupt_status: u8,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    core: CoreV1,
}

impl Snapshot for VirtioMmio {
    const KIND: &'static str = "virtio-mmio";
    const VERSION: u32 = 1;
    type State = VirtioMmioV1;

    fn save(&self) -> VirtioMmioV1 {
        let Self {
            core,
            interrupt: MmioInterrupt { isr, pin: _ },
            device_features_sel,
            driver_features_sel,
            queue_sel,
            base: _,
            doorbells: _,
        } = self;
        VirtioMmioV1 {
            interrupt_status: *isr,
            device_features_sel: *device_features_sel,
            driver_features_sel: *driver_features_sel,
            queue_sel: *queue_sel,
            core: core.save(),
        }
    }

    fn restore(&mut self, state: VirtioMmioV1) -> Result<(), StateError> {
        let VirtioMmioV1 {
            interrupt_status,
            device_features_sel,
            driver_features_sel,
            queue_sel,
            core,
        } = state;
        self.core.restore(core)?;
        self.interrupt.isr = interrupt_status;
        self.interrupt.pin.restore(interrupt_status != 0);
        self.device_features_sel = device_features_sel;
        self.driver_features_sel = driver_features_sel;
        self.queue_sel = queue_sel;
        Ok(())
    }
}
