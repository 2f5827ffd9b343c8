//! What the tests of several chips share.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use board::device::{Attach, Device, Region, Slot};
use board::{Clock, EventLoop, SystemControl, SystemRequest};

/// A seeded stream of random numbers (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A machine that writes down what its chips ask of it.
#[derive(Default)]
pub(crate) struct Requests(Mutex<Vec<SystemRequest>>);

impl Requests {
    pub(crate) fn take(&self) -> Vec<SystemRequest> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl SystemControl for Requests {
    fn request(&self, request: SystemRequest) {
        self.0.lock().unwrap().push(request);
    }
}

/// A device in its slot, with a loop and a clock that the test moves by hand.
pub(crate) struct Bench {
    pub(crate) clock: Clock,
    pub(crate) events: EventLoop,
    pub(crate) slot: Arc<Slot>,
}

impl Bench {
    pub(crate) fn plug<D: Device + 'static>(build: impl FnOnce(&Attach) -> D) -> Self {
        let clock = Clock::stopped();
        let events = EventLoop::new(clock.clone()).unwrap();
        let slot = Slot::plug("chip", &events.handle(), build);
        Self { clock, events, slot }
    }

    pub(crate) fn read(&self, region: Region, offset: u64) -> u8 {
        let mut data = [0];
        self.slot.lock().read(region, offset, &mut data);
        data[0]
    }

    pub(crate) fn write(&self, region: Region, offset: u64, value: u8) {
        self.slot.lock().write(region, offset, &[value]);
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.clock.set(self.clock.now() + time);
    }

    /// Delivers what has been posted and what timers are due, for which the clock must run a while.
    pub(crate) fn deliver(&mut self) {
        self.clock.start();
        self.events.handle().clock_changed();
        for _ in 0..3 {
            self.events.turn(Some(Duration::from_millis(1))).unwrap();
        }
        self.clock.stop();
        self.events.handle().clock_changed();
    }

    /// The saved state, restored into another device.
    pub(crate) fn copy_to(&self, other: &Self) {
        let (version, state) = {
            let mut device = self.slot.lock();
            let snapshot = device.snapshot().unwrap();
            (snapshot.version(), snapshot.save_value())
        };
        other.clock.set(self.clock.now());
        let mut device = other.slot.lock();
        let snapshot = device.snapshot().unwrap();
        snapshot.restore_value(version, state.clone()).unwrap();
        assert_eq!(snapshot.save_value(), state);
    }
}
