//! Descriptor-table registers, LDTR and TR, and the instructions that ask about selectors.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Exec;
use super::operand::{segment_number, size};
use crate::arch::segment::{BUSY, Descriptor, null};
use crate::cpu::{Bits, Cpu, cr4, seg};
use crate::fault::{Res, vector};

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Lgdt => |cpu, i| load_table(cpu, i, true),
        M::Lidt => |cpu, i| load_table(cpu, i, false),
        M::Sgdt => |cpu, i| store_table(cpu, i, true),
        M::Sidt => |cpu, i| store_table(cpu, i, false),
        M::Lldt => lldt,
        M::Ltr => ltr,
        M::Sldt => |cpu, i| store_selector(cpu, i, seg::LDT),
        M::Str => |cpu, i| store_selector(cpu, i, seg::TR),
        M::Verr => |cpu, i| verify(cpu, i, false),
        M::Verw => |cpu, i| verify(cpu, i, true),
        M::Lar => lar,
        M::Lsl => lsl,
        M::Arpl => arpl,
        M::Les | M::Lds | M::Lss | M::Lfs | M::Lgs => far_pointer,
        _ => return None,
    })
}

/// #GP(0) for user code where UMIP hides system registers.
pub(super) fn umip(cpu: &mut Cpu) -> Res {
    if cpu.cr4 & cr4::UMIP != 0 && cpu.cpl != 0 { cpu.gp(0) } else { Ok(()) }
}

fn base_size(cpu: &Cpu) -> u64 {
    if cpu.bits == Bits::B64 { 8 } else { 4 }
}

fn load_table(cpu: &mut Cpu, instr: &Instruction, gdt: bool) -> Res {
    cpu.ring0()?;
    let n = base_size(cpu);
    let linear = cpu.address(instr, 2 + n, false)?;
    let limit = cpu.load_n(linear, 2)? as u16;
    let mut base = cpu.load_n(linear.wrapping_add(2), n)?;
    if n == 8 && !cpu.canonical(base) {
        return cpu.gp(0);
    }
    use iced_x86::Code as C;
    if matches!(instr.code(), C::Lgdt_m1632_16 | C::Lidt_m1632_16) {
        base &= 0xFF_FFFF;
    }
    let table = if gdt { &mut cpu.gdt } else { &mut cpu.idt };
    table.base = base;
    table.limit = limit;
    Ok(())
}

fn store_table(cpu: &mut Cpu, instr: &Instruction, gdt: bool) -> Res {
    umip(cpu)?;
    let n = base_size(cpu);
    let table = if gdt { cpu.gdt } else { cpu.idt };
    let linear = cpu.address(instr, 2 + n, true)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(linear, &bytes[..2 + n as usize])
}

fn selector(cpu: &mut Cpu, instr: &Instruction, n: u32) -> Res<u16> {
    match instr.op_kind(n) {
        OpKind::Register => Ok(cpu.get(instr.op_register(n)) as u16),
        _ => {
            let linear = cpu.address(instr, 2, false)?;
            Ok(cpu.load_n(linear, 2)? as u16)
        }
    }
}

/// Writes a 16-bit system value: memory gets 16 bits, a register all of its operand size.
pub(super) fn store16(cpu: &mut Cpu, instr: &Instruction, value: u64) -> Res {
    if instr.op0_kind() == OpKind::Register {
        cpu.put(instr.op0_register(), value);
        return Ok(());
    }
    let linear = cpu.address(instr, 2, true)?;
    cpu.store_n(linear, 2, value)
}

fn store_selector(cpu: &mut Cpu, instr: &Instruction, i: usize) -> Res {
    if cpu.real_like() {
        return cpu.ud();
    }
    umip(cpu)?;
    let value = u64::from(cpu.segs[i].selector);
    store16(cpu, instr, value)
}

fn lldt(cpu: &mut Cpu, instr: &Instruction) -> Res {
    if cpu.real_like() {
        return cpu.ud();
    }
    cpu.ring0()?;
    let selector = selector(cpu, instr, 0)?;
    if selector & !3 == 0 {
        cpu.segs[seg::LDT] = null(selector);
        return Ok(());
    }
    let d = system_descriptor(cpu, selector, &[2])?;
    cpu.segs[seg::LDT] = d.segment(selector);
    Ok(())
}

fn ltr(cpu: &mut Cpu, instr: &Instruction) -> Res {
    if cpu.real_like() {
        return cpu.ud();
    }
    cpu.ring0()?;
    let selector = selector(cpu, instr, 0)?;
    if selector & !3 == 0 {
        return cpu.gp(0);
    }
    let kinds: &[u8] = if cpu.long() { &[9] } else { &[1, 9] };
    let mut d = system_descriptor(cpu, selector, kinds)?;
    cpu.mark_descriptor(&d, BUSY, 0)?;
    d.raw |= BUSY;
    cpu.segs[seg::TR] = d.segment(selector);
    cpu.update_mode();
    Ok(())
}

/// A present descriptor of the GDT with one of `kinds`.
fn system_descriptor(cpu: &mut Cpu, selector: u16, kinds: &[u8]) -> Res<Descriptor> {
    let error = u32::from(selector & !3);
    if selector & 4 != 0 {
        return cpu.gp(error);
    }
    let d = cpu.descriptor(selector, vector::GP, 0)?;
    if d.s() || !kinds.contains(&d.kind()) {
        return cpu.gp(error);
    }
    if !d.present() {
        return cpu.raise_error(vector::NP, error);
    }
    if cpu.long() && !cpu.canonical(d.segment(0).base) {
        return cpu.gp(error);
    }
    Ok(d)
}

/// The descriptor of a selector that VERR and its kind ask about, if the program may know it.
fn visible(cpu: &mut Cpu, instr: &Instruction, n: u32) -> Res<Option<Descriptor>> {
    if cpu.real_like() {
        return cpu.ud();
    }
    let selector = selector(cpu, instr, n)?;
    let rpl = (selector & 3) as u8;
    let cpl = cpu.cpl;
    Ok(cpu
        .find_descriptor(selector)?
        .filter(|d| d.is_code() && d.conforming() || d.dpl() >= cpl && d.dpl() >= rpl))
}

fn verify(cpu: &mut Cpu, instr: &Instruction, write: bool) -> Res {
    let ok = visible(cpu, instr, 0)?.is_some_and(|d| {
        let rw = d.kind() & 2 != 0;
        d.s() && if write { !d.is_code() && rw } else { !d.is_code() || rw }
    });
    cpu.flags.set_zf(ok);
    Ok(())
}

fn lar(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let long = cpu.long();
    let found = visible(cpu, instr, 1)?.filter(|d| {
        d.s()
            || match d.kind() {
                2 | 9 | 11 | 12 => true,
                1 | 3 | 4 | 5 => !long,
                _ => false,
            }
    });
    if let Some(d) = found {
        cpu.put(instr.op0_register(), d.raw >> 32 & 0x00FF_FF00);
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

fn lsl(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let long = cpu.long();
    let found = visible(cpu, instr, 1)?.filter(|d| {
        d.s()
            || match d.kind() {
                2 | 9 | 11 => true,
                1 | 3 => !long,
                _ => false,
            }
    });
    if let Some(d) = found {
        cpu.put(instr.op0_register(), u64::from(d.segment(0).limit));
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

fn arpl(cpu: &mut Cpu, instr: &Instruction) -> Res {
    if cpu.real_like() {
        return cpu.ud();
    }
    let target = if instr.op0_kind() == OpKind::Register {
        cpu.get(instr.op0_register()) & 0xFFFF
    } else {
        u64::from(selector(cpu, instr, 0)?)
    };
    let rpl = cpu.get(instr.op1_register()) & 3;
    let raise = target & 3 < rpl;
    if raise {
        let value = target & !3 | rpl;
        if instr.op0_kind() == OpKind::Register {
            let number = instr.op0_register().number();
            cpu.set_reg(number, 2, value);
        } else {
            store16(cpu, instr, value)?;
        }
    }
    cpu.flags.set_zf(raise);
    Ok(())
}

fn far_pointer(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let n = size(instr, 0);
    let linear = cpu.address(instr, n + 2, false)?;
    let offset = cpu.load_n(linear, n)?;
    let selector = cpu.load_n(linear.wrapping_add(n), 2)? as u16;
    let register = match instr.mnemonic() {
        Mnemonic::Les => Register::ES,
        Mnemonic::Lds => Register::DS,
        Mnemonic::Lss => Register::SS,
        Mnemonic::Lfs => Register::FS,
        _ => Register::GS,
    };
    cpu.load_segment(segment_number(register), selector)?;
    cpu.put(instr.op0_register(), offset);
    cpu.update_mode();
    Ok(())
}
