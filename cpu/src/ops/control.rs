//! Branches, calls and returns of 64-bit code.

use crate::block::{Block, Op};
use crate::cpu::{Cpu, PAGE, RSP, seg};
use crate::fault::{Stop, vector};
use crate::ops::mem::{Ea, get};
use crate::ops::{attempt, leave, leave_as_is};

/// As [`attempt`], for an access to the stack.
macro_rules! attempt_stack {
    ($cpu:expr, $op:expr, $e:expr) => {
        match $e {
            Ok(v) => v,
            Err(Stop) => {
                $cpu.stack_segment_fault(seg::SS as u8);
                return leave($cpu, $op);
            }
        }
    };
}

/// Goes on at `target`, relative to the current page, by link `which` of the block if it can.
#[inline(always)]
pub(crate) fn go(cpu: &mut Cpu, target: u64, which: usize) -> *const Block {
    // SAFETY: `cpu.block` is the block in execution.
    let link = unsafe { (*cpu.block).links[which].get() };
    if link.is_null() {
        return go_far(cpu, target, which);
    }
    link
}

#[inline(never)]
fn go_far(cpu: &mut Cpu, target: u64, which: usize) -> *const Block {
    cpu.rip = cpu.regs[PAGE].wrapping_add(target) & cpu.ip_mask();
    if target < 4096 {
        cpu.link = Some((cpu.block, which));
    }
    std::ptr::null()
}

/// The return address of a call.
#[inline(always)]
fn after(cpu: &Cpu, o: &Op) -> u64 {
    cpu.regs[PAGE].wrapping_add(u64::from(o.off)).wrapping_add(u64::from(o.len))
}

/// JMP rel.
pub(crate) unsafe fn jmp(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    go(cpu, o.imm, 0)
}

/// Jcc rel.
pub(crate) unsafe fn jcc<const CC: u8>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    if cpu.flags.condition(CC) {
        go(cpu, o.imm, 0)
    } else {
        go(cpu, u64::from(o.off) + u64::from(o.len), 1)
    }
}

/// CALL rel.
pub(crate) unsafe fn call(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let sp = cpu.regs[RSP].wrapping_sub(8);
    attempt_stack!(cpu, op, cpu.store(sp, after(cpu, o)));
    cpu.regs[RSP] = sp;
    go(cpu, o.imm, 0)
}

/// #GP for a target that is not canonical.
#[cold]
fn nowhere(cpu: &mut Cpu, op: *const Op) -> *const Block {
    let raised: Result<(), Stop> = cpu.raise_error(vector::GP, 0);
    debug_assert!(raised.is_err());
    leave_as_is(cpu, op)
}

/// To an address that the program computed.
#[inline(always)]
fn indirect(cpu: &mut Cpu, op: *const Op, target: u64, push: bool) -> *const Block {
    // SAFETY: contract of handlers, whom this serves.
    let o = unsafe { &*op };
    if !cpu.canonical(target) {
        return nowhere(cpu, op);
    }
    if push {
        let sp = cpu.regs[RSP].wrapping_sub(8);
        attempt_stack!(cpu, op, cpu.store(sp, after(cpu, o)));
        cpu.regs[RSP] = sp;
    }
    cpu.rip = target;
    std::ptr::null()
}

/// JMP r64 (`CALL` false) or CALL r64.
pub(crate) unsafe fn indirect_r<const CALL: bool>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let target: u64 = get(cpu, unsafe { (*op).src });
    indirect(cpu, op, target, CALL)
}

/// JMP m64 or CALL m64.
pub(crate) unsafe fn indirect_m<const CALL: bool, E: Ea>(
    cpu: &mut Cpu,
    op: *const Op,
) -> *const Block {
    // SAFETY: contract of handlers.
    let address = E::address(cpu, unsafe { &*op });
    let target: u64 = attempt!(cpu, op, cpu.load(address));
    indirect(cpu, op, target, CALL)
}

/// RET, with `imm` bytes of arguments.
pub(crate) unsafe fn ret(cpu: &mut Cpu, op: *const Op) -> *const Block {
    let sp = cpu.regs[RSP];
    let target: u64 = attempt_stack!(cpu, op, cpu.load(sp));
    if !cpu.canonical(target) {
        return nowhere(cpu, op);
    }
    // SAFETY: contract of handlers.
    cpu.regs[RSP] = sp.wrapping_add(8).wrapping_add(unsafe { (*op).imm });
    cpu.rip = target;
    std::ptr::null()
}
