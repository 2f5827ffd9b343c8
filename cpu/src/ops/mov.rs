//! Moves, LEA, extensions, conditional moves and sets, push and pop.

use crate::block::{Block, Handler, Op};
use crate::cpu::{Cpu, RSP};
use crate::int::{Int, by_size};
use crate::ops::mem::{Any, BaseDisp, Ea, get, set, sum};
use crate::ops::{attempt, next};

macro_rules! handler {
    ($(#[$doc:meta])* $name:ident<$($g:ident: $b:path),*>($cpu:ident, $op:ident, $o:ident) $body:block) => {
        $(#[$doc])*
        pub(crate) unsafe fn $name<$($g: $b),*>($cpu: &mut Cpu, $op: *const Op) -> *const Block {
            // SAFETY: contract of handlers.
            let $o = unsafe { &*$op };
            $body
            next!($cpu, $op)
        }
    };
}

handler!(mov_rr<T: Int>(cpu, op, o) {
    let v: T = get(cpu, o.src);
    set(cpu, o.dst, v);
});
handler!(mov_ri<T: Int>(cpu, op, o) {
    set(cpu, o.dst, T::trunc(o.imm));
});
handler!(mov_rm<T: Int, E: Ea>(cpu, op, o) {
    let v = attempt!(cpu, op, cpu.load::<T>(E::address(cpu, o)));
    set(cpu, o.dst, v);
});
handler!(mov_mr<T: Int, E: Ea>(cpu, op, o) {
    let v: T = get(cpu, o.src);
    attempt!(cpu, op, cpu.store::<T>(E::address(cpu, o), v));
});
handler!(mov_mi<T: Int, E: Ea>(cpu, op, o) {
    attempt!(cpu, op, cpu.store::<T>(E::address(cpu, o), T::trunc(o.imm)));
});
handler!(
    /// `S` zero-extended to `D`.
    zx_rr<D: Int, S: Int>(cpu, op, o) {
    let v: S = get(cpu, o.src);
    set(cpu, o.dst, D::trunc(v.zext()));
});
handler!(zx_rm<D: Int, S: Int, E: Ea>(cpu, op, o) {
    let v = attempt!(cpu, op, cpu.load::<S>(E::address(cpu, o)));
    set(cpu, o.dst, D::trunc(v.zext()));
});
handler!(
    /// `S` sign-extended to `D`.
    sx_rr<D: Int, S: Int>(cpu, op, o) {
    let v: S = get(cpu, o.src);
    set(cpu, o.dst, D::trunc(v.sext()));
});
handler!(sx_rm<D: Int, S: Int, E: Ea>(cpu, op, o) {
    let v = attempt!(cpu, op, cpu.load::<S>(E::address(cpu, o)));
    set(cpu, o.dst, D::trunc(v.sext()));
});
handler!(lea<T: Int>(cpu, op, o) {
    set(cpu, o.dst, T::trunc(sum(cpu, o)));
});
handler!(cmov_rr<T: Int>(cpu, op, o) {
    let at = if cpu.flags.condition(o.aux) { o.src } else { o.dst };
    let v: T = get(cpu, at);
    set(cpu, o.dst, v);
});
handler!(xchg_rr<T: Int>(cpu, op, o) {
    let (a, b): (T, T) = (get(cpu, o.dst), get(cpu, o.src));
    set(cpu, o.dst, b);
    set(cpu, o.src, a);
});

/// SETcc r8.
pub(crate) unsafe fn setcc(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    set(cpu, o.dst, cpu.flags.condition(o.aux) as u8);
    next!(cpu, op)
}

/// NOP and whatever does nothing.
pub(crate) unsafe fn nop(cpu: &mut Cpu, op: *const Op) -> *const Block {
    next!(cpu, op)
}

/// PUSH r64 of 64-bit code.
pub(crate) unsafe fn push_r(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let v: u64 = get(cpu, o.src);
    let sp = cpu.regs[RSP].wrapping_sub(8);
    attempt!(cpu, op, cpu.store(sp, v));
    cpu.regs[RSP] = sp;
    next!(cpu, op)
}

/// PUSH imm of 64-bit code.
pub(crate) unsafe fn push_i(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let sp = cpu.regs[RSP].wrapping_sub(8);
    attempt!(cpu, op, cpu.store(sp, o.imm));
    cpu.regs[RSP] = sp;
    next!(cpu, op)
}

/// POP r64 of 64-bit code.
pub(crate) unsafe fn pop_r(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let sp = cpu.regs[RSP];
    let v: u64 = attempt!(cpu, op, cpu.load(sp));
    cpu.regs[RSP] = sp.wrapping_add(8);
    set(cpu, o.dst, v);
    next!(cpu, op)
}

/// MOV by size: register to register, immediate to register.
pub(crate) fn mov_reg(size: u64) -> (Handler, Handler) {
    by_size!(size, T => (mov_rr::<T>, mov_ri::<T>))
}

/// MOV by size from, to and of immediates to memory; by whether [`Any`] is needed.
pub(crate) fn mov_mem(size: u64, any: bool) -> (Handler, Handler, Handler) {
    by_size!(size, T => if any {
        (mov_rm::<T, Any>, mov_mr::<T, Any>, mov_mi::<T, Any>)
    } else {
        (mov_rm::<T, BaseDisp>, mov_mr::<T, BaseDisp>, mov_mi::<T, BaseDisp>)
    })
}

/// MOVZX and MOVSX: register form, memory forms by whether [`Any`] is needed.
pub(crate) fn extend(signed: bool, to: u64, from: u64) -> (Handler, [Handler; 2]) {
    macro_rules! pick {
        ($d:ty, $s:ty) => {
            if signed {
                (
                    sx_rr::<$d, $s> as Handler,
                    [sx_rm::<$d, $s, BaseDisp> as Handler, sx_rm::<$d, $s, Any>],
                )
            } else {
                (
                    zx_rr::<$d, $s> as Handler,
                    [zx_rm::<$d, $s, BaseDisp> as Handler, zx_rm::<$d, $s, Any>],
                )
            }
        };
    }
    match (to, from) {
        (2, _) => pick!(u16, u8),
        (4, 1) => pick!(u32, u8),
        (4, _) => pick!(u32, u16),
        (_, 1) => pick!(u64, u8),
        (_, 2) => pick!(u64, u16),
        _ => pick!(u64, u32),
    }
}
