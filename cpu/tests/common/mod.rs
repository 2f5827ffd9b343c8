//! What several tests of the CPU need.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod guest;

use std::cell::RefCell;

use board::CpuIo;
use iced_x86::{CpuidFeature, Instruction};

/// A machine with nothing but one output port.
#[derive(Default)]
pub struct NoIo {
    /// What the guest wrote to ports.
    pub written: RefCell<Vec<(u16, u32)>>,
}

impl CpuIo for NoIo {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        let mut bytes = [0; 4];
        bytes[..data.len()].copy_from_slice(data);
        self.written.borrow_mut().push((port, u32::from_le_bytes(bytes)));
    }
    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) {}
    fn intr(&self) -> bool {
        false
    }
    fn intr_ack(&self) -> u8 {
        0
    }
    fn eoi(&self, _vector: u8) {}
    fn wants_exit(&self) -> bool {
        false
    }
}

/// xorshift64*: small, and the same everywhere.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    /// Numbers where carries, signs and limits change.
    pub fn edge(&mut self) -> u64 {
        let v = match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => u64::MAX << self.below(64),
            5 => 0x8000_0000_8000_8080,
            _ => self.next(),
        };
        if self.below(4) == 0 { v.wrapping_add(self.below(3)).wrapping_sub(1) } else { v }
    }

    /// Bits that make interesting floating-point numbers of 32 or 64 bits, or integers.
    pub fn float_or_edge(&mut self) -> u64 {
        const DOUBLES: [f64; 8] =
            [0.0, -0.0, 1.0, -1.5, 1e308, f64::INFINITY, f64::NAN, f64::MIN_POSITIVE];
        const FLOATS: [f32; 8] =
            [0.0, -0.0, 1.0, -2.5, 3e38, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE];
        match self.below(5) {
            0 => DOUBLES[self.below(8) as usize].to_bits(),
            1 => {
                let pick = |rng: &mut Self| u64::from(FLOATS[rng.below(8) as usize].to_bits());
                pick(self) << 32 | pick(self)
            }
            2 => ((self.next() as i32) as f64 / 1000.0).to_bits(),
            _ => self.edge(),
        }
    }
}

/// Whether the host has what `instr` needs, as far as the CPU does not ask it itself.
pub fn host_offers(instr: &Instruction) -> bool {
    use CpuidFeature as F;
    use std::arch::is_x86_feature_detected as has;
    instr.cpuid_features().iter().all(|f| match f {
        F::POPCNT => has!("popcnt"),
        F::LZCNT => has!("lzcnt"),
        F::BMI1 => has!("bmi1"),
        F::BMI2 => has!("bmi2"),
        F::ADX => has!("adx"),
        F::MOVBE => has!("movbe"),
        F::CMPXCHG16B => has!("cmpxchg16b"),
        F::CLFLUSHOPT | F::CLWB => has!("avx512f"),
        _ => true,
    })
}

/// iced's flag bits as bits of RFLAGS.
pub fn flags(bits: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    [(B::CF, 1), (B::PF, 4), (B::AF, 0x10), (B::ZF, 0x40), (B::SF, 0x80), (B::OF, 0x800)]
        .into_iter()
        .filter(|(from, _)| bits & from != 0)
        .fold(0, |bits, (_, to)| bits | to)
}

/// Arithmetic flags that `instr` leaves undefined, as bits of RFLAGS.
pub fn undefined_flags(instr: &Instruction) -> u64 {
    flags(instr.rflags_undefined())
}
