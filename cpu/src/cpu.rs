//! The state of one vCPU, and what all instructions share: modes, registers, stack, raising.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use board::vcpu::{Cpuid, DebugRegisters, MpState, Segment, TableRegister};
use board::{Clock, CpuIo, Entropy, LocalApic};

use crate::assist::Assist;
use crate::block::{Block, Blocks};
use crate::count::Count;
use crate::debugger::Debugger;
use crate::fault::{Exception, Res, Stop, Why, vector};
use crate::features::Features;
use crate::flags::{Flags, bit};
use crate::host::{Outside, Vector};
use crate::mmu::tlb::{Rights, Tlb};
use crate::mmu::walk::Kind;
use crate::msr::Msrs;
use crate::phys::{PhysMap, Span};

#[allow(missing_docs)]
pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1;
    pub(crate) const MP: u64 = 1 << 1;
    pub(crate) const EM: u64 = 1 << 2;
    pub(crate) const TS: u64 = 1 << 3;
    pub(crate) const ET: u64 = 1 << 4;
    pub(crate) const NE: u64 = 1 << 5;
    pub(crate) const WP: u64 = 1 << 16;
    pub(crate) const AM: u64 = 1 << 18;
    pub(crate) const NW: u64 = 1 << 29;
    pub(crate) const CD: u64 = 1 << 30;
    pub(crate) const PG: u64 = 1 << 31;
}

#[allow(missing_docs)]
pub(crate) mod cr4 {
    pub(crate) const VME: u64 = 1;
    pub(crate) const PVI: u64 = 1 << 1;
    pub(crate) const TSD: u64 = 1 << 2;
    pub(crate) const DE: u64 = 1 << 3;
    pub(crate) const PSE: u64 = 1 << 4;
    pub(crate) const PAE: u64 = 1 << 5;
    pub(crate) const MCE: u64 = 1 << 6;
    pub(crate) const PGE: u64 = 1 << 7;
    pub(crate) const PCE: u64 = 1 << 8;
    pub(crate) const OSFXSR: u64 = 1 << 9;
    pub(crate) const OSXMMEXCPT: u64 = 1 << 10;
    pub(crate) const UMIP: u64 = 1 << 11;
    pub(crate) const LA57: u64 = 1 << 12;
    pub(crate) const FSGSBASE: u64 = 1 << 16;
    pub(crate) const PCIDE: u64 = 1 << 17;
    pub(crate) const OSXSAVE: u64 = 1 << 18;
    pub(crate) const SMEP: u64 = 1 << 20;
    pub(crate) const SMAP: u64 = 1 << 21;
}

#[allow(missing_docs)]
pub(crate) mod efer {
    pub(crate) const SCE: u64 = 1;
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
    pub(crate) const NXE: u64 = 1 << 11;
}

/// Segment registers in the order of the instruction encoding, then LDTR and TR.
#[allow(missing_docs)]
pub(crate) mod seg {
    pub(crate) const ES: usize = 0;
    pub(crate) const CS: usize = 1;
    pub(crate) const SS: usize = 2;
    pub(crate) const DS: usize = 3;
    pub(crate) const FS: usize = 4;
    pub(crate) const GS: usize = 5;
    pub(crate) const LDT: usize = 6;
    pub(crate) const TR: usize = 7;
}

/// Indices of [`Cpu::regs`] beyond the 16 general registers.
pub(crate) const ZERO: usize = 16;
/// RIP of the first byte of the page that holds the current block, so that blocks are
/// independent of where their page is mapped.
pub(crate) const PAGE: usize = 17;

/// DR6: a single step.
pub(crate) const BS: u64 = 1 << 14;

pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

/// Work that another thread leaves for a vCPU; it is done before the next block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    /// Drop decoded code of these bytes.
    DropCode(Span),
    /// Another vCPU is about to read code of this guest-physical page: writes to it take the slow
    /// path.
    Protect(u64),
    /// The dirty log was taken: every write takes the slow path once.
    ProtectAll,
    /// The memory map has changed.
    NewMap,
    /// The paravirtual clock was set.
    NewClock,
}

/// How other threads reach a vCPU.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Something below is set, or an interrupt may have arrived. Looked at before each block.
    pub(crate) attention: AtomicBool,
    /// `run` is to return.
    pub(crate) kick: AtomicBool,
    todo: Mutex<Vec<Todo>>,
    changed: Condvar,
    /// The vCPU may be in the middle of a block.
    inside: AtomicBool,
    /// How much work has been left, and how much of that has been done.
    asked: AtomicU64,
    answered: AtomicU64,
}

impl Mailbox {
    /// Leaves work.
    pub(crate) fn post(&self, todo: Todo) {
        self.ask(todo);
    }

    /// The same, with a ticket for [`Mailbox::has_answered`].
    fn ask(&self, todo: Todo) -> u64 {
        let mut list = self.todo.lock().unwrap_or_else(|e| e.into_inner());
        list.push(todo);
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        drop(list);
        self.attend();
        ticket
    }

    /// Whether the work of `ticket` has been done, or will be before the vCPU's next instruction.
    pub(crate) fn has_answered(&self, ticket: u64) -> bool {
        self.answered.load(Ordering::SeqCst) >= ticket || !self.inside.load(Ordering::SeqCst)
    }

    /// The vCPU is about to execute: it looks for work after this, and before its first block.
    pub(crate) fn enter(&self) {
        self.inside.store(true, Ordering::SeqCst);
    }

    /// The vCPU executes nothing until it enters again.
    pub(crate) fn leave(&self) {
        self.inside.store(false, Ordering::SeqCst);
    }

    /// Makes the vCPU look at everything before its next block, and ends a halt.
    pub(crate) fn attend(&self) {
        self.attention.store(true, Ordering::SeqCst);
        // The lock is what `wait` looks under, so that it does not miss this.
        drop(self.todo.lock().unwrap_or_else(|e| e.into_inner()));
        self.changed.notify_all();
    }

    /// Waits until something wants attention.
    pub(crate) fn wait(&self) {
        let mut todo = self.todo.lock().unwrap_or_else(|e| e.into_inner());
        while !self.attention.load(Ordering::SeqCst) {
            todo = self.changed.wait(todo).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Waits until something wants attention, for `timeout` at most; false: nothing does.
    pub(crate) fn wait_for(&self, timeout: Duration) -> bool {
        let todo = self.todo.lock().unwrap_or_else(|e| e.into_inner());
        let quiet = |_: &mut Vec<Todo>| !self.attention.load(Ordering::SeqCst);
        let (todo, _) = self
            .changed
            .wait_timeout_while(todo, timeout, quiet)
            .unwrap_or_else(|e| e.into_inner());
        drop(todo);
        self.attention.load(Ordering::SeqCst)
    }

    /// Takes all work, with the ticket that says when it is done.
    pub(crate) fn take(&self) -> (Vec<Todo>, u64) {
        let mut list = self.todo.lock().unwrap_or_else(|e| e.into_inner());
        (std::mem::take(&mut *list), self.asked.load(Ordering::SeqCst))
    }

    /// The work up to this ticket has been done.
    pub(crate) fn answer(&self, ticket: u64) {
        self.answered.store(ticket, Ordering::SeqCst);
    }

    /// Makes `run` return.
    pub(crate) fn kick(&self) {
        self.kick.store(true, Ordering::SeqCst);
        self.attend();
    }
}

/// What the vCPUs of a machine share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) map: RwLock<Arc<PhysMap>>,
    pub(crate) mailboxes: RwLock<Vec<Arc<Mailbox>>>,
    /// Held over a locked access that no single host instruction can make.
    pub(crate) split_lock: Mutex<()>,
    /// What the paravirtual clock is ahead of the VM clock, in nanoseconds.
    pub(crate) kvmclock: AtomicU64,
    /// Nanoseconds since 1970 now; the host's clock if there is nothing here.
    pub(crate) wall: OnceLock<WallClock>,
}

/// Says how many nanoseconds have passed since 1970 (UTC).
pub type WallClock = Box<dyn Fn() -> u64 + Send + Sync>;

impl Shared {
    /// The memory map now.
    pub(crate) fn map(&self) -> Arc<PhysMap> {
        self.map.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Nanoseconds since 1970.
    pub(crate) fn wall_clock(&self) -> u64 {
        match self.wall.get() {
            Some(wall) => wall(),
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
        }
    }

    /// Leaves work for every vCPU.
    pub(crate) fn tell_all(&self, todo: Todo) {
        for mailbox in self.mailboxes.read().unwrap_or_else(|e| e.into_inner()).iter() {
            mailbox.post(todo);
        }
    }

    /// Leaves work for every vCPU but that of `me`, with tickets.
    pub(crate) fn ask_others(&self, me: &Arc<Mailbox>, todo: Todo) -> Vec<(Arc<Mailbox>, u64)> {
        let mailboxes = self.mailboxes.read().unwrap_or_else(|e| e.into_inner());
        let others = mailboxes.iter().filter(|mailbox| !Arc::ptr_eq(mailbox, me));
        others.map(|mailbox| (mailbox.clone(), mailbox.ask(todo))).collect()
    }

    /// Leaves work for every vCPU but that of `me`.
    pub(crate) fn tell_others(&self, me: &Arc<Mailbox>, todo: Todo) {
        for mailbox in self.mailboxes.read().unwrap_or_else(|e| e.into_inner()).iter() {
            if !Arc::ptr_eq(mailbox, me) {
                mailbox.post(todo);
            }
        }
    }
}

/// The width of code, and with it of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    B16,
    B32,
    B64,
}

/// One vCPU.
#[repr(C)]
pub(crate) struct Cpu {
    /// RAX to R15, a zero and the current page; see [`ZERO`] and [`PAGE`].
    pub(crate) regs: [u64; 18],
    pub(crate) flags: Flags,
    /// Bases that effective addresses use: zero in 64-bit mode for all but FS and GS.
    pub(crate) seg_base: [u64; 8],
    pub(crate) tlb: Tlb,
    /// The block in execution; null between two.
    pub(crate) block: *const Block,
    /// A block and which of its links is to lead to the block at RIP.
    pub(crate) link: Option<(*const Block, usize)>,
    /// Exact between blocks, and in instructions that are not specialised.
    pub(crate) rip: u64,
    /// RIP after the current instruction; branches change it.
    pub(crate) next_rip: u64,
    /// Instructions executed.
    pub(crate) icount: u64,
    /// The count at which timers are due, with `count`.
    pub(crate) due: u64,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) stop: Option<Why>,

    pub(crate) bits: Bits,
    pub(crate) cpl: u8,
    pub(crate) segs: [Segment; 8],
    pub(crate) gdt: TableRegister,
    pub(crate) idt: TableRegister,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
    pub(crate) xcr0: u64,
    pub(crate) pdptr: [u64; 4],
    pub(crate) debug: DebugRegisters,
    /// Watchpoints that the current instruction has hit, as bits of DR6.
    pub(crate) watch_hit: u64,
    /// The instruction that is stepped ends in a trap; instructions that clear TF at once say no.
    pub(crate) step_trap: bool,
    /// A task switch has failed in the new task: RIP is its first instruction.
    pub(crate) in_new_task: bool,
    pub(crate) debugger: Debugger,
    pub(crate) msrs: Msrs,
    pub(crate) vector: Vector,
    pub(crate) phys_bits: u32,
    pub(crate) features: Features,
    pub(crate) cpuid: Cpuid,
    pub(crate) tsc_khz: u32,

    pub(crate) mp_state: MpState,
    pub(crate) sipi_vector: u8,
    /// Interrupts are held off before the next instruction.
    pub(crate) sti_shadow: bool,
    pub(crate) mov_ss_shadow: bool,
    pub(crate) nmi_pending: bool,
    pub(crate) nmi_masked: bool,
    /// An interrupt may be pending that has not been looked for since.
    pub(crate) irq_hint: bool,
    /// Taken from a controller and not yet delivered.
    pub(crate) taken_interrupt: Option<u8>,

    pub(crate) blocks: Blocks,
    pub(crate) phys: Arc<PhysMap>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) apic: Option<Box<dyn LocalApic>>,
    pub(crate) clock: Clock,
    /// Set where instructions drive the clock.
    pub(crate) count: Option<Count>,
    /// The current instruction may reach devices: its count is exact.
    pub(crate) solo: bool,
    /// The next instruction is to be executed in a block of its own.
    pub(crate) solo_next: bool,
    pub(crate) entropy: Entropy,
    /// The machine, while `run` executes.
    pub(crate) io: Option<*const dyn CpuIo>,
    pub(crate) id: u32,
    /// This CPU stands in for another accelerator's.
    pub(crate) assist: Option<Box<Assist>>,
    /// An instruction has flushed translations that an accelerator may hold as well.
    pub(crate) flushed: bool,
}

// SAFETY: the raw pointers are `block`, into `blocks`, which the value owns, and `io`, which is
// set only while `run` borrows what it points to.
unsafe impl Send for Cpu {}

impl Cpu {
    /// The machine.
    #[inline]
    pub(crate) fn io(&self) -> Outside<'_> {
        self.publish();
        Outside::new(match self.io {
            // SAFETY: `run` sets `io` from a reference that outlives it and clears it at its end.
            Some(io) => unsafe { &*io },
            None => &NoMachine,
        })
    }

    /// Raises `exception`.
    ///
    /// # Errors
    /// Always.
    #[cold]
    pub(crate) fn raise<T>(&mut self, exception: Exception) -> Res<T> {
        self.stop = Some(Why::Exception(exception));
        Err(Stop)
    }

    /// Raises an exception without an error code.
    ///
    /// # Errors
    /// Always.
    #[cold]
    pub(crate) fn raise_plain<T>(&mut self, vector: u8) -> Res<T> {
        self.raise(Exception { vector, error: None, payload: 0 })
    }

    /// Raises an exception with an error code.
    ///
    /// # Errors
    /// Always.
    #[cold]
    pub(crate) fn raise_error<T>(&mut self, vector: u8, error: u32) -> Res<T> {
        self.raise(Exception { vector, error: Some(error), payload: 0 })
    }

    /// Raises #GP.
    ///
    /// # Errors
    /// Always.
    pub(crate) fn gp<T>(&mut self, error: u32) -> Res<T> {
        self.raise_error(vector::GP, error)
    }

    /// Raises #UD.
    ///
    /// # Errors
    /// Always.
    pub(crate) fn ud<T>(&mut self) -> Res<T> {
        self.raise_plain(vector::UD)
    }

    /// #GP(0) unless at CPL 0.
    pub(crate) fn ring0(&mut self) -> Res {
        if self.cpl != 0 { self.gp(0) } else { Ok(()) }
    }

    pub(crate) fn long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    pub(crate) fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    pub(crate) fn v86(&self) -> bool {
        self.flags.rest & bit::VM != 0
    }

    /// Real or virtual-8086 mode: selectors are paragraph numbers.
    pub(crate) fn real_like(&self) -> bool {
        !self.protected() || self.v86()
    }

    pub(crate) fn iopl(&self) -> u8 {
        (self.flags.rest >> 12 & 3) as u8
    }

    /// Whether all bits above the implemented linear address bits equal the topmost of these.
    #[inline]
    pub(crate) fn canonical(&self, linear: u64) -> bool {
        let shift = if self.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        ((linear << shift) as i64 >> shift) as u64 == linear
    }

    /// Recomputes whatever follows from control registers, CS, SS and flags. To be called after
    /// any of these has changed.
    pub(crate) fn update_mode(&mut self) {
        let cs = &self.segs[seg::CS];
        self.bits = if self.long() && cs.long() {
            Bits::B64
        } else if cs.db() && !self.v86() {
            Bits::B32
        } else {
            Bits::B16
        };
        for i in 0..8 {
            let flat = self.bits == Bits::B64 && i < 4;
            self.seg_base[i] = if flat { 0 } else { self.segs[i].base };
        }
        self.update_rights();
    }

    /// Chooses the TLB's table after a change of CPL or EFLAGS.AC.
    pub(crate) fn update_rights(&mut self) {
        let rights = if self.cpl == 3 {
            if self.checks_alignment() { Rights::UserAligned } else { Rights::User }
        } else if self.cr4 & cr4::SMAP != 0 && self.flags.rest & bit::AC != 0 {
            Rights::SupervisorAc
        } else {
            Rights::Supervisor
        };
        self.tlb.select(rights);
    }

    /// Whether misaligned data accesses raise #AC (SDM vol. 3, 6.15): CR0.AM, EFLAGS.AC, CPL 3.
    pub(crate) fn checks_alignment(&self) -> bool {
        self.cpl == 3 && self.cr0 & cr0::AM != 0 && self.flags.rest & bit::AC != 0
    }

    /// The current RIP modulo the width of the instruction pointer.
    pub(crate) fn ip_mask(&self) -> u64 {
        if self.bits == Bits::B64 { u64::MAX } else { 0xFFFF_FFFF }
    }

    /// Linear address of `rip`.
    pub(crate) fn linear_ip(&self, rip: u64) -> u64 {
        if self.bits == Bits::B64 {
            rip
        } else {
            self.segs[seg::CS].base.wrapping_add(rip) & 0xFFFF_FFFF
        }
    }

    /// Makes the current instruction continue at `rip`, which must be inside CS.
    pub(crate) fn jump(&mut self, rip: u64, size: u64) -> Res {
        let rip = rip & crate::int::mask(size);
        let ok = match self.bits {
            Bits::B64 => self.canonical(rip),
            _ => rip <= u64::from(self.segs[seg::CS].limit),
        };
        if !ok {
            return self.gp(0);
        }
        self.next_rip = rip;
        Ok(())
    }

    /// The linear address of `size` bytes at `offset` in segment `seg`, with all checks that
    /// segmentation makes.
    #[inline]
    pub(crate) fn linear(&mut self, seg: usize, offset: u64, size: u64, write: bool) -> Res<u64> {
        if self.bits == Bits::B64 {
            let linear = offset.wrapping_add(self.seg_base[seg]);
            let last = linear.wrapping_add(size - 1);
            if !self.canonical(linear) || !self.canonical(last) {
                return self.segment_fault(seg);
            }
            return Ok(linear);
        }
        self.linear_checked(seg, offset, size, write)
    }

    fn linear_checked(&mut self, i: usize, offset: u64, size: u64, write: bool) -> Res<u64> {
        let segment = &self.segs[i];
        let last = offset + (size - 1);
        let limit = u64::from(segment.limit);
        let base = segment.base;
        let mut ok = last <= limit;
        if !self.real_like() {
            let code = segment.kind() & 8 != 0;
            let rw = segment.kind() & 2 != 0;
            if !code && segment.kind() & 4 != 0 {
                let top = if segment.db() { 0xFFFF_FFFF } else { 0xFFFF };
                ok = offset > limit && last <= top;
            }
            let usable = !segment.unusable() && segment.present() && segment.s();
            ok &= usable && if write { !code && rw } else { !code || rw };
        }
        if ok { Ok(base.wrapping_add(offset) & 0xFFFF_FFFF) } else { self.segment_fault(i) }
    }

    fn segment_fault<T>(&mut self, seg: usize) -> Res<T> {
        self.raise_error(if seg == seg::SS { vector::SS } else { vector::GP }, 0)
    }

    /// Bytes of the stack pointer in use.
    pub(crate) fn stack_size(&self) -> u64 {
        match self.bits {
            Bits::B64 => 8,
            _ if self.segs[seg::SS].db() => 4,
            _ => 2,
        }
    }

    /// The low `size` bytes of register `n`.
    pub(crate) fn reg(&self, n: usize, size: u64) -> u64 {
        self.regs[n] & crate::int::mask(size)
    }

    /// Writes the low `size` bytes of register `n`; 4 bytes are zero-extended.
    pub(crate) fn set_reg(&mut self, n: usize, size: u64, value: u64) {
        let mask = crate::int::mask(size);
        self.regs[n] = match size {
            1 | 2 => self.regs[n] & !mask | value & mask,
            _ => value & mask,
        };
    }

    /// Writes an address register of `size` bytes without clearing what lies above 16 bits.
    pub(crate) fn set_sp(&mut self, value: u64) {
        let size = self.stack_size();
        self.set_reg(RSP, size, value);
    }

    /// Pushes `size` bytes.
    pub(crate) fn push(&mut self, size: u64, value: u64) -> Res {
        let mask = crate::int::mask(self.stack_size());
        let sp = self.regs[RSP].wrapping_sub(size) & mask;
        let linear = self.linear(seg::SS, sp, size, true)?;
        self.store_n(linear, size, value)?;
        self.set_sp(sp);
        Ok(())
    }

    /// The `n`-th item of `size` bytes on the stack, which stays.
    pub(crate) fn peek(&mut self, size: u64, n: u64) -> Res<u64> {
        let mask = crate::int::mask(self.stack_size());
        let sp = self.regs[RSP].wrapping_add(n * size) & mask;
        let linear = self.linear(seg::SS, sp, size, false)?;
        self.load_n(linear, size)
    }

    /// Moves the stack pointer up by `bytes`.
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        self.set_sp(self.regs[RSP].wrapping_add(bytes));
    }

    /// Pops `size` bytes.
    pub(crate) fn pop(&mut self, size: u64) -> Res<u64> {
        let value = self.peek(size, 0)?;
        self.drop_stack(size);
        Ok(value)
    }

    /// Notes which watchpoints an access hits.
    pub(crate) fn watch(&mut self, linear: u64, size: u64, kind: Kind) {
        if self.debugger.watching {
            self.debugger_watch(linear, size, kind);
        }
        if self.debug.control & 0xFF == 0 {
            return;
        }
        for i in 0..4 {
            let control = self.debug.control >> (16 + 4 * i);
            let matches = match control & 3 {
                1 => kind == Kind::Write,
                3 => kind != Kind::Exec,
                _ => false,
            };
            let len = [1, 2, 8, 4][(control >> 2 & 3) as usize];
            let start = self.debug.address[i] & !(len - 1);
            let overlaps = linear < start.wrapping_add(len) && start < linear.wrapping_add(size);
            if self.debug.control >> (2 * i) & 3 != 0 && matches && overlaps {
                self.watch_hit |= 1 << i;
            }
        }
    }

    /// Notes which watchpoints an access to ports hits; CR4.DE makes there be such.
    pub(crate) fn watch_port(&mut self, port: u16, size: u64) {
        if self.debug.control & 0xFF == 0 || self.cr4 & cr4::DE == 0 {
            return;
        }
        for i in 0..4 {
            let control = self.debug.control >> (16 + 4 * i);
            let len = [1, 2, 8, 4][(control >> 2 & 3) as usize];
            let start = self.debug.address[i] & !(len - 1);
            let port = u64::from(port);
            let overlaps = port < start.wrapping_add(len) && start < port + size;
            if self.debug.control >> (2 * i) & 3 != 0 && control & 3 == 2 && overlaps {
                self.watch_hit |= 1 << i;
            }
        }
    }

    /// Whether an enabled watchpoint lies in the page of `linear`.
    pub(crate) fn watched_page(&self, linear: u64) -> bool {
        let by_guest = self.debug.control & 0xFF != 0
            && (0..4).any(|i| {
                self.debug.control >> (2 * i) & 3 != 0
                    && (self.debug.address[i] ^ linear) >> 12 == 0
            });
        by_guest || self.debugger.watches_page(linear)
    }

    /// Whether the page at `phys` is that of the local APIC.
    #[inline]
    pub(crate) fn apic_page(&self, phys: u64) -> bool {
        const ENABLE: u64 = 1 << 11;
        const X2APIC: u64 = 1 << 10;
        let base = match &self.apic {
            Some(apic) => apic.base(),
            None if self.assist.is_some() => self.msrs.apic_base,
            None => return false,
        };
        base & (ENABLE | X2APIC) == ENABLE && base & !0xFFF == phys
    }

    pub(crate) fn apic_read(&mut self, phys: u64, data: &mut [u8]) {
        let offset = (phys & 0xFFF) as u32;
        data.fill(0);
        self.publish();
        if let Some(apic) = &mut self.apic {
            let value = apic.read(offset & !0xF).to_le_bytes();
            for (i, byte) in data.iter_mut().enumerate() {
                *byte = value.get((offset & 0xF) as usize + i).copied().unwrap_or(0);
            }
        }
    }

    pub(crate) fn apic_write(&mut self, phys: u64, data: &[u8]) {
        let offset = (phys & 0xFFF) as u32;
        if offset & 0xF == 0 && data.len() >= 4 {
            let value = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
            self.with_apic(|apic, io| apic.write(offset, value, io));
        }
        self.mailbox.attention.store(true, Ordering::Relaxed);
    }

    /// Calls `f` with the APIC and the machine.
    pub(crate) fn with_apic<T>(
        &mut self,
        f: impl FnOnce(&mut dyn LocalApic, &dyn CpuIo) -> T,
    ) -> Option<T> {
        let mut apic = self.apic.take()?;
        let result = f(&mut *apic, &*self.io());
        self.apic = Some(apic);
        Some(result)
    }
}

/// A machine in which nothing is: reads give all ones. It is also that of a CPU that is not running.
#[derive(Clone, Copy, Debug)]
pub struct NoMachine;

impl CpuIo for NoMachine {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    fn intr(&self) -> bool {
        false
    }
    fn intr_ack(&self) -> u8 {
        0
    }
    fn eoi(&self, _vector: u8) {}
    fn wants_exit(&self) -> bool {
        false
    }
}
