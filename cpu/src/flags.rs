//! RFLAGS, with the six arithmetic flags kept lazily (SDM vol. 1, 3.4.3).
//!
//! An arithmetic instruction leaves two words from which each flag can be had without knowing
//! which instruction it was:
//! - `res`, its result, sign-extended to 64 bits: ZF is `res == 0`, SF its sign, PF the parity of
//!   its low byte;
//! - `aux`, with CF in bit 63, the carry into the result's top bit in bit 62 (so that OF is the
//!   difference of the two) and AF in bit 3; bit 0 inverts SF and bits 8 to 15 are XORed with the
//!   low byte before PF is taken, so that flags can also be set freely.

use crate::int::Int;

#[allow(missing_docs)]
pub(crate) mod bit {
    pub(crate) const CF: u64 = 1;
    pub(crate) const PF: u64 = 1 << 2;
    pub(crate) const AF: u64 = 1 << 4;
    pub(crate) const ZF: u64 = 1 << 6;
    pub(crate) const SF: u64 = 1 << 7;
    pub(crate) const TF: u64 = 1 << 8;
    pub(crate) const IF: u64 = 1 << 9;
    pub(crate) const DF: u64 = 1 << 10;
    pub(crate) const OF: u64 = 1 << 11;
    pub(crate) const IOPL: u64 = 3 << 12;
    pub(crate) const NT: u64 = 1 << 14;
    pub(crate) const RF: u64 = 1 << 16;
    pub(crate) const VM: u64 = 1 << 17;
    pub(crate) const AC: u64 = 1 << 18;
    pub(crate) const VIF: u64 = 1 << 19;
    pub(crate) const VIP: u64 = 1 << 20;
    pub(crate) const ID: u64 = 1 << 21;
    /// The flags that arithmetic sets.
    pub(crate) const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every flag that software can change.
    pub(crate) const ALL: u64 = ARITH | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

const TOP: u64 = 3 << 62;

/// The lazily kept flags and, in `rest`, all others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    pub(crate) res: u64,
    pub(crate) aux: u64,
    /// TF, IF, DF, IOPL, NT, RF, VM, AC, VIF, VIP and ID; arithmetic flags are zero here.
    pub(crate) rest: u64,
}

impl Flags {
    pub(crate) const fn new() -> Self {
        Self { res: 1 << 8, aux: 1 << 8, rest: 0 }
    }

    #[inline(always)]
    pub(crate) fn cf(&self) -> bool {
        self.aux >> 63 != 0
    }
    #[inline(always)]
    pub(crate) fn zf(&self) -> bool {
        self.res == 0
    }
    #[inline(always)]
    pub(crate) fn sf(&self) -> bool {
        (self.res >> 63) ^ (self.aux & 1) != 0
    }
    #[inline(always)]
    pub(crate) fn of(&self) -> bool {
        (self.aux ^ (self.aux << 1)) >> 63 != 0
    }
    #[inline(always)]
    pub(crate) fn pf(&self) -> bool {
        ((self.res ^ (self.aux >> 8)) as u8).count_ones() & 1 == 0
    }
    #[inline(always)]
    pub(crate) fn af(&self) -> bool {
        self.aux & 8 != 0
    }

    /// RFLAGS as software sees it.
    pub(crate) fn get(&self) -> u64 {
        let f = |on: bool, bit: u64| if on { bit } else { 0 };
        self.rest
            | 2
            | f(self.cf(), bit::CF)
            | f(self.pf(), bit::PF)
            | f(self.af(), bit::AF)
            | f(self.zf(), bit::ZF)
            | f(self.sf(), bit::SF)
            | f(self.of(), bit::OF)
    }

    /// Sets all of RFLAGS.
    pub(crate) fn set(&mut self, v: u64) {
        self.rest = v & bit::ALL & !bit::ARITH;
        self.set_arith(v);
    }

    /// Sets the arithmetic flags from their bits in `v`.
    pub(crate) fn set_arith(&mut self, v: u64) {
        let on = |bit: u64| (v & bit != 0) as u64;
        self.res = if v & bit::ZF != 0 { 0 } else { 1 << 16 };
        self.aux = on(bit::CF) << 63
            | (on(bit::CF) ^ on(bit::OF)) << 62
            | on(bit::AF) << 3
            | (on(bit::PF) ^ 1) << 8
            | on(bit::SF);
    }

    /// Replaces the arithmetic flags in `which` by those of `v`.
    pub(crate) fn replace(&mut self, which: u64, v: u64) {
        let old = self.get() & bit::ARITH;
        self.set_arith(old & !which | v & which);
    }

    /// `res` is the result of an addition or subtraction with carries (or borrows) `carries` out
    /// of each bit.
    #[inline(always)]
    fn carries<T: Int>(&mut self, res: T, carries: T) {
        self.res = res.sext();
        let c = carries.zext();
        self.aux = if T::BITS == 64 { c & (TOP | 8) } else { c << (64 - T::BITS) | c & 8 };
    }

    /// `res = a + b + carry`.
    #[inline(always)]
    pub(crate) fn add<T: Int>(&mut self, a: T, b: T, res: T) {
        self.carries(res, (a & b) | ((a | b) & !res));
    }

    /// `res = a - b - borrow`.
    #[inline(always)]
    pub(crate) fn sub<T: Int>(&mut self, a: T, b: T, res: T) {
        self.carries(res, (!a & b) | ((!a | b) & res));
    }

    /// A logical result: CF, OF and AF are clear.
    #[inline(always)]
    pub(crate) fn logic<T: Int>(&mut self, res: T) {
        self.res = res.sext();
        self.aux = 0;
    }

    /// `res = a + 1`; CF stays.
    #[inline(always)]
    pub(crate) fn inc<T: Int>(&mut self, res: T) {
        let overflow = (res.zext() == 1 << (T::BITS - 1)) as u64;
        let half = (res.zext() & 0xF == 0) as u64;
        self.keep_cf(res.sext(), overflow, half);
    }

    /// `res = a - 1`; CF stays.
    #[inline(always)]
    pub(crate) fn dec<T: Int>(&mut self, res: T) {
        let overflow = (res.add(T::trunc(1)).zext() == 1 << (T::BITS - 1)) as u64;
        let half = (res.zext() & 0xF == 0xF) as u64;
        self.keep_cf(res.sext(), overflow, half);
    }

    #[inline(always)]
    fn keep_cf(&mut self, res: u64, overflow: u64, half: u64) {
        let cf = self.aux >> 63;
        self.res = res;
        self.aux = cf << 63 | (cf ^ overflow) << 62 | half << 3;
    }

    /// `res` with CF and OF given; AF is clear.
    #[inline(always)]
    pub(crate) fn result<T: Int>(&mut self, res: T, cf: bool, of: bool) {
        self.res = res.sext();
        self.aux = (cf as u64) << 63 | ((cf ^ of) as u64) << 62;
    }

    /// Sets CF and leaves the others.
    #[inline(always)]
    pub(crate) fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.aux = self.aux & !TOP | (cf as u64) << 63 | ((cf ^ of) as u64) << 62;
    }

    /// Sets CF and OF and leaves the others.
    #[inline(always)]
    pub(crate) fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.aux = self.aux & !TOP | (cf as u64) << 63 | ((cf ^ of) as u64) << 62;
    }

    /// Sets ZF and leaves the others.
    pub(crate) fn set_zf(&mut self, zf: bool) {
        self.replace(bit::ZF, if zf { bit::ZF } else { 0 });
    }

    /// Condition `cc` of the instruction encoding (SDM vol. 2, B.1.4.7).
    #[inline(always)]
    pub(crate) fn condition(&self, cc: u8) -> bool {
        let v = match cc >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        v != (cc & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_combination_of_flags_can_be_set() {
        let mut flags = Flags::new();
        for v in 0..1 << 12 {
            let v = v & bit::ALL | 2;
            flags.set(v);
            assert_eq!(flags.get(), v);
        }
    }

    #[test]
    fn eight_bit_arithmetic_agrees_with_a_wider_one() {
        let mut flags = Flags::new();
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                flags.add(a, b, a.wrapping_add(b));
                assert_eq!(flags.cf(), a as u32 + b as u32 > 255);
                assert_eq!(flags.of(), (a as i8).checked_add(b as i8).is_none());
                assert_eq!(flags.af(), (a & 15) + (b & 15) > 15);
                flags.sub(a, b, a.wrapping_sub(b));
                assert_eq!(flags.cf(), a < b);
                assert_eq!(flags.of(), (a as i8).checked_sub(b as i8).is_none());
                assert_eq!(flags.af(), (a & 15) < (b & 15));
                assert_eq!(flags.pf(), a.wrapping_sub(b).count_ones() % 2 == 0);
            }
        }
    }

    #[test]
    fn inc_and_dec_keep_carry() {
        let mut flags = Flags::new();
        for cf in [false, true] {
            for a in 0..=255_u8 {
                flags.set_cf(cf);
                flags.inc(a.wrapping_add(1));
                assert_eq!((flags.cf(), flags.of()), (cf, a == 0x7F));
                flags.dec(a.wrapping_sub(1));
                assert_eq!((flags.cf(), flags.of()), (cf, a == 0x80));
            }
        }
    }
}
