//! Moves that change nothing but their destination; conversions; XLAT; the bytes of MOVBE.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Exec;
use super::operand::{segment_number, size};
use crate::cpu::{Cpu, RAX, RBX, RDX};
use crate::fault::Res;
use crate::flags::bit;
use crate::int::{mask, sext};
use crate::ops::condition;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Mov => mov,
        M::Lea => lea,
        M::Movzx => movzx,
        M::Movsx | M::Movsxd => movsx,
        M::Movbe => movbe,
        M::Movnti | M::Movdiri => movnti,
        M::Bswap => bswap,
        M::Cbw => |cpu, _| widen(cpu, 1),
        M::Cwde => |cpu, _| widen(cpu, 2),
        M::Cdqe => |cpu, _| widen(cpu, 4),
        M::Cwd => |cpu, _| spread(cpu, 2),
        M::Cdq => |cpu, _| spread(cpu, 4),
        M::Cqo => |cpu, _| spread(cpu, 8),
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Xlatb => xlat,
        M::Salc => |cpu, _| {
            let v = if cpu.flags.cf() { 0xFF } else { 0 };
            cpu.set_reg(RAX, 1, v);
            Ok(())
        },
        M::Clc => |cpu, _| carry(cpu, false),
        M::Stc => |cpu, _| carry(cpu, true),
        M::Cmc => |cpu, _| {
            let cf = cpu.flags.cf();
            carry(cpu, !cf)
        },
        M::Cld => |cpu, _| {
            cpu.flags.rest &= !bit::DF;
            Ok(())
        },
        M::Std => |cpu, _| {
            cpu.flags.rest |= bit::DF;
            Ok(())
        },
        M::Nop
        | M::Endbr32
        | M::Endbr64
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1
        | M::Lfence
        | M::Cldemote
        | M::Reservednop => |_, _| Ok(()),
        M::Mfence | M::Sfence | M::Serialize => |_, _| {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            Ok(())
        },
        M::Pause => |_, _| {
            std::hint::spin_loop();
            Ok(())
        },
        M::Clflush | M::Clflushopt | M::Clwb => touch,
        M::Cmovo
        | M::Cmovno
        | M::Cmovb
        | M::Cmovae
        | M::Cmove
        | M::Cmovne
        | M::Cmovbe
        | M::Cmova
        | M::Cmovs
        | M::Cmovns
        | M::Cmovp
        | M::Cmovnp
        | M::Cmovl
        | M::Cmovge
        | M::Cmovle
        | M::Cmovg => cmov,
        M::Seto
        | M::Setno
        | M::Setb
        | M::Setae
        | M::Sete
        | M::Setne
        | M::Setbe
        | M::Seta
        | M::Sets
        | M::Setns
        | M::Setp
        | M::Setnp
        | M::Setl
        | M::Setge
        | M::Setle
        | M::Setg => setcc,
        _ => return None,
    })
}

fn mov(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let (a, b) = (instr.op0_register(), instr.op1_register());
    if instr.op0_kind() == OpKind::Register && !a.is_gpr() {
        if a.is_segment_register() {
            return cpu.mov_to_segment(instr);
        }
        return cpu.mov_to_system(instr);
    }
    if instr.op1_kind() == OpKind::Register && !b.is_gpr() {
        if b.is_segment_register() {
            let selector = u64::from(cpu.segs[segment_number(b)].selector);
            return cpu.write(instr, 0, selector);
        }
        return cpu.mov_from_system(instr);
    }
    let v = cpu.read(instr, 1)?;
    cpu.write(instr, 0, v)
}

fn lea(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.offset(instr);
    cpu.put(instr.op0_register(), v);
    Ok(())
}

fn movzx(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.read(instr, 1)?;
    cpu.write(instr, 0, v)
}

fn movsx(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.read(instr, 1)?;
    cpu.write(instr, 0, sext(v, size(instr, 1)))
}

fn movbe(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let shift = 64 - 8 * size(instr, 0);
    let v = cpu.read(instr, 1)?;
    cpu.write(instr, 0, v.swap_bytes() >> shift)
}

fn movnti(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.read(instr, 1)?;
    cpu.write(instr, 0, v)
}

fn bswap(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let register = instr.op0_register();
    let v = cpu.get(register);
    // With 16 bits the result is undefined; processors give zero.
    let v = match register.size() {
        8 => v.swap_bytes(),
        4 => u64::from((v as u32).swap_bytes()),
        _ => 0,
    };
    cpu.put(register, v);
    Ok(())
}

fn widen(cpu: &mut Cpu, from: u64) -> Res {
    let v = sext(cpu.reg(RAX, from), from);
    cpu.set_reg(RAX, 2 * from, v);
    Ok(())
}

fn spread(cpu: &mut Cpu, size: u64) -> Res {
    let sign = sext(cpu.reg(RAX, size), size) as i64 >> 63;
    cpu.set_reg(RDX, size, sign as u64);
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Instruction) -> Res {
    let v = cpu.flags.get() & 0xFF;
    cpu.put(Register::AH, v);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Instruction) -> Res {
    let v = cpu.get(Register::AH);
    cpu.flags.replace(bit::SF | bit::ZF | bit::AF | bit::PF | bit::CF, v);
    Ok(())
}

fn carry(cpu: &mut Cpu, cf: bool) -> Res {
    cpu.flags.set_cf(cf);
    Ok(())
}

fn xlat(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let base = instr.memory_base();
    let size = if base == Register::None { 8 } else { base.size() as u64 };
    let offset = cpu.regs[RBX].wrapping_add(cpu.reg(RAX, 1)) & mask(size);
    let linear = cpu.linear(segment_number(instr.memory_segment()), offset, 1, false)?;
    let v = cpu.load_n(linear, 1)?;
    cpu.set_reg(RAX, 1, v);
    Ok(())
}

/// CLFLUSH and its kind: caches are the host's affair, but the address is checked.
fn touch(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let linear = cpu.address(instr, 1, false)?;
    cpu.load_n(linear, 1).map(drop)
}

fn cmov(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.read(instr, 1)?;
    let register = instr.op0_register();
    // The destination is written, and zero-extended, in either case.
    let v =
        if cpu.flags.condition(condition(instr.condition_code())) { v } else { cpu.get(register) };
    cpu.put(register, v);
    Ok(())
}

fn setcc(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.flags.condition(condition(instr.condition_code()));
    cpu.write(instr, 0, u64::from(v))
}
