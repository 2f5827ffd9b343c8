//! Two-operand arithmetic and logic, shifts by a constant, and one-operand forms.

use std::marker::PhantomData;

use crate::block::{Block, Handler, Op};
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::int::Int;
use crate::ops::mem::{Ea, get, set};
use crate::ops::{attempt, next};

/// An operation on two operands that sets the flags.
pub(crate) trait Alu {
    /// Whether the result is kept.
    const WRITES: bool = true;
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T;
}

macro_rules! alu {
    ($($name:ident $writes:literal |$f:ident, $a:ident, $b:ident| $body:block)*) => {$(
        #[allow(missing_docs)]
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Int>($f: &mut Flags, $a: T, $b: T) -> T $body
        }
    )*};
}

alu! {
    Add true |f, a, b| { let r = a.add(b); f.add(a, b, r); r }
    Or true |f, a, b| { let r = a | b; f.logic(r); r }
    Adc true |f, a, b| { let r = a.add(b).add(T::trunc(f.cf() as u64)); f.add(a, b, r); r }
    Sbb true |f, a, b| { let r = a.sub(b).sub(T::trunc(f.cf() as u64)); f.sub(a, b, r); r }
    And true |f, a, b| { let r = a & b; f.logic(r); r }
    Sub true |f, a, b| { let r = a.sub(b); f.sub(a, b, r); r }
    Xor true |f, a, b| { let r = a ^ b; f.logic(r); r }
    Cmp false |f, a, b| { let r = a.sub(b); f.sub(a, b, r); r }
    Test false |f, a, b| { let r = a & b; f.logic(r); r }
}

unsafe fn rr<A: Alu, T: Int>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let (a, b): (T, T) = (get(cpu, o.dst), get(cpu, o.src));
    let r = A::apply::<T>(&mut cpu.flags, a, b);
    if A::WRITES {
        set(cpu, o.dst, r);
    }
    next!(cpu, op)
}

unsafe fn ri<A: Alu, T: Int>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let a = get(cpu, o.dst);
    let r = A::apply::<T>(&mut cpu.flags, a, T::trunc(o.imm));
    if A::WRITES {
        set(cpu, o.dst, r);
    }
    next!(cpu, op)
}

unsafe fn rm<A: Alu, T: Int, E: Ea>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let b = attempt!(cpu, op, cpu.load::<T>(E::address(cpu, o)));
    let a = get(cpu, o.dst);
    let r = A::apply::<T>(&mut cpu.flags, a, b);
    if A::WRITES {
        set(cpu, o.dst, r);
    }
    next!(cpu, op)
}

#[inline(always)]
unsafe fn memory<A: Alu, T: Int, E: Ea>(
    cpu: &mut Cpu,
    op: *const Op,
    b: impl FnOnce(&Cpu, &Op) -> T,
) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let address = E::address(cpu, o);
    let b = b(cpu, o);
    if A::WRITES {
        let a = attempt!(cpu, op, cpu.load_for_write::<T>(address));
        let mut flags = cpu.flags;
        let r = A::apply::<T>(&mut flags, a, b);
        attempt!(cpu, op, cpu.store::<T>(address, r));
        cpu.flags = flags;
    } else {
        let a = attempt!(cpu, op, cpu.load::<T>(address));
        A::apply::<T>(&mut cpu.flags, a, b);
    }
    next!(cpu, op)
}

unsafe fn mr<A: Alu, T: Int, E: Ea>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    unsafe { memory::<A, T, E>(cpu, op, |cpu, o| get(cpu, o.src)) }
}

unsafe fn mi<A: Alu, T: Int, E: Ea>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    unsafe { memory::<A, T, E>(cpu, op, |_, o| T::trunc(o.imm)) }
}

/// A one-operand operation on a register.
pub(crate) trait Unary {
    fn apply<T: Int>(flags: &mut Flags, a: T, imm: u64) -> T;
}

macro_rules! unary {
    ($($name:ident |$f:ident, $a:ident, $i:ident| $body:block)*) => {$(
        #[allow(missing_docs)]
        pub(crate) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<T: Int>($f: &mut Flags, $a: T, $i: u64) -> T $body
        }
    )*};
}

unary! {
    Inc |f, a, _i| { let r = a.add(T::trunc(1)); f.inc(r); r }
    Dec |f, a, _i| { let r = a.sub(T::trunc(1)); f.dec(r); r }
    Not |_f, a, _i| { !a }
    Neg |f, a, _i| { let r = T::trunc(0).sub(a); f.sub(T::trunc(0), a, r); r }
    // Counts are 1 to the operand's width - 1.
    Shl |f, a, i| {
        let r = T::trunc(a.zext() << i);
        let cf = a.zext() >> (u64::from(T::BITS) - i) & 1 != 0;
        f.result(r, cf, cf != (r.sext() >> 63 != 0));
        r
    }
    Shr |f, a, i| {
        let r = T::trunc(a.zext() >> i);
        f.result(r, a.zext() >> (i - 1) & 1 != 0, a.sext() >> 63 != 0);
        r
    }
    Sar |f, a, i| {
        let r = T::trunc((a.sext() as i64 >> i) as u64);
        f.result(r, a.sext() as i64 >> (i - 1) & 1 != 0, false);
        r
    }
    Rol |f, a, i| {
        let r = T::trunc(a.zext() << i | a.zext() >> (u64::from(T::BITS) - i));
        let cf = r.zext() & 1 != 0;
        f.set_cf_of(cf, cf != (r.sext() >> 63 != 0));
        r
    }
    Ror |f, a, i| {
        let r = T::trunc(a.zext() >> i | a.zext() << (u64::from(T::BITS) - i));
        let cf = r.sext() >> 63 != 0;
        f.set_cf_of(cf, cf != (r.zext() >> (T::BITS - 2) & 1 != 0));
        r
    }
    Bswap |_f, a, _i| {
        let swapped = a.zext().swap_bytes() >> (64 - u64::from(T::BITS));
        T::trunc(swapped)
    }
}

unsafe fn unary<U: Unary, T: Int>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let a = get(cpu, o.dst);
    let r = U::apply::<T>(&mut cpu.flags, a, o.imm);
    set(cpu, o.dst, r);
    next!(cpu, op)
}

unsafe fn unary_mem<U: Unary, T: Int, E: Ea>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    let address = E::address(cpu, o);
    let a = attempt!(cpu, op, cpu.load_for_write::<T>(address));
    let mut flags = cpu.flags;
    let r = U::apply::<T>(&mut flags, a, o.imm);
    attempt!(cpu, op, cpu.store::<T>(address, r));
    cpu.flags = flags;
    next!(cpu, op)
}

/// The forms of an operation of one size.
pub(crate) struct Forms {
    pub(crate) rr: Handler,
    pub(crate) ri: Handler,
    /// Indexed by whether the memory operand needs [`crate::ops::mem::Any`].
    pub(crate) rm: [Handler; 2],
    pub(crate) mr: [Handler; 2],
    pub(crate) mi: [Handler; 2],
}

struct Of<A>(PhantomData<A>);

impl<A: Alu> Of<A> {
    const fn forms<T: Int>() -> Forms {
        use crate::ops::mem::{Any, BaseDisp};
        Forms {
            rr: rr::<A, T>,
            ri: ri::<A, T>,
            rm: [rm::<A, T, BaseDisp>, rm::<A, T, Any>],
            mr: [mr::<A, T, BaseDisp>, mr::<A, T, Any>],
            mi: [mi::<A, T, BaseDisp>, mi::<A, T, Any>],
        }
    }
}

/// The forms of `A` for operands of `size` bytes.
pub(crate) fn forms<A: Alu>(size: u64) -> Forms {
    crate::int::by_size!(size, T => Of::<A>::forms::<T>())
}

/// The forms of `U` for operands of `size` bytes: register, memory.
pub(crate) fn unary_forms<U: Unary>(size: u64) -> (Handler, [Handler; 2]) {
    use crate::ops::mem::{Any, BaseDisp};
    crate::int::by_size!(size, T => (
        unary::<U, T>,
        [unary_mem::<U, T, BaseDisp>, unary_mem::<U, T, Any>],
    ))
}
