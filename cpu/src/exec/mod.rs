//! General implementations of instructions: every form, every mode, one file a topic.
//!
//! They work on the decoded [`Instruction`] itself. Its addresses are relative to the page
//! ([`crate::cpu::PAGE`]). While one executes, `cpu.rip` is at the instruction and `cpu.next_rip`
//! behind it; a branch changes the latter. An implementation that fails has changed nothing, save
//! what the architecture says it has.

mod alu;
mod atomic;
mod bcd;
mod bits;
mod control;
mod far;
mod io;
mod mov;
mod muldiv;
pub(crate) mod operand;
mod random;
mod shift;
mod stack;
mod string;
mod system;
mod tables;
mod xsave;

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::fault::Res;

/// An implementation.
pub(crate) type Exec = fn(&mut Cpu, &Instruction) -> Res;

/// The implementation of `instr`, if there is one.
pub(crate) fn find(instr: &Instruction) -> Option<Exec> {
    const TOPICS: [fn(Mnemonic) -> Option<Exec>; 14] = [
        alu::find,
        mov::find,
        stack::find,
        control::find,
        shift::find,
        muldiv::find,
        bits::find,
        string::find,
        atomic::find,
        bcd::find,
        io::find,
        system::find,
        tables::find,
        random::find,
    ];
    if instr.has_lock_prefix() && !atomic::lockable(instr) {
        return None;
    }
    let mnemonic = instr.mnemonic();
    // MOVSD and CMPSD are names of SSE2 too.
    let vector =
        instr.op0_register().is_vector_register() || instr.op1_register().is_vector_register();
    TOPICS
        .iter()
        .filter(|_| !vector)
        .find_map(|topic| topic(mnemonic))
        .or_else(|| far::find(instr))
        .or_else(|| xsave::find(mnemonic))
        .or_else(|| crate::host::find(instr))
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Instruction) -> Res {
    cpu.ud()
}

/// #GP(0): more than 15 bytes.
pub(crate) fn too_long(cpu: &mut Cpu, _: &Instruction) -> Res {
    cpu.gp(0)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, EncodingKind};

    use super::*;
    use crate::features::{self, Features};

    /// What iced lists beside instructions.
    const NO_INSTRUCTIONS: [&str; 6] =
        ["INVALID", "DeclareByte", "DeclareWord", "DeclareDword", "DeclareQword", "Zero_bytes"];

    #[test]
    fn every_instruction_that_is_offered_is_implemented() {
        let features = Features::new(&features::supported());
        let mut missing = Vec::new();
        for code in Code::values() {
            let mut instr = Instruction::new();
            instr.set_code(code);
            let name = format!("{code:?}");
            // Those run by stubs are told by their operands, which are missing here.
            let vector = ["xmm", "ymm", "_mm", "St", "_m64"].iter().any(|part| name.contains(part))
                || name.starts_with('F')
                || instr.encoding() != EncodingKind::Legacy;
            let excused = NO_INSTRUCTIONS.contains(&&*name);
            if features.offers(&instr) && !vector && !excused && find(&instr).is_none() {
                missing.push(name);
            }
        }
        assert!(missing.is_empty(), "{missing:?}");
    }
}
