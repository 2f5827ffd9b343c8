//! Bit tests and scans, POPCNT, BMI1, BMI2, CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Exec;
use super::operand::{segment_number, size};
use crate::cpu::Cpu;
use crate::fault::Res;
use crate::flags::bit;
use crate::int::{Int, by_size, mask, sext};

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Bt => |cpu, i| bit_test(cpu, i, None),
        M::Bts => |cpu, i| bit_test(cpu, i, Some(|v, bit| v | bit)),
        M::Btr => |cpu, i| bit_test(cpu, i, Some(|v, bit| v & !bit)),
        M::Btc => |cpu, i| bit_test(cpu, i, Some(|v, bit| v ^ bit)),
        M::Bsf => |cpu, i| scan(cpu, i, |v, _| u64::from(v.trailing_zeros())),
        M::Bsr => |cpu, i| scan(cpu, i, |v, _| 63 - u64::from(v.leading_zeros())),
        M::Tzcnt => |cpu, i| count(cpu, i, |v, bits| u64::from(v.trailing_zeros()).min(bits)),
        M::Lzcnt => |cpu, i| count(cpu, i, |v, bits| u64::from(v.leading_zeros()) + bits - 64),
        M::Popcnt => popcnt,
        M::Andn => andn,
        M::Bextr => bextr,
        M::Blsi => |cpu, i| lowest(cpu, i, |v| v & v.wrapping_neg(), |v| v != 0),
        M::Blsr => |cpu, i| lowest(cpu, i, |v| v & v.wrapping_sub(1), |v| v == 0),
        M::Blsmsk => |cpu, i| lowest(cpu, i, |v| v ^ v.wrapping_sub(1), |v| v == 0),
        M::Bzhi => bzhi,
        M::Pdep => |cpu, i| deposit(cpu, i, pdep),
        M::Pext => |cpu, i| deposit(cpu, i, pext),
        M::Crc32 => crc32,
        _ => return None,
    })
}

/// BT and its kind; `change` makes the new operand from the old one and the bit.
fn bit_test(cpu: &mut Cpu, instr: &Instruction, change: Option<fn(u64, u64) -> u64>) -> Res {
    let size = size(instr, 0);
    let bits = 8 * size;
    let index = cpu.read(instr, 1)?;
    let bit = 1_u64 << (index & (bits - 1));
    if instr.op0_kind() == OpKind::Register || instr.op1_kind() != OpKind::Register {
        let Some(change) = change else {
            let v = cpu.read(instr, 0)?;
            cpu.flags.set_cf(v & bit != 0);
            return Ok(());
        };
        return cpu.modify(instr, |cpu, v| {
            cpu.flags.set_cf(v & bit != 0);
            change(v, bit)
        });
    }
    // A register index reaches beyond the operand: it is a signed index of a bit string.
    let step = (sext(index, size) as i64 >> bits.trailing_zeros()) * size as i64;
    let address = super::operand::address_size(instr);
    let offset = cpu.offset(instr).wrapping_add_signed(step) & mask(address);
    let linear =
        cpu.linear(segment_number(instr.memory_segment()), offset, size, change.is_some())?;
    let Some(change) = change else {
        let v = cpu.load_n(linear, size)?;
        cpu.flags.set_cf(v & bit != 0);
        return Ok(());
    };
    if instr.has_lock_prefix() {
        return cpu.locked(linear, size, |cpu, v| {
            cpu.flags.set_cf(v & bit != 0);
            change(v, bit)
        });
    }
    let v = by_size!(size, T => cpu.load_for_write::<T>(linear).map(Int::zext))?;
    cpu.store_n(linear, size, change(v, bit))?;
    cpu.flags.set_cf(v & bit != 0);
    Ok(())
}

fn scan(cpu: &mut Cpu, instr: &Instruction, f: fn(u64, u64) -> u64) -> Res {
    let v = cpu.read(instr, 1)?;
    cpu.flags.set_zf(v == 0);
    if v != 0 {
        cpu.put(instr.op0_register(), f(v, 0));
    }
    Ok(())
}

fn count(cpu: &mut Cpu, instr: &Instruction, f: fn(u64, u64) -> u64) -> Res {
    let bits = 8 * size(instr, 0);
    let v = cpu.read(instr, 1)?;
    let r = f(v, bits);
    cpu.put(instr.op0_register(), r);
    cpu.flags.replace(
        bit::CF | bit::ZF,
        if v == 0 { bit::CF } else { 0 } | if r == 0 { bit::ZF } else { 0 },
    );
    Ok(())
}

fn popcnt(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.read(instr, 1)?;
    cpu.put(instr.op0_register(), u64::from(v.count_ones()));
    cpu.flags.set_arith(if v == 0 { bit::ZF } else { 0 });
    Ok(())
}

/// Writes a result of BMI with ZF and SF from it, OF clear.
fn put_bmi(cpu: &mut Cpu, instr: &Instruction, r: u64, cf: bool) {
    let size = size(instr, 0);
    cpu.put(instr.op0_register(), r);
    by_size!(size, T => cpu.flags.result(<T as Int>::trunc(r), cf, false));
}

fn andn(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let r = !cpu.read(instr, 1)? & cpu.read(instr, 2)?;
    put_bmi(cpu, instr, r, false);
    Ok(())
}

fn bextr(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.read(instr, 1)?;
    let control = cpu.read(instr, 2)?;
    let (start, length) = (control as u32 & 0xFF, control as u32 >> 8 & 0xFF);
    let v = v.checked_shr(start).unwrap_or(0);
    let r = if length < 64 { v & ((1 << length) - 1) } else { v };
    put_bmi(cpu, instr, r, false);
    Ok(())
}

fn lowest(cpu: &mut Cpu, instr: &Instruction, f: fn(u64) -> u64, cf: fn(u64) -> bool) -> Res {
    let v = cpu.read(instr, 1)?;
    put_bmi(cpu, instr, f(v), cf(v));
    Ok(())
}

fn bzhi(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let bits = 8 * size(instr, 0);
    let v = cpu.read(instr, 1)?;
    let n = cpu.read(instr, 2)? & 0xFF;
    let r = if n < bits { v & ((1 << n) - 1) } else { v };
    put_bmi(cpu, instr, r, n >= bits);
    Ok(())
}

fn deposit(cpu: &mut Cpu, instr: &Instruction, f: fn(u64, u64) -> u64) -> Res {
    let v = cpu.read(instr, 1)?;
    let mask = cpu.read(instr, 2)?;
    cpu.put(instr.op0_register(), f(v, mask));
    Ok(())
}

fn pdep(v: u64, mut mask: u64) -> u64 {
    let (mut r, mut i) = (0, 0);
    while mask != 0 {
        let low = mask & mask.wrapping_neg();
        if v >> i & 1 != 0 {
            r |= low;
        }
        mask ^= low;
        i += 1;
    }
    r
}

fn pext(v: u64, mut mask: u64) -> u64 {
    let (mut r, mut i) = (0, 0);
    while mask != 0 {
        let low = mask & mask.wrapping_neg();
        if v & low != 0 {
            r |= 1 << i;
        }
        mask ^= low;
        i += 1;
    }
    r
}

/// CRC-32C, the polynomial 0x11EDC6F41 with bits reflected.
fn crc32(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let v = cpu.read(instr, 1)?;
    let mut crc = cpu.get(instr.op0_register()) as u32;
    for byte in &v.to_le_bytes()[..size(instr, 1) as usize] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82F6_3B78 } else { 0 };
        }
    }
    cpu.put(instr.op0_register(), u64::from(crc));
    Ok(())
}
