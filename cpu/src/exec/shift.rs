//! Shifts and rotates, single, double and without flags.

use iced_x86::{Instruction, Mnemonic};

use super::Exec;
use super::operand::size;
use crate::cpu::Cpu;
use crate::fault::Res;
use crate::int::{Int, by_size, mask, sext};

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Shl | M::Sal => |cpu, i| modify(cpu, i, shl),
        M::Shr => |cpu, i| modify(cpu, i, shr),
        M::Sar => |cpu, i| modify(cpu, i, sar),
        M::Rol => |cpu, i| modify(cpu, i, rol),
        M::Ror => |cpu, i| modify(cpu, i, ror),
        M::Rcl => |cpu, i| modify(cpu, i, rcl),
        M::Rcr => |cpu, i| modify(cpu, i, rcr),
        M::Shld => |cpu, i| double(cpu, i, true),
        M::Shrd => |cpu, i| double(cpu, i, false),
        M::Shlx => |cpu, i| flagless(cpu, i, |v, n, _| v << n),
        M::Shrx => |cpu, i| flagless(cpu, i, |v, n, _| v >> n),
        M::Sarx => |cpu, i| flagless(cpu, i, |v, n, size| (sext(v, size) as i64 >> n) as u64),
        M::Rorx => rorx,
        _ => return None,
    })
}

/// A shift of `v`, `size` bytes wide, by `n`, which is neither 0 nor above 63.
type Shift = fn(cpu: &mut Cpu, v: u64, n: u32, size: u64) -> u64;

fn modify(cpu: &mut Cpu, instr: &Instruction, shift: Shift) -> Res {
    let size = size(instr, 0);
    let count = cpu.read(instr, 1)? as u32 & if size == 8 { 63 } else { 31 };
    cpu.modify(instr, |cpu, v| if count == 0 { v } else { shift(cpu, v, count, size) })
}

fn flags(cpu: &mut Cpu, r: u64, size: u64, cf: bool, of: bool) -> u64 {
    by_size!(size, T => cpu.flags.result(<T as Int>::trunc(r), cf, of));
    r & mask(size)
}

fn top(v: u64, size: u64) -> bool {
    v >> (8 * size - 1) & 1 != 0
}

fn shl(cpu: &mut Cpu, v: u64, n: u32, size: u64) -> u64 {
    let wide = u128::from(v) << n;
    let r = wide as u64;
    let cf = wide >> (8 * size) & 1 != 0;
    flags(cpu, r, size, cf, top(r, size) != cf)
}

fn shr(cpu: &mut Cpu, v: u64, n: u32, size: u64) -> u64 {
    flags(cpu, v >> n, size, v >> (n - 1) & 1 != 0, top(v, size))
}

fn sar(cpu: &mut Cpu, v: u64, n: u32, size: u64) -> u64 {
    let v = sext(v, size) as i64;
    flags(cpu, (v >> n) as u64, size, v >> (n - 1) & 1 != 0, false)
}

fn rol(cpu: &mut Cpu, v: u64, n: u32, size: u64) -> u64 {
    let bits = 8 * size as u32;
    let n = n % bits;
    let r = if n == 0 { v } else { (v << n | v >> (bits - n)) & mask(size) };
    let cf = r & 1 != 0;
    cpu.flags.set_cf_of(cf, top(r, size) != cf);
    r
}

fn ror(cpu: &mut Cpu, v: u64, n: u32, size: u64) -> u64 {
    let bits = 8 * size as u32;
    let n = n % bits;
    let r = if n == 0 { v } else { (v >> n | v << (bits - n)) & mask(size) };
    let next = r >> (bits - 2) & 1 != 0;
    cpu.flags.set_cf_of(top(r, size), top(r, size) != next);
    r
}

/// Rotates through carry run on `8 * size + 1` bits.
fn rcl(cpu: &mut Cpu, v: u64, n: u32, size: u64) -> u64 {
    let bits = 8 * size as u32;
    let n = n % (bits + 1);
    if n == 0 {
        return v;
    }
    let wide = u128::from(cpu.flags.cf()) << bits | u128::from(v);
    let r = wide << n | wide >> (bits + 1 - n);
    let cf = r >> bits & 1 != 0;
    let r = r as u64 & mask(size);
    cpu.flags.set_cf_of(cf, top(r, size) != cf);
    r
}

fn rcr(cpu: &mut Cpu, v: u64, n: u32, size: u64) -> u64 {
    let bits = 8 * size as u32;
    let n = n % (bits + 1);
    if n == 0 {
        return v;
    }
    let wide = u128::from(cpu.flags.cf()) << bits | u128::from(v);
    let r = wide >> n | wide << (bits + 1 - n);
    let cf = r >> bits & 1 != 0;
    let r = r as u64 & mask(size);
    let next = r >> (bits - 2) & 1 != 0;
    cpu.flags.set_cf_of(cf, top(r, size) != next);
    r
}

/// SHLD (`left`) and SHRD.
fn double(cpu: &mut Cpu, instr: &Instruction, left: bool) -> Res {
    let size = size(instr, 0);
    let bits = 8 * size as u32;
    let fill = cpu.read(instr, 1)?;
    let n = cpu.read(instr, 2)? as u32 & if size == 8 { 63 } else { 31 };
    cpu.modify(instr, |cpu, v| {
        if n == 0 {
            return v;
        }
        // Beyond the operand's width, which only 16 bits allow, the result is undefined; processors
        // go on shifting the operands round.
        let (v2, fill2) = (u128::from(v), u128::from(fill));
        let (r, cf) = if left {
            let r = match bits {
                64 => v << n | fill >> (64 - n),
                _ => ((v2 << (2 * bits) | fill2 << bits | v2) << n >> (2 * bits)) as u64,
            };
            let cf = if n <= bits { v >> (bits - n) } else { fill >> (2 * bits - n) };
            (r, cf & 1 != 0)
        } else {
            let r = match bits {
                64 => v >> n | fill << (64 - n),
                _ => ((v2 << (2 * bits) | fill2 << bits | v2) >> n) as u64,
            };
            let cf = if n <= bits { v >> (n - 1) } else { fill >> (n - bits - 1) };
            (r, cf & 1 != 0)
        };
        let r = r & mask(size);
        flags(cpu, r, size, cf, top(r, size) != top(v, size))
    })
}

fn flagless(cpu: &mut Cpu, instr: &Instruction, f: fn(u64, u64, u64) -> u64) -> Res {
    let size = size(instr, 0);
    let v = cpu.read(instr, 1)?;
    let n = cpu.read(instr, 2)? & (8 * size - 1);
    cpu.put(instr.op0_register(), f(v, n, size));
    Ok(())
}

fn rorx(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 0);
    let v = cpu.read(instr, 1)?;
    let n = instr.immediate(2) as u32 & (8 * size as u32 - 1);
    let r = if size == 8 { v.rotate_right(n) } else { u64::from((v as u32).rotate_right(n)) };
    cpu.put(instr.op0_register(), r);
    Ok(())
}
