//! Which instructions of 64-bit code have a specialised op.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

use crate::block::{Handler, Op};
use crate::cpu::seg::SS;
use crate::cpu::{PAGE, ZERO};
use crate::exec::operand::{register_number, segment_number};
use crate::ops::mem::{Any, BaseDisp};
use crate::ops::{alu, control, mov, op, wide};

/// The specialised op of `instr`, without its length and place.
pub(crate) fn specialise(instr: &Instruction) -> Option<Op> {
    if instr.has_lock_prefix() || instr.has_rep_prefix() || instr.has_repne_prefix() {
        return None;
    }
    two_operands(instr)
        .or_else(|| one_operand(instr))
        .or_else(|| wide_operation(instr))
        .or_else(|| branch(instr))
}

/// Byte offset of a general register in `Cpu::regs`.
fn at(register: Register) -> Option<u8> {
    let (number, high) = register_number(register)?;
    Some(number as u8 * 8 + high as u8)
}

/// Whether the memory operand can be had by the recipe of ops, and needs [`Any`].
pub(crate) fn memory(instr: &Instruction, o: &mut Op) -> Option<usize> {
    let number = |r: Register| match r {
        Register::None => Some(ZERO as u8),
        Register::RIP => Some(PAGE as u8),
        r if r.is_gpr64() => Some(r.number() as u8),
        _ => None,
    };
    o.base = number(instr.memory_base())?;
    o.index = number(instr.memory_index())?;
    if o.base == ZERO as u8 && o.index == ZERO as u8 && instr.memory_displ_size() != 8 {
        return None;
    }
    o.scale = instr.memory_index_scale().trailing_zeros() as u8;
    o.disp = instr.memory_displacement64();
    o.seg = segment_number(instr.memory_segment()) as u8;
    Some((o.index != ZERO as u8 || o.seg >= 4) as usize)
}

fn alu_forms(mnemonic: Mnemonic, size: u64) -> Option<alu::Forms> {
    Some(match mnemonic {
        Mnemonic::Add => alu::forms::<alu::Add>(size),
        Mnemonic::Or => alu::forms::<alu::Or>(size),
        Mnemonic::Adc => alu::forms::<alu::Adc>(size),
        Mnemonic::Sbb => alu::forms::<alu::Sbb>(size),
        Mnemonic::And => alu::forms::<alu::And>(size),
        Mnemonic::Sub => alu::forms::<alu::Sub>(size),
        Mnemonic::Xor => alu::forms::<alu::Xor>(size),
        Mnemonic::Cmp => alu::forms::<alu::Cmp>(size),
        Mnemonic::Test => alu::forms::<alu::Test>(size),
        _ => return None,
    })
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

fn two_operands(instr: &Instruction) -> Option<Op> {
    if instr.op_count() != 2 {
        return None;
    }
    use Mnemonic as M;
    let mnemonic = instr.mnemonic();
    let (k0, k1) = (instr.op0_kind(), instr.op1_kind());
    let (r0, r1) = (instr.op0_register(), instr.op1_register());
    let mut o = op(mov::nop);
    if k0 == OpKind::Register {
        o.dst = at(r0)?;
    }
    if k1 == OpKind::Register {
        o.src = at(r1)?;
    } else if is_immediate(k1) {
        o.imm = instr.immediate(1);
    }
    let mut any = 0;
    if (k0 == OpKind::Memory || k1 == OpKind::Memory) && mnemonic != M::Lea {
        any = memory(instr, &mut o)?;
    }
    let size = if k0 == OpKind::Register { r0.size() } else { instr.memory_size().size() } as u64;
    let run: Handler = match mnemonic {
        M::Mov => match (k0, k1) {
            (OpKind::Register, OpKind::Register) => mov::mov_reg(size).0,
            (OpKind::Register, OpKind::Memory) => mov::mov_mem(size, any != 0).0,
            (OpKind::Memory, OpKind::Register) => mov::mov_mem(size, any != 0).1,
            (OpKind::Register, _) if is_immediate(k1) => mov::mov_reg(size).1,
            (OpKind::Memory, _) if is_immediate(k1) => mov::mov_mem(size, any != 0).2,
            _ => return None,
        },
        M::Lea => {
            if instr.memory_base().is_gpr32() || instr.memory_index().is_gpr32() {
                return None;
            }
            memory(instr, &mut o)?;
            match size {
                4 => mov::lea::<u32>,
                8 => mov::lea::<u64>,
                _ => return None,
            }
        }
        M::Movzx | M::Movsx | M::Movsxd => {
            let from = match k1 {
                OpKind::Register => r1.size(),
                _ => instr.memory_size().size(),
            } as u64;
            if from >= size {
                return None;
            }
            let (reg, mem) = mov::extend(mnemonic != M::Movzx, size, from);
            if k1 == OpKind::Register { reg } else { mem[any] }
        }
        M::Xchg if k0 == OpKind::Register && k1 == OpKind::Register => match size {
            4 => mov::xchg_rr::<u32>,
            8 => mov::xchg_rr::<u64>,
            _ => return None,
        },
        M::Shl | M::Shr | M::Sar | M::Sal | M::Rol | M::Ror => {
            if r1 == Register::CL && k0 == OpKind::Register && size >= 4 {
                o.run.set(match mnemonic {
                    M::Shr => wide::by_cl::<alu::Shr>(size),
                    M::Sar => wide::by_cl::<alu::Sar>(size),
                    M::Rol => wide::by_cl::<alu::Rol>(size),
                    M::Ror => wide::by_cl::<alu::Ror>(size),
                    _ => wide::by_cl::<alu::Shl>(size),
                });
                return Some(o);
            }
            let imm = o.imm & if size == 8 { 63 } else { 31 };
            if !is_immediate(k1) || imm == 0 || imm >= size * 8 {
                return None;
            }
            o.imm = imm;
            let (reg, mem) = match mnemonic {
                M::Shr => alu::unary_forms::<alu::Shr>(size),
                M::Sar => alu::unary_forms::<alu::Sar>(size),
                M::Rol => alu::unary_forms::<alu::Rol>(size),
                M::Ror => alu::unary_forms::<alu::Ror>(size),
                _ => alu::unary_forms::<alu::Shl>(size),
            };
            if k0 == OpKind::Register { reg } else { mem[any] }
        }
        M::Imul => {
            let (reg, mem) = wide::imul(size);
            if k1 == OpKind::Register { reg } else { mem[any] }
        }
        M::Bt if k0 == OpKind::Register => {
            let (reg, imm) = wide::bit_test(size);
            if k1 == OpKind::Register { reg } else { imm }
        }
        _ if instr.condition_code() != ConditionCode::None => {
            // CMOVcc.
            if instr.is_jcc_short_or_near() {
                return None;
            }
            o.aux = condition(instr.condition_code());
            match (k1, size) {
                (OpKind::Memory, 4 | 8) => wide::cmov_mem(size)[any],
                (_, 4) => mov::cmov_rr::<u32>,
                (_, 8) => mov::cmov_rr::<u64>,
                _ => return None,
            }
        }
        _ => {
            let forms = alu_forms(mnemonic, size)?;
            match (k0, k1) {
                (OpKind::Register, OpKind::Register) => forms.rr,
                (OpKind::Register, OpKind::Memory) => forms.rm[any],
                (OpKind::Memory, OpKind::Register) => forms.mr[any],
                (OpKind::Register, _) if is_immediate(k1) => forms.ri,
                (OpKind::Memory, _) if is_immediate(k1) => forms.mi[any],
                _ => return None,
            }
        }
    };
    o.run.set(run);
    Some(o)
}

fn one_operand(instr: &Instruction) -> Option<Op> {
    use Mnemonic as M;
    let mut o = op(mov::nop);
    let kind = instr.op0_kind();
    let run: Handler = match instr.mnemonic() {
        M::Nop | M::Endbr64 | M::Endbr32 => mov::nop,
        M::Push if kind == OpKind::Register && instr.op0_register().is_gpr64() => {
            o.src = at(instr.op0_register())?;
            o.seg = SS as u8;
            mov::push_r
        }
        M::Push if is_immediate(kind) && instr.stack_pointer_increment() == -8 => {
            o.imm = instr.immediate(0);
            o.seg = SS as u8;
            mov::push_i
        }
        M::Pop if kind == OpKind::Register && instr.op0_register().is_gpr64() => {
            o.dst = at(instr.op0_register())?;
            o.seg = SS as u8;
            mov::pop_r
        }
        m @ (M::Inc | M::Dec | M::Not | M::Neg) => {
            let size = match kind {
                OpKind::Register => instr.op0_register().size(),
                _ => instr.memory_size().size(),
            } as u64;
            let (reg, mem) = match m {
                M::Inc => alu::unary_forms::<alu::Inc>(size),
                M::Dec => alu::unary_forms::<alu::Dec>(size),
                M::Not => alu::unary_forms::<alu::Not>(size),
                _ => alu::unary_forms::<alu::Neg>(size),
            };
            if kind == OpKind::Register {
                o.dst = at(instr.op0_register())?;
                reg
            } else {
                mem[memory(instr, &mut o)?]
            }
        }
        M::Bswap if instr.op0_register().size() >= 4 => {
            o.dst = at(instr.op0_register())?;
            alu::unary_forms::<alu::Bswap>(instr.op0_register().size() as u64).0
        }
        _ if instr.op_count() == 1
            && kind == OpKind::Register
            && instr.op0_register().is_gpr8()
            && instr.condition_code() != ConditionCode::None =>
        {
            o.dst = at(instr.op0_register())?;
            o.aux = condition(instr.condition_code());
            mov::setcc
        }
        _ => return None,
    };
    o.run.set(run);
    Some(o)
}

/// MUL, DIV, IMUL with three operands, sign extension in place.
fn wide_operation(instr: &Instruction) -> Option<Op> {
    use Mnemonic as M;
    let mut o = op(mov::nop);
    let mnemonic = instr.mnemonic();
    let (kind, register) = (instr.op0_kind(), instr.op0_register());
    let run = match mnemonic {
        M::Mul | M::Div => {
            let size = match kind {
                OpKind::Register => register.size(),
                _ => instr.memory_size().size(),
            };
            if size < 4 {
                return None;
            }
            let (reg, mem) = wide::mul_div(mnemonic == M::Mul, size as u64);
            if kind == OpKind::Register {
                o.src = at(register)?;
                reg
            } else {
                mem[memory(instr, &mut o)?]
            }
        }
        M::Imul if instr.op_count() == 3 && instr.op1_kind() == OpKind::Register => {
            o.dst = at(register)?;
            o.src = at(instr.op1_register())?;
            o.imm = instr.immediate(2);
            wide::imul_imm(register.size() as u64)
        }
        M::Cwd => wide::sign_spread(2),
        M::Cdq => wide::sign_spread(4),
        M::Cqo => wide::sign_spread(8),
        M::Cdqe => mov::extend(true, 8, 4).0,
        M::Cwde => mov::extend(true, 4, 2).0,
        _ => return None,
    };
    o.run.set(run);
    Some(o)
}

fn branch(instr: &Instruction) -> Option<Op> {
    use Mnemonic as M;
    let mut o = op(mov::nop);
    let kind = instr.op0_kind();
    let direct = kind == OpKind::NearBranch64;
    if direct {
        o.imm = instr.near_branch64();
    }
    let run: Handler = match instr.mnemonic() {
        M::Jmp if direct => control::jmp,
        M::Call if direct => control::call,
        M::Jmp | M::Call if kind == OpKind::Register && instr.op0_register().is_gpr64() => {
            o.src = at(instr.op0_register())?;
            if instr.mnemonic() == M::Call {
                control::indirect_r::<true>
            } else {
                control::indirect_r::<false>
            }
        }
        M::Jmp | M::Call
            if kind == OpKind::Memory
                && instr.memory_size().size() == 8
                && !instr.is_jmp_far_indirect()
                && !instr.is_call_far_indirect() =>
        {
            let any = memory(instr, &mut o)? != 0;
            match (instr.mnemonic() == M::Call, any) {
                (false, false) => control::indirect_m::<false, BaseDisp>,
                (false, true) => control::indirect_m::<false, Any>,
                (true, false) => control::indirect_m::<true, BaseDisp>,
                (true, true) => control::indirect_m::<true, Any>,
            }
        }
        M::Ret if instr.stack_pointer_increment() >= 8 => {
            o.imm = instr.stack_pointer_increment() as u64 - 8;
            control::ret
        }
        _ if direct && instr.is_jcc_short_or_near() => jcc(condition(instr.condition_code())),
        _ => return None,
    };
    o.run.set(run);
    Some(o)
}

fn jcc(cc: u8) -> Handler {
    use control::jcc;
    match cc {
        0 => jcc::<0>,
        1 => jcc::<1>,
        2 => jcc::<2>,
        3 => jcc::<3>,
        4 => jcc::<4>,
        5 => jcc::<5>,
        6 => jcc::<6>,
        7 => jcc::<7>,
        8 => jcc::<8>,
        9 => jcc::<9>,
        10 => jcc::<10>,
        11 => jcc::<11>,
        12 => jcc::<12>,
        13 => jcc::<13>,
        14 => jcc::<14>,
        _ => jcc::<15>,
    }
}

/// The encoding of a condition.
pub(crate) fn condition(cc: ConditionCode) -> u8 {
    use ConditionCode as C;
    match cc {
        C::o | C::None => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}
