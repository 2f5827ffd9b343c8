//! The driver's side of a device, for tests, benchmarks and fuzz targets: rings that are written
//! by hand, on the MMIO transport, with a loop that turns when the test says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use board::device::{Attach, Slot};
use board::irq::IrqProbe;
use board::{Clock, EventLoop, GuestRam, IrqLine};

use super::core::{F_EVENT_IDX, F_VERSION_1, RingOptions, Status};
use super::device::VirtioDevice;
use super::mmio::{MmioParts, VirtioMmio};

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// For the device to write.
    pub writable: bool,
}

impl Buffer {
    /// Bytes for the device to read.
    pub fn out(address: u64, len: u32) -> Self {
        Self { address, len, writable: false }
    }

    /// Room for the device to write to.
    pub fn room(address: u64, len: u32) -> Self {
        Self { address, len, writable: true }
    }

    fn descriptor(&self, flags: u16, next: u16) -> [u8; 16] {
        descriptor(self.address, self.len, flags | u16::from(self.writable) << 1, next)
    }
}

/// A descriptor's bytes: flags are 1 (next), 2 (write), 4 (indirect).
pub fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let value = u128::from(address)
        | u128::from(len) << 64
        | u128::from(flags) << 96
        | u128::from(next) << 112;
    value.to_le_bytes()
}

/// The driver's side of a split queue.
pub struct Ring {
    ram: GuestRam,
    /// Descriptors.
    pub size: u16,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
    event_idx: bool,
    avail_idx: u16,
    /// The available index at the last decision whether to ring.
    told_idx: u16,
    used_idx: u16,
    free: VecDeque<u16>,
    /// The descriptors of each chain, by its head.
    chains: Vec<Vec<u16>>,
}

impl Ring {
    /// Bytes that a ring of 256 descriptors and less takes.
    pub const BYTES: u64 = 0x2000;

    /// An empty ring at `base`.
    pub fn new(ram: &GuestRam, base: u64, size: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let end = used + 6 + 8 * u64::from(size);
        for address in base..end {
            poke(ram, address, &[0]);
        }
        Self {
            ram: ram.clone(),
            size,
            descriptors: base,
            avail,
            used,
            event_idx: false,
            avail_idx: 0,
            told_idx: 0,
            used_idx: 0,
            free: (0..size).collect(),
            chains: vec![Vec::new(); size.into()],
        }
    }

    /// Makes a chain of `buffers` available and returns its head; `None`: no descriptor is free.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || self.free.len() < buffers.len() {
            return None;
        }
        let indices: Vec<u16> = self.free.drain(..buffers.len()).collect();
        for (place, buffer) in buffers.iter().enumerate() {
            let next = indices.get(place + 1).copied();
            let bytes = buffer.descriptor(next.is_some().into(), next.unwrap_or(0));
            poke(&self.ram, self.descriptors + 16 * u64::from(indices[place]), &bytes);
        }
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.publish(head);
        Some(head)
    }

    /// The same by an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        let head = self.free.pop_front()?;
        for (place, buffer) in (0..).zip(buffers) {
            let more = usize::from(place) + 1 < buffers.len();
            let bytes = buffer.descriptor(more.into(), place + 1);
            poke(&self.ram, table + 16 * u64::from(place), &bytes);
        }
        let bytes = descriptor(table, 16 * buffers.len() as u32, 4, 0);
        poke(&self.ram, self.descriptors + 16 * u64::from(head), &bytes);
        self.chains[usize::from(head)] = vec![head];
        self.publish(head);
        Some(head)
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn publish(&mut self, head: u16) {
        let at = self.avail + 4 + 2 * u64::from(self.avail_idx % self.size);
        poke(&self.ram, at, &head.to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        poke(&self.ram, self.avail + 2, &self.avail_idx.to_le_bytes());
    }

    /// The next used chain: its head, and the bytes that were written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if peek::<2>(&self.ram, self.used + 2) == self.used_idx.to_le_bytes() {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.used_idx % self.size);
        let element = u64::from_le_bytes(peek(&self.ram, at));
        self.used_idx = self.used_idx.wrapping_add(1);
        if self.event_idx {
            let event = self.avail + 4 + 2 * u64::from(self.size);
            poke(&self.ram, event, &self.used_idx.to_le_bytes());
        }
        let head = element as u16;
        let chain = self.chains.get_mut(usize::from(head));
        self.free.extend(chain.map(std::mem::take).unwrap_or_default());
        Some((head, (element >> 32) as u32))
    }

    /// Whether the device wants a ring for what was made available since the last call.
    pub fn wants_ring(&mut self) -> bool {
        let (old, new) = (std::mem::replace(&mut self.told_idx, self.avail_idx), self.avail_idx);
        if !self.event_idx {
            return old != new && peek::<2>(&self.ram, self.used)[0] & 1 == 0;
        }
        let event = self.used + 4 + 8 * u64::from(self.size);
        let event = u16::from_le_bytes(peek(&self.ram, event));
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }
}

/// Writes guest memory.
///
/// # Panics
/// When it is no RAM.
pub fn poke(ram: &GuestRam, address: u64, data: &[u8]) {
    assert_eq!(ram.write(address, data), Ok(()));
}

/// Reads guest memory.
///
/// # Panics
/// When it is no RAM.
pub fn peek<const N: usize>(ram: &GuestRam, address: u64) -> [u8; N] {
    let mut data = [0; N];
    assert_eq!(ram.read(address, &mut data), Ok(()));
    data
}

/// A device on the MMIO transport, with RAM and a loop, and the registers' driver.
pub struct Rig {
    /// Guest RAM.
    pub ram: GuestRam,
    /// The loop that the device's events come from.
    pub events: EventLoop,
    /// The VM clock, stopped.
    pub clock: Clock,
    /// The device.
    pub slot: Arc<Slot>,
    /// The end of its interrupt line.
    pub line: Arc<IrqProbe>,
}

impl Rig {
    /// Where a test's buffers may be; rings are below.
    pub const BUFFERS: u64 = 0x10_0000;

    /// `size` bytes of RAM, and the device that `build` makes.
    ///
    /// # Panics
    /// When the host has no memory or fd left.
    pub fn new(size: u64, build: impl FnOnce(&Attach, &GuestRam) -> Box<dyn VirtioDevice>) -> Self {
        let (clock, ram) = (Clock::stopped(), GuestRam::new(size).unwrap());
        let events = EventLoop::new(clock.clone()).unwrap();
        let (line, probe) = IrqLine::probe();
        let slot = Slot::plug("device", &events.handle(), |attach| {
            let device = build(attach, &ram);
            let options = RingOptions::default();
            let parts =
                MmioParts { ram: ram.clone(), line, base: 0xFEB0_0000, doorbells: None, options };
            VirtioMmio::new(device, parts, attach).unwrap()
        });
        Self { ram, events, clock, slot, line: probe }
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.slot.lock().read(VirtioMmio::REGISTERS, offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.slot.lock().write(VirtioMmio::REGISTERS, offset, &value.to_le_bytes());
    }

    /// The status register.
    pub fn status(&self) -> Status {
        Status::from_bits_truncate(self.read(0x70) as u8)
    }

    /// `N` bytes of the configuration.
    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.slot.lock().read(VirtioMmio::REGISTERS, 0x100 + offset, &mut data);
        data
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        self.write(0x14, 1);
        let high = self.read(0x10);
        self.write(0x14, 0);
        u64::from(high) << 32 | u64::from(self.read(0x10))
    }

    /// Resets the device and agrees on `features` (and VERSION_1) as far as they are offered;
    /// returns what was agreed upon.
    pub fn negotiate(&self, features: u64) -> u64 {
        self.write(0x70, 0);
        let accepted = (features | F_VERSION_1) & self.offered();
        self.write(0x70, 3);
        for word in 0..2 {
            self.write(0x24, word);
            self.write(0x20, (accepted >> (32 * word)) as u32);
        }
        self.write(0x70, 11);
        accepted
    }

    /// Shows the device a queue.
    pub fn show(&self, index: u32, ring: &Ring) {
        self.write(0x30, index);
        self.write(0x38, ring.size.into());
        for (register, address) in [(0x80, ring.descriptors), (0x90, ring.avail), (0xA0, ring.used)]
        {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    /// Negotiates, makes a ring of `size` for each queue of the device, and starts it.
    pub fn start(&mut self, features: u64, size: u16) -> Vec<Ring> {
        let accepted = self.negotiate(features);
        let mut rings = Vec::new();
        loop {
            let index = rings.len() as u64;
            self.write(0x30, index as u32);
            let max = self.read(0x34) as u16;
            if max == 0 {
                break;
            }
            let mut ring = Ring::new(&self.ram, 0x1000 + index * Ring::BYTES, size.min(max));
            ring.event_idx = accepted & F_EVENT_IDX != 0;
            self.show(index as u32, &ring);
            rings.push(ring);
        }
        self.write(0x70, 15);
        self.turn();
        rings
    }

    /// Rings for a queue and lets the loop handle it.
    pub fn kick(&mut self, queue: u32) {
        self.write(0x50, queue);
        self.turn();
    }

    /// Lets the loop handle what there is.
    ///
    /// # Panics
    /// When epoll fails.
    pub fn turn(&mut self) {
        for _ in 0..3 {
            self.events.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Lets the loop work until `done`, at most some ten seconds.
    ///
    /// # Panics
    /// When that was not enough.
    pub fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..10_000 {
            if done(self) {
                return;
            }
            self.events.turn(Some(Duration::from_millis(1))).unwrap();
        }
        panic!("the device does not get there");
    }

    /// The interrupt status, which is acknowledged.
    pub fn interrupts(&self) -> u32 {
        let status = self.read(0x60);
        self.write(0x64, status);
        status
    }

    /// The device's state, restored into `other`, whose RAM becomes this one's below `bytes`.
    ///
    /// # Panics
    /// When the state is refused, or is not the same when it is saved again.
    pub fn copy_to(&self, other: &Self, bytes: u64) {
        let mut page = [0; 4096];
        for address in (0..bytes).step_by(page.len()) {
            assert_eq!(self.ram.read(address, &mut page), Ok(()));
            poke(&other.ram, address, &page);
        }
        let (version, state) = {
            let mut device = self.slot.lock();
            let snapshot = device.snapshot().unwrap();
            (snapshot.version(), snapshot.save_value())
        };
        let mut device = other.slot.lock();
        let snapshot = device.snapshot().unwrap();
        snapshot.restore_value(version, state.clone()).unwrap();
        assert_eq!(snapshot.save_value(), state);
    }
}
