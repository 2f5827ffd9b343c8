//! A vCPU on KVM: the loop round KVM_RUN.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Once};

use board::accel::InternalError;
use board::vcpu::{Cpuid, VcpuState};
use board::{AccelError, CpuIo, DebugRequest, Exit, Kicker, Vcpu};
use kvm_bindings::{
    KVM_EXIT_IO_IN, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};

use super::gaps::{self, Gaps};
use super::xsave::XsaveLayout;
use super::{host, sys};

/// What all vCPUs of a VM know of it.
pub(super) struct Shared {
    /// The MSRs that make up a vCPU's state.
    pub(super) msrs: Vec<u32>,
    /// The host's XSAVE area.
    pub(super) xsave: XsaveLayout,
    /// KVM_GET_SREGS2 is there.
    pub(super) sregs2: bool,
    /// Interrupts can be held off during a single step.
    pub(super) blocks_interrupts: bool,
    pub(super) gaps: gaps::Machine,
}

impl Shared {
    pub(super) fn new(
        kvm: &kvm_ioctls::Kvm,
        vm: &VmFd,
        cpuid: &Cpuid,
        gaps: gaps::Machine,
    ) -> Result<Self, AccelError> {
        let msrs = host(kvm.get_msr_index_list(), || "KVM_GET_MSR_INDEX_LIST".into())?;
        Ok(Self {
            msrs: msrs.as_slice().to_vec(),
            xsave: XsaveLayout::of_host(vm.check_extension_int(Cap::Xsave2), cpuid),
            blocks_interrupts: super::debug::blocks_interrupts(vm),
            sregs2: vm.check_extension_raw(kvm_bindings::KVM_CAP_SREGS2.into()) > 0,
            gaps,
        })
    }
}

pub(super) struct KvmVcpu {
    pub(super) id: u32,
    pub(super) fd: VcpuFd,
    pub(super) shared: Arc<Shared>,
    pub(super) cpuid: Cpuid,
    /// The thread that is in `run`, 0 if none is.
    thread: Arc<AtomicI32>,
    /// KVM completes the access of the last exit on the next KVM_RUN (api.rst, 5), or takes over
    /// the registers in `kvm_run` (6.5).
    pub(super) unfinished: bool,
    pub(super) gaps: Gaps,
    /// What the debugger wants.
    pub(super) debug: DebugRequest,
}

impl KvmVcpu {
    pub(super) fn new(id: u32, fd: VcpuFd, shared: Arc<Shared>, cpuid: Cpuid) -> Self {
        install_kick_handler();
        let (thread, debug, gaps) = (Arc::default(), DebugRequest::default(), Gaps::default());
        Self { id, fd, shared, cpuid, thread, unfinished: false, debug, gaps }
    }

    pub(super) fn immediate_exit(&mut self) -> *mut u8 {
        &raw mut self.fd.get_kvm_run().immediate_exit
    }

    /// Handles exits until one is for the caller. `immediate_exit` is known to the kick handler.
    fn run_until_exit(&mut self, io: &dyn CpuIo) -> Result<Exit, AccelError> {
        self.prepare_gaps()?;
        loop {
            // In this order, a kick that comes after the check makes KVM_RUN return at once.
            store(self.immediate_exit(), 0);
            if io.wants_exit() {
                if !self.unfinished {
                    return Ok(Exit::Kicked);
                }
                store(self.immediate_exit(), 1);
            } else {
                self.offer_interrupt(io)?;
            }
            if self.gaps.synced {
                self.set_breakpoints()?;
            }
            self.unfinished = false;
            let exit = match self.fd.run() {
                Ok(exit) => exit,
                // A kick; or an application processor that has just got its startup IPI.
                Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => continue,
                Err(e) => return self.fail("KVM_RUN", e.into()),
            };
            match exit {
                VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => {
                    self.port_access(io);
                    self.unfinished = true;
                }
                VcpuExit::MmioRead(address, data) => {
                    io.mmio_read(address, data);
                    self.unfinished = true;
                }
                VcpuExit::MmioWrite(address, data) => {
                    io.mmio_write(address, data);
                    self.unfinished = true;
                }
                VcpuExit::IoapicEoi(vector) => io.eoi(vector),
                VcpuExit::IrqWindowOpen | VcpuExit::Intr => {}
                VcpuExit::Hlt => return Ok(Exit::Halted),
                VcpuExit::Shutdown => return Ok(Exit::Shutdown),
                VcpuExit::Debug(debug) => {
                    let dr6 = debug.dr6;
                    if self.is_debuggers(dr6) {
                        return Ok(self.debug_exit(dr6));
                    }
                    if let Some(exit) = self.repair_call(dr6, io)? {
                        return Ok(exit);
                    }
                }
                VcpuExit::InternalError => {
                    if let Some(exit) = self.repair_failure(io)? {
                        return Ok(exit);
                    }
                }
                VcpuExit::FailEntry(reason, cpu) => {
                    let what =
                        format!("KVM entry failed on host CPU {cpu}, hardware reason {reason:#x}");
                    return Ok(unresumable(what));
                }
                other => return Ok(unresumable(format!("KVM exit {other:?} is not expected"))),
            }
        }
    }

    /// Hands the PICs' interrupt to the vCPU, or asks to be told when it will take one.
    fn offer_interrupt(&mut self, io: &dyn CpuIo) -> Result<(), AccelError> {
        let pending = io.intr();
        let run = self.fd.get_kvm_run();
        run.request_interrupt_window = 0;
        if !pending {
            return Ok(());
        }
        if run.ready_for_interrupt_injection == 0 {
            run.request_interrupt_window = 1;
            return Ok(());
        }
        let vector = io.intr_ack();
        host(sys::interrupt(&self.fd, vector), || {
            format!("KVM_INTERRUPT {vector:#x} of vCPU {}", self.id)
        })
    }

    /// `in`, `out`, and their string forms, which come as `count` accesses in one exit.
    fn port_access(&mut self, io: &dyn CpuIo) {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_IO, for which the kernel has filled in `io`.
        let access = unsafe { run.__bindgen_anon_1.io };
        let base = ptr::from_mut(run).cast::<u8>();
        let len = usize::from(access.size) * access.count as usize;
        // SAFETY: the kernel puts the data `data_offset` bytes into the mapping that begins with
        // `kvm_run`, which is mapped as long as `self.fd` lives; nothing else refers to it now.
        let data =
            unsafe { std::slice::from_raw_parts_mut(base.add(access.data_offset as usize), len) };
        for item in data.chunks_exact_mut(access.size.into()) {
            if u32::from(access.direction) == KVM_EXIT_IO_IN {
                io.pio_read(access.port, item);
            } else {
                io.pio_write(access.port, item);
            }
        }
    }

    /// Whether the internal error is an instruction that KVM's emulator lacks.
    pub(super) fn emulation_failed(&mut self) -> bool {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel has filled in
        // `suberror`.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        suberror == KVM_INTERNAL_ERROR_EMULATION
    }

    pub(super) fn internal_error(&mut self) -> InternalError {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel has filled in
        // `suberror` and `ndata`, and the rest of `emulation_failure` as far as `ndata` says.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        let what = match failure.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "emulation failure".to_owned(),
            KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions".to_owned(),
            KVM_INTERNAL_ERROR_DELIVERY_EV => "event delivery failure".to_owned(),
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected hardware exit".to_owned(),
            other => format!("suberror {other}"),
        };
        let has_bytes = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        let mut instruction = Vec::new();
        if failure.suberror == KVM_INTERNAL_ERROR_EMULATION
            && failure.ndata >= 3
            && failure.flags & has_bytes != 0
        {
            // SAFETY: the flag says that the kernel has filled in the instruction bytes.
            let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
            let size = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
            instruction.extend_from_slice(&bytes.insn_bytes[..size]);
        }
        InternalError {
            what: format!("KVM internal error: {what}"),
            resumable: failure.suberror == KVM_INTERNAL_ERROR_EMULATION,
            instruction,
        }
    }

    fn fail<T>(&self, call: &str, cause: io::Error) -> Result<T, AccelError> {
        Err(AccelError::Host { call: format!("{call} of vCPU {}", self.id), cause })
    }
}

fn unresumable(what: String) -> Exit {
    Exit::InternalError(InternalError { what, resumable: false, instruction: Vec::new() })
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Result<Exit, AccelError> {
        IMMEDIATE_EXIT.set(self.immediate_exit());
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
        let exit = self.run_until_exit(io);
        self.thread.store(0, Ordering::SeqCst);
        IMMEDIATE_EXIT.set(ptr::null_mut());
        exit
    }

    fn kicker(&self) -> Kicker {
        let thread = self.thread.clone();
        Kicker::new(move || {
            let tid = thread.load(Ordering::SeqCst);
            if tid != 0 {
                // SAFETY: tgkill touches no memory. A thread that has left `run` since, or the
                // process, ignores the signal: its handler finds no `IMMEDIATE_EXIT`.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, kick_signal()) };
            }
        })
    }

    fn save(&mut self) -> Result<VcpuState, AccelError> {
        self.save_state()
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), AccelError> {
        self.restore_state(state)
    }

    fn nmi(&mut self) -> Result<(), AccelError> {
        host(self.fd.nmi(), || format!("KVM_NMI of vCPU {}", self.id))
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), AccelError> {
        self.apply_debug(request)
    }
}

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, or null.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Writes a flag that the kick handler and the kernel look at as well.
fn store(flag: *mut u8, value: u8) {
    // SAFETY: `flag` is `immediate_exit` in the mapping of a vCPU fd that its owner holds; one byte
    // is always aligned for an atomic.
    unsafe { AtomicU8::from_ptr(flag) }.store(value, Ordering::SeqCst);
}

/// Whether the kick handler has set the flag.
pub(super) fn is_set(flag: *mut u8) -> bool {
    // SAFETY: as in `store`.
    unsafe { AtomicU8::from_ptr(flag) }.load(Ordering::Relaxed) != 0
}

fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Makes KVM_RUN return, now if the thread is in it, else as soon as it gets there.
extern "C" fn on_kick(_signal: i32) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        store(flag, 1);
    }
}

fn install_kick_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is a valid one: no flags, so that KVM_RUN is not restarted.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_kick as *const () as usize;
        // SAFETY: `on_kick` is async-signal-safe: it reads a thread-local without destructor and
        // stores one byte. The signal is not used for anything else.
        unsafe { libc::sigaction(kick_signal(), &action, ptr::null_mut()) };
    });
}
