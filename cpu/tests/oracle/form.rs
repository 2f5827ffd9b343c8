//! Instruction forms: every `Code` of iced's table that the CPU claims, and how to make bytes of
//! it with random operands.

use cpu::SoftVcpu;
use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, EncodingKind, FlowControl, Instruction,
    MandatoryPrefix, Mnemonic, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind, OpKind, Register,
};

use crate::common::Rng;

/// Why a claimed form is not tried, or `None`.
pub(crate) fn exclusion(instr: &Instruction) -> Option<&'static str> {
    use Mnemonic as M;
    if instr.is_privileged() {
        return Some("needs ring 0 (cpu/tests/guest.rs, images/guests)");
    }
    let (code, op) = (instr.code(), instr.code().op_code());
    if op.op_kinds().iter().any(|k| {
        use OpCodeOperandKind as K;
        matches!(
            k,
            K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs | K::cr_reg | K::dr_reg
        )
    }) {
        return Some("segment registers hold the host's selectors");
    }
    let far = code.is_jmp_far() || code.is_call_far() || code.is_jmp_far_indirect();
    if far
        || code.is_call_far_indirect()
        || matches!(instr.mnemonic(), M::Retf | M::Iret | M::Iretd | M::Iretq)
    {
        return Some("far transfers need the host's selectors");
    }
    let near = instr.code().flow_control() != FlowControl::Next;
    if near && op.operand_size() == 16 {
        return Some("Intel's processors ignore the operand size of near branches");
    }
    if instr.code() == Code::Ud0 {
        return Some("is decoded with a ModRM byte, as another form");
    }
    if instr.code() == Code::Movsxd_r16_rm16 {
        return Some("AMD's processors read 32 bits");
    }
    if format!("{code:?}").starts_with("Reservednop") && format!("{code:?}").ends_with("0F0D") {
        return Some("is a prefetch without memory: #UD on AMD's processors, nothing on Intel's");
    }
    Some(match instr.mnemonic() {
        M::Int
        | M::Int1
        | M::Int3
        | M::Into
        | M::Syscall
        | M::Sysenter
        | M::Sysexit
        | M::Sysret
        | M::Vmcall
        | M::Vmmcall
        | M::Hlt => "enters the kernel",
        M::Cpuid
        | M::Rdtsc
        | M::Rdtscp
        | M::Rdpid
        | M::Xgetbv
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Rdpmc
        | M::Monitor
        | M::Mwait => "shows the system below",
        M::Rdrand | M::Rdseed => "is random",
        M::Wrfsbase | M::Wrgsbase | M::Rdfsbase | M::Rdgsbase => "holds the host's thread pointer",
        M::Popf | M::Popfd | M::Popfq => "can set TF or AC",
        M::Stac | M::Clac => "needs ring 0",
        M::Lss | M::Lfs | M::Lgs => "segment registers hold the host's selectors",
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
            "reaches devices"
        }
        M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsavec
        | M::Xsavec64
        | M::Xrstor
        | M::Xrstor64 => "areas depend on the host's XCR0",
        M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Fnstenv
        | M::Fnsave
        | M::Fldenv
        | M::Frstor => "areas hold instruction pointers, which processors keep differently",
        _ => return None,
    })
}

/// The forms that `vcpu` claims in 64-bit mode, tried or not.
pub(crate) fn claimed(vcpu: &SoftVcpu) -> Vec<Code> {
    Code::values()
        .filter(|code| {
            let op = code.op_code();
            let mut instr = Instruction::default();
            instr.set_code(*code);
            op.is_instruction()
                && op.mode64()
                && !op.fwait()
                && matches!(op.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
                && op.decoder_option() == 0
                && vcpu.offers(&instr)
        })
        .collect()
}

/// An instruction with its bytes, which decode to it at `ip`.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) instr: Instruction,
    pub(crate) bytes: Vec<u8>,
    /// Where the displacement or branch distance is in `bytes`, and its size.
    pub(crate) displacement: (usize, usize),
}

/// Decodes `bytes` at `ip`.
pub(crate) fn decode(bytes: &[u8], ip: u64) -> Option<Encoded> {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let instr = decoder.decode();
    if decoder.last_error() != DecoderError::None {
        return None;
    }
    let offsets = decoder.get_constant_offsets(&instr);
    let displacement = if instr.op0_kind() == OpKind::NearBranch64 {
        (offsets.immediate_offset(), offsets.immediate_size())
    } else {
        (offsets.displacement_offset(), offsets.displacement_size())
    };
    Some(Encoded { instr, bytes: bytes[..instr.len()].to_vec(), displacement })
}

/// Random bytes that are `code` at `ip`; `None` if some tries did not make any.
pub(crate) fn make(code: Code, rng: &mut Rng, ip: u64) -> Option<Encoded> {
    (0..24).find_map(|_| {
        let bytes = match code.op_code().encoding() {
            EncodingKind::VEX => vex(code.op_code(), rng)?,
            _ => legacy(code.op_code(), rng)?,
        };
        decode(&bytes, ip).filter(|e| e.instr.code() == code)
    })
}

fn escape(op: &OpCodeInfo) -> Option<&'static [u8]> {
    Some(match op.table() {
        OpCodeTableKind::Normal => &[],
        OpCodeTableKind::T0F => &[0x0F],
        OpCodeTableKind::T0F38 => &[0x0F, 0x38],
        OpCodeTableKind::T0F3A => &[0x0F, 0x3A],
        _ => return None,
    })
}

/// Opcode, ModRM, SIB, displacement and immediates.
fn tail(op: &OpCodeInfo, rng: &mut Rng, out: &mut Vec<u8>) {
    use OpCodeOperandKind as K;
    let in_opcode = op.op_kinds().iter().any(|k| {
        matches!(k, K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode | K::sti_opcode)
    });
    let low = if in_opcode { rng.below(8) as u8 } else { 0 };
    if op.op_code_len() == 2 {
        out.push((op.op_code() >> 8) as u8);
        out.push(op.op_code() as u8 + low);
    } else {
        out.push(op.op_code() as u8 + low);
        let vsib = op.op_kinds().iter().any(|k| {
            matches!(k, K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y)
        });
        let reg = if op.is_group() { op.group_index() as u8 } else { rng.below(8) as u8 };
        let rm = match rng.below(8) {
            _ if op.is_rm_group() => op.rm_group_index() as u8,
            _ if vsib => 4,
            n => n as u8,
        };
        let mode = [3, 3, 3, 0, 1, 1, 2, 0][rng.below(8) as usize];
        out.push(mode << 6 | reg << 3 | rm);
    }
    // SIB, displacement, immediate: whatever the instruction takes of it.
    let edge = [0, 1, 0x7F, 0x80, 0xFF];
    let all = rng.below(8);
    for _ in 0..10 {
        let n = if all == 0 { 4 } else { rng.below(12) as usize };
        out.push(if n < 5 { edge[n] } else { rng.next() as u8 });
    }
    out.truncate(15);
}

fn legacy(op: &OpCodeInfo, rng: &mut Rng) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(24);
    if rng.below(24) == 0 {
        out.push(0x67);
    }
    if rng.below(48) == 0 {
        out.push([0x26, 0x2E, 0x36, 0x3E][rng.below(4) as usize]);
    }
    if op.can_use_lock_prefix() && rng.below(3) == 0 {
        out.push(0xF0);
    }
    if op.can_use_rep_prefix() && rng.below(2) == 0 {
        out.push(0xF3);
    } else if op.can_use_repne_prefix() && rng.below(3) == 0 {
        out.push(0xF2);
    }
    let mut wide = op.operand_size() == 64 || op.w() == 1;
    if op.default_op_size64() || op.force_op_size64() {
        wide = rng.below(2) == 0;
    }
    if op.operand_size() == 16 {
        out.push(0x66);
    }
    match op.mandatory_prefix() {
        MandatoryPrefix::P66 => out.push(0x66),
        MandatoryPrefix::PF3 => out.push(0xF3),
        MandatoryPrefix::PF2 => out.push(0xF2),
        _ => {}
    }
    if wide || rng.below(2) == 0 {
        out.push(0x40 | (wide as u8) << 3 | rng.below(8) as u8);
    }
    out.extend_from_slice(escape(op)?);
    tail(op, rng, &mut out);
    Some(out)
}

fn vex(op: &OpCodeInfo, rng: &mut Rng) -> Option<Vec<u8>> {
    use OpCodeOperandKind as K;
    let vvvv = op
        .op_kinds()
        .iter()
        .any(|k| matches!(k, K::xmm_vvvv | K::ymm_vvvv | K::r32_vvvv | K::r64_vvvv | K::k_vvvv));
    let vvvv = if vvvv { rng.below(16) as u8 } else { 15 };
    let wide = if op.is_wig() { rng.below(2) } else { u64::from(op.w()) } as u8;
    let length = if op.is_lig() { rng.below(2) } else { u64::from(op.l()) } as u8;
    let prefix = match op.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let map = escape(op)?.len().max(1) as u8 + (op.table() == OpCodeTableKind::T0F3A) as u8;
    let mut out = Vec::with_capacity(24);
    if rng.below(24) == 0 {
        out.push(0x67);
    }
    if map == 1 && wide == 0 && rng.below(2) == 0 {
        out.extend_from_slice(&[0xC5, rng.next() as u8 & 0x80 | vvvv << 3 | length << 2 | prefix]);
    } else {
        out.extend_from_slice(&[0xC4, rng.next() as u8 & 0xE0 | map]);
        out.push(wide << 7 | vvvv << 3 | length << 2 | prefix);
    }
    tail(op, rng, &mut out);
    Some(out)
}

/// Bytes that were not made from the table: prefixes that mean nothing, odd encodings.
pub(crate) fn random(rng: &mut Rng, ip: u64) -> Option<Encoded> {
    let mut b = Vec::with_capacity(15);
    if rng.below(4) == 0 {
        b.push([0x66, 0xF2, 0xF3, 0x66, 0x67, 0xF0][rng.below(6) as usize]);
    }
    if rng.below(4) == 0 {
        b.extend_from_slice(&[0xC4, rng.next() as u8 & 0xE0 | (1 + rng.below(3) as u8)]);
        b.push(rng.next() as u8);
    } else {
        if rng.below(2) == 0 {
            b.push(0x40 | rng.next() as u8 & 0xF);
        }
        match rng.below(8) {
            0 => {}
            1..=4 => b.push(0x0F),
            5..=6 => b.extend_from_slice(&[0x0F, 0x38]),
            _ => b.extend_from_slice(&[0x0F, 0x3A]),
        }
    }
    while b.len() < 15 {
        b.push(if rng.below(2) == 0 { rng.next() as u8 } else { 0 });
    }
    decode(&b, ip)
}

/// Whether segments other than the flat ones play a part, or a branch of odd width.
pub(crate) fn odd(instr: &Instruction) -> bool {
    matches!(instr.segment_prefix(), Register::FS | Register::GS)
        || matches!(instr.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32)
}
