//! Memory operands of specialised ops, and read-modify-write.

use crate::block::Op;
use crate::cpu::Cpu;
use crate::fault::{Exception, Res, Why, vector};
use crate::int::Int;

/// How an op finds its memory operand.
pub(crate) trait Ea {
    fn address(cpu: &Cpu, op: &Op) -> u64;
}

/// `[base + displacement]` in a segment with base 0.
pub(crate) struct BaseDisp;

/// Any form with 64-bit addressing.
pub(crate) struct Any;

impl Ea for BaseDisp {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        reg(cpu, op.base).wrapping_add(op.disp)
    }
}

impl Ea for Any {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        // SAFETY: `seg` of an op is below 8.
        let base = unsafe { *cpu.seg_base.get_unchecked(op.seg as usize) };
        base.wrapping_add(sum(cpu, op))
    }
}

/// The effective address without a segment's base, for LEA.
#[inline(always)]
pub(crate) fn sum(cpu: &Cpu, op: &Op) -> u64 {
    reg(cpu, op.base).wrapping_add(reg(cpu, op.index) << (op.scale & 3)).wrapping_add(op.disp)
}

#[inline(always)]
fn reg(cpu: &Cpu, i: u8) -> u64 {
    // SAFETY: `base` and `index` of an op are below 18.
    unsafe { *cpu.regs.get_unchecked(i as usize) }
}

/// Reads the register operand at byte offset `at`.
#[inline(always)]
pub(crate) fn get<T: Int>(cpu: &Cpu, at: u8) -> T {
    // SAFETY: register operands of an op lie within `regs`, which is 144 bytes long.
    unsafe { cpu.regs.as_ptr().cast::<u8>().add(at as usize).cast::<T>().read_unaligned() }
}

/// Writes the register operand at byte offset `at`; 32 bits are zero-extended.
#[inline(always)]
pub(crate) fn set<T: Int>(cpu: &mut Cpu, at: u8, value: T) {
    // SAFETY: as in `get`.
    unsafe {
        let host = cpu.regs.as_mut_ptr().cast::<u8>().add(at as usize);
        if T::BITS == 32 {
            host.cast::<u64>().write_unaligned(value.zext());
        } else {
            host.cast::<T>().write_unaligned(value);
        }
    }
}

impl Cpu {
    /// Reads a `T` that will be written next, so that a fault is one of writing.
    #[inline(always)]
    pub(crate) fn load_for_write<T: Int>(&mut self, linear: u64) -> Res<T> {
        let entry = self.tlb.entry(linear);
        if entry.write == self.tlb.tag(linear.wrapping_add(T::BYTES - 1)) {
            // The tag for writing implies that the page can be read.
            return self.load(linear);
        }
        self.load_for_write_slow(linear, T::BYTES).map(T::trunc)
    }

    #[cold]
    #[inline(never)]
    fn load_for_write_slow(&mut self, linear: u64, size: u64) -> Res<u64> {
        let mut bytes = [0; 8];
        self.read_as(linear, &mut bytes[..size as usize], self.data_access(true))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A non-canonical address in the stack segment is #SS, not #GP.
    pub(crate) fn stack_segment_fault(&mut self, seg: u8) {
        if seg as usize == crate::cpu::seg::SS
            && let Some(Why::Exception(e)) = &mut self.stop
            && *e == (Exception { vector: vector::GP, error: Some(0), payload: 0 })
        {
            e.vector = vector::SS;
        }
    }
}
