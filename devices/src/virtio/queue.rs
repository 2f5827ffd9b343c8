//! A split virtqueue as the device's side sees it (Virtio 1.2, 2.7), over crate `virtio-queue`.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use board::device::Notifier;
use board::memory::Ram;
use board::state::StateError;
use board::{Bell, GuestRam};
use serde::{Deserialize, Serialize};
use virtio_queue::{QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, Malformed, Segment, Table};

/// The available ring's flag by which the driver wants no interrupts (2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// Bytes of a used element, and of the used ring's header.
const USED_ELEMENT: u64 = 8;
const RING_HEADER: u64 = 4;
/// Bytes of an element of the available ring.
const AVAIL_ELEMENT: u64 = 2;

/// Where a queue's rings are, for a backend that serves them itself (vhost).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

/// One queue.
#[derive(Debug)]
pub struct Queue {
    ring: virtio_queue::Queue,
    /// Its doorbell.
    bell: Bell,
    /// What is told in place of the doorbell, where the guest's instructions drive the clock.
    driven: Option<Notifier>,
    /// Counts resets, so that a chain of an earlier life is known.
    epoch: u32,
    /// Chains that were taken and not given back.
    in_flight: u16,
    /// The used index at the last decision whether to interrupt.
    signalled: Wrapping<u16>,
    /// Vectors of chains that were given back.
    spare: Vec<Vec<Segment>>,
}

/// A queue's saved state.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct QueueV1 {
    size: u16,
    ready: bool,
    descriptors: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
}

impl Queue {
    /// A queue of at most `max_size` descriptors, a power of two.
    pub(super) fn new(max_size: u16, bell: Bell, driven: Option<Notifier>) -> Self {
        let max_size = max_size.next_power_of_two();
        Self {
            // It refuses only what is no power of two.
            ring: virtio_queue::Queue::new(max_size).unwrap_or_default(),
            bell,
            driven,
            epoch: 0,
            in_flight: 0,
            signalled: Wrapping(0),
            spare: Vec::new(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.ring.reset();
        self.epoch = self.epoch.wrapping_add(1);
        self.in_flight = 0;
        self.signalled = Wrapping(0);
    }

    /// Its doorbell, which calls [`VirtioDevice::notify`](super::VirtioDevice::notify).
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Has the device look at it.
    pub fn ring(&self) {
        match &self.driven {
            Some(notifier) => notifier.notify(),
            None => self.bell.ring(),
        }
    }

    /// Whether the driver uses it.
    pub fn is_ready(&self) -> bool {
        self.ring.ready()
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Where the rings are.
    pub fn layout(&self) -> Layout {
        Layout {
            size: self.ring.size(),
            descriptors: self.ring.desc_table(),
            avail: self.ring.avail_ring(),
            used: self.ring.used_ring(),
        }
    }

    /// The index of the next entry of the available ring that the device takes, and of the next
    /// one of the used ring that it fills.
    pub fn positions(&self) -> (u16, u16) {
        (self.ring.next_avail(), self.ring.next_used())
    }

    /// Sets what [`positions`](Self::positions) gives, after a backend has served the rings.
    pub fn set_positions(&mut self, avail: u16, used: u16) {
        self.ring.set_next_avail(avail);
        self.ring.set_next_used(used);
        self.signalled = Wrapping(used);
    }

    /// Chains that were taken and not given back.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// The most descriptors that there can be.
    pub fn max_size(&self) -> u16 {
        self.ring.max_size()
    }

    /// The ring, to set its size and addresses; not while it is ready.
    pub(super) fn setup(&mut self) -> Option<&mut virtio_queue::Queue> {
        (!self.ring.ready()).then_some(&mut self.ring)
    }

    /// Makes it ready, or not. False: its rings are not in RAM.
    pub(super) fn set_ready(&mut self, ready: bool, event_idx: bool, ram: &GuestRam) -> bool {
        if ready == self.ring.ready() {
            return true;
        }
        if !ready {
            self.epoch = self.epoch.wrapping_add(1);
            self.in_flight = 0;
        }
        self.ring.set_event_idx(event_idx);
        self.ring.set_ready(ready);
        // Address 0 is RAM, but virtio-queue takes it for a queue that was not set up.
        let valid = !ready || (self.ring.is_valid(ram.map()) && self.ring.avail_ring() != 0);
        self.ring.set_ready(ready && valid);
        valid
    }

    pub(super) fn pop(
        &mut self,
        ram: &GuestRam,
        indirect: bool,
    ) -> Result<Option<Chain>, Malformed> {
        let map = ram.map();
        let mut heads = self.ring.iter(map).map_err(|e| match e {
            virtio_queue::Error::InvalidAvailRingIndex => Malformed::AvailIndex,
            _ => Malformed::RingNotRam,
        })?;
        let Some(head) = heads.next().map(|chain| chain.head_index()) else { return Ok(None) };
        if self.in_flight >= self.ring.size() {
            return Err(Malformed::TooManyInFlight);
        }
        let chain = self.walk(ram, head, indirect)?;
        self.in_flight += 1;
        Ok(Some(chain))
    }

    fn walk(&mut self, ram: &GuestRam, head: u16, indirect: bool) -> Result<Chain, Malformed> {
        let table = Table { address: self.ring.desc_table(), count: self.ring.size().into() };
        let segments = self.spare.pop().unwrap_or_default();
        let mut chain = Chain::walk(ram, table, head, indirect, segments)?;
        chain.epoch = self.epoch;
        Ok(chain)
    }

    /// The chain at `head`, which was in flight when the state was saved.
    pub(super) fn take_up(
        &mut self,
        ram: &GuestRam,
        head: u16,
        indirect: bool,
    ) -> Result<Chain, Malformed> {
        if self.in_flight >= self.ring.size() {
            return Err(Malformed::TooManyInFlight);
        }
        let chain = self.walk(ram, head, indirect)?;
        self.in_flight += 1;
        Ok(chain)
    }

    /// Puts the chain that was taken last back, to be taken again.
    pub(super) fn unpop(&mut self, chain: Chain) {
        if self.owns(&chain) {
            self.ring.go_to_previous_position();
            self.in_flight -= 1;
        }
        self.spare.push(chain.into_segments());
    }

    fn owns(&self, chain: &Chain) -> bool {
        chain.epoch == self.epoch && self.ring.ready() && self.in_flight > 0
    }

    /// Gives chains back, each with the bytes that were written to it, all of them visible to the
    /// driver at once. Chains from before a reset are dropped.
    pub(super) fn push(
        &mut self,
        ram: &GuestRam,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), Malformed> {
        let map = ram.map();
        let mut used = Wrapping(self.ring.next_used());
        for (chain, written) in chains {
            if self.owns(&chain) {
                self.in_flight -= 1;
                let index = u64::from(used.0 % self.ring.size());
                let at = self.ring.used_ring() + RING_HEADER + index * USED_ELEMENT;
                let element = u64::from(chain.head()) | u64::from(written) << 32;
                ram.write(at, &element.to_le_bytes()).map_err(|_| Malformed::RingNotRam)?;
                used += 1;
            }
            // What a burst of requests took is not held for good.
            if self.spare.len() < 64 {
                self.spare.push(chain.into_segments());
            }
        }
        if used.0 != self.ring.next_used() {
            self.ring.set_next_used(used.0);
            let at = GuestAddress(self.ring.used_ring() + 2);
            map.store(used.0.to_le(), at, Ordering::Release).map_err(|_| Malformed::RingNotRam)?;
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call (2.7.7.2,
    /// 2.7.10).
    pub(super) fn wants_interrupt(&mut self, ram: &GuestRam) -> bool {
        let (old, new) = (self.signalled, Wrapping(self.ring.next_used()));
        if old == new || !self.ring.ready() {
            return false;
        }
        self.signalled = new;
        // The used index is to be seen before the driver's wish is read.
        fence(Ordering::SeqCst);
        let load = |at: u64| {
            Bytes::<GuestAddress>::load::<u16>(ram.map(), GuestAddress(at), Ordering::Relaxed)
                .map(u16::from_le)
        };
        let avail = self.ring.avail_ring();
        if self.ring.event_idx_enabled() {
            let event = RING_HEADER + AVAIL_ELEMENT * u64::from(self.ring.size());
            load(avail + event).is_ok_and(|event| new - Wrapping(event) - Wrapping(1) < new - old)
        } else {
            load(avail).is_ok_and(|flags| flags & AVAIL_NO_INTERRUPT == 0)
        }
    }

    /// Tells the driver that it need not ring.
    pub(super) fn disable_bell(&mut self, ram: &GuestRam) -> Result<(), Malformed> {
        self.ring.disable_notification(ram.map()).map_err(|_| Malformed::RingNotRam)
    }

    /// Tells the driver to ring again. True: there are buffers already.
    pub(super) fn enable_bell(&mut self, ram: &GuestRam) -> Result<bool, Malformed> {
        self.ring.enable_notification(ram.map()).map_err(|_| Malformed::RingNotRam)
    }

    /// The available and the used index, and the flags of both rings, as they are in memory.
    pub fn in_memory(&self, ram: &GuestRam) -> [u16; 4] {
        let map: &Ram = ram.map();
        let load = |at: u64| {
            Bytes::<GuestAddress>::load::<u16>(map, GuestAddress(at), Ordering::Relaxed)
                .map_or(0, u16::from_le)
        };
        let (avail, used) = (self.ring.avail_ring(), self.ring.used_ring());
        [load(avail + 2), load(used + 2), load(avail), load(used)]
    }

    /// The used index at the last decision whether to interrupt.
    pub fn signalled(&self) -> u16 {
        self.signalled.0
    }

    pub(super) fn save(&self) -> QueueV1 {
        let QueueState {
            max_size: _,
            next_avail,
            next_used,
            event_idx_enabled: _,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = self.ring.state();
        QueueV1 {
            size,
            ready,
            descriptors: desc_table,
            avail: avail_ring,
            used: used_ring,
            next_avail,
            next_used,
        }
    }

    /// The ring that `state` describes.
    pub(super) fn check(
        &self,
        state: &QueueV1,
        event_idx: bool,
        ram: &GuestRam,
    ) -> Result<virtio_queue::Queue, StateError> {
        let ring = virtio_queue::Queue::try_from(QueueState {
            max_size: self.ring.max_size(),
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.descriptors,
            avail_ring: state.avail,
            used_ring: state.used,
        })
        .map_err(|e| damaged(e.to_string()))?;
        if state.ready && !(ring.is_valid(ram.map()) && state.avail != 0) {
            return Err(damaged("a queue that is not in RAM".to_owned()));
        }
        Ok(ring)
    }

    /// Takes on what `check` gave; chains in flight are taken up by the device.
    pub(super) fn restore(&mut self, ring: virtio_queue::Queue) {
        self.signalled = Wrapping(ring.next_used());
        self.ring = ring;
        self.epoch = self.epoch.wrapping_add(1);
        self.in_flight = 0;
    }
}

pub(super) fn damaged(cause: String) -> StateError {
    StateError::Damaged { kind: "virtio", cause }
}
