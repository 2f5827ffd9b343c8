//! MUL, IMUL, DIV, IDIV and MULX.

use iced_x86::{Instruction, Mnemonic};

use super::Exec;
use super::operand::size;
use crate::cpu::{Cpu, RAX, RDX};
use crate::fault::{Res, vector};
use crate::int::{Int, by_size, mask, sext};

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Mul => mul,
        M::Imul => imul,
        M::Div => |cpu, i| div(cpu, i, false),
        M::Idiv => |cpu, i| div(cpu, i, true),
        M::Mulx => mulx,
        _ => return None,
    })
}

/// Writes a double-width product to AX, or to RDX:RAX of `size` bytes each.
fn put_wide(cpu: &mut Cpu, size: u64, value: u128) {
    if size == 1 {
        cpu.set_reg(RAX, 2, value as u64);
    } else {
        cpu.set_reg(RAX, size, value as u64);
        cpu.set_reg(RDX, size, (value >> (8 * size)) as u64);
    }
}

fn product_flags(cpu: &mut Cpu, size: u64, low: u64, overflow: bool) {
    by_size!(size, T => cpu.flags.result(<T as Int>::trunc(low), overflow, overflow));
}

fn mul(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 0);
    let product = u128::from(cpu.read(instr, 0)?) * u128::from(cpu.reg(RAX, size));
    put_wide(cpu, size, product);
    product_flags(cpu, size, product as u64, product >> (8 * size) != 0);
    Ok(())
}

fn imul(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 0);
    let wide = |v: u64| i128::from(sext(v, size) as i64);
    let count = instr.op_count();
    let (a, b) = match count {
        1 => (cpu.read(instr, 0)?, cpu.reg(RAX, size)),
        2 => (cpu.read(instr, 0)?, cpu.read(instr, 1)?),
        _ => (cpu.read(instr, 1)?, cpu.read(instr, 2)?),
    };
    let product = wide(a) * wide(b);
    let overflow = product != wide(product as u64);
    if count == 1 {
        put_wide(cpu, size, product as u128);
    } else {
        cpu.put(instr.op0_register(), product as u64);
    }
    product_flags(cpu, size, product as u64, overflow);
    Ok(())
}

fn div(cpu: &mut Cpu, instr: &Instruction, signed: bool) -> Res {
    let size = size(instr, 0);
    let bits = 8 * size;
    let divisor = cpu.read(instr, 0)?;
    let dividend = if size == 1 {
        u128::from(cpu.reg(RAX, 2))
    } else {
        u128::from(cpu.reg(RDX, size)) << bits | u128::from(cpu.reg(RAX, size))
    };
    let result = if signed {
        let shift = 128 - 2 * bits;
        let dividend = (dividend << shift) as i128 >> shift;
        let divisor = i128::from(sext(divisor, size) as i64);
        let quotient = dividend.checked_div(divisor);
        let fits = |q: &i128| i128::from(sext(*q as u64, size) as i64) == *q;
        quotient.filter(fits).map(|q| (q as u64, (dividend % divisor) as u64))
    } else if bits == 64 && dividend >> 64 == 0 {
        // The common case: host division of 128 bits is a library call.
        let dividend = dividend as u64;
        dividend.checked_div(divisor).map(|q| (q, dividend % divisor))
    } else {
        let divisor = u128::from(divisor);
        let quotient = dividend.checked_div(divisor);
        let fits = |q: &u128| *q <= u128::from(mask(size));
        quotient.filter(fits).map(|q| (q as u64, (dividend % divisor) as u64))
    };
    let Some((quotient, remainder)) = result else { return cpu.raise_plain(vector::DE) };
    if size == 1 {
        cpu.set_reg(RAX, 2, (remainder & 0xFF) << 8 | quotient & 0xFF);
    } else {
        cpu.set_reg(RAX, size, quotient);
        cpu.set_reg(RDX, size, remainder);
    }
    Ok(())
}

fn mulx(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 0);
    let product = u128::from(cpu.read(instr, 2)?) * u128::from(cpu.reg(RDX, size));
    // If both destinations are one register, it gets the high half.
    cpu.put(instr.op1_register(), product as u64);
    cpu.put(instr.op0_register(), (product >> (8 * size)) as u64);
    Ok(())
}
