//! What the glue of several chips shares: an output pin and a deadline, each of which remembers
//! what it was last set to, so that an access that changes nothing takes no other lock.

use board::device::Tag;
use board::time::ClockKind;
use board::{Attach, IrqLine, Timer, VmTime};

/// A chip's output pin on an interrupt line. It is low at power-on.
#[derive(Debug)]
pub(crate) struct Pin {
    line: IrqLine,
    level: bool,
}

impl Pin {
    pub(crate) fn new(line: IrqLine) -> Self {
        Self { line, level: false }
    }

    /// Drives the line if `level` is new.
    pub(crate) fn set(&mut self, level: bool) {
        if self.level != level {
            self.level = level;
            self.line.set(level);
        }
    }

    pub(crate) fn level(&self) -> bool {
        self.level
    }

    /// Takes on a restored level. The controller has the same level in its own saved state, so the
    /// line is not driven and there is no edge.
    pub(crate) fn restore(&mut self, level: bool) {
        self.level = level;
    }
}

/// A timer on the VM clock that follows the deadline of a chip.
pub(crate) struct Deadline {
    timer: Timer,
    armed: Option<VmTime>,
}

impl Deadline {
    pub(crate) fn new(attach: &Attach, tag: Tag) -> Self {
        Self { timer: attach.timer(ClockKind::Virtual, tag), armed: None }
    }

    pub(crate) fn now(&self) -> VmTime {
        self.timer.now()
    }

    /// Arms the timer for `at` or disarms it, unless that is how it stands.
    pub(crate) fn set(&mut self, at: Option<VmTime>) {
        if self.armed != at {
            self.armed = at;
            self.timer.set(at);
        }
    }

    /// To be called when the timer's event has come: it is one-shot and stands unarmed.
    pub(crate) fn fired(&mut self) {
        self.armed = None;
    }
}
