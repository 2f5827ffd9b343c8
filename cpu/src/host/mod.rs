//! Instructions whose semantics execute on the host: x87, MMX, SSE, AVX and their kin.
//!
//! Such an instruction is encoded anew with its memory operand in a scratch buffer and its general
//! registers in fixed ones, and runs as a little host function, a *stub*, between loads and stores
//! of just the vector registers that it uses. Moves need no stub, and the common operand forms of
//! 64-bit code have handlers of their own (`fast`).
//!
//! The x87 registers (and with them the MMX registers) live in the host's own unit while the vCPU
//! runs: nothing else in this program uses it. [`Vector::enter`] puts them there. The guest's
//! control word is in force too: an exception that it does not mask stays pending in the unit, and
//! only a waiting instruction would raise it. Before each of these, the guest gets its #MF
//! ([`Cpu::x87_pending`]), so that the host never does.
//!
//! MXCSR lives in the host's too, with all exceptions masked, and gathers the flags as the guest's
//! would; this crate does not compute on floating-point numbers, and for the machine that it calls
//! ([`Outside`]) the host's own is put back. Only while the guest has unmasked an exception, the
//! flags of each instruction are looked at.

mod fast;
mod masked;
mod run;
mod stub;
mod x87;

use std::collections::HashMap;

use board::CpuIo;

use crate::cpu::{Cpu, cr0, cr4};
use crate::fault::{Res, vector};

pub(crate) use fast::specialise;
pub(crate) use run::{decode, run_op};
pub(crate) use stub::Stub;
pub(crate) use x87::find;

/// What stubs work on. The layout is known to [`stub`].
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Context {
    /// YMM0 to YMM15.
    pub(crate) ymm: [[u8; 32]; 16],
    /// The memory operand.
    pub(crate) memory: [u8; 64],
    /// General registers in and out: two operands (R10 and R11), RAX, RCX and RDX.
    pub(crate) gpr: [u64; 5],
    pub(crate) flags: u64,
}

/// An FXSAVE image.
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Image(pub(crate) [u8; 512]);

/// Vector and x87 state of a vCPU.
pub(crate) struct Vector {
    pub(crate) context: Context,
    /// MXCSR, but for flags that the host's has and this has not while the vCPU runs.
    mxcsr: u32,
    /// The guest's control word, which is in force while the x87 registers are in the host's unit.
    pub(crate) fcw: u16,
    /// The x87 registers while the vCPU does not run.
    pub(crate) image: Image,
    live: bool,
    /// Last x87 instruction: opcode, where it was, its operand.
    pub(crate) fop: u16,
    pub(crate) fip: u64,
    pub(crate) fdp: u64,
    pub(crate) stubs: HashMap<Vec<u8>, Box<Stub>>,
    pub(crate) code: stub::Code,
}

/// MXCSR after reset; also what the host's own code runs with.
pub(crate) const MXCSR_RESET: u32 = 0x1F80;
/// The bits that MXCSR has.
pub(crate) const MXCSR_MASK: u32 = 0xFFFF;
const MXCSR_FLAGS: u32 = 0x3F;
/// All exceptions masked.
const MXCSR_MASKED: u32 = 0x1F80;

fn stmxcsr() -> u32 {
    let mut value = 0_u32;
    // SAFETY: it writes 4 bytes to a place that has them.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack)) };
    value
}

/// `value` must mask all exceptions and have no reserved bits.
fn ldmxcsr(value: u32) {
    debug_assert_eq!(value & (MXCSR_MASKED | !MXCSR_MASK), MXCSR_MASKED);
    // SAFETY: the value is legal. Code of this crate does not depend on it, as it does not compute
    // on floating-point numbers; whoever may is called through `Outside`, or after `leave`.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, readonly)) };
}

/// The machine outside, called with the host's own MXCSR.
pub(crate) struct Outside<'a> {
    io: &'a dyn CpuIo,
    mxcsr: u32,
}

impl<'a> Outside<'a> {
    pub(crate) fn new(io: &'a dyn CpuIo) -> Self {
        let mxcsr = stmxcsr();
        ldmxcsr(MXCSR_RESET);
        Self { io, mxcsr }
    }
}

impl<'a> std::ops::Deref for Outside<'a> {
    type Target = dyn CpuIo + 'a;

    fn deref(&self) -> &Self::Target {
        self.io
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        ldmxcsr(self.mxcsr);
    }
}

impl Vector {
    pub(crate) fn new() -> Self {
        let context = Context { ymm: [[0; 32]; 16], memory: [0; 64], gpr: [0; 5], flags: 0 };
        let mut image = Image([0; 512]);
        image.0[..2].copy_from_slice(&0x037F_u16.to_le_bytes());
        image.0[24..28].copy_from_slice(&MXCSR_RESET.to_le_bytes());
        Self {
            context,
            mxcsr: MXCSR_RESET,
            fcw: 0x37F,
            image,
            live: false,
            fop: 0,
            fip: 0,
            fdp: 0,
            stubs: HashMap::new(),
            code: stub::Code::new(),
        }
    }

    /// The guest's MXCSR.
    pub(crate) fn mxcsr(&self) -> u32 {
        self.mxcsr | if self.live { stmxcsr() & MXCSR_FLAGS } else { 0 }
    }

    /// Sets the guest's MXCSR; `value` has no reserved bits.
    pub(crate) fn set_mxcsr(&mut self, value: u32) {
        self.mxcsr = value;
        if self.live {
            ldmxcsr(value | MXCSR_MASKED);
        }
    }

    /// The exceptions that the guest's MXCSR does not mask, as flags.
    #[inline(always)]
    pub(crate) fn unmasked(&self) -> u32 {
        !(self.mxcsr >> 7) & MXCSR_FLAGS
    }

    /// Puts the guest's x87 registers and MXCSR into the host's units.
    pub(crate) fn enter(&mut self) {
        if self.live {
            return;
        }
        self.image.0[..2].copy_from_slice(&self.fcw.to_le_bytes());
        self.image.0[24..28].copy_from_slice(&(self.mxcsr | MXCSR_MASKED).to_le_bytes());
        // SAFETY: the image is 512 aligned bytes with a legal MXCSR; all registers that change are
        // declared.
        unsafe {
            std::arch::asm!("fxrstor64 [{}]", in(reg) self.image.0.as_ptr(), clobber_abi("sysv64"));
        }
        self.live = true;
    }

    /// Takes the guest's x87 registers and MXCSR out of the host's units.
    pub(crate) fn leave(&mut self) {
        if !self.live {
            return;
        }
        self.snapshot();
        self.mxcsr = self.mxcsr();
        ldmxcsr(MXCSR_RESET);
        // SAFETY: the unit is put into the state that the calling convention asks for.
        unsafe { std::arch::asm!("fninit", clobber_abi("sysv64")) };
        self.live = false;
    }

    /// Brings `image` up to date.
    pub(crate) fn snapshot(&mut self) {
        if self.live {
            // SAFETY: the image is 512 aligned writable bytes.
            unsafe { std::arch::asm!("fxsave64 [{}]", in(reg) self.image.0.as_mut_ptr()) };
        }
        self.image.0[..2].copy_from_slice(&self.fcw.to_le_bytes());
        let fsw = u16::from_le_bytes([self.image.0[2], self.image.0[3]]);
        let fsw = self.summary(fsw);
        self.image.0[2..4].copy_from_slice(&fsw.to_le_bytes());
    }

    /// Loads the x87 registers from `image`, wherever they are.
    pub(crate) fn reload(&mut self) {
        let fcw = u16::from_le_bytes([self.image.0[0], self.image.0[1]]);
        self.fcw = fcw & 0x1F7F | 0x40;
        if self.live {
            self.mxcsr = self.mxcsr();
            self.live = false;
            self.enter();
        }
    }

    /// A status word with ES and B as the guest's masks make them.
    pub(crate) fn summary(&self, fsw: u16) -> u16 {
        let pending = fsw & !self.fcw & 0x3F != 0;
        fsw & 0x7F7F | if pending { 0x8080 } else { 0 }
    }
}

impl Cpu {
    /// #NM or #UD when x87 (and FXSAVE) cannot be used.
    #[inline]
    pub(crate) fn x87_available(&mut self) -> Res {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 { self.raise_plain(vector::NM) } else { Ok(()) }
    }

    /// #UD or #NM when MMX cannot be used.
    #[inline]
    pub(crate) fn mmx_available(&mut self) -> Res {
        if self.cr0 & cr0::EM != 0 {
            return self.ud();
        }
        if self.cr0 & cr0::TS != 0 { self.raise_plain(vector::NM) } else { Ok(()) }
    }

    /// #UD or #NM when SSE cannot be used.
    #[inline]
    pub(crate) fn sse_available(&mut self) -> Res {
        if self.cr0 & cr0::EM != 0 || self.cr4 & cr4::OSFXSR == 0 {
            return self.ud();
        }
        if self.cr0 & cr0::TS != 0 { self.raise_plain(vector::NM) } else { Ok(()) }
    }

    /// #UD or #NM when AVX cannot be used.
    #[inline]
    pub(crate) fn avx_available(&mut self) -> Res {
        if self.cr4 & cr4::OSXSAVE == 0 || self.xcr0 & 6 != 6 || self.real_like() {
            return self.ud();
        }
        if self.cr0 & cr0::TS != 0 { self.raise_plain(vector::NM) } else { Ok(()) }
    }
}
