//! The native side: code that loads all state, runs the instructions, and stores all state; a
//! signal handler that does the last part after a fault.

use std::mem::offset_of;

use cpu::bare::{UserState, XSAVE_SIZE};

use crate::lane::{BASE, HOLE, Lane, RO_PAGES, RW_PAGES, STRIDE};

/// What the native code reads and writes; offsets are built into it.
#[repr(C, align(64))]
pub(crate) struct Context {
    /// What the instructions find.
    pub(crate) input: UserState,
    /// An XSAVE area of any host's size.
    pub(crate) area: [u8; 4096],
    pub(crate) gpr: [u64; 16],
    pub(crate) flags: u64,
    /// 1 after a branch that was taken.
    pub(crate) taken: u64,
    /// Vector + 1, error code, address and RIP of a fault.
    pub(crate) fault: [u64; 4],
    running: u64,
    host_rsp: u64,
    fault_exit: u64,
    mxcsr: u32,
}

/// The native side of a lane.
pub(crate) struct Native {
    lane: Lane,
    /// Offset of the jump to the instructions in the code page, and where they return to.
    enter: u64,
    exit: u64,
    exit_taken: u64,
}

/// Maps memory at `address`, which nothing else may have.
fn map(address: u64, len: u64, prot: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: NOREPLACE touches no mapping that exists.
    let at = unsafe { libc::mmap(address as *mut _, len as usize, prot, flags, -1, 0) };
    let error = std::io::Error::last_os_error();
    assert!(at as u64 == address, "the oracle needs the address {address:#x}: {error}");
}

fn protect(address: u64, len: u64, prot: i32) {
    // SAFETY: the range is a lane's own, and the native code is not running.
    let result = unsafe { libc::mprotect(address as *mut _, len as usize, prot) };
    assert!(result == 0, "mprotect: {}", std::io::Error::last_os_error());
}

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // The alternate stack lies behind the context of the lane.
    let here = &raw const signal as u64;
    let lane = Lane(here.wrapping_sub(BASE) / STRIDE);
    if here < BASE || lane.0 >= Lane::MAX {
        // SAFETY: a thread that is no lane: fail for good.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel passes a ucontext; a lane's context is mapped while it has its stack.
    unsafe {
        let uc = &mut *context.cast::<libc::ucontext_t>();
        let g = &mut uc.uc_mcontext.gregs;
        let ctx = &mut *(lane.context() as *mut Context);
        if ctx.running == 0 {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        const ORDER: [i32; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        for (out, r) in ctx.gpr.iter_mut().zip(ORDER) {
            *out = g[r as usize] as u64;
        }
        ctx.flags = g[libc::REG_EFL as usize] as u64;
        let vector = g[libc::REG_TRAPNO as usize] as u64;
        let address = if vector == 14 { g[libc::REG_CR2 as usize] as u64 } else { 0 };
        ctx.fault = [
            vector + 1,
            g[libc::REG_ERR as usize] as u64,
            address,
            g[libc::REG_RIP as usize] as u64,
        ];
        g[libc::REG_RIP as usize] = ctx.fault_exit as i64;
        g[libc::REG_EFL as usize] = 0x202;
    }
}

/// MOV between a general register and an absolute address.
fn mov(code: &mut Vec<u8>, n: u8, address: u64, store: bool) {
    code.extend_from_slice(&[0x48 | (n >> 3) << 2, if store { 0x89 } else { 0x8B }]);
    code.extend_from_slice(&[(n & 7) << 3 | 4, 0x25]);
    code.extend_from_slice(&(address as u32).to_le_bytes());
}

impl Native {
    /// Maps the lane's memory and makes the code around the instructions.
    pub(crate) fn new(lane: Lane) -> Self {
        let (read, write, exec) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        map(lane.code(), 0x2000, read | write | exec);
        map(lane.data() - HOLE, 2 * HOLE + 0x1000 * (RW_PAGES + RO_PAGES), libc::PROT_NONE);
        protect(lane.data(), 0x1000 * (RW_PAGES + RO_PAGES), read | write);
        map(lane.context(), 0x2_0000, read | write);
        let at = |offset: usize| lane.context() + offset as u64;
        let abs = |offset: usize| (at(offset) as u32).to_le_bytes();
        let mut code = Vec::new();
        // push rbx, rbp, r12 to r15
        code.extend_from_slice(&[0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
        mov(&mut code, 4, at(offset_of!(Context, host_rsp)), true);
        // mov eax, 7; xor edx, edx; xrstor64 [input.area]
        code.extend_from_slice(&[0xB8, 7, 0, 0, 0, 0x31, 0xD2, 0x48, 0x0F, 0xAE, 0x2C, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, input) + offset_of!(UserState, area)));
        // push [input.rflags]; popfq
        code.extend_from_slice(&[0xFF, 0x34, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, input) + offset_of!(UserState, rflags)));
        code.push(0x9D);
        let gpr_in = offset_of!(Context, input) + offset_of!(UserState, gpr);
        for n in 0..16 {
            mov(&mut code, n, at(gpr_in + 8 * n as usize), false);
        }
        let enter = code.len() as u64;
        code.extend_from_slice(&[0xE9, 0, 0, 0, 0]);
        let exit_taken = lane.code() + code.len() as u64;
        // mov dword [taken], 1
        code.extend_from_slice(&[0xC7, 0x04, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, taken)));
        code.extend_from_slice(&1_u32.to_le_bytes());
        let exit = lane.code() + code.len() as u64;
        for n in 0..16 {
            mov(&mut code, n, at(offset_of!(Context, gpr) + 8 * n as usize), true);
        }
        mov(&mut code, 4, at(offset_of!(Context, host_rsp)), false);
        // pushfq; pop [flags]
        code.extend_from_slice(&[0x9C, 0x8F, 0x04, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, flags)));
        let fault_exit = lane.code() + code.len() as u64;
        mov(&mut code, 4, at(offset_of!(Context, host_rsp)), false);
        // cld; mov eax, 7; xor edx, edx; xsave64 [area]; fninit; vzeroupper; ldmxcsr [mxcsr]
        code.push(0xFC);
        code.extend_from_slice(&[0xB8, 7, 0, 0, 0, 0x31, 0xD2, 0x48, 0x0F, 0xAE, 0x24, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, area)));
        code.extend_from_slice(&[0xDB, 0xE3, 0xC5, 0xF8, 0x77, 0x0F, 0xAE, 0x14, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, mxcsr)));
        code.extend_from_slice(&[0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3]);
        assert!(code.len() < 0x700);
        // SAFETY: the pages were mapped above; nothing else runs on them yet. The handler is one
        // for all lanes.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), lane.code() as *mut u8, code.len());
            let ctx = &mut *(lane.context() as *mut Context);
            ctx.fault_exit = fault_exit;
            ctx.mxcsr = 0x1F80;
            assert!(size_of::<Context>() < 0x1_0000);
            let ss_sp = (lane.context() + 0x1_0000) as *mut _;
            let stack = libc::stack_t { ss_sp, ss_flags: 0, ss_size: 1 << 16 };
            libc::sigaltstack(&stack, std::ptr::null_mut());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
        Self { lane, enter, exit, exit_taken }
    }

    /// Makes the pages behind the writable ones read-only; they hold what they will.
    pub(crate) fn seal(&self) {
        protect(self.lane.data() + 0x1000 * RW_PAGES, 0x1000 * RO_PAGES, libc::PROT_READ);
    }

    /// Puts instructions at `at`; they end at their end, or at `target`.
    pub(crate) fn place(&mut self, at: u64, bytes: &[u8], target: Option<u64>) {
        let jump = |from: u64, to: u64| {
            let rel = to.wrapping_sub(from + 5) as i32;
            // SAFETY: the code pages are mapped and writable, and all places lie in them.
            unsafe {
                (from as *mut u8).write(0xE9);
                ((from + 1) as *mut i32).write_unaligned(rel);
            }
        };
        assert!(at >= self.lane.code() + 0x700);
        assert!(at + bytes.len() as u64 + 5 < self.lane.code() + 0x2000);
        jump(self.lane.code() + self.enter, at);
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        jump(at + bytes.len() as u64, self.exit);
        if let Some(target) = target {
            jump(target, self.exit_taken);
        }
    }

    /// Runs what was placed with the context's input.
    pub(crate) fn run(&mut self) -> &Context {
        // SAFETY: the pages are mapped; the code is complete and keeps the calling convention.
        unsafe {
            let ctx = self.lane.context() as *mut Context;
            (*ctx).fault[0] = 0;
            (*ctx).taken = 0;
            (*ctx).running = 1;
            let entry: extern "sysv64" fn() = std::mem::transmute(self.lane.code() as *const u8);
            entry();
            (*ctx).running = 0;
            &*ctx
        }
    }

    /// What the next run finds.
    pub(crate) fn input(&mut self) -> &mut UserState {
        // SAFETY: the context is mapped, and used by the native code only while `run` runs.
        unsafe { &mut (*(self.lane.context() as *mut Context)).input }
    }

    /// The data pages that both sides may write, or all of them.
    pub(crate) fn data(&mut self, pages: u64) -> &mut [u8] {
        // SAFETY: the pages are mapped and readable; the native code is not running.
        unsafe {
            std::slice::from_raw_parts_mut(self.lane.data() as *mut u8, (pages << 12) as usize)
        }
    }
}

const _: () = assert!(XSAVE_SIZE <= 4096);
