//! Near branches, loops, and instructions that raise on purpose.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::Exec;
use super::operand::size;
use crate::cpu::{Bits, Cpu, PAGE, RCX};
use crate::fault::{Res, vector};
use crate::flags::bit;
use crate::int::sext;
use crate::ops::condition;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Jo
        | M::Jno
        | M::Jb
        | M::Jae
        | M::Je
        | M::Jne
        | M::Jbe
        | M::Ja
        | M::Js
        | M::Jns
        | M::Jp
        | M::Jnp
        | M::Jl
        | M::Jge
        | M::Jle
        | M::Jg => jcc,
        M::Loop | M::Loope | M::Loopne => loops,
        M::Jcxz | M::Jecxz | M::Jrcxz => jcxz,
        M::Ret => ret,
        M::Ud0 | M::Ud1 | M::Ud2 => super::undefined,
        M::Bound => bound,
        _ => return None,
    })
}

/// Bytes of the instruction pointer after a near branch.
fn width(cpu: &Cpu, kind: OpKind) -> u64 {
    match kind {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ if cpu.bits == Bits::B64 => 8,
        _ if cpu.bits == Bits::B32 => 4,
        _ => 2,
    }
}

fn target(cpu: &Cpu, instr: &Instruction) -> (u64, u64) {
    let width = width(cpu, instr.op0_kind());
    (cpu.regs[PAGE].wrapping_add(sext(instr.near_branch_target(), width)), width)
}

fn branch(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let (to, width) = target(cpu, instr);
    cpu.jump(to, width)
}

fn jcc(cpu: &mut Cpu, instr: &Instruction) -> Res {
    if cpu.flags.condition(condition(instr.condition_code())) { branch(cpu, instr) } else { Ok(()) }
}

/// Bytes of the counter of LOOP and JCXZ.
fn counter(instr: &Instruction) -> u64 {
    use Code as C;
    match instr.code() {
        C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 2,
        C::Loopne_rel8_16_RCX
        | C::Loopne_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loop_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Jrcxz_rel8_16
        | C::Jrcxz_rel8_64 => 8,
        _ => 4,
    }
}

fn loops(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = counter(instr);
    let count = cpu.regs[RCX].wrapping_sub(1) & crate::int::mask(size);
    let taken = count != 0
        && match instr.mnemonic() {
            Mnemonic::Loope => cpu.flags.zf(),
            Mnemonic::Loopne => !cpu.flags.zf(),
            _ => true,
        };
    if taken {
        branch(cpu, instr)?;
    }
    cpu.set_reg(RCX, size, count);
    Ok(())
}

fn jcxz(cpu: &mut Cpu, instr: &Instruction) -> Res {
    if cpu.reg(RCX, counter(instr)) == 0 { branch(cpu, instr) } else { Ok(()) }
}

/// JMP near.
pub(super) fn jmp(cpu: &mut Cpu, instr: &Instruction) -> Res {
    match instr.op0_kind() {
        OpKind::Register | OpKind::Memory => {
            let to = cpu.read(instr, 0)?;
            cpu.jump(to, size(instr, 0))
        }
        _ => branch(cpu, instr),
    }
}

/// CALL near.
pub(super) fn call(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let unit = u64::from(instr.stack_pointer_increment().unsigned_abs());
    let back = cpu.next_rip;
    let to = match instr.op0_kind() {
        OpKind::Register | OpKind::Memory => cpu.read(instr, 0)?,
        _ => target(cpu, instr).0,
    };
    cpu.jump(to, unit)?;
    cpu.push(unit, back)
}

fn ret(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let arguments = if instr.op_count() == 1 { u64::from(instr.immediate16()) } else { 0 };
    let unit = match instr.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let to = cpu.peek(unit, 0)?;
    cpu.jump(to, unit)?;
    cpu.drop_stack(unit + arguments);
    Ok(())
}

fn bound(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let n = size(instr, 0);
    let linear = cpu.address(instr, 2 * n, false)?;
    let low = sext(cpu.load_n(linear, n)?, n) as i64;
    let high = sext(cpu.load_n(linear.wrapping_add(n), n)?, n) as i64;
    let v = sext(cpu.read(instr, 0)?, n) as i64;
    if v < low || v > high { cpu.raise_plain(vector::BR) } else { Ok(()) }
}

/// STI and CLI (SDM vol. 2), with the virtual interrupt flag of VME and PVI.
pub(super) fn interrupt_flag(cpu: &mut Cpu, on: bool) -> Res {
    use crate::cpu::cr4;
    if !cpu.protected() || cpu.cpl <= cpu.iopl() {
        if on && cpu.flags.rest & bit::IF == 0 {
            cpu.sti_shadow = true;
        }
        cpu.flags.rest = cpu.flags.rest & !bit::IF | if on { bit::IF } else { 0 };
        return Ok(());
    }
    let virtual_flag =
        if cpu.v86() { cpu.cr4 & cr4::VME != 0 } else { cpu.cpl == 3 && cpu.cr4 & cr4::PVI != 0 };
    if !virtual_flag || on && cpu.flags.rest & bit::VIP != 0 {
        return cpu.gp(0);
    }
    cpu.flags.rest = cpu.flags.rest & !bit::VIF | if on { bit::VIF } else { 0 };
    Ok(())
}
