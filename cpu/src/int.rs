//! Operand sizes as types, so that one generic body serves 8 to 64 bits.

/// An unsigned integer of an operand size.
pub(crate) trait Int:
    Copy
    + Eq
    + Ord
    + std::ops::BitAnd<Output = Self>
    + std::ops::BitOr<Output = Self>
    + std::ops::BitXor<Output = Self>
    + std::ops::Not<Output = Self>
{
    /// Bits in the operand.
    const BITS: u32;
    /// Bytes in the operand.
    const BYTES: u64 = Self::BITS as u64 / 8;
    /// The low bits of `v`.
    fn trunc(v: u64) -> Self;
    /// Zero-extended.
    fn zext(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> u64;
    /// Modular addition.
    fn add(self, other: Self) -> Self;
    /// Modular subtraction.
    fn sub(self, other: Self) -> Self;
}

macro_rules! int {
    ($($u:ty, $i:ty);*) => {$(
        impl Int for $u {
            const BITS: u32 = <$u>::BITS;
            #[inline(always)]
            fn trunc(v: u64) -> Self { v as $u }
            #[inline(always)]
            fn zext(self) -> u64 { self as u64 }
            #[inline(always)]
            fn sext(self) -> u64 { self as $i as i64 as u64 }
            #[inline(always)]
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)]
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
        }
    )*};
}
int!(u8, i8; u16, i16; u32, i32; u64, i64);

/// Runs `$body` with `$t` bound to the integer type of `$size` bytes (1, 2, 4, else 8).
macro_rules! by_size {
    ($size:expr, $t:ident => $body:expr) => {
        match $size {
            1 => {
                type $t = u8;
                $body
            }
            2 => {
                type $t = u16;
                $body
            }
            4 => {
                type $t = u32;
                $body
            }
            _ => {
                type $t = u64;
                $body
            }
        }
    };
}
pub(crate) use by_size;

/// A mask of the low `size` bytes, `size` 1 to 8.
pub(crate) const fn mask(size: u64) -> u64 {
    u64::MAX >> (64 - 8 * size)
}

/// `v`, `size` bytes wide, sign-extended.
pub(crate) const fn sext(v: u64, size: u64) -> u64 {
    let shift = 64 - 8 * size as u32;
    ((v << shift) as i64 >> shift) as u64
}
