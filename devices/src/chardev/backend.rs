//! A character device as its frontends and the program see it: a lock round the device's state, and
//! what is to be told to others once the lock is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use board::device::{Notifier, Tag};
use board::event::{EventTarget, LoopHandle};
use board::time::VmTime;

use super::mux::Mux;
use super::source::{Peer, Source};
use super::state::{ARRIVAL, Call, HANG_UP, Hooks, INPUT, OUTPUT, State};
use super::{CharPort, ChardevError};

/// A key after the escape key that is for the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotKey {
    /// x: quit.
    Quit,
    /// s: write the snapshot data of the disks back to their files.
    SaveDisks,
}

/// What character devices need of the program that they are part of.
#[derive(Clone)]
pub struct Host {
    /// The loop that their fds are on.
    pub events: LoopHandle,
    /// The escape key of multiplexed terminals: 1 for Ctrl-A.
    pub escape: u8,
    /// Called on the loop's thread, with no lock held.
    pub hot_key: Arc<dyn Fn(HotKey) + Send + Sync>,
    /// Prints a line for the user, such as where a pty is. Called from any thread, also with the
    /// lock of a device held that writes.
    pub report: Arc<dyn Fn(&str) + Send + Sync>,
}

/// What `info chardev` shows of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevInfo {
    /// Its name: `serial0`.
    pub label: String,
    /// What it is connected to: `unix:/run/vm.sock,server=on`.
    pub filename: String,
    /// Whether a frontend uses it.
    pub frontend_open: bool,
}

/// An open backend.
pub struct Chardev {
    label: String,
    host: Host,
    this: Weak<Self>,
    state: Mutex<State>,
}

impl Chardev {
    pub(super) fn new(
        label: &str,
        mux: bool,
        host: &Host,
        source: Box<dyn Source>,
        peer: Option<Peer>,
    ) -> Result<Arc<Self>, ChardevError> {
        let failed = |source| ChardevError::Host {
            label: label.to_owned(),
            source,
            limit: "open files (ulimit -n) or epoll watches",
        };
        let chardev = Arc::new_cyclic(|this: &Weak<Self>| Self {
            label: label.to_owned(),
            host: host.clone(),
            this: this.clone(),
            state: Mutex::new(State::new(
                label,
                Hooks { events: host.events.clone(), target: this.clone() },
                source,
                mux.then(|| Mux::new(host.escape)),
            )),
        });
        chardev.with(|state| state.open(peer)).map_err(failed)?;
        Ok(chardev)
    }

    /// A port for a frontend. The first frontend of a multiplexed backend has the focus.
    ///
    /// # Errors
    /// When the backend is not multiplexed and has a frontend.
    pub fn attach(&self) -> Result<Box<dyn CharPort>, ChardevError> {
        // Upgrading works: `self` came out of an Arc and is borrowed.
        let chardev = self.this.upgrade();
        let index = self.with(State::attach);
        match chardev.zip(index) {
            Some((chardev, index)) => Ok(Box::new(Port { chardev, index })),
            None => Err(ChardevError::InUse { label: self.label.clone() }),
        }
    }

    /// The name.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The lines of `info chardev`: a multiplexer and what it is on are two.
    pub fn info(&self) -> Vec<ChardevInfo> {
        let state = self.lock();
        let (filename, frontend_open) = (state.filename(), state.has_frontend());
        let line = |label, filename, frontend_open| ChardevInfo { label, filename, frontend_open };
        match state.is_mux() {
            false => vec![line(self.label.clone(), filename, frontend_open)],
            true => vec![
                line(self.label.clone(), "mux".to_owned(), frontend_open),
                line(format!("{}-base", self.label), filename, true),
            ],
        }
    }

    /// Writes out what is buffered, waiting for the reader until `deadline` at most, and lets go of
    /// the host: the terminal's modes are put back, a socket's file is removed. Output is thrown
    /// away from then on.
    pub fn finish(&self, deadline: Instant) {
        self.with(|state| state.close(deadline));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state; what is to be told to others is told after the lock is gone.
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        state.update_interest();
        let calls = state.take_calls();
        drop(state);
        for call in calls {
            match call {
                Call::HotKey(key) => (self.host.hot_key)(key),
                Call::Report(text) => (self.host.report)(&text),
            }
        }
        result
    }
}

impl EventTarget for Chardev {
    fn event(&self, tag: Tag, _now: VmTime) {
        self.with(|state| match tag {
            INPUT => state.pull(),
            OUTPUT => state.push(),
            ARRIVAL => state.welcome(),
            HANG_UP => state.hang_up(),
            _ => {}
        });
    }
}

/// A frontend's end.
struct Port {
    chardev: Arc<Chardev>,
    index: usize,
}

impl CharPort for Port {
    fn set_notifier(&mut self, notifier: Notifier) {
        self.chardev.with(|state| state.port(self.index).set_notifier(notifier));
    }

    fn write(&mut self, data: &[u8]) -> usize {
        self.chardev.with(|state| state.write(self.index, data))
    }

    fn read(&mut self, data: &mut [u8]) -> usize {
        self.chardev.with(|state| state.port(self.index).read(data))
    }

    fn take_break(&mut self) -> bool {
        self.chardev.lock().port(self.index).take_break()
    }

    fn take_focus(&mut self) -> Option<bool> {
        self.chardev.lock().port(self.index).take_focus()
    }

    fn width(&self) -> Option<u16> {
        self.chardev.lock().width()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.chardev.with(|state| state.detach(self.index));
    }
}
