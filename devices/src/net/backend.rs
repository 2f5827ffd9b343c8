//! A network backend as its card and the program see it.

use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use board::device::{Notifier, Tag};
use board::event::EventTarget;
use board::time::VmTime;

use super::NetError;
use super::frame::{Gather, NetHeader, Offloads};
use super::user::UserNet;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way, or nobody wants it.
    Done,
    /// There is no room: the card keeps it, and is notified when there is.
    Busy,
}

/// Takes a frame, or says that it has no room for it.
pub type Sink<'a> = dyn FnMut(&NetHeader, &[IoSlice<'_>]) -> bool + 'a;

/// What stands behind a [`Netdev`]. It is called with the netdev's lock held.
pub(super) trait Backend: Send {
    /// `type=user,net=10.0.2.0,restrict=off`, as `info network` shows it.
    fn describe(&self) -> String;
    /// What may be done to frames in both directions.
    fn capabilities(&self) -> Offloads;
    /// What the card takes.
    fn set_offloads(&mut self, offloads: Offloads);
    /// Queue pairs.
    fn queues(&self) -> usize {
        1
    }
    /// Frames to the network.
    fn send(&mut self, queue: usize, header: &NetHeader, frame: Gather<'_>) -> Sent;
    /// Gives frames to the card until there is none or the card has no room; whether it was that.
    fn receive(&mut self, queue: usize, sink: &mut Sink<'_>) -> bool;
    /// Whether `receive` may have something to give.
    fn has_frames(&self) -> bool;
    /// An fd or a timer; whether the card is to be told, of room or of the link.
    fn event(&mut self, tag: Tag, now: VmTime) -> bool;
    /// Whether the cable is plugged in at the other end.
    fn link(&self) -> bool {
        true
    }
    /// The user network, if it is one.
    fn user(&mut self) -> Option<&mut UserNet> {
        None
    }
}

struct State {
    backend: Box<dyn Backend>,
    /// Who is told; there is a card where there is one.
    notifier: Option<Notifier>,
    in_use: bool,
    /// The card knows that there are frames, and has not come for them, or had no room.
    told: bool,
    /// What the monitor's set_link says.
    up: bool,
}

impl State {
    fn tell(&mut self, always: bool) {
        if let Some(notifier) = &self.notifier
            && (always || !self.told && self.backend.has_frames())
        {
            self.told = true;
            notifier.notify();
        }
    }
}

/// An open network backend.
pub struct Netdev {
    id: String,
    state: Mutex<State>,
}

impl Netdev {
    pub(super) fn new(id: &str, backend: Box<dyn Backend>) -> Self {
        let state = State { backend, notifier: None, in_use: false, told: false, up: true };
        Self { id: id.to_owned(), state: Mutex::new(state) }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The end for a card.
    ///
    /// # Errors
    /// [`NetError::InUse`]: another card has it.
    pub fn attach(self: &Arc<Self>) -> Result<NetPort, NetError> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.in_use, true) {
            return Err(NetError::InUse { id: self.id.clone() });
        }
        Ok(NetPort { netdev: Some(self.clone()) })
    }

    /// `type=user,net=10.0.2.0,restrict=off`, as `info network` shows it.
    pub fn describe(&self) -> String {
        self.lock().backend.describe()
    }

    /// Whether a card has it.
    pub fn in_use(&self) -> bool {
        self.lock().in_use
    }

    /// Plugs the cable in or pulls it.
    pub fn set_link(&self, up: bool) {
        let mut state = self.lock();
        state.up = up;
        state.tell(true);
    }

    /// Does something with the user network, if it is one.
    pub fn with_user<R>(&self, act: impl FnOnce(&mut UserNet) -> R) -> Option<R> {
        let mut state = self.lock();
        let result = state.backend.user().map(act);
        state.tell(false);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventTarget for Netdev {
    fn event(&self, tag: Tag, now: VmTime) {
        let mut state = self.lock();
        let always = state.backend.event(tag, now);
        state.tell(always);
    }
}

/// The card's end of a network backend. Without one, a card has a cable that leads nowhere.
#[derive(Default)]
pub struct NetPort {
    netdev: Option<Arc<Netdev>>,
}

impl NetPort {
    /// The backend, if there is one.
    pub fn netdev(&self) -> Option<&Arc<Netdev>> {
        self.netdev.as_ref()
    }

    /// Names who hears that there are frames, that there is room again, or that the link has
    /// changed. What there is already is told at once.
    pub fn set_notifier(&mut self, notifier: Notifier) {
        if let Some(netdev) = &self.netdev {
            let mut state = netdev.lock();
            notifier.notify();
            state.notifier = Some(notifier);
        }
    }

    /// What may be done to frames in both directions.
    pub fn capabilities(&self) -> Offloads {
        let get = |netdev: &Arc<Netdev>| netdev.lock().backend.capabilities();
        self.netdev.as_ref().map_or(Offloads::all(), get)
    }

    /// Says what the card takes: none at first.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        if let Some(netdev) = &self.netdev {
            netdev.lock().backend.set_offloads(offloads);
        }
    }

    /// Queue pairs.
    pub fn queues(&self) -> usize {
        self.netdev.as_ref().map_or(1, |netdev| netdev.lock().backend.queues())
    }

    /// Sends a frame.
    pub fn send(&mut self, queue: usize, header: &NetHeader, frame: Gather<'_>) -> Sent {
        let Some(netdev) = &self.netdev else { return Sent::Done };
        let mut state = netdev.lock();
        if !state.up {
            return Sent::Done;
        }
        let sent = state.backend.send(queue, header, frame);
        state.tell(false);
        sent
    }

    /// Gives frames to `sink` until it has no room or there is none. A frame that was not taken comes
    /// again; a card that has room again calls this.
    pub fn receive(&mut self, queue: usize, sink: &mut Sink<'_>) {
        let Some(netdev) = &self.netdev else { return };
        let mut state = netdev.lock();
        let up = state.up;
        // With the cable pulled, what comes is lost.
        let refused = match up {
            true => state.backend.receive(queue, sink),
            false => state.backend.receive(queue, &mut |_, _| true),
        };
        state.told = refused;
    }

    /// Whether the cable is plugged in at the other end.
    pub fn link(&self) -> bool {
        let get = |netdev: &Arc<Netdev>| {
            let state = netdev.lock();
            state.up && state.backend.link()
        };
        self.netdev.as_ref().is_none_or(get)
    }
}

impl Drop for NetPort {
    fn drop(&mut self) {
        if let Some(netdev) = &self.netdev {
            let mut state = netdev.lock();
            state.in_use = false;
            state.notifier = None;
            state.told = false;
            state.backend.set_offloads(Offloads::empty());
        }
    }
}
