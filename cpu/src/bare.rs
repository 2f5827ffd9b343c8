//! The CPU without a machine: what a program in ring 3 can see goes in, runs, and comes out.
//! Tests and fuzz targets use it.

use std::sync::atomic::Ordering;

use board::{CpuIo, Exit};

use crate::accel::SoftVcpu;
use crate::block::Block;
use crate::cpu::Cpu;
use crate::fault::{Stop, Why};
use crate::host::MXCSR_MASK;

/// Bytes of an XSAVE area in the standard format with x87, SSE and AVX (SDM vol. 1, 13.4).
pub const XSAVE_SIZE: usize = 832;
/// Where XSAVE keeps XMM0 and the upper half of YMM0.
const XMM: usize = 160;
const YMM_HIGH: usize = 576;
/// Blocks after which `run_user` gives up: bytes that loop.
const MAX_BLOCKS: u32 = 10_000;

/// Registers that a program in ring 3 has.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct UserState {
    /// x87, MXCSR, XMM and YMM registers as XSAVE lays them out. The XSAVE header is ignored.
    pub area: [u8; XSAVE_SIZE],
    /// RAX to R15 in the order of their encoding.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS. TF and RF have no effect.
    pub rflags: u64,
}

/// An exception that was raised and not delivered; RIP is at its instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserFault {
    /// Its vector.
    pub vector: u8,
    /// Error code, 0 for vectors without one.
    pub error: u32,
    /// What CR2 would be, for a page fault; else 0.
    pub address: u64,
}

impl SoftVcpu {
    /// Runs a program in the mode and address space that were restored last, from `state.rip` to
    /// its first exception. `None` when it has not raised one after 10,000 blocks.
    ///
    /// Software interrupts and SYSCALL are delivered as ever, so they do not end it.
    pub fn run_user(&mut self, state: &mut UserState) -> Option<UserFault> {
        let cpu = self.cpu_mut();
        cpu.load_user(state);
        cpu.vector.enter();
        let fault = cpu.until_exception();
        cpu.vector.leave();
        cpu.store_user(state);
        fault
    }

    /// Whether the vCPU's CPUID offers `instr`; what it does not offer raises #UD.
    pub fn offers(&self, instr: &iced_x86::Instruction) -> bool {
        self.cpu().features.offers(instr)
    }

    /// As [`board::Vcpu::run`], but for `count` blocks at most; `None` when these have run.
    /// A halt ends it too, whatever might end the halt.
    pub fn run_blocks(&mut self, io: &dyn CpuIo, count: u64) -> Option<Exit> {
        self.with_io(io, |cpu| cpu.execute_some(count, false))
    }
}

impl SoftVcpu {
    /// As [`Self::run_blocks`], a block being a single instruction, or part of one that repeats.
    pub fn run_steps(&mut self, io: &dyn CpuIo, count: u64) -> Option<Exit> {
        self.with_io(io, |cpu| cpu.execute_some(count, true))
    }
}

impl Cpu {
    fn load_user(&mut self, state: &UserState) {
        self.regs[..16].copy_from_slice(&state.gpr);
        (self.rip, self.next_rip) = (state.rip, state.rip);
        self.flags.set(state.rflags);
        (self.stop, self.link) = (None, None);
        let area = &state.area;
        let v = &mut self.vector;
        v.image.0[..XMM].copy_from_slice(&area[..XMM]);
        v.reload();
        let mxcsr = [area[24], area[25], area[26], area[27]];
        v.set_mxcsr(u32::from_le_bytes(mxcsr) & MXCSR_MASK);
        for (i, ymm) in v.context.ymm.iter_mut().enumerate() {
            ymm[..16].copy_from_slice(&area[XMM + 16 * i..XMM + 16 + 16 * i]);
            ymm[16..].copy_from_slice(&area[YMM_HIGH + 16 * i..YMM_HIGH + 16 + 16 * i]);
        }
    }

    fn store_user(&mut self, state: &mut UserState) {
        state.gpr.copy_from_slice(&self.regs[..16]);
        state.rip = self.rip;
        state.rflags = self.flags.get();
        let area = &mut state.area;
        let v = &self.vector;
        area[..XMM].copy_from_slice(&v.image.0[..XMM]);
        area[24..28].copy_from_slice(&v.mxcsr().to_le_bytes());
        for (i, ymm) in v.context.ymm.iter().enumerate() {
            area[XMM + 16 * i..XMM + 16 + 16 * i].copy_from_slice(&ymm[..16]);
            area[YMM_HIGH + 16 * i..YMM_HIGH + 16 + 16 * i].copy_from_slice(&ymm[16..]);
        }
    }

    fn until_exception(&mut self) -> Option<UserFault> {
        let mut next: *const Block = std::ptr::null();
        for _ in 0..MAX_BLOCKS {
            if next.is_null() {
                if self.mailbox.attention.swap(false, Ordering::SeqCst) {
                    self.take_work();
                }
                match self.find_block(false) {
                    Ok(block) => next = self.run_block(block),
                    Err(Stop) => self.link = None,
                }
            } else {
                next = self.run_block(next);
            }
            match self.stop.take() {
                None | Some(Why::Again) => {}
                // Only an assistant leaves its code.
                Some(Why::Shutdown | Why::Leave(_)) => return None,
                Some(Why::Exception(e)) => {
                    let page_fault = e.vector == crate::fault::vector::PF;
                    return Some(UserFault {
                        vector: e.vector,
                        error: e.error.unwrap_or(0),
                        address: if page_fault { e.payload } else { 0 },
                    });
                }
            }
        }
        None
    }
}
