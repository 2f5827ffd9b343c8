//! The software CPU in place of another accelerator, for an instruction that it lacks and a little
//! beyond.
//!
//! An [`Assistant`] has no local APIC, no time and no memory of its own. It is given the registers
//! of a stopped vCPU, executes the instruction at RIP and, if asked, goes on for a while (a
//! *stretch*), and gives the registers back. It starts with an empty TLB and decodes all code anew,
//! since the guest's memory has changed behind its back.
//!
//! - Vector state and MSRs are fetched when the first instruction comes up that looks at them.
//! - A stretch ends before what only the accelerator can do: HLT, MSRs, CR0 to CR8, debug
//!   registers, TLB maintenance, the TSC, STI, an access to the local APIC. It ends after an access
//!   to a device, after interrupts have been opened, on the way to ring 3, and when time is up.
//! - An accelerator that keeps shadow page tables sees the guest's writes to its page tables, but
//!   not those made here. So a stretch also ends before a store that would replace what it may have
//!   a shadow of: 8 bytes that read as a paging entry that is present, accessed and the user's (SDM
//!   vol. 3, 4.5). No shadow comes from other entries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use board::memory::MemoryMap;
use board::vcpu::{Cpuid, MpState, VcpuState};
use board::{AccelError, Clock, CpuIo};
use iced_x86::{Code, CpuidFeature as F, Instruction, Mnemonic};

use crate::cpu::{Cpu, Mailbox, Shared, cr0, efer, seg};
use crate::exec::{self, Exec};
use crate::fault::{Leave, Res, Stop, Why};
use crate::features::{self, Features};
use crate::flags::bit;
use crate::mmu::access::Place;
use crate::phys::{Page, PhysMap};

/// Blocks between two looks at the clock.
const BLOCKS: u32 = 8;

/// What the assistants of a machine share: its memory, as they see it.
pub struct Memory(Arc<Shared>);

impl Memory {
    /// The memory of `map`.
    pub fn new(map: &MemoryMap) -> Self {
        let this = Self(Arc::default());
        this.set(map);
        this
    }

    /// Replaces it. A stretch that is under way ends on the old one.
    pub fn set(&self, map: &MemoryMap) {
        *self.0.map.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(PhysMap::new(map));
    }

    /// Takes the log of pages that assistants wrote, as [`board::Accel::take_dirty`] does.
    pub fn take_dirty(&self, slot: usize) -> Vec<u64> {
        self.0.map().take_dirty(slot)
    }
}

/// What of a vCPU's state is fetched only when it is needed.
pub trait Lender {
    /// Fills in `fpu`, `xsave` and `xcr0`.
    ///
    /// # Errors
    /// The host's.
    fn vectors(&mut self, state: &mut VcpuState) -> Result<(), AccelError>;
    /// MSRs by number: those of SYSCALL, SYSENTER and SWAPGS, IA32_TSC, IA32_TSC_AUX.
    ///
    /// # Errors
    /// The host's.
    fn msrs(&mut self) -> Result<BTreeMap<u32, u64>, AccelError>;
}

/// What is to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The instruction at RIP.
    Here,
    /// The vCPU is at the first instruction of an exception's handler: what raised the exception.
    Interrupted {
        /// The exception has pushed an error code.
        error_code: bool,
        /// In place of RIP and RFLAGS of the exception's frame.
        instead: Option<(u64, u64)>,
    },
}

/// How far to go.
#[derive(Clone, Copy)]
pub struct Limit<'a> {
    /// How long to go on after the first instruction, if at all.
    pub stretch: Option<Duration>,
    /// Ends the stretch early.
    pub stop: &'a dyn Fn() -> bool,
    /// The accelerator may have shadow page tables.
    pub shadows: bool,
}

/// What has been done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Instructions executed; 0: the first one is not for the software CPU, nothing has changed.
    pub instructions: u64,
    /// `fpu`, `xsave` and `xcr0` of the state are valid, and may have changed.
    pub vectors: bool,
    /// `msrs` of the state are valid; IA32_KERNEL_GS_BASE may have changed.
    pub msrs: bool,
    /// The accelerator's TLB has to be flushed.
    pub flush: bool,
    /// A triple fault. The state is the one before it.
    pub shutdown: bool,
}

/// What a [`Cpu`] knows about being an assistant.
#[derive(Debug, Default)]
pub(crate) struct Assist {
    /// Beyond the first instruction: what is the accelerator's is left to it.
    strict: bool,
    vectors: bool,
    msrs: bool,
    /// XCR0 has components that are unknown here.
    foreign_components: bool,
    /// Physical addresses from here on are in no paging entry; 0: stores are not looked at.
    tables_end: u64,
}

/// Notes that a device was reached.
struct Noted<'a> {
    io: &'a dyn CpuIo,
    device: std::cell::Cell<bool>,
}

impl CpuIo for Noted<'_> {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.device.set(true);
        self.io.pio_read(port, data);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.device.set(true);
        self.io.pio_write(port, data);
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.device.set(true);
        self.io.mmio_read(address, data);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.device.set(true);
        self.io.mmio_write(address, data);
    }
    // Interrupts are the accelerator's.
    fn intr(&self) -> bool {
        false
    }
    fn intr_ack(&self) -> u8 {
        0xFF
    }
    fn eoi(&self, _vector: u8) {}
    fn wants_exit(&self) -> bool {
        self.io.wants_exit()
    }
}

/// The stand-in for one vCPU.
pub struct Assistant {
    cpu: Box<Cpu>,
}

impl Assistant {
    /// A stand-in for vCPU `id`, which shows `cpuid`. It executes all instructions that it can,
    /// whether CPUID offers them or not, as processors do.
    ///
    /// # Errors
    /// [`AccelError::Host`] when there is no executable memory.
    pub fn new(memory: &Memory, id: u32, cpuid: &Cpuid) -> Result<Self, AccelError> {
        let mailbox = Arc::new(Mailbox::default());
        let mut cpu = Box::new(Cpu::new(id, cpuid, &memory.0, &mailbox, &Clock::stopped(), None));
        let gib_pages = cpu.features.gib_pages;
        cpu.features = Features::new(&features::supported());
        cpu.features.offer(F::CLZERO);
        // No-operations in KVM, whatever CPUID shows.
        cpu.features.offer(F::MONITOR);
        cpu.features.gib_pages = gib_pages;
        cpu.vector.code.reserve().map_err(|cause| AccelError::Host {
            call: format!("mmap of executable memory for vCPU {id}"),
            cause,
        })?;
        // REP stops after each page.
        mailbox.attention.store(true, Ordering::Relaxed);
        cpu.assist = Some(Box::default());
        Ok(Self { cpu })
    }

    /// Executes what `start` says, from `state`, and goes on as far as `limit` allows. Of `state`
    /// all is used but the LAPIC, MP state and CPUID, and what `lender` has not given yet; `state`
    /// is what it has become on return.
    ///
    /// # Errors
    /// The lender's. `state` has not changed then.
    pub fn run(
        &mut self,
        state: &mut VcpuState,
        start: Start,
        lender: &mut dyn Lender,
        io: &dyn CpuIo,
        limit: &Limit<'_>,
    ) -> Result<Done, AccelError> {
        let noted = Noted { io, device: std::cell::Cell::new(false) };
        let cpu = &mut *self.cpu;
        cpu.begin(state, limit);
        let pointer: *const (dyn CpuIo + '_) = &raw const noted;
        // SAFETY: only the lifetime changes; `io` is cleared below, before `noted` goes.
        cpu.io = Some(unsafe {
            std::mem::transmute::<*const (dyn CpuIo + '_), *const (dyn CpuIo + 'static)>(pointer)
        });
        let result = cpu.assist_run(state, start, lender, &noted, limit);
        cpu.io = None;
        cpu.vector.leave();
        let mut done = result?;
        if done.instructions > 0 && !done.shutdown {
            cpu.end(state, &mut done);
        }
        Ok(done)
    }
}

impl Cpu {
    fn begin(&mut self, state: &VcpuState, limit: &Limit<'_>) {
        let map = self.shared.map();
        if !Arc::ptr_eq(&map, &self.phys) {
            self.phys = map;
        }
        self.blocks.forget();
        self.mailbox.take();
        let tables_end = if limit.shadows { self.phys.end() } else { 0 };
        self.assist = Some(Box::new(Assist { tables_end, ..Assist::default() }));

        self.regs[..16].copy_from_slice(&state.gpr);
        (self.rip, self.next_rip) = (state.rip, state.rip);
        self.flags.set(state.rflags);
        let s = &state.segments;
        self.segs = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr];
        (self.gdt, self.idt) = (state.gdt, state.idt);
        self.cr0 = state.cr0 | cr0::ET;
        (self.cr2, self.cr3, self.cr4, self.cr8) = (state.cr2, state.cr3, state.cr4, state.cr8);
        self.efer = state.efer;
        self.debug = state.debug;
        self.msrs.apic_base = state.apic_base;
        self.cpl = if self.v86() {
            3
        } else if self.cr0 & cr0::PE == 0 {
            0
        } else {
            state.cpl()
        };
        self.mp_state = MpState::Runnable;
        self.sti_shadow = state.events.sti_shadow;
        self.mov_ss_shadow = state.events.mov_ss_shadow;
        self.nmi_masked = state.events.nmi_masked;
        self.taken_interrupt = None;
        (self.stop, self.link, self.watch_hit) = (None, None, 0);
        (self.icount, self.flushed) = (0, false);
        self.new_address_space();
        self.tlb.forget_jumps();
        if self.cr0 & cr0::PG != 0
            && self.cr4 & crate::cpu::cr4::PAE != 0
            && self.efer & efer::LMA == 0
            && self.load_pdptrs(self.cr3).is_err()
        {
            self.stop = None;
        }
        self.update_mode();
    }

    fn end(&mut self, state: &mut VcpuState, done: &mut Done) {
        let was = (state.events.sti_shadow, state.events.mov_ss_shadow);
        state.gpr.copy_from_slice(&self.regs[..16]);
        (state.rip, state.rflags) = (self.rip, self.flags.get());
        let s = self.segs;
        let target = &mut state.segments;
        (target.es, target.cs, target.ss, target.ds) =
            (s[seg::ES], s[seg::CS], s[seg::SS], s[seg::DS]);
        (target.fs, target.gs, target.ldt, target.tr) =
            (s[seg::FS], s[seg::GS], s[seg::LDT], s[seg::TR]);
        (state.gdt, state.idt) = (self.gdt, self.idt);
        (state.cr0, state.cr2, state.cr3, state.cr4) = (self.cr0, self.cr2, self.cr3, self.cr4);
        state.efer = self.efer;
        state.debug = self.debug;
        state.events.sti_shadow = self.sti_shadow;
        state.events.mov_ss_shadow = self.mov_ss_shadow && !was.1;
        state.events.nmi_masked = self.nmi_masked;
        let assist = self.assist.get_or_insert_default();
        (done.vectors, done.msrs) = (assist.vectors, assist.msrs);
        if done.vectors {
            state.xcr0 = self.xcr0;
            self.save_vectors(state);
        }
        if done.msrs {
            state.msrs.insert(KERNEL_GS_BASE, self.msrs.kernel_gs_base);
        }
    }

    fn assist_run(
        &mut self,
        state: &mut VcpuState,
        start: Start,
        lender: &mut dyn Lender,
        noted: &Noted<'_>,
        limit: &Limit<'_>,
    ) -> Result<Done, AccelError> {
        let mut done = Done::default();
        if let Start::Interrupted { error_code, instead } = start
            && self.unwind(error_code, instead).is_err()
        {
            return Ok(done);
        }
        // Debug exceptions before this instruction have been the accelerator's.
        self.flags.rest |= bit::RF;
        loop {
            self.step();
            match self.stop {
                Some(Why::Leave(Leave::Accelerator)) => return Ok(Done::default()),
                Some(Why::Leave(leave)) => {
                    self.flags.rest |= bit::RF;
                    self.lend(leave, state, lender)?;
                }
                _ => break,
            }
        }
        done.flush = self.flushed;
        done.instructions = self.icount.max(1);
        let debugged = self.flags.rest & bit::TF != 0 || self.debug.control & 0xFF != 0;
        if self.settle_stop().is_some() {
            done.shutdown = true;
            return Ok(done);
        }
        let Some(time) = limit.stretch.filter(|_| !debugged && !noted.device.get()) else {
            return Ok(done);
        };
        self.assist_mut().strict = true;
        let until = Instant::now() + time;
        let mut blocks = 0_u32;
        while self.may_go_on() && !noted.device.get() {
            blocks += 1;
            if (limit.stop)() || blocks.is_multiple_of(BLOCKS) && Instant::now() >= until {
                break;
            }
            let open = self.flags.rest & bit::IF != 0;
            if let Ok(block) = self.find_block(false) {
                self.run_block(block);
            }
            self.link = None;
            match self.stop {
                Some(Why::Leave(Leave::Accelerator)) => break,
                Some(Why::Leave(leave)) => self.lend(leave, state, lender)?,
                Some(Why::Again) => {
                    self.stop = None;
                    break;
                }
                Some(_) => {
                    // Frames go to stacks, which hold no paging entries.
                    self.assist_mut().strict = false;
                    if self.settle_stop().is_some() {
                        done.shutdown = true;
                        return Ok(done);
                    }
                    self.assist_mut().strict = true;
                }
                None => {}
            }
            if !open && self.flags.rest & bit::IF != 0 {
                break;
            }
        }
        self.stop = None;
        done.instructions = self.icount.max(1);
        Ok(done)
    }

    /// Whether a stretch may go on with the instruction at RIP.
    fn may_go_on(&self) -> bool {
        self.efer & efer::LMA != 0
            && self.cpl != 3
            && self.flags.rest & bit::TF == 0
            && !self.sti_shadow
            && !self.mov_ss_shadow
    }

    fn assist_mut(&mut self) -> &mut Assist {
        self.assist.get_or_insert_default()
    }

    /// Takes over what the instruction at RIP needs.
    fn lend(
        &mut self,
        what: Leave,
        state: &mut VcpuState,
        lender: &mut dyn Lender,
    ) -> Result<(), AccelError> {
        self.stop = None;
        if what == Leave::Vectors {
            lender.vectors(state)?;
            let known = self.features.xcr0;
            let assist = self.assist_mut();
            assist.vectors = true;
            assist.foreign_components = state.xcr0 & !known != 0;
            self.xcr0 = state.xcr0;
            self.restore_vectors(state);
            self.vector.enter();
        } else {
            state.msrs = lender.msrs()?;
            self.restore_msrs(&state.msrs);
            self.assist_mut().msrs = true;
        }
        // The blocks stop before what they now may execute.
        self.blocks.forget();
        self.tlb.forget_jumps();
        Ok(())
    }

    /// Goes back to where the exception came from whose handler RIP is at.
    fn unwind(&mut self, error_code: bool, instead: Option<(u64, u64)>) -> Res {
        if error_code {
            self.drop_stack(8);
        }
        let mut iret = Instruction::new();
        iret.set_code(Code::Iretq);
        let masked = self.nmi_masked;
        let handler = exec::find(&iret).ok_or(Stop)?;
        let result = handler(self, &iret);
        self.nmi_masked = masked;
        self.stop = None;
        result?;
        self.rip = self.next_rip;
        if let Some((rip, rflags)) = instead {
            self.rip = rip;
            self.flags.set(rflags | 2);
        }
        self.update_mode();
        Ok(())
    }

    /// Before a store of `len` bytes at `place`, within its page.
    ///
    /// # Errors
    /// [`Why::Leave`] when the store is for the accelerator.
    pub(crate) fn admit_store(&mut self, place: Place, len: usize) -> Res {
        let Some(assist) = self.assist.as_deref() else { return Ok(()) };
        let Some(page) = place.page else { return self.admit_device(place) };
        if !assist.strict || assist.tables_end == 0 {
            return Ok(());
        }
        let end = assist.tables_end;
        let first = (place.phys & 0xFF8) as usize;
        let last = (place.phys & 0xFFF) as usize + len.max(1) - 1;
        for offset in (first..=last.min(0xFFF)).step_by(8) {
            // SAFETY: 8 aligned bytes within a page of guest memory.
            let word = unsafe { page.host.add(offset).cast::<u64>().read_volatile() };
            let entry = word & SHADOWED == SHADOWED && word & ADDRESS < end;
            if entry && self.may_be_table(page) {
                self.stop = Some(Why::Leave(Leave::Accelerator));
                return Err(Stop);
            }
        }
        Ok(())
    }

    /// Whether the page can be a paging structure: none of its entries that are present has a
    /// reserved bit set, which no system does in tables that it uses.
    fn may_be_table(&self, page: Page) -> bool {
        let reserved = ADDRESS & !((1 << self.phys_bits) - 1);
        (0..512).all(|i| {
            // SAFETY: 8 aligned bytes within a page of guest memory.
            let word = unsafe { page.host.add(8 * i).cast::<u64>().read_volatile() };
            word & 1 == 0 || word & reserved == 0
        })
    }

    /// Before an access to `place`, which may be the local APIC's.
    ///
    /// # Errors
    /// [`Why::Leave`] when it is.
    pub(crate) fn admit_device(&mut self, place: Place) -> Res {
        if self.assist.is_some() && place.page.is_none() && self.apic_page(place.phys & !0xFFF) {
            self.stop = Some(Why::Leave(Leave::Accelerator));
            return Err(Stop);
        }
        Ok(())
    }
}

const KERNEL_GS_BASE: u32 = 0xC000_0102;
/// Present, user, accessed.
const SHADOWED: u64 = 0x25;
/// The physical address in a paging entry, with the reserved bits above it.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// What stands in place of `instr` in an assistant's blocks, if anything does. `single`: it is the
/// instruction that the accelerator lacks.
pub(crate) fn guard(cpu: &Cpu, instr: &Instruction, single: bool) -> Option<Exec> {
    use Mnemonic as M;
    let assist = cpu.assist.as_deref()?;
    let mnemonic = instr.mnemonic();
    // Processors of other makers have these outside long mode only.
    let intel = cpu.cpuid.get(0, 0).is_some_and(|leaf| leaf.ebx == u32::from_le_bytes(*b"Genu"));
    if matches!(mnemonic, M::Sysenter | M::Sysexit | M::Sysexitq) && cpu.long() && !intel {
        return Some(exec::undefined);
    }
    if is_accelerators(instr) {
        return Some(to_accelerator);
    }
    match mnemonic {
        M::Cpuid
        | M::Rdtsc
        | M::Rdtscp
        | M::Rdpmc
        | M::Mwait
        | M::Monitor
        | M::Sti
        | M::Clts
        | M::Lmsw
        | M::Invlpg
        | M::Invpcid
        | M::Wbinvd
        | M::Invd
        | M::Wbnoinvd
        | M::Xsetbv
        | M::Vmcall
        | M::Vmmcall
            if !single =>
        {
            return Some(to_accelerator);
        }
        M::Syscall | M::Sysenter | M::Swapgs | M::Rdtsc | M::Rdtscp | M::Rdpid if !assist.msrs => {
            return Some(|cpu, _| cpu.leave_for(Leave::Msrs));
        }
        _ => {}
    }
    if !uses_vectors(instr) {
        return None;
    }
    if !assist.vectors {
        return Some(|cpu, _| cpu.leave_for(Leave::Vectors));
    }
    let whole =
        instr.cpuid_features().iter().any(|f| matches!(f, F::XSAVE | F::XSAVEOPT | F::XSAVEC));
    (assist.foreign_components && whole).then_some(to_accelerator)
}

/// What is never executed here.
fn is_accelerators(instr: &Instruction) -> bool {
    let (a, b) = (instr.op0_register(), instr.op1_register());
    let moves = instr.mnemonic() == Mnemonic::Mov
        && (a.is_cr() || a.is_dr() || b.is_dr() || b == iced_x86::Register::CR8);
    moves || matches!(instr.mnemonic(), Mnemonic::Hlt | Mnemonic::Rdmsr | Mnemonic::Wrmsr)
}

/// Whether it looks at x87, MMX, SSE or AVX registers, their control registers or XCR0.
fn uses_vectors(instr: &Instruction) -> bool {
    use Mnemonic as M;
    if matches!(
        instr.mnemonic(),
        M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Sfence
            | M::Lfence
            | M::Mfence
            | M::Movnti
            | M::Clflush
            | M::Crc32
            | M::Popcnt
    ) {
        return false;
    }
    instr.cpuid_features().iter().any(|f| {
        matches!(
            f,
            F::FPU
                | F::FPU287
                | F::FPU387
                | F::MMX
                | F::FXSR
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::AES
                | F::PCLMULQDQ
                | F::SHA
                | F::XSAVE
                | F::XSAVEOPT
                | F::XSAVEC
                | F::AVX
                | F::AVX2
                | F::FMA
                | F::F16C
        )
    })
}

fn to_accelerator(cpu: &mut Cpu, _: &Instruction) -> Res {
    cpu.leave_for(Leave::Accelerator)
}

impl Cpu {
    fn leave_for(&mut self, what: Leave) -> Res {
        self.stop = Some(Why::Leave(what));
        Err(Stop)
    }
}
