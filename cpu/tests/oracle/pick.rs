//! Which instructions are tried.

use iced_x86::{
    CpuidFeature, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};

use crate::common::{self, Rng};
use crate::{ARITH, DATA, DATA_LEN, HOLE, Input, SLOT};

/// Random bytes that are likely to be an instruction.
pub(crate) fn random_bytes(rng: &mut Rng) -> [u8; 15] {
    let mut b = [0; 15];
    let mut n = 0;
    let mut put = |v: u8| {
        b[n] = v;
        n += 1;
    };
    let vex = rng.below(4) == 0;
    if rng.below(4) == 0 {
        put([0x66, 0xF2, 0xF3, 0x66, 0x67, 0xF0][rng.below(6) as usize]);
    }
    if vex {
        put(0xC4);
        put(rng.next() as u8 & 0xE0 | (1 + rng.below(3) as u8));
        put(rng.next() as u8);
        put(rng.next() as u8);
    } else {
        if rng.below(2) == 0 {
            put(0x40 | rng.next() as u8 & 0xF);
        }
        match rng.below(8) {
            0 => {}
            1..=4 => put(0x0F),
            5..=6 => {
                put(0x0F);
                put(0x38);
            }
            _ => {
                put(0x0F);
                put(0x3A);
            }
        }
        // x87 opcodes are 8 of 256 and have many instructions each.
        put(if rng.below(12) == 0 { 0xD8 + rng.below(8) as u8 } else { rng.next() as u8 });
    }
    // ModRM, SIB, displacement, immediate.
    put(rng.next() as u8);
    for _ in 0..4 {
        put(if rng.below(2) == 0 { rng.next() as u8 } else { 0 });
    }
    b
}

/// Whether `instr` may run on the host, given `input`. Each exclusion says why.
pub(crate) fn acceptable(
    instr: &Instruction,
    input: &Input,
    factory: &mut InstructionInfoFactory,
    features: &[CpuidFeature],
) -> bool {
    use Mnemonic as M;
    if instr.flow_control() != FlowControl::Next
        || instr.is_privileged()
        // Both sides must offer it.
        || !instr.cpuid_features().iter().all(|f| features.contains(f))
        // Segments other than the flat ones differ.
        || instr.segment_prefix() != Register::None
    {
        return false;
    }
    let operands = 0..instr.op_count();
    if operands.clone().any(|n| {
        let r = instr.op_register(n);
        r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr()
    }) {
        return false;
    }
    match instr.mnemonic() {
        // They show the system below.
        M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpid | M::Xgetbv | M::Sgdt | M::Sidt | M::Sldt
        | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw | M::Rdrand | M::Rdseed
        | M::Rdpmc
        // They can set TF or AC, or take TLS away.
        | M::Popf | M::Popfd | M::Popfq | M::Wrfsbase | M::Wrgsbase | M::Rdfsbase
        | M::Rdgsbase | M::Lss | M::Lfs | M::Lgs | M::Swapgs
        // FLAGS on the stack show IF and IOPL.
        | M::Pushf | M::Pushfd | M::Pushfq
        // Areas depend on what the host's XCR0 enables, or hold instruction pointers.
        | M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64
        | M::Xrstor | M::Xrstor64 | M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64
        | M::Fnstenv | M::Fnsave | M::Fldenv | M::Frstor
        // An unmasked exception stays pending in the host's unit.
        | M::Fldcw | M::Ldmxcsr | M::Vldmxcsr
        | M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd
        | M::Syscall | M::Sysenter | M::Enter
        // Loads a reserved nop's worth of prefetches: no effect to compare, but may be slow.
        | M::Clflush | M::Clflushopt | M::Clwb | M::Prefetchw | M::Stac | M::Clac | M::Std => return false,
        _ => {}
    }
    // A bit string reaches beyond the operand.
    if matches!(instr.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && instr.op0_kind() == OpKind::Memory
        && instr.op1_kind() == OpKind::Register
    {
        let n = instr.op1_register().full_register().number();
        if input.gpr[n] >= 256 {
            return false;
        }
    }
    if (instr.has_rep_prefix() || instr.has_repne_prefix())
        && instr.is_string_instruction()
        && input.gpr[1] > 64
    {
        return false;
    }
    let value = |r: Register, _: usize, _: usize| {
        let size = r.size();
        if r.is_segment_register() {
            return Some(0);
        }
        if r == Register::RIP || r == Register::EIP {
            return Some(SLOT + instr.len() as u64);
        }
        if r.is_vector_register() {
            return None;
        }
        let v = input.gpr[r.full_register().number()];
        Some(if size == 8 { v } else { v & ((1 << (8 * size)) - 1) })
    };
    let info = factory.info(instr);
    info.used_memory().iter().all(|m| {
        let Some(address) = m.virtual_address(0, value) else { return false };
        let canonical = (address as i64) << 16 >> 16 == address as i64;
        let near = (DATA - HOLE..DATA + DATA_LEN + HOLE).contains(&address);
        // The hole is large enough for REP to stay in it.
        near || !canonical
    })
}

/// Whether `instr` may follow others in a block: its addresses and its result depend on nothing
/// that is not the same on both sides.
pub(crate) fn fits(
    instr: &Instruction,
    factory: &mut InstructionInfoFactory,
    block: &mut Sequence,
) -> bool {
    use iced_x86::{ConditionCode, OpAccess};
    let info = factory.info(instr);
    let changed = |r: Register| r.is_gpr() && block.written >> r.full_register().number() & 1 != 0;
    let memory = info.used_memory().iter().any(|m| changed(m.base()) || changed(m.index()));
    let reads = common::flags(instr.rflags_read())
        | if instr.condition_code() == ConditionCode::None { 0 } else { ARITH };
    if memory
        || instr.is_string_instruction()
        || reads & block.undefined != 0 && instr.rflags_read() != 0
        || matches!(instr.mnemonic(), Mnemonic::Lahf | Mnemonic::Bt | Mnemonic::Bts
            | Mnemonic::Btr | Mnemonic::Btc)
        // They may leave faults or x87 state to the next instruction that differ by processor.
        || (0..instr.op_count()).any(|n| instr.op_register(n).is_mm())
        || matches!(instr.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Fbstp
                | Mnemonic::Vcvtps2ph | Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq)
    {
        return false;
    }
    for r in info.used_registers() {
        if r.register().is_gpr() && !matches!(r.access(), OpAccess::Read | OpAccess::CondRead) {
            block.written |= 1 << r.register().full_register().number();
        }
    }
    // A shift by a count of zero leaves the flags as they are.
    let shifts = instr.op_count() > 1 && instr.op_register(instr.op_count() - 1) == Register::CL;
    if !shifts {
        block.undefined &= !common::flags(instr.rflags_modified());
    }
    block.undefined |= common::undefined_flags(instr);
    true
}

/// A block under construction.
#[derive(Default)]
pub(crate) struct Sequence {
    pub(crate) bytes: Vec<u8>,
    written: u32,
    pub(crate) undefined: u64,
}
