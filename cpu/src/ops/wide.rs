//! Multiplication and division, shifts by CL, bit tests and sign spreading.

use crate::block::{Block, Handler, Op};
use crate::cpu::{Cpu, RAX, RCX, RDX};
use crate::fault::vector;
use crate::flags::Flags;
use crate::int::{Int, by_size};
use crate::ops::alu::Unary;
use crate::ops::mem::{Any, BaseDisp, Ea, get, set};
use crate::ops::{attempt, next};

/// The low half of a signed product, with CF and OF as IMUL sets them.
#[inline(always)]
fn product<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
    let wide = i128::from(a.sext() as i64) * i128::from(b.sext() as i64);
    let low = T::trunc(wide as u64);
    let overflow = i128::from(low.sext() as i64) != wide;
    flags.result(low, overflow, overflow);
    low
}

macro_rules! handlers {
    ($($(#[$doc:meta])* $name:ident<$($g:ident: $b:path),*>($cpu:ident, $op:ident, $o:ident) $body:block)*) => {$(
        $(#[$doc])*
        unsafe fn $name<$($g: $b),*>($cpu: &mut Cpu, $op: *const Op) -> *const Block {
            // SAFETY: contract of handlers.
            let $o = unsafe { &*$op };
            $body
            next!($cpu, $op)
        }
    )*};
}

handlers! {
    /// IMUL r, r.
    imul_rr<T: Int>(cpu, op, o) {
        let (a, b): (T, T) = (get(cpu, o.dst), get(cpu, o.src));
        let r = product(&mut cpu.flags, a, b);
        set(cpu, o.dst, r);
    }
    /// IMUL r, m.
    imul_rm<T: Int, E: Ea>(cpu, op, o) {
        let b = attempt!(cpu, op, cpu.load::<T>(E::address(cpu, o)));
        let a: T = get(cpu, o.dst);
        let r = product(&mut cpu.flags, a, b);
        set(cpu, o.dst, r);
    }
    /// IMUL r, r, imm.
    imul_rri<T: Int>(cpu, op, o) {
        let a: T = get(cpu, o.src);
        let r = product(&mut cpu.flags, a, T::trunc(o.imm));
        set(cpu, o.dst, r);
    }
    /// MUL r, 32 or 64 bits.
    mul_r<T: Int>(cpu, op, o) {
        let b: T = get(cpu, o.src);
        mul(cpu, b);
    }
    /// MUL m, 32 or 64 bits.
    mul_m<T: Int, E: Ea>(cpu, op, o) {
        let b = attempt!(cpu, op, cpu.load::<T>(E::address(cpu, o)));
        mul(cpu, b);
    }
    /// DIV r, 32 or 64 bits.
    div_r<T: Int>(cpu, op, o) {
        let b: T = get(cpu, o.src);
        attempt!(cpu, op, div(cpu, b));
    }
    /// DIV m, 32 or 64 bits.
    div_m<T: Int, E: Ea>(cpu, op, o) {
        let b = attempt!(cpu, op, cpu.load::<T>(E::address(cpu, o)));
        attempt!(cpu, op, div(cpu, b));
    }
    /// A shift by CL of 32 or 64 bits: the masked count is below the width.
    shift_cl<U: Unary, T: Int>(cpu, op, o) {
        let count = cpu.regs[RCX] & u64::from(T::BITS - 1);
        let a: T = get(cpu, o.dst);
        let r = if count == 0 { a } else { U::apply::<T>(&mut cpu.flags, a, count) };
        set(cpu, o.dst, r);
    }
    /// BT r, r.
    bt_rr<T: Int>(cpu, op, o) {
        let (a, n): (T, T) = (get(cpu, o.dst), get(cpu, o.src));
        cpu.flags.set_cf(a.zext() >> (n.zext() & u64::from(T::BITS - 1)) & 1 != 0);
    }
    /// BT r, imm.
    bt_ri<T: Int>(cpu, op, o) {
        let a: T = get(cpu, o.dst);
        cpu.flags.set_cf(a.zext() >> (o.imm & u64::from(T::BITS - 1)) & 1 != 0);
    }
    /// CWD, CDQ, CQO.
    spread<T: Int>(cpu, op, o) {
        let a: T = get(cpu, (RAX * 8) as u8);
        let sign = (a.sext() as i64 >> 63) as u64;
        set(cpu, (RDX * 8) as u8, T::trunc(sign));
        let _ = o;
    }
    /// CMOVcc r, m: memory is read in any case.
    cmov_rm<T: Int, E: Ea>(cpu, op, o) {
        let v = attempt!(cpu, op, cpu.load::<T>(E::address(cpu, o)));
        let old: T = get(cpu, o.dst);
        let v = if cpu.flags.condition(o.aux) { v } else { old };
        set(cpu, o.dst, v);
    }
}

#[inline(always)]
fn mul<T: Int>(cpu: &mut Cpu, b: T) {
    let a: T = get(cpu, (RAX * 8) as u8);
    let wide = u128::from(a.zext()) * u128::from(b.zext());
    let (low, high) = (T::trunc(wide as u64), T::trunc((wide >> T::BITS) as u64));
    set(cpu, (RAX * 8) as u8, low);
    set(cpu, (RDX * 8) as u8, high);
    let overflow = high.zext() != 0;
    cpu.flags.result(low, overflow, overflow);
}

#[inline(always)]
fn div<T: Int>(cpu: &mut Cpu, b: T) -> crate::fault::Res {
    let (low, high): (T, T) = (get(cpu, (RAX * 8) as u8), get(cpu, (RDX * 8) as u8));
    let b = b.zext();
    if high.zext() >= b {
        // Division by zero, or a quotient that is too wide.
        return cpu.raise_plain(vector::DE);
    }
    let (quotient, remainder) = if T::BITS == 32 || high.zext() == 0 {
        let a = if T::BITS == 32 { high.zext() << 32 | low.zext() } else { low.zext() };
        (a / b, a % b)
    } else {
        let a = u128::from(high.zext()) << 64 | u128::from(low.zext());
        ((a / u128::from(b)) as u64, (a % u128::from(b)) as u64)
    };
    set(cpu, (RAX * 8) as u8, T::trunc(quotient));
    set(cpu, (RDX * 8) as u8, T::trunc(remainder));
    Ok(())
}

/// Handlers of a two-operand form: register, memory by whether [`Any`] is needed.
pub(crate) type Pair = (Handler, [Handler; 2]);

/// IMUL of two operands.
pub(crate) fn imul(size: u64) -> Pair {
    by_size!(size, T => (imul_rr::<T>, [imul_rm::<T, BaseDisp>, imul_rm::<T, Any>]))
}

/// IMUL r, r, imm.
pub(crate) fn imul_imm(size: u64) -> Handler {
    by_size!(size, T => imul_rri::<T>)
}

/// MUL and DIV of 4 or 8 bytes.
pub(crate) fn mul_div(multiply: bool, size: u64) -> Pair {
    macro_rules! pick {
        ($t:ty) => {
            if multiply {
                (mul_r::<$t> as Handler, [mul_m::<$t, BaseDisp> as Handler, mul_m::<$t, Any>])
            } else {
                (div_r::<$t> as Handler, [div_m::<$t, BaseDisp> as Handler, div_m::<$t, Any>])
            }
        };
    }
    if size == 4 { pick!(u32) } else { pick!(u64) }
}

/// A shift by CL of 4 or 8 bytes.
pub(crate) fn by_cl<U: Unary>(size: u64) -> Handler {
    if size == 4 { shift_cl::<U, u32> } else { shift_cl::<U, u64> }
}

/// BT of a register: by register, by immediate.
pub(crate) fn bit_test(size: u64) -> (Handler, Handler) {
    by_size!(size, T => (bt_rr::<T>, bt_ri::<T>))
}

/// CWD, CDQ or CQO.
pub(crate) fn sign_spread(size: u64) -> Handler {
    by_size!(size, T => spread::<T>)
}

/// CMOVcc from memory, 4 or 8 bytes.
pub(crate) fn cmov_mem(size: u64) -> [Handler; 2] {
    if size == 4 {
        [cmov_rm::<u32, BaseDisp>, cmov_rm::<u32, Any>]
    } else {
        [cmov_rm::<u64, BaseDisp>, cmov_rm::<u64, Any>]
    }
}
