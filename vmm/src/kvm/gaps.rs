//! KVM's gaps: what it cannot execute is executed by the software CPU, and KVM goes on.
//!
//! - **Emulation failures.** KVM emulates some instructions itself: those that reach a device, and
//!   on some hosts all of ring 0. One that its emulator lacks ends KVM_RUN with
//!   KVM_INTERNAL_ERROR_EMULATION, RIP still at it. [`cpu::assist`] executes it. When failures
//!   follow each other closely, it goes on for a [`STRETCH`] before KVM is tried again.
//! - **System calls.** A KVM that emulates ring 0 ([`Ring0::of_host`]) may get the ways from ring 3
//!   to ring 0 wrong without saying so: SYSCALL sets RIP, RCX and R11 but stays in ring 3, so that a
//!   page fault at the entry point follows; INT n and SYSENTER raise #UD. On such a host execution
//!   breakpoints stand on the guest's handlers of #UD and #PF, which are looked up in its IDT before
//!   each entry. When one is hit because of such an instruction, the exception is undone and the
//!   instruction executed by the software CPU. All other exceptions go on where they were.
//!
//! Where nothing of this happens, it costs nothing. KVM's debug registers are taken by the
//! breakpoints on hosts that emulate ring 0; the guest's own go on working there, since KVM's
//! emulator looks at both.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst, 5 (KVM_EXIT_INTERNAL_ERROR), 4.87
//! (KVM_SET_GUEST_DEBUG), 6.5 (KVM_CAP_SYNC_REGS).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use board::accel::Assists;
use board::memory::MemoryMap;
use board::vcpu::gpr;
use board::{AccelError, CpuIo, Exit, VcpuState};
use cpu::assist::{Assistant, Lender, Limit, Memory, Start};
use kvm_bindings::{KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS};

use super::vcpu::{KvmVcpu, is_set};
use super::{Ring0, host, looks_native};
use crate::paging;

/// How long the software CPU goes on before KVM is tried again.
const STRETCH: Duration = Duration::from_micros(50);
/// Failures that are no further apart are a run of them.
const RUN: Duration = Duration::from_millis(1);

/// EFER: long mode is active.
const LMA: u64 = 1 << 10;
const UD: u64 = 6;
const PF: u64 = 14;
/// Page-fault error code: the access was made in ring 3.
const USER: u64 = 1 << 2;

/// What SYSCALL, SYSENTER, SWAPGS, RDTSCP and RDPID look at (SDM vol. 4).
const MSRS: [u32; 10] = [
    0x10,
    0x174,
    0x175,
    0x176,
    0xC000_0081,
    LSTAR,
    0xC000_0083,
    0xC000_0084,
    KERNEL_GS_BASE,
    0xC000_0103,
];
const LSTAR: u32 = 0xC000_0082;
const KERNEL_GS_BASE: u32 = 0xC000_0102;

/// What a machine's vCPUs share.
pub(super) struct Machine {
    /// A probe of KVM is to see its gaps.
    off: bool,
    /// This host's KVM may emulate ring 0. The probe waits until a guest needs the answer.
    doubtful: bool,
    map: Mutex<MemoryMap>,
    memory: OnceLock<Memory>,
    failures: AtomicU64,
    system_calls: AtomicU64,
    exceptions: AtomicU64,
    instructions: AtomicU64,
}

impl Machine {
    pub(super) fn new(map: &MemoryMap, off: bool) -> Self {
        Self {
            off,
            doubtful: !off && !looks_native(),
            map: Mutex::new(map.clone()),
            memory: OnceLock::new(),
            failures: AtomicU64::new(0),
            system_calls: AtomicU64::new(0),
            exceptions: AtomicU64::new(0),
            instructions: AtomicU64::new(0),
        }
    }

    /// The memory map is another one.
    pub(super) fn set_memory(&self, map: &MemoryMap) {
        let mut current = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        *current = map.clone();
        if let Some(memory) = self.memory.get() {
            memory.set(map);
        }
    }

    /// Adds the pages that the software CPU wrote to KVM's dirty log.
    pub(super) fn add_dirty(&self, slot: usize, log: &mut [u64]) {
        if let Some(memory) = self.memory.get() {
            for (word, more) in log.iter_mut().zip(memory.take_dirty(slot)) {
                *word |= more;
            }
        }
    }

    pub(super) fn assists(&self) -> Assists {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Assists {
            failures: read(&self.failures),
            system_calls: read(&self.system_calls),
            exceptions: read(&self.exceptions),
            instructions: read(&self.instructions),
        }
    }

    /// Made at the first need: it takes 8 bytes a page of guest memory that is written.
    fn memory(&self) -> &Memory {
        // The map's lock keeps `set_memory` from coming in between.
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        self.memory.get_or_init(|| Memory::new(&map))
    }
}

/// One vCPU's side.
#[derive(Default)]
pub(super) struct Gaps {
    assistant: Option<Assistant>,
    /// KVM hands over registers with each exit: ring 0 is, or may be, emulated here.
    pub(super) synced: bool,
    /// It is.
    emulated: bool,
    /// It is not.
    native: bool,
    /// Addresses of the breakpoints: the handlers of #UD and #PF.
    pub(super) handlers: Option<[u64; 2]>,
    /// The software CPU has delivered an exception to a handler: RIP and RSP there.
    delivered: Option<(u64, u64)>,
    /// No breakpoints for one entry, to get past an instruction that is KVM's.
    skip: bool,
    last: Option<Instant>,
}

/// Why the software CPU is to execute something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Failure,
    SystemCall,
    Exception,
}

struct Lend<'a> {
    vcpu: &'a KvmVcpu,
    msrs: Option<BTreeMap<u32, u64>>,
}

impl Lender for Lend<'_> {
    fn vectors(&mut self, state: &mut VcpuState) -> Result<(), AccelError> {
        self.vcpu.save_vectors(state)
    }

    fn msrs(&mut self) -> Result<BTreeMap<u32, u64>, AccelError> {
        match &self.msrs {
            Some(msrs) => Ok(msrs.clone()),
            None => {
                let msrs = self.vcpu.gap_msrs()?;
                Ok(self.msrs.insert(msrs).clone())
            }
        }
    }
}

impl KvmVcpu {
    /// Before the vCPU runs: finds out what this host needs.
    pub(super) fn prepare_gaps(&mut self) -> Result<(), AccelError> {
        if !self.shared.gaps.doubtful || self.gaps.native {
            return Ok(());
        }
        self.gaps.synced = true;
        // What others have done to the vCPU since it ran last.
        let sregs = host(self.fd.get_sregs(), || format!("KVM_GET_SREGS of vCPU {}", self.id))?;
        self.fd.sync_regs_mut().sregs = sregs;
        let valid = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
        self.fd.get_kvm_run().kvm_valid_regs = valid.into();
        Ok(())
    }

    /// Before each entry into the guest: sets the breakpoints on the handlers of #UD and #PF.
    pub(super) fn set_breakpoints(&mut self) -> Result<(), AccelError> {
        let skip = std::mem::take(&mut self.gaps.skip);
        let handlers = if skip { None } else { self.find_handlers() };
        if handlers == self.gaps.handlers {
            return Ok(());
        }
        self.gaps.handlers = handlers;
        self.set_guest_debug()
    }

    /// The handlers that the guest's IDT names, in long mode, if ring 0 is emulated. Before there is
    /// an IDT nothing can be repaired, so the probe, which takes a millisecond, has time until then.
    fn find_handlers(&mut self) -> Option<[u64; 2]> {
        let sregs = self.fd.sync_regs().sregs;
        if sregs.efer & LMA == 0 || u64::from(sregs.idt.limit) < 16 * PF + 15 {
            return None;
        }
        if !self.gaps.emulated {
            self.gaps.emulated = Ring0::of_host() == Ring0::Emulated;
            if !self.gaps.emulated {
                (self.gaps.synced, self.gaps.native) = (false, true);
                self.fd.get_kvm_run().kvm_valid_regs = 0;
                return None;
            }
        }
        let state = VcpuState {
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            ..VcpuState::default()
        };
        let map = self.shared.gaps.map.lock().unwrap_or_else(PoisonError::into_inner);
        let handler = |vector: u64| {
            let gate: [u64; 2] = read(&state, &map, sregs.idt.base.wrapping_add(16 * vector))?;
            let present = gate[0] >> 47 & 1 != 0;
            let low = gate[0] & 0xFFFF | gate[0] >> 32 & 0xFFFF_0000;
            present.then_some(gate[1] << 32 | low)
        };
        Some([handler(UD)?, handler(PF)?])
    }

    /// After an emulation failure. `None`: KVM can go on.
    pub(super) fn repair_failure(&mut self, io: &dyn CpuIo) -> Result<Option<Exit>, AccelError> {
        let error = self.internal_error();
        if self.shared.gaps.off || !self.emulation_failed() {
            return Ok(Some(Exit::InternalError(error)));
        }
        let mut state = self.core_state()?;
        match self.assist(&mut state, Start::Here, Reason::Failure, None, io)? {
            Some(exit) => Ok(exit),
            None => Ok(Some(Exit::InternalError(error))),
        }
    }

    /// After a breakpoint. `None`: it was one of ours, and KVM can go on.
    pub(super) fn repair_call(
        &mut self,
        dr6: u64,
        io: &dyn CpuIo,
    ) -> Result<Option<Exit>, AccelError> {
        let Some([ud, pf]) = self.gaps.handlers else { return Ok(Some(self.debug_exit(dr6))) };
        let mut state = self.core_state()?;
        if state.rip != ud && state.rip != pf {
            return Ok(Some(self.debug_exit(dr6)));
        }
        let here = Some((state.rip, state.gpr[gpr::RSP]));
        if self.gaps.delivered.take() != here && ud != pf {
            let cause = if state.rip == pf {
                self.failed_syscall(&state)?
            } else {
                Some((Start::Interrupted { error_code: false, instead: None }, None))
            };
            if let Some((start, msrs)) = cause
                && let Some(exit) = self.assist(&mut state, start, Reason::SystemCall, msrs, io)?
            {
                return Ok(exit);
            }
        }
        if let Some(exit) = self.assist(&mut state, Start::Here, Reason::Exception, None, io)? {
            return Ok(exit);
        }
        self.gaps.skip = true;
        Ok(None)
    }

    /// What to do when the page fault that `state` is about to handle comes from a SYSCALL which
    /// jumped to its entry point without leaving ring 3.
    #[expect(clippy::type_complexity, reason = "a start and the MSRs that were read on the way")]
    fn failed_syscall(
        &self,
        state: &VcpuState,
    ) -> Result<Option<(Start, Option<BTreeMap<u32, u64>>)>, AccelError> {
        let rcx = state.gpr[gpr::RCX];
        {
            let map = self.shared.gaps.map.lock().unwrap_or_else(PoisonError::into_inner);
            let frame: Option<[u64; 4]> = read(state, &map, state.gpr[gpr::RSP]);
            let Some([error, rip, cs, _]) = frame else { return Ok(None) };
            let fetch = error & USER != 0 && cs & 3 == 3 && rip == state.cr2;
            let mut code = [0; 2];
            let from = rcx.wrapping_sub(2);
            if !fetch
                || paging::read_linear(state, &map, from, &mut code).is_err()
                || code != [0x0F, 0x05]
            {
                return Ok(None);
            }
        }
        let msrs = self.gap_msrs()?;
        if msrs.get(&LSTAR) != Some(&state.cr2) {
            return Ok(None);
        }
        let instead = Some((rcx.wrapping_sub(2), state.gpr[11]));
        Ok(Some((Start::Interrupted { error_code: true, instead }, Some(msrs))))
    }

    fn gap_msrs(&self) -> Result<BTreeMap<u32, u64>, AccelError> {
        let msrs = host(self.get_msrs(&MSRS), || format!("KVM_GET_MSRS of vCPU {}", self.id))?;
        Ok(msrs.into_iter().collect())
    }

    /// Has the software CPU execute what `start` says, from `state`. `None`: it cannot, and nothing
    /// has changed; `Some(None)`: KVM can go on.
    #[expect(clippy::option_option, reason = "whether it was done, and what to tell the caller")]
    fn assist(
        &mut self,
        state: &mut VcpuState,
        start: Start,
        reason: Reason,
        msrs: Option<BTreeMap<u32, u64>>,
        io: &dyn CpuIo,
    ) -> Result<Option<Option<Exit>>, AccelError> {
        let id = self.id;
        let debug = host(self.fd.get_debug_regs(), || format!("KVM_GET_DEBUGREGS of vCPU {id}"))?;
        state.debug.address = debug.db;
        (state.debug.status, state.debug.control) = (debug.dr6, debug.dr7);
        let before = state.clone();

        let mut assistant = match self.gaps.assistant.take() {
            Some(assistant) => assistant,
            None => Assistant::new(self.shared.gaps.memory(), id, &self.cpuid)?,
        };
        // An event that KVM is about to deliver comes before the next instruction.
        let events = &state.events;
        let delivering =
            events.exception.is_some() || events.interrupt.is_some() || events.nmi_injected;
        let close = self.gaps.last.is_some_and(|last| last.elapsed() < RUN);
        // A debugger sees each instruction.
        let watched = !self.debug.is_none();
        let stretch = ((self.gaps.emulated || close) && !delivering && !watched).then_some(STRETCH);
        let flag = self.immediate_exit();
        let stop = || is_set(flag);
        let limit = Limit { stretch, stop: &stop, shadows: true };
        let mut lend = Lend { vcpu: self, msrs };
        let result = assistant.run(state, start, &mut lend, io, &limit);
        let lent = lend.msrs;
        self.gaps.assistant = Some(assistant);
        self.gaps.last = Some(Instant::now());
        let done = result?;
        if done.shutdown {
            return Ok(Some(Some(Exit::Shutdown)));
        }
        if done.instructions == 0 {
            return Ok(None);
        }
        let gaps = &self.shared.gaps;
        let counter = match reason {
            Reason::Failure => &gaps.failures,
            Reason::SystemCall => &gaps.system_calls,
            Reason::Exception => &gaps.exceptions,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        gaps.instructions.fetch_add(done.instructions, Ordering::Relaxed);

        if done.vectors {
            self.restore_vectors(state, state.xcr0 != before.xcr0)?;
        }
        if done.msrs {
            let new = state.msrs.get(&KERNEL_GS_BASE).copied();
            if let (Some(new), Some(lent)) = (new, lent)
                && lent.get(&KERNEL_GS_BASE) != Some(&new)
            {
                self.set_msrs(&[(KERNEL_GS_BASE, new)])?;
            }
        }
        if state.debug != before.debug {
            self.restore_debug(state)?;
        }
        if done.flush {
            self.flush_translations(state)?;
        }
        self.set_core_state(state, state.events != before.events)?;
        self.gaps.delivered = Some((state.rip, state.gpr[gpr::RSP]));
        Ok(Some(self.debug.step.then_some(Exit::Debug(board::Trap::Step))))
    }
}

/// Reads quadwords of linear memory.
fn read<const N: usize>(state: &VcpuState, map: &MemoryMap, linear: u64) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (i, word) in words.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        paging::read_linear(state, map, linear.wrapping_add(8 * i as u64), &mut bytes).ok()?;
        *word = u64::from_le_bytes(bytes);
    }
    Some(words)
}
