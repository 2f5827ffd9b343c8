//! What a debugger outside the guest has asked for.
//!
//! It costs nothing while nothing is asked for, and little else:
//! - A block ends before an instruction whose offset in its page is that of a breakpoint, and such an
//!   instruction begins a block that nothing links to. So `advance` comes by and compares addresses.
//! - Pages with watchpoints have no tags in the TLB, so their accesses take the slow path, which ends
//!   at `Cpu::watch`. A hit makes the ops of the current block return to the run loop.
//! - A single step is the one that guests get by EFLAGS.TF, without the exception.

use std::sync::atomic::Ordering;

use board::debug::{DebugRequest, Trap, WatchKind, Watchpoint};
use board::vcpu::MpState;

use crate::cpu::Cpu;
use crate::mmu::walk::Kind;

/// A debugger's wishes, and what has come of them.
#[derive(Debug, Default)]
pub(crate) struct Debugger {
    request: DebugRequest,
    /// Something is asked for.
    pub(crate) on: bool,
    /// Accesses are watched.
    pub(crate) watching: bool,
    /// The instruction to be stepped has been.
    pub(crate) stepped: bool,
    /// What the current instruction has touched.
    hit: Option<Watchpoint>,
    /// Blocks have been cut short and are to be decoded anew.
    stale: bool,
}

impl Debugger {
    /// The next instruction is to be executed alone.
    pub(crate) fn step(&self) -> bool {
        self.on && self.request.step
    }

    /// Interrupts are not delivered now: the next instruction is the one to be seen.
    pub(crate) fn holds_interrupts(&self, state: MpState) -> bool {
        self.on && (self.stepped || self.request.step && state == MpState::Runnable)
    }

    /// Whether a breakpoint may be at `off` in some page.
    pub(crate) fn cuts(&self, off: usize) -> bool {
        self.on && self.request.breakpoints.iter().any(|at| at & 0xFFF == off as u64)
    }

    /// Whether something of the page of `linear` is watched.
    pub(crate) fn watches_page(&self, linear: u64) -> bool {
        self.watching && self.request.watchpoints.iter().any(|w| w.overlaps(linear & !0xFFF, 4096))
    }

    /// The instruction did not come to its end: it will touch everything again.
    pub(crate) fn forget_hit(&mut self) {
        self.hit = None;
    }
}

impl Cpu {
    /// Takes up what the debugger wants. Not to be called while a block executes.
    pub(crate) fn set_debugger(&mut self, request: &DebugRequest) {
        let old = &self.debugger.request;
        let cuts = request.breakpoints != old.breakpoints;
        if request.watchpoints != old.watchpoints {
            self.tlb.flush_all();
        }
        self.debugger = Debugger {
            on: !request.is_none(),
            watching: !request.watchpoints.is_empty(),
            request: request.clone(),
            ..Debugger::default()
        };
        if cuts {
            self.drop_all_code();
        }
    }

    /// Why execution is to stop for the debugger, with RIP exact and between two instructions.
    pub(crate) fn debugger_trap(&mut self) -> Option<Trap> {
        if std::mem::take(&mut self.debugger.stale) {
            self.drop_all_code();
        }
        let stepped = std::mem::take(&mut self.debugger.stepped);
        if let Some(point) = self.debugger.hit.take() {
            return Some(Trap::Watch(point));
        }
        if stepped && self.debugger.request.step {
            return Some(Trap::Step);
        }
        let at = self.linear_ip(self.rip);
        let stops = !self.debugger.request.step
            && self.mp_state == MpState::Runnable
            && self.debugger.request.breakpoints.contains(&at);
        stops.then_some(Trap::Breakpoint)
    }

    /// Notes an access that is watched, and has the block left after its instruction.
    #[cold]
    pub(crate) fn debugger_watch(&mut self, linear: u64, size: u64, kind: Kind) {
        let asked = |w: &&Watchpoint| match w.kind {
            WatchKind::Write => kind == Kind::Write,
            WatchKind::Read => kind == Kind::Read,
            WatchKind::Access => kind != Kind::Exec,
        };
        let points = self.debugger.request.watchpoints.iter();
        let Some(point) = points.filter(asked).find(|w| w.overlaps(linear, size)) else { return };
        let point = *point;
        self.debugger.hit.get_or_insert(point);
        self.mailbox.attention.store(true, Ordering::Relaxed);
        // SAFETY: `block` is null but while it executes, and blocks live as long as they execute.
        if let Some(block) = unsafe { self.block.as_ref() } {
            for op in &block.ops {
                op.run.set(crate::ops::bail);
            }
            self.debugger.stale = true;
        }
    }

    fn drop_all_code(&mut self) {
        self.blocks.clear();
        self.link = None;
    }
}
