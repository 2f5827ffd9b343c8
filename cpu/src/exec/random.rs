//! RDRAND and RDSEED: random numbers of the host, or of the stream that `--seed` gives.

use iced_x86::{Instruction, Mnemonic};

use super::Exec;
use crate::cpu::Cpu;
use crate::fault::Res;
use crate::flags::bit;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    matches!(mnemonic, Mnemonic::Rdrand | Mnemonic::Rdseed).then_some(random)
}

fn random(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let number = cpu.entropy.number();
    cpu.put(instr.op0_register(), number.unwrap_or(0));
    cpu.flags.set_arith(if number.is_some() { bit::CF } else { 0 });
    Ok(())
}
