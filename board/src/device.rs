//! What a chip is to the machine, and what the machine gives a chip.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub use crate::event::Tag;
use crate::event::{Bell, EventTarget, LoopHandle, Readiness, Timer, Watch};
use crate::pci::PciFunction;
use crate::state::ErasedSnapshot;
use crate::time::{ClockKind, VmTime};

/// Which of a device's regions an access hits; the numbers are the device's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region(pub u16);

/// The answer to [`Device::pause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paused {
    /// Nothing is in flight.
    Done,
    /// Requests are in flight.
    Pending,
}

/// A chip or a card.
///
/// It is called with its own lock held and calls neither a bus nor another device: it acts through
/// the handles that its constructor was given ([`crate::IrqLine`], [`Timer`], [`Watch`],
/// [`crate::SystemControl`]). Whatever a guest does wrong becomes device state or all-ones.
pub trait Device: Any + Send {
    /// A guest reads `data.len()` (1, 2, 4 or 8) bytes at `offset` into `region`.
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]);

    /// A guest writes `data` at `offset` into `region`.
    fn write(&mut self, region: Region, offset: u64, data: &[u8]);

    /// A timer is due, an fd is ready or a queue was kicked. `now` is the VM clock's time.
    fn event(&mut self, _tag: Tag, _now: VmTime) {}

    /// The state after power-on or the reset line.
    fn reset(&mut self);

    /// The machine is being stopped: no new request is taken from a queue after this. A device that
    /// answers [`Paused::Pending`] is asked again a little later.
    fn pause(&mut self) -> Paused {
        Paused::Done
    }

    /// The machine runs again.
    fn resume(&mut self) {}

    /// The configuration side of a device that is a PCI function.
    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        None
    }

    /// The device's state, if it has any worth saving.
    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        None
    }
}

/// The place that a device is plugged into: its name, its lock, and its identity for the loop.
pub struct Slot {
    name: Box<str>,
    device: Mutex<Box<dyn Device>>,
}

impl Slot {
    /// Plugs in the device that `build` makes; `build` gets the handles for its timers and fds.
    pub fn plug<D: Device + 'static>(
        name: impl Into<Box<str>>,
        handle: &LoopHandle,
        build: impl FnOnce(&Attach) -> D,
    ) -> Arc<Self> {
        let name = name.into();
        Arc::new_cyclic(|slot: &Weak<Self>| {
            let attach = Attach { handle: handle.clone(), slot: slot.clone() };
            Self { name, device: Mutex::new(Box::new(build(&attach))) }
        })
    }

    /// The same with a `build` that may fail.
    ///
    /// # Errors
    /// What `build` says.
    pub fn try_plug<D: Device + 'static, E>(
        name: impl Into<Box<str>>,
        handle: &LoopHandle,
        build: impl FnOnce(&Attach) -> Result<D, E>,
    ) -> Result<Arc<Self>, E> {
        let mut error = None;
        let name = name.into();
        let slot = Arc::new_cyclic(|slot: &Weak<Self>| {
            let attach = Attach { handle: handle.clone(), slot: slot.clone() };
            let device: Box<dyn Device> = match build(&attach) {
                Ok(device) => Box::new(device),
                Err(e) => {
                    error = Some(e);
                    Box::new(Nothing)
                }
            };
            Self { name, device: Mutex::new(device) }
        });
        error.map_or(Ok(slot), Err)
    }

    /// The name that the monitor shows: `serial0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Locks the device and calls `act` with it, if it is a `D`: for whoever plugged it in and
    /// knows more of it than buses do.
    pub fn with<D: Device, R>(&self, act: impl FnOnce(&mut D) -> R) -> Option<R> {
        let device: &mut dyn Any = &mut **self.lock();
        device.downcast_mut().map(act)
    }

    /// Locks the device. A device that panicked in an earlier call is used on as it is: one bad
    /// access must not take the machine down.
    pub fn lock(&self) -> MutexGuard<'_, Box<dyn Device>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is in a slot whose device could not be made, until the slot is dropped.
struct Nothing;

impl Device for Nothing {
    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn write(&mut self, _region: Region, _offset: u64, _data: &[u8]) {}
    fn reset(&mut self) {}
}

impl EventTarget for Slot {
    fn event(&self, tag: Tag, now: VmTime) {
        self.lock().event(tag, now);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.name)
    }
}

/// Handles for a device that is being built, all of which end in its [`Device::event`].
pub struct Attach {
    handle: LoopHandle,
    slot: Weak<Slot>,
}

impl Attach {
    /// A timer on the VM clock, or on the realtime clock.
    pub fn timer(&self, clock: ClockKind, tag: Tag) -> Timer {
        self.handle.timer(clock, self.slot.clone(), tag)
    }

    /// A watch on `fd`, which must stay open as long as the watch exists.
    ///
    /// # Errors
    /// What epoll says, but for EPERM (a regular file), which gives a watch that is always ready.
    pub fn watch(&self, fd: RawFd, interest: Readiness, tag: Tag) -> io::Result<Watch> {
        self.handle.watch(fd, interest, self.slot.clone(), tag)
    }

    /// An eventfd for others to ring, which calls the device's `event`.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn bell(&self, tag: Tag) -> io::Result<Bell> {
        self.handle.bell(self.slot.clone(), tag)
    }

    /// A way for others to call the device's `event` on the main loop.
    pub fn notifier(&self, tag: Tag) -> Notifier {
        Notifier { handle: self.handle.clone(), target: self.slot.clone(), tag, driven: false }
    }

    /// The same for work that the guest itself has asked for, such as a queue that it kicked. With
    /// `--icount` the vCPU's thread makes the call, before the guest's next instruction, so that
    /// it comes at the same instruction in each run. What such work waits for on the host (a disk's
    /// answer) is then shown to the guest by a virtual timer, armed for a fixed time after the kick,
    /// whose event waits for the answer.
    pub fn queue_notifier(&self, tag: Tag) -> Notifier {
        Notifier { driven: true, ..self.notifier(tag) }
    }

    /// The loop that the device's events come from.
    pub fn event_loop(&self) -> &LoopHandle {
        &self.handle
    }
}

/// Posts one event to a target, from any thread, with any lock held.
#[derive(Clone)]
pub struct Notifier {
    handle: LoopHandle,
    target: Weak<dyn EventTarget>,
    tag: Tag,
    /// Where the VM clock is driven, its driver makes the call.
    driven: bool,
}

impl Notifier {
    /// A notifier for any target.
    pub fn new(handle: &LoopHandle, target: Weak<dyn EventTarget>, tag: Tag) -> Self {
        Self { handle: handle.clone(), target, tag, driven: false }
    }

    /// The target's `event` will be called once on the loop's thread.
    pub fn notify(&self) {
        if self.driven {
            self.handle.post_driven(self.target.clone(), self.tag);
        } else {
            self.handle.post_event(self.target.clone(), self.tag);
        }
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notifier({:?})", self.tag)
    }
}
