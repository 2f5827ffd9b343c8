//! RDRAND and RDSEED: the host's random numbers.

use iced_x86::{Instruction, Mnemonic};

use super::Exec;
use crate::cpu::Cpu;
use crate::fault::Res;
use crate::flags::bit;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    matches!(mnemonic, Mnemonic::Rdrand | Mnemonic::Rdseed).then_some(random)
}

fn random(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let mut bytes = [0_u8; 8];
    // SAFETY: `bytes` is 8 writable bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let ok = got == bytes.len() as isize;
    cpu.put(instr.op0_register(), if ok { u64::from_le_bytes(bytes) } else { 0 });
    cpu.flags.set_arith(if ok { bit::CF } else { 0 });
    Ok(())
}
