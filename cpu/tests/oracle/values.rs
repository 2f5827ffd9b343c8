//! Operands where carries, signs, roundings and limits change.

use cpu::bare::UserState;

use crate::common::Rng;
use crate::lane::{Lane, RW_PAGES};

/// The arithmetic flags.
pub(crate) const ARITH: u64 = 0x8D5;
/// The overflow flag.
pub(crate) const OF: u64 = 0x800;
/// The direction flag.
pub(crate) const DF: u64 = 0x400;

const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;

fn put(s: &mut UserState, at: usize, bytes: &[u8]) {
    s.area[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A state in which all registers are random, with general registers that often point at data.
pub(crate) fn state(rng: &mut Rng, lane: Lane) -> UserState {
    let mut s = UserState { area: [0; _], gpr: [0; 16], rip: 0, rflags: 0x202 };
    put(&mut s, HEADER, &[7]);
    put(&mut s, FCW, &0x37F_u16.to_le_bytes());
    put(&mut s, MXCSR, &0x1F80_u32.to_le_bytes());
    for r in &mut s.gpr {
        *r = match rng.below(8) {
            0..=3 => place(rng, lane, 64, true),
            4 => rng.below(64),
            _ => rng.edge(),
        };
    }
    for n in 0..16 {
        vector(rng, &mut s, n);
    }
    for _ in 0..4 {
        x87(rng, &mut s);
    }
    mxcsr(rng, &mut s);
    s
}

/// A stack in the middle of the data pages.
pub(crate) fn stack(rng: &mut Rng, s: &mut UserState, lane: Lane) {
    for n in [4, 5] {
        s.gpr[n] = lane.data() + 0x1000 + rng.below(64) * 8;
    }
}

/// Where any access may go.
pub(crate) fn calm(rng: &mut Rng, lane: Lane) -> u64 {
    lane.data() + 0x800 + (rng.below((RW_PAGES << 12) - 0x1000) & !15)
}

/// Where an access of `bytes` goes: data as a rule, aligned or not; else across a boundary
/// between pages with different rights, or to none.
pub(crate) fn place(rng: &mut Rng, lane: Lane, bytes: u64, aligned: bool) -> u64 {
    let (data, len) = (lane.data(), RW_PAGES << 12);
    let across = |rng: &mut Rng, boundary: u64| {
        boundary.wrapping_sub(if aligned { 64 } else { rng.below(bytes + 1) })
    };
    match rng.below(64) {
        0..=27 => data + (rng.below(len - 64) & !63),
        28..=51 if aligned => data + (rng.below(len - 64) & !15),
        28..=51 => data + rng.below(len - 64),
        // The next page exists, or cannot be written, or is not there.
        52..=57 => across(rng, data + 0x1000),
        58..=59 => across(rng, data + len),
        60 => data + len + (rng.below(0x1000 - 64) & !15),
        61 => across(rng, lane.data_end()),
        62 => across(rng, data),
        _ => match rng.below(4) {
            0 => 0x8000_0010_0000 + rng.below(4096),
            1 => 0xDEAD_0000_0000_0000 | rng.next() >> 16,
            _ => lane.data_end() + rng.below(0x4000),
        },
    }
}

/// New contents of YMM`n`.
pub(crate) fn vector(rng: &mut Rng, s: &mut UserState, n: usize) {
    let kind = rng.below(4);
    for (i, at) in [(0, XMM), (8, XMM), (0, YMM_HIGH), (8, YMM_HIGH)] {
        let word = match kind {
            0 => number(rng),
            1 => {
                let low = u64::from(single(rng));
                low | u64::from(single(rng)) << 32
            }
            2 => rng.edge(),
            _ => rng.next(),
        };
        put(s, at + 16 * n + i, &word.to_le_bytes());
    }
}

/// A double: special, or with an exponent near that of others or of a limit.
fn number(rng: &mut Rng) -> u64 {
    let r = rng.next();
    let exponent = match rng.below(16) {
        0 => 0,
        1 => 0x7FF,
        2 => 1,
        3 => 0x7FE,
        4 => r >> 20 & 0x7FF,
        // About 1, 2^31 and 2^63, the limits of single precision.
        5 => 0x3FF + 31 + (r >> 20 & 1),
        6 => 0x3FF + 63 + (r >> 20 & 1),
        7 => 0x3FF - 126 - (r >> 20 & 31),
        8 => 0x3FF + 120 + (r >> 20 & 15),
        _ => 0x3F0 + (r >> 20 & 31),
    };
    r & 1 << 63 | exponent << 52 | fraction(rng) >> 12
}

fn single(rng: &mut Rng) -> u32 {
    let r = rng.next() as u32;
    let exponent = match rng.below(16) {
        0 => 0,
        1 => 0xFF,
        2 => 1,
        3 => 0xFE,
        4 => r & 0xFF,
        5 => 127 + 31,
        6 => 127 + 15,
        7 => 127 - 24 + (r & 15),
        _ => 112 + (r & 31),
    };
    r & 1 << 31 | exponent << 23 | (fraction(rng) >> 41) as u32
}

/// A fraction, its first bit at the top.
fn fraction(rng: &mut Rng) -> u64 {
    match rng.below(6) {
        0 => 0,
        1 => 1 << 63,
        2 => u64::MAX << (rng.next() & 63),
        3 => u64::MAX,
        _ => rng.next(),
    }
}

/// New contents of some x87 registers, tags, control and status.
pub(crate) fn x87(rng: &mut Rng, s: &mut UserState) {
    for i in [0, 1, rng.below(8) as usize] {
        let r = rng.next();
        let exponent = match rng.below(16) {
            0 => 0,
            1 => 0x7FFF,
            2 => 1,
            3 => 0x7FFE,
            4 => r >> 48 & 0x7FFF,
            5 => 0x3FFF + 31 + (r >> 20 & 1),
            6 => 0x3FFF + 63 + (r >> 20 & 1),
            7 => 0x3FFF - 1022 - (r >> 20 & 63),
            _ => 0x3FF0 + (r >> 20 & 0x1F),
        };
        // The integer bit is clear in denormals and in what processors no longer support.
        let integer = if exponent == 0 { rng.below(2) } else { u64::from(rng.below(32) != 0) };
        let mantissa = fraction(rng) >> 1 | integer << 63;
        put(s, ST + 16 * i, &mantissa.to_le_bytes());
        put(s, ST + 16 * i + 8, &((exponent | r & 0x8000) as u16).to_le_bytes());
    }
    let r = rng.next();
    let fcw = match rng.below(16) {
        0..=7 => 0x37F,
        8..=11 => 0x7F | r & 0xF00,
        _ => 0x40 | r & 0xF3F,
    };
    let mut fsw = r >> 16 & 0x7F00;
    if rng.below(4) == 0 {
        fsw |= r >> 32 & 0x7F;
        // What the guest does not mask would be pending: now and then only.
        if rng.below(8) != 0 {
            fsw &= fcw | !0x3F;
        }
        if fsw & !fcw & 0x3F != 0 {
            fsw |= 0x8080;
        }
    }
    put(s, FCW, &(fcw as u16).to_le_bytes());
    put(s, FSW, &(fsw as u16).to_le_bytes());
    s.area[FTW] = if rng.below(4) != 0 { 0xFF } else { (r >> 40) as u8 };
}

/// A new MXCSR.
pub(crate) fn mxcsr(rng: &mut Rng, s: &mut UserState) {
    let r = rng.next() as u32;
    let value = match rng.below(16) {
        0..=7 => 0x1F80,
        8..=12 => 0x1F80 | r & 0xE07F,
        _ => r & 0xFFFF,
    };
    put(s, MXCSR, &value.to_le_bytes());
}

/// Where element `i` of `size` bytes of a vector register of indices is.
fn index_at(number: usize, i: usize, size: usize) -> usize {
    let at = i * size;
    if at < 16 { XMM + 16 * number + at } else { YMM_HIGH + 16 * number + at - 16 }
}

/// An index, sign-extended.
pub(crate) fn index(s: &UserState, number: usize, i: usize, size: usize) -> u64 {
    let at = index_at(number, i, size);
    let word =
        |n: usize| std::array::from_fn::<u8, 8, _>(|i| if i < n { s.area[at + i] } else { 0 });
    let raw = u64::from_le_bytes(word(size));
    if size == 4 { raw as i32 as u64 } else { raw }
}

/// Sets an index.
pub(crate) fn set_index(s: &mut UserState, number: usize, i: usize, size: usize, value: u64) {
    put(s, index_at(number, i, size), &value.to_le_bytes()[..size]);
}
