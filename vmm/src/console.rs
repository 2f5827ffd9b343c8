//! Monitor sessions: a character device on one side, the machine on the other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use board::device::{Notifier, Tag};
use board::event::EventTarget;
use board::{LoopHandle, VmTime};
use devices::chardev::CharPort;
use monitor::{Event, Hmp, Qmp};

use crate::machine::Machine;

/// How much input a session reads before it looks whether its answers get away.
const CHUNK: usize = 512;
/// Answers that wait for a slow reader; beyond it no further command is read.
const BACKLOG: usize = 1 << 20;

/// The program round the sessions.
pub trait Operator: Send + Sync {
    /// The machine that commands act on.
    fn machine(&self) -> MutexGuard<'_, Machine>;

    /// To be called when a command may have changed the machine, with no session locked.
    fn after_command(&self);
}

/// The language that a session speaks.
enum Language {
    Hmp(Hmp),
    Qmp(Qmp),
}

/// A session.
pub struct Session {
    operator: Weak<dyn Operator>,
    inner: Mutex<Inner>,
}

struct Inner {
    port: Box<dyn CharPort>,
    language: Language,
    /// Somebody is at the far end.
    open: bool,
    output: VecDeque<u8>,
}

impl Session {
    /// A session in the text form.
    pub fn hmp(
        port: Box<dyn CharPort>,
        operator: &Arc<dyn Operator>,
        events: &LoopHandle,
    ) -> Arc<Self> {
        Self::new(port, Language::Hmp(Hmp::new("(vmm) ")), operator, events)
    }

    /// A session in the JSON form.
    pub fn qmp(
        port: Box<dyn CharPort>,
        operator: &Arc<dyn Operator>,
        events: &LoopHandle,
    ) -> Arc<Self> {
        Self::new(port, Language::Qmp(Qmp::new()), operator, events)
    }

    fn new(
        port: Box<dyn CharPort>,
        language: Language,
        operator: &Arc<dyn Operator>,
        events: &LoopHandle,
    ) -> Arc<Self> {
        let inner = Inner { port, language, open: false, output: VecDeque::new() };
        let session =
            Arc::new(Self { operator: Arc::downgrade(operator), inner: Mutex::new(inner) });
        let target: Arc<dyn EventTarget> = session.clone();
        let notifier = Notifier::new(events, Arc::downgrade(&target), Tag(0));
        // A port may notify from within, so the session is whole by now.
        session.lock().port.set_notifier(notifier);
        session
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program's terminal has another size.
    pub fn resized(&self) {
        self.lock().fit();
    }

    /// Tells the client of an event, if it speaks JSON.
    pub fn event(&self, event: &Event) {
        let mut inner = self.lock();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        if let Language::Qmp(qmp) = &inner.language
            && inner.open
            && let Some(bytes) = qmp.event(event, time)
        {
            inner.output.extend(bytes);
            inner.flush();
        }
    }
}

impl EventTarget for Session {
    fn event(&self, _tag: Tag, _now: VmTime) {
        let Some(operator) = self.operator.upgrade() else { return };
        let mut inner = self.lock();
        inner.port.take_break();
        if let Some(focus) = inner.port.take_focus() {
            inner.open = focus;
            if focus {
                inner.fit();
                let machine = operator.machine();
                let bytes = match &mut inner.language {
                    Language::Hmp(hmp) => hmp.open(&*machine),
                    Language::Qmp(qmp) => qmp.open(&*machine),
                };
                inner.output.extend(bytes);
            }
        }
        loop {
            inner.flush();
            if inner.output.len() > BACKLOG {
                return;
            }
            let mut input = [0; CHUNK];
            let count = inner.port.read(&mut input);
            if count == 0 {
                return;
            }
            match &mut inner.language {
                Language::Hmp(hmp) => {
                    let bytes = hmp.feed(&mut *operator.machine(), &input[..count]);
                    inner.output.extend(bytes);
                    inner.flush();
                    drop(inner);
                    operator.after_command();
                    inner = self.lock();
                }
                Language::Qmp(qmp) => {
                    qmp.push(&input[..count]);
                    inner = self.run_qmp(inner, &*operator);
                }
            }
        }
    }
}

impl Session {
    /// Runs the commands that have come in. The events of each go out before its answer.
    fn run_qmp<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        operator: &dyn Operator,
    ) -> MutexGuard<'a, Inner> {
        loop {
            let Language::Qmp(qmp) = &mut inner.language else { return inner };
            let Some(answer) = qmp.step(&mut *operator.machine()) else { return inner };
            drop(inner);
            operator.after_command();
            inner = self.lock();
            inner.output.extend(answer);
            inner.flush();
        }
    }
}

impl Inner {
    /// Fits the line editor to the terminal at the far end.
    fn fit(&mut self) {
        if let Language::Hmp(hmp) = &mut self.language
            && let Some(columns) = self.port.width()
        {
            hmp.set_width(columns.into());
        }
    }

    fn flush(&mut self) {
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
