//! PUSH, POP and their kind; ENTER, LEAVE; PUSHF, POPF.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::Exec;
use super::operand::segment_number;
use crate::cpu::{Cpu, RBP, RSP, seg};
use crate::fault::Res;
use crate::flags::bit;
use crate::int::mask;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Push => push,
        M::Pop => pop,
        M::Pusha | M::Pushad => pusha,
        M::Popa | M::Popad => popa,
        M::Pushf | M::Pushfd | M::Pushfq => pushf,
        M::Popf | M::Popfd | M::Popfq => popf,
        M::Enter => enter,
        M::Leave => leave,
        _ => return None,
    })
}

/// Bytes that one push or pop moves.
fn unit(instr: &Instruction) -> u64 {
    u64::from(instr.stack_pointer_increment().unsigned_abs())
}

fn push(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = unit(instr);
    let register = instr.op0_register();
    if instr.op0_kind() == OpKind::Register && register.is_segment_register() {
        let selector = u64::from(cpu.segs[segment_number(register)].selector);
        if size == 4 {
            // Only the low half of a 32-bit slot is written.
            let sp = cpu.regs[RSP].wrapping_sub(4) & mask(cpu.stack_size());
            let linear = cpu.linear(seg::SS, sp, 2, true)?;
            cpu.store_n(linear, 2, selector)?;
            cpu.set_sp(sp);
            return Ok(());
        }
        return cpu.push(size, selector);
    }
    let v = match instr.op0_kind() {
        OpKind::Register | OpKind::Memory => cpu.read(instr, 0)?,
        _ => instr.immediate(0),
    };
    cpu.push(size, v)
}

fn pop(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = unit(instr);
    let register = instr.op0_register();
    if instr.op0_kind() == OpKind::Register {
        if register.is_segment_register() {
            let selector = cpu.peek(size.min(cpu.stack_size().max(2)), 0)? as u16;
            cpu.load_segment(segment_number(register), selector)?;
            cpu.drop_stack(size);
            if register == Register::SS {
                cpu.mov_ss_shadow = true;
            }
            cpu.update_mode();
            return Ok(());
        }
        let v = cpu.pop(size)?;
        cpu.put(register, v);
        return Ok(());
    }
    // The address of a memory operand is computed after the stack pointer has moved.
    let old = cpu.regs[RSP];
    let v = cpu.pop(size)?;
    let result = cpu.write(instr, 0, v);
    if result.is_err() {
        cpu.regs[RSP] = old;
    }
    result
}

fn pusha(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = unit(instr) / 8;
    let old = cpu.regs[RSP];
    for n in 0..8 {
        let v = if n == RSP { old } else { cpu.regs[n] };
        if let Err(stop) = cpu.push(size, v) {
            cpu.regs[RSP] = old;
            return Err(stop);
        }
    }
    Ok(())
}

fn popa(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = unit(instr) / 8;
    let mut values = [0; 8];
    for (n, value) in values.iter_mut().enumerate() {
        *value = cpu.peek(size, n as u64)?;
    }
    for (n, value) in values.into_iter().enumerate() {
        if n != 7 - RSP {
            cpu.set_reg(7 - n, size, value);
        }
    }
    cpu.drop_stack(8 * size);
    Ok(())
}

fn pushf(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = unit(instr);
    let mut v = cpu.flags.get() & !(bit::VM | bit::RF);
    if cpu.v86() && cpu.iopl() < 3 {
        if size != 2 || cpu.cr4 & crate::cpu::cr4::VME == 0 {
            return cpu.gp(0);
        }
        // Virtual interrupts: VIF shows in place of IF, and IOPL as 3.
        v = cpu.virtual_flags(v);
    }
    cpu.push(size, v)
}

fn popf(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = unit(instr);
    let vme = cpu.v86() && cpu.iopl() < 3;
    if vme && (size != 2 || cpu.cr4 & crate::cpu::cr4::VME == 0) {
        return cpu.gp(0);
    }
    let new = cpu.peek(size, 0)?;
    let old = cpu.flags.get();
    if vme {
        if new & bit::TF != 0 || new & bit::IF != 0 && old & bit::VIP != 0 {
            return cpu.gp(0);
        }
        let keep = bit::IF | bit::IOPL | bit::VIF;
        let vif = if new & bit::IF != 0 { bit::VIF } else { 0 };
        cpu.flags.set(old & (keep & !bit::VIF | !0xFFFF) & !bit::VIF | new & 0xFFFF & !keep | vif);
    } else {
        let mut change = bit::ARITH | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
        if cpu.cpl == 0 {
            change |= bit::IOPL;
        }
        if cpu.cpl <= cpu.iopl() || !cpu.protected() {
            change |= bit::IF;
        }
        change &= mask(size);
        cpu.flags.set(old & !change & !bit::RF | new & change);
    }
    cpu.drop_stack(size);
    cpu.update_rights();
    Ok(())
}

fn enter(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let bytes = u64::from(instr.immediate16());
    let level = u64::from(instr.immediate8_2nd() & 31);
    let size = match instr.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let (old_sp, stack) = (cpu.regs[RSP], cpu.stack_size());
    let result = enter_frame(cpu, size, stack, bytes, level);
    if result.is_err() {
        cpu.regs[RSP] = old_sp;
    }
    result
}

fn enter_frame(cpu: &mut Cpu, size: u64, stack: u64, bytes: u64, level: u64) -> Res {
    cpu.push(size, cpu.regs[RBP])?;
    let frame = cpu.reg(RSP, stack);
    for i in 1..level {
        let offset = cpu.regs[RBP].wrapping_sub(i * size) & mask(stack);
        let linear = cpu.linear(seg::SS, offset, size, false)?;
        let v = cpu.load_n(linear, size)?;
        cpu.push(size, v)?;
    }
    if level > 0 {
        cpu.push(size, frame)?;
    }
    let sp = cpu.regs[RSP].wrapping_sub(bytes) & mask(stack);
    // The frame's last byte must be writable.
    let linear = cpu.linear(seg::SS, sp, 1, true)?;
    cpu.probe_write(linear, 1)?;
    cpu.set_sp(sp);
    cpu.set_reg(RBP, size, frame);
    Ok(())
}

fn leave(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = match instr.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    };
    let stack = cpu.stack_size();
    let at = cpu.reg(RBP, stack);
    let linear = cpu.linear(seg::SS, at, size, false)?;
    let v = cpu.load_n(linear, size)?;
    cpu.set_sp(at.wrapping_add(size));
    cpu.set_reg(RBP, size, v);
    Ok(())
}
