//! The gdb stub's session: a character device on one side, the machine on the other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use board::device::{Notifier, Tag};
use board::event::EventTarget;
use board::{LoopHandle, VmTime};
use devices::chardev::CharPort;
use monitor::gdb::{Access, Debuggee, Gdb};

use crate::console::Operator;

/// How much input is read before the answers are written.
const CHUNK: usize = 4096;

/// The machine, which the program's other parts use as well.
struct Door(Weak<dyn Operator>);

impl Access for Door {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Debuggee)) {
        if let Some(operator) = self.0.upgrade() {
            f(&mut *operator.machine());
        }
    }
}

/// A session.
pub struct Session {
    operator: Weak<dyn Operator>,
    inner: Mutex<Inner>,
}

struct Inner {
    port: Box<dyn CharPort>,
    gdb: Gdb,
    output: VecDeque<u8>,
}

impl Session {
    /// A session on `port`.
    pub fn new(
        port: Box<dyn CharPort>,
        operator: &Arc<dyn Operator>,
        events: &LoopHandle,
    ) -> Arc<Self> {
        let operator = Arc::downgrade(operator);
        let gdb = Gdb::new(Box::new(Door(operator.clone())));
        let inner = Mutex::new(Inner { port, gdb, output: VecDeque::new() });
        let session = Arc::new(Self { operator, inner });
        let target: Arc<dyn EventTarget> = session.clone();
        let notifier = Notifier::new(events, Arc::downgrade(&target), Tag(0));
        // A port may notify from within, so the session is whole by now.
        session.lock().port.set_notifier(notifier);
        session
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine may have stopped.
    pub fn sync(&self) {
        let mut inner = self.lock();
        let bytes = inner.gdb.sync();
        inner.send(bytes);
    }

    /// The program ends with `status`.
    pub fn ended(&self, status: u8) {
        let mut inner = self.lock();
        let bytes = inner.gdb.ended(status);
        inner.send(bytes);
    }

    /// Nobody is to debug the machine any more.
    pub fn end(&self) {
        self.lock().gdb.close();
    }
}

impl EventTarget for Session {
    fn event(&self, _tag: Tag, _now: VmTime) {
        let Some(operator) = self.operator.upgrade() else { return };
        loop {
            let mut inner = self.lock();
            inner.port.take_break();
            match inner.port.take_focus() {
                Some(true) => inner.gdb.open(),
                Some(false) => inner.gdb.close(),
                None => {}
            }
            let mut input = [0; CHUNK];
            let count = inner.port.read(&mut input);
            let bytes = inner.gdb.feed(&input[..count]);
            inner.send(bytes);
            drop(inner);
            operator.after_command();
            if count == 0 {
                return;
            }
        }
    }
}

impl Inner {
    fn send(&mut self, bytes: Vec<u8>) {
        self.output.extend(bytes);
        while !self.output.is_empty() {
            let (front, _) = self.output.as_slices();
            let taken = self.port.write(front);
            let all = taken == front.len();
            self.output.drain(..taken);
            if !all {
                return;
            }
        }
    }
}
