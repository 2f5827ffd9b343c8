//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT; ADCX and ADOX.

use iced_x86::{Instruction, Mnemonic};

use super::Exec;
use super::operand::size;
use crate::cpu::Cpu;
use crate::fault::Res;
use crate::flags::bit;
use crate::int::{Int, by_size};
use crate::ops::alu::{self, Alu, Unary};

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Add => binary::<alu::Add>,
        M::Or => binary::<alu::Or>,
        M::Adc => binary::<alu::Adc>,
        M::Sbb => binary::<alu::Sbb>,
        M::And => binary::<alu::And>,
        M::Sub => binary::<alu::Sub>,
        M::Xor => binary::<alu::Xor>,
        M::Cmp => compare::<alu::Cmp>,
        M::Test => compare::<alu::Test>,
        M::Inc => unary::<alu::Inc>,
        M::Dec => unary::<alu::Dec>,
        M::Not => unary::<alu::Not>,
        M::Neg => unary::<alu::Neg>,
        M::Adcx => adx::<{ bit::CF }>,
        M::Adox => adx::<{ bit::OF }>,
        _ => return None,
    })
}

fn apply<A: Alu>(cpu: &mut Cpu, size: u64, a: u64, b: u64) -> u64 {
    by_size!(size, T => A::apply::<T>(&mut cpu.flags, <T as Int>::trunc(a), <T as Int>::trunc(b)).zext())
}

fn binary<A: Alu>(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 0);
    let b = cpu.read(instr, 1)?;
    cpu.modify(instr, |cpu, a| apply::<A>(cpu, size, a, b))
}

fn compare<A: Alu>(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 0);
    let a = cpu.read(instr, 0)?;
    let b = cpu.read(instr, 1)?;
    apply::<A>(cpu, size, a, b);
    Ok(())
}

fn unary<U: Unary>(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 0);
    cpu.modify(
        instr,
        |cpu, a| by_size!(size, T => U::apply::<T>(&mut cpu.flags, <T as Int>::trunc(a), 0).zext()),
    )
}

/// Addition with the carry in flag `F`.
fn adx<const F: u64>(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let bits = size(instr, 0) * 8;
    let (a, b) = (cpu.read(instr, 0)?, cpu.read(instr, 1)?);
    let sum = u128::from(a) + u128::from(b) + u128::from(cpu.flags.get() & F != 0);
    cpu.put(instr.op0_register(), sum as u64);
    cpu.flags.replace(F, if sum >> bits != 0 { F } else { 0 });
    Ok(())
}
