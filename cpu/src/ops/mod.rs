//! Handlers of predecoded instructions: those for the common forms of 64-bit code, specialised by
//! operand kind and size, and one that calls the general implementation in [`crate::exec`].

pub(crate) mod alu;
mod control;
pub(crate) mod mem;
mod mov;
mod select;
mod wide;

use std::cell::Cell;

use crate::block::{Block, Handler, Op};
use crate::cpu::{Cpu, PAGE};

pub(crate) use select::{condition, memory, specialise};

/// An op without operands.
pub(crate) fn op(run: Handler) -> Op {
    Op {
        run: Cell::new(run),
        imm: 0,
        disp: 0,
        dst: 0,
        src: 0,
        base: crate::cpu::ZERO as u8,
        index: crate::cpu::ZERO as u8,
        scale: 0,
        seg: 0,
        len: 0,
        aux: 0,
        off: 0,
    }
}

/// Goes on with the next op of the block. In tail position this is a jump.
macro_rules! next {
    ($cpu:expr, $op:expr) => {{
        // SAFETY: only the last op of a block returns without `next!`, so another follows.
        let next = unsafe { $op.add(1) };
        // SAFETY: as above; the handlers of a block are called with ops of that block.
        unsafe { ((*next).run.get())($cpu, next) }
    }};
}
pub(crate) use next;

/// `$e`, or out of the block with what it raised.
macro_rules! attempt {
    ($cpu:expr, $op:expr, $e:expr) => {
        match $e {
            Ok(v) => v,
            Err(crate::fault::Stop) => return crate::ops::leave($cpu, $op),
        }
    };
}
pub(crate) use attempt;

/// The op has raised something: RIP is at its instruction, which counts as not executed; or at
/// that which a task begins with, if it has switched tasks first.
#[cold]
#[inline(never)]
pub(crate) fn leave(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: `op` points into the ops of the current block (contract of handlers).
    let seg = unsafe { (*op).seg };
    cpu.stack_segment_fault(seg);
    leave_as_is(cpu, op)
}

/// As [`leave`], where what was raised does not depend on the segment.
#[cold]
#[inline(never)]
pub(crate) fn leave_as_is(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: `op` points into the ops of the current block (contract of handlers).
    let (off, index, count) = unsafe {
        let block = &*cpu.block;
        ((*op).off, op.offset_from(block.ops.as_ptr()) as u64, block.count)
    };
    cpu.icount -= u64::from(count) - index;
    if !cpu.in_new_task {
        cpu.rip = cpu.regs[PAGE].wrapping_add(u64::from(off)) & cpu.ip_mask();
    }
    std::ptr::null()
}

/// In place of every op of a dropped block: execution goes on at this instruction in a new one.
pub(crate) unsafe fn bail(cpu: &mut Cpu, op: *const Op) -> *const Block {
    leave(cpu, op)
}

/// The block ends without a branch.
pub(crate) unsafe fn fall_through(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let target = unsafe { (*op).imm };
    control::go(cpu, target, 1)
}

/// Executes an instruction by its general implementation.
pub(crate) unsafe fn slow(cpu: &mut Cpu, op: *const Op) -> *const Block {
    attempt!(cpu, op, execute(cpu, op));
    next!(cpu, op)
}

/// As [`slow`], at the end of a block.
pub(crate) unsafe fn slow_end(cpu: &mut Cpu, op: *const Op) -> *const Block {
    attempt!(cpu, op, execute(cpu, op));
    cpu.rip = cpu.next_rip;
    std::ptr::null()
}

#[inline(always)]
fn execute(cpu: &mut Cpu, op: *const Op) -> crate::fault::Res {
    // SAFETY: contract of handlers; `imm` of these ops is an index of `slow`, and blocks are not
    // freed while they execute.
    let (handler, instr, off, len) = unsafe {
        let (handler, instr) = (&(*cpu.block).slow)[(*op).imm as usize];
        (handler, instr, (*op).off, (*op).len)
    };
    cpu.rip = cpu.regs[PAGE].wrapping_add(u64::from(off)) & cpu.ip_mask();
    cpu.next_rip = cpu.rip.wrapping_add(u64::from(len)) & cpu.ip_mask();
    handler(cpu, &instr)
}
