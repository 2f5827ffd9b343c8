//! The native side: a page of code that loads all state, runs the instructions, and stores all
//! state; a signal handler that does the last part after a fault.

use crate::{AREA, ARITH, CODE, CONTEXT, DATA, DATA_LEN, Input, Outcome, SLOT, comparable};

/// What the native code reads and writes; offsets are built into it.
#[repr(C, align(64))]
pub(crate) struct Context {
    area_in: [u8; 1024],
    area_out: [u8; 4096],
    gpr_in: [u64; 16],
    gpr_out: [u64; 16],
    flags_in: u64,
    flags_out: u64,
    host_rsp: u64,
    /// Vector + 1, error code, address and RIP of a fault.
    fault: [u64; 4],
}

/// The native side.
pub(crate) struct Native {
    context: *mut Context,
    exit: u64,
}

/// Maps memory at `address`; the second test finds it mapped by the first.
fn map_fixed(address: u64, len: usize) {
    let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: NOREPLACE touches no mapping that exists.
    let at = unsafe { libc::mmap(address as *mut _, len, prot, flags, -1, 0) };
    let error = std::io::Error::last_os_error();
    let mapped = at as u64 == address || error.raw_os_error() == Some(libc::EEXIST);
    assert!(mapped, "the oracle needs the address {address:#x}: {error}");
}

/// Where the signal handler lets execution go on; written once before any signal.
static mut FAULT_EXIT: u64 = 0;

extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext; `CONTEXT` is mapped while native code runs.
    unsafe {
        let uc = &mut *context.cast::<libc::ucontext_t>();
        let g = &mut uc.uc_mcontext.gregs;
        if (g[libc::REG_RIP as usize] as u64) & !0xFFF != CODE {
            // Not ours: fail for good.
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            return;
        }
        let order = [
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
        let ctx = &mut *(CONTEXT as *mut Context);
        for (out, r) in ctx.gpr_out.iter_mut().zip(order) {
            *out = g[r as usize] as u64;
        }
        ctx.flags_out = g[libc::REG_EFL as usize] as u64;
        ctx.fault = [
            g[libc::REG_TRAPNO as usize] as u64 + 1,
            g[libc::REG_ERR as usize] as u64,
            g[libc::REG_CR2 as usize] as u64,
            g[libc::REG_RIP as usize] as u64,
        ];
        g[libc::REG_RIP as usize] = FAULT_EXIT as i64;
        g[libc::REG_EFL as usize] = 0x202;
    }
}

impl Native {
    pub(crate) fn new() -> Self {
        map_fixed(CODE, 0x1000);
        map_fixed(DATA, DATA_LEN as usize);
        map_fixed(CONTEXT, 0x4000);
        let mut code = Vec::new();
        let abs = |offset: usize| (CONTEXT as u32 + offset as u32).to_le_bytes();
        let mov = |code: &mut Vec<u8>, n: u8, offset: usize, store: bool| {
            code.extend_from_slice(&[0x48 | (n >> 3) << 2, if store { 0x89 } else { 0x8B }]);
            code.extend_from_slice(&[(n & 7) << 3 | 4, 0x25]);
            code.extend_from_slice(&abs(offset));
        };
        use std::mem::offset_of;
        // push rbx, rbp, r12 to r15
        code.extend_from_slice(&[0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
        mov(&mut code, 4, offset_of!(Context, host_rsp), true);
        // mov eax, 7; xor edx, edx; xrstor64 [area_in]
        code.extend_from_slice(&[0xB8, 7, 0, 0, 0, 0x31, 0xD2, 0x48, 0x0F, 0xAE, 0x2C, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, area_in)));
        // push [flags_in]; popfq
        code.extend_from_slice(&[0xFF, 0x34, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, flags_in)));
        code.push(0x9D);
        for n in 0..16 {
            mov(&mut code, n, offset_of!(Context, gpr_in) + 8 * n as usize, false);
        }
        code.push(0xE9);
        let rel = SLOT as i64 - (CODE as i64 + code.len() as i64 + 4);
        code.extend_from_slice(&(rel as i32).to_le_bytes());
        let exit = CODE + code.len() as u64;
        for n in 0..16 {
            mov(&mut code, n, offset_of!(Context, gpr_out) + 8 * n as usize, true);
        }
        mov(&mut code, 4, offset_of!(Context, host_rsp), false);
        // pushfq; pop [flags_out]
        code.extend_from_slice(&[0x9C, 0x8F, 0x04, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, flags_out)));
        let fault_exit = CODE + code.len() as u64;
        mov(&mut code, 4, offset_of!(Context, host_rsp), false);
        // cld; mov eax, 7; xor edx, edx; xsave64 [area_out]; fninit; vzeroupper
        code.push(0xFC);
        code.extend_from_slice(&[0xB8, 7, 0, 0, 0, 0x31, 0xD2, 0x48, 0x0F, 0xAE, 0x24, 0x25]);
        code.extend_from_slice(&abs(offset_of!(Context, area_out)));
        code.extend_from_slice(&[0xDB, 0xE3, 0xC5, 0xF8, 0x77]);
        // ldmxcsr of the ABI's value, kept behind the code
        code.extend_from_slice(&[0x0F, 0xAE, 0x14, 0x25]);
        code.extend_from_slice(&(CODE as u32 + 0x7F0).to_le_bytes());
        code.extend_from_slice(&[0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3]);
        assert!(code.len() < 0x7F0);
        // SAFETY: the page was mapped above; nothing else runs on it yet.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), CODE as *mut u8, code.len());
            ((CODE + 0x7F0) as *mut u32).write(0x1F80);
            FAULT_EXIT = fault_exit;
            let stack =
                libc::stack_t { ss_sp: libc::malloc(1 << 16), ss_flags: 0, ss_size: 1 << 16 };
            libc::sigaltstack(&stack, std::ptr::null_mut());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
        Self { context: CONTEXT as *mut Context, exit }
    }

    pub(crate) fn run(&mut self, bytes: &[u8], input: &Input) -> Outcome {
        // SAFETY: the pages are mapped; the code is complete and keeps the calling convention.
        unsafe {
            let ctx = &mut *self.context;
            ctx.area_in[..AREA].copy_from_slice(&input.area());
            ctx.gpr_in = input.gpr;
            ctx.flags_in = input.flags;
            ctx.fault = [0; 4];
            let slot = SLOT as *mut u8;
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot, bytes.len());
            let at = slot.add(bytes.len());
            let rel = self.exit as i64 - (at as i64 + 5);
            at.write(0xE9);
            at.add(1).cast::<i32>().write_unaligned(rel as i32);
            let entry: extern "sysv64" fn() = std::mem::transmute(CODE as *const u8);
            entry();
            let ctx = &*self.context;
            let fault = (ctx.fault[0] != 0).then(|| {
                let vector = ctx.fault[0] as u8 - 1;
                // The kernel reports #GP for addresses that are not canonical without CR2.
                let cr2 = if vector == 14 { ctx.fault[2] } else { 0 };
                let error = if matches!(vector, 14) { ctx.fault[1] as u32 & 7 } else { 0 };
                (vector, error, cr2, ctx.fault[3] - SLOT)
            });
            Outcome {
                gpr: ctx.gpr_out,
                flags: ctx.flags_out & ARITH,
                vector: comparable(&ctx.area_out[..AREA]),
                fault,
            }
        }
    }
}
