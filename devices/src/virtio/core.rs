//! The part of a virtio device that is the same on each transport: status, feature negotiation,
//! queues, configuration (Virtio 1.2, 2.1 to 2.7 and 3.1).

use std::mem;

use board::GuestRam;
use board::device::{Attach, Paused, Tag};
use board::state::StateError;
use board::time::VmTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain::{Chain, Malformed};
use super::device::{Kind, VirtioDevice};
use super::queue::{Queue, QueueV1, damaged};

/// Event tags from here on are the core's; those below are the device's.
pub const FIRST_CORE_TAG: u32 = 1 << 31;

bitflags::bitflags! {
    /// The device status field (2.1).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// It has a driver.
        const DRIVER = 2;
        /// The driver is set up.
        const DRIVER_OK = 4;
        /// The features are agreed upon.
        const FEATURES_OK = 8;
        /// Something has gone wrong; only a reset helps.
        const NEEDS_RESET = 0x40;
        /// The driver has given up.
        const FAILED = 0x80;
    }
}

/// VIRTIO_F_RING_INDIRECT_DESC.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_RING_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;

/// Why a device interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A queue has used buffers.
    Queue(usize),
    /// The configuration, or the status, has changed.
    Config,
}

/// How a transport interrupts the guest.
pub trait Interrupt {
    /// Interrupts.
    fn raise(&mut self, cause: Cause);
    /// The device was reset: nothing is pending, no vector is assigned.
    fn reset(&mut self);
}

/// Which features of the rings a device offers; both by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// `indirect_desc=`.
    pub indirect: bool,
    /// `event_idx=`.
    pub event_idx: bool,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { indirect: true, event_idx: true }
    }
}

/// All of a device but what is its own: queues, status, features.
struct Rings {
    ram: GuestRam,
    queues: Vec<Queue>,
    status: Status,
    offered: u64,
    accepted: u64,
    generation: u8,
    /// Why the device needs a reset.
    broken: Option<Malformed>,
    /// A device whose reset is not over has called `drained`.
    drained: bool,
}

/// What a device acts through while it is called.
pub struct Io<'a> {
    rings: &'a mut Rings,
    interrupt: &'a mut dyn Interrupt,
}

impl Io<'_> {
    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.rings.ram
    }

    /// The features that the driver has accepted.
    pub fn features(&self) -> u64 {
        self.rings.accepted
    }

    /// Whether all bits of `feature` are among them.
    pub fn has(&self, feature: u64) -> bool {
        self.rings.accepted & feature == feature
    }

    /// Whether the device is active: the driver is ready and nothing has gone wrong.
    pub fn is_active(&self) -> bool {
        self.rings.is_active()
    }

    /// The queues.
    pub fn queues(&self) -> &[Queue] {
        &self.rings.queues
    }

    /// The queue, for a backend that serves its rings itself.
    pub fn queue_mut(&mut self, queue: usize) -> Option<&mut Queue> {
        self.rings.queues.get_mut(queue)
    }

    /// Takes the next chain of `queue`. `None`: there is none, or the device is not active.
    pub fn pop(&mut self, queue: usize) -> Option<Chain> {
        let indirect = self.has(F_INDIRECT_DESC);
        self.on_queue(queue, |q, ram| q.pop(ram, indirect)).flatten()
    }

    /// Puts back the chain that was taken last.
    pub fn unpop(&mut self, queue: usize, chain: Chain) {
        if let Some(queue) = self.rings.queues.get_mut(queue) {
            queue.unpop(chain);
        }
    }

    /// Takes the chain that starts at descriptor `head` and was in flight when the device was saved.
    pub fn take_up(&mut self, queue: usize, head: u16) -> Option<Chain> {
        let indirect = self.has(F_INDIRECT_DESC);
        self.on_queue(queue, |q, ram| q.take_up(ram, head, indirect))
    }

    /// Gives a chain back, to which `written` bytes were written.
    pub fn push(&mut self, queue: usize, chain: Chain, written: u32) {
        self.push_all(queue, [(chain, written)]);
    }

    /// Gives several chains back, which the driver sees all at once.
    pub fn push_all(&mut self, queue: usize, chains: impl IntoIterator<Item = (Chain, u32)>) {
        self.on_queue(queue, |q, ram| q.push(ram, chains));
    }

    /// Interrupts if the driver wants it for what was pushed to `queue` since the last call.
    pub fn signal(&mut self, queue: usize) {
        let Rings { ram, queues, .. } = &mut *self.rings;
        if queues.get_mut(queue).is_some_and(|q| q.wants_interrupt(ram)) {
            self.interrupt.raise(Cause::Queue(queue));
        }
    }

    /// Tells the driver that it need not ring for `queue`.
    pub fn disable_bell(&mut self, queue: usize) {
        self.on_queue(queue, Queue::disable_bell);
    }

    /// Tells the driver to ring for `queue` again. True: it has put buffers there meanwhile.
    pub fn enable_bell(&mut self, queue: usize) -> bool {
        self.on_queue(queue, Queue::enable_bell).unwrap_or(false)
    }

    /// Hands each chain of `queue` to `handle` until there is none, then interrupts if the driver
    /// wants it. A driver that is as fast as the device does not keep it for ever: what is beyond
    /// a queue's size comes in a notification of its own.
    pub fn serve(&mut self, queue: usize, mut handle: impl FnMut(&mut Self, Chain)) {
        let mut left = self.rings.queues.get(queue).map_or(0, Queue::size);
        loop {
            self.disable_bell(queue);
            while let Some(chain) = self.pop(queue) {
                handle(self, chain);
                left -= 1;
                if left == 0 {
                    self.rings.queues[queue].ring();
                    return self.signal(queue);
                }
            }
            if !self.enable_bell(queue) {
                return self.signal(queue);
            }
        }
    }

    /// The device-specific configuration has changed.
    pub fn config_changed(&mut self) {
        self.rings.generation = self.rings.generation.wrapping_add(1);
        if self.rings.status.contains(Status::DRIVER_OK) {
            self.interrupt.raise(Cause::Config);
        }
    }

    /// The driver has done what it must not: the device needs a reset, and does nothing until then.
    pub fn fail(&mut self, why: &'static str) {
        self.broken(Malformed::Request(why));
    }

    /// Nothing of before the reset reads or writes guest memory any more.
    pub fn drained(&mut self) {
        self.rings.drained = true;
    }

    fn broken(&mut self, why: Malformed) {
        self.rings.broken.get_or_insert(why);
        if !self.rings.status.contains(Status::NEEDS_RESET) {
            self.rings.status |= Status::NEEDS_RESET;
            if self.rings.status.contains(Status::DRIVER_OK) {
                self.interrupt.raise(Cause::Config);
            }
        }
    }

    /// Does something with a queue that is in use.
    fn on_queue<R>(
        &mut self,
        queue: usize,
        act: impl FnOnce(&mut Queue, &GuestRam) -> Result<R, Malformed>,
    ) -> Option<R> {
        if !self.rings.is_active() {
            return None;
        }
        let Rings { ram, queues, .. } = &mut *self.rings;
        let queue = queues.get_mut(queue).filter(|queue| queue.is_ready())?;
        act(queue, ram).map_err(|why| self.broken(why)).ok()
    }
}

impl Rings {
    fn is_active(&self) -> bool {
        self.status.contains(Status::DRIVER_OK) && !self.status.contains(Status::NEEDS_RESET)
    }
}

/// Whether the guest's instructions drive the VM clock (`--icount`). A doorbell that bypasses the
/// vCPU's thread would come at no fixed count then.
pub(super) fn is_driven(attach: &Attach) -> bool {
    attach.event_loop().clock().is_driven()
}

/// A virtio device behind its transport.
pub struct Core {
    device: Box<dyn VirtioDevice>,
    rings: Rings,
    /// The device has been told of `activate` and not yet of `reset`.
    active: bool,
    /// The device still works on requests of before a reset; the status that the driver sees.
    resetting: Option<Status>,
    paused: bool,
}

impl Core {
    /// The device, with its queues' doorbells as events of the slot that `attach` is for.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        options: RingOptions,
        attach: &Attach,
    ) -> std::io::Result<Self> {
        let sizes = device.queue_sizes();
        let queues = (FIRST_CORE_TAG..)
            .zip(sizes)
            .map(|(tag, size)| {
                let driven = is_driven(attach).then(|| attach.queue_notifier(Tag(tag)));
                Ok(Queue::new(size, attach.bell(Tag(tag))?, driven))
            })
            .collect::<std::io::Result<_>>()?;
        let mut offered = device.features() | F_VERSION_1;
        if options.indirect {
            offered |= F_INDIRECT_DESC;
        }
        if options.event_idx {
            offered |= F_EVENT_IDX;
        }
        let rings = Rings {
            ram,
            queues,
            status: Status::empty(),
            offered,
            accepted: 0,
            generation: 0,
            broken: None,
            drained: false,
        };
        Ok(Self { device, rings, active: false, resetting: None, paused: false })
    }

    /// Which device it is.
    pub fn kind(&self) -> Kind {
        self.device.kind()
    }

    /// The device, if it is a `D`, with what it acts through.
    pub fn with<D: VirtioDevice, R>(
        &mut self,
        interrupt: &mut dyn Interrupt,
        act: impl FnOnce(&mut D, &mut Io<'_>) -> R,
    ) -> Option<R> {
        let any: &mut dyn std::any::Any = &mut *self.device;
        let device = any.downcast_mut()?;
        Some(act(device, &mut Io { rings: &mut self.rings, interrupt }))
    }

    /// The device as it is.
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// Features that are offered.
    pub fn offered(&self) -> u64 {
        self.rings.offered
    }

    /// Features that the driver has accepted.
    pub fn accepted(&self) -> u64 {
        self.rings.accepted
    }

    /// Sets word 0 or 1 of the features that the driver accepts.
    pub(super) fn accept(&mut self, word: u32, value: u32) {
        let fixed = Status::FEATURES_OK | Status::DRIVER_OK;
        if word > 1 || self.rings.status.intersects(fixed) {
            return;
        }
        let shift = word * 32;
        self.rings.accepted =
            self.rings.accepted & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
    }

    /// The status that the driver sees.
    pub fn status(&self) -> Status {
        match self.resetting {
            Some(status) if self.rings.status.is_empty() => status,
            _ => self.rings.status,
        }
    }

    /// Why the device needs a reset.
    pub fn broken(&self) -> Option<Malformed> {
        self.rings.broken
    }

    /// Increments when the configuration changes.
    pub fn generation(&self) -> u8 {
        self.rings.generation
    }

    /// The queues.
    pub fn queues(&self) -> &[Queue] {
        &self.rings.queues
    }

    /// The queue, to be set up: only before it is ready.
    pub(super) fn setup(&mut self, queue: usize) -> Option<&mut virtio_queue::Queue> {
        self.rings.queues.get_mut(queue)?.setup()
    }

    /// The driver says that a queue is ready, or is not any more.
    pub(super) fn set_ready(&mut self, queue: usize, ready: bool, interrupt: &mut dyn Interrupt) {
        let event_idx = self.rings.accepted & F_EVENT_IDX != 0;
        let Rings { ram, queues, .. } = &mut self.rings;
        let Some(queue) = queues.get_mut(queue) else { return };
        if !queue.set_ready(ready, event_idx, ram) {
            Io { rings: &mut self.rings, interrupt }.broken(Malformed::RingNotRam);
        } else if ready && self.active {
            queue.ring();
        }
    }

    /// The driver writes the status.
    pub(super) fn set_status(&mut self, value: u8, interrupt: &mut dyn Interrupt) {
        if value == 0 {
            return self.reset(interrupt);
        }
        let mut wanted = Status::from_bits_truncate(value) - Status::NEEDS_RESET;
        let rings = &mut self.rings;
        let news = wanted - rings.status;
        if news.contains(Status::FEATURES_OK) {
            let agreed = rings.accepted & !rings.offered == 0;
            if !agreed || rings.accepted & F_VERSION_1 == 0 {
                wanted -= Status::FEATURES_OK;
            }
        }
        if news.contains(Status::DRIVER_OK) && !wanted.contains(Status::FEATURES_OK) {
            wanted -= Status::DRIVER_OK;
        }
        // A driver does not take back what it has said but by a reset (2.1.1).
        rings.status |= wanted;
        if rings.status.contains(Status::DRIVER_OK) && !self.active && self.resetting.is_none() {
            self.activate(interrupt);
        }
    }

    fn activate(&mut self, interrupt: &mut dyn Interrupt) {
        self.active = true;
        let mut io = Io { rings: &mut self.rings, interrupt };
        self.device.activate(&mut io);
        self.ring_all();
    }

    /// Has all queues looked at.
    fn ring_all(&self) {
        for queue in self.rings.queues.iter().filter(|queue| queue.is_ready()) {
            queue.ring();
        }
    }

    /// Power-on state, or the driver's reset.
    pub(super) fn reset(&mut self, interrupt: &mut dyn Interrupt) {
        let status = self.rings.status;
        let rings = &mut self.rings;
        rings.queues.iter_mut().for_each(Queue::reset);
        rings.status = Status::empty();
        rings.accepted = 0;
        rings.broken = None;
        rings.drained = false;
        interrupt.reset();
        if mem::take(&mut self.active) && self.device.reset() == Paused::Pending {
            self.resetting = Some(status);
        }
    }

    /// After each call of the device: whether its reset is over by that.
    fn finish_reset(&mut self, interrupt: &mut dyn Interrupt) {
        if mem::take(&mut self.rings.drained)
            && self.resetting.take().is_some()
            && self.rings.status.contains(Status::DRIVER_OK)
        {
            self.activate(interrupt);
        }
    }

    /// An event of the slot.
    pub(super) fn event(&mut self, tag: Tag, now: VmTime, interrupt: &mut dyn Interrupt) {
        let mut io = Io { rings: &mut self.rings, interrupt };
        if let Some(queue) = tag.0.checked_sub(FIRST_CORE_TAG) {
            // A stopped machine's queues are rung when it goes on.
            let queue = queue as usize;
            let ready = io.rings.queues.get(queue).is_some_and(Queue::is_ready);
            if ready && self.active && !self.paused && io.is_active() {
                self.device.notify(queue, &mut io);
            }
        } else {
            self.device.event(tag, now, &mut io);
        }
        self.finish_reset(interrupt);
    }

    /// The driver reads the device-specific configuration.
    pub(super) fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// The driver writes to it.
    pub(super) fn write_config(
        &mut self,
        offset: usize,
        data: &[u8],
        interrupt: &mut dyn Interrupt,
    ) {
        let mut io = Io { rings: &mut self.rings, interrupt };
        self.device.write_config(offset, data, &mut io);
    }

    /// The machine is being stopped.
    pub(super) fn pause(&mut self, interrupt: &mut dyn Interrupt) -> Paused {
        self.paused = true;
        let mut io = Io { rings: &mut self.rings, interrupt };
        let paused = self.device.pause(&mut io);
        self.finish_reset(interrupt);
        paused
    }

    /// The machine goes on.
    pub(super) fn resume(&mut self, interrupt: &mut dyn Interrupt) {
        self.paused = false;
        let mut io = Io { rings: &mut self.rings, interrupt };
        self.device.resume(&mut io);
        if self.active {
            self.ring_all();
        }
    }

    pub(super) fn save(&self) -> CoreV1 {
        let Self { device, rings, active: _, resetting: _, paused: _ } = self;
        let Rings { ram: _, queues, status, offered: _, accepted, generation, broken, drained: _ } =
            rings;
        // Why it needs a reset is for the monitor only.
        let _ = broken;
        CoreV1 {
            device_id: device.kind().id,
            status: status.bits(),
            features: *accepted,
            generation: *generation,
            queues: queues.iter().map(Queue::save).collect(),
            device: device.state().map(|state| DeviceV1 {
                kind: state.kind().to_owned(),
                version: state.version(),
                value: state.save_value(),
            }),
        }
    }

    pub(super) fn restore(&mut self, state: CoreV1) -> Result<(), StateError> {
        let CoreV1 { device_id, status, features, generation, queues, device } = state;
        if device_id != self.device.kind().id {
            return Err(damaged(format!("device id {device_id}")));
        }
        if features & !self.rings.offered != 0 {
            let missing = features & !self.rings.offered;
            return Err(damaged(format!("features {missing:#x} are not offered here")));
        }
        if queues.len() != self.rings.queues.len() {
            return Err(damaged(format!("{} queues", queues.len())));
        }
        let event_idx = features & F_EVENT_IDX != 0;
        let rings = self.rings.queues.iter().zip(&queues);
        let rings = rings
            .map(|(queue, state)| queue.check(state, event_idx, &self.rings.ram))
            .collect::<Result<Vec<_>, _>>()?;
        match (self.device.state_mut(), device) {
            (None, None) => {}
            (Some(own), Some(saved)) if own.kind() == saved.kind => {
                own.restore_value(saved.version, saved.value)?;
            }
            _ => return Err(damaged("the state of another device".to_owned())),
        }
        for (queue, ring) in self.rings.queues.iter_mut().zip(rings) {
            queue.restore(ring);
        }
        self.rings.status = Status::from_bits_truncate(status);
        self.rings.accepted = features;
        self.rings.generation = generation;
        self.rings.broken = None;
        self.active = self.rings.status.contains(Status::DRIVER_OK);
        self.resetting = None;
        Ok(())
    }
}

/// The saved state of all that transports have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CoreV1 {
    device_id: u16,
    status: u8,
    features: u64,
    generation: u8,
    queues: Vec<QueueV1>,
    device: Option<DeviceV1>,
}

/// The device's own section.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct DeviceV1 {
    kind: String,
    version: u32,
    value: Value,
}
