//! The common forms of vector instructions in 64-bit code: moves, which are done here, and
//! computations with one memory operand or none and without flags, which have a stub.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::run::decode;
use super::stub::{Stub, Unit};
use crate::block::{Block, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::Res;
use crate::ops::mem::{Any, BaseDisp, Ea, get, set};
use crate::ops::{attempt, leave_as_is, memory, next, op};

/// The op of a vector instruction, if it has one of these forms.
pub(crate) fn specialise(cpu: &mut Cpu, instr: &Instruction) -> Option<Op> {
    if instr.has_lock_prefix() {
        return None;
    }
    mov(instr).or_else(|| compute(cpu, instr))
}

/// How the bytes of a register above those that a move writes come out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// They stay: legacy SSE between registers, and 16-byte loads.
    Kept = 0,
    /// The XMM register's are cleared: legacy SSE loads of less than 16 bytes.
    Xmm = 1,
    /// All are cleared: AVX.
    All = 2,
}

fn xmm(register: Register) -> Option<u8> {
    (register.is_xmm() || register.is_ymm()).then(|| register.number() as u8).filter(|n| *n < 16)
}

fn mov(instr: &Instruction) -> Option<Op> {
    use Mnemonic as M;
    let mnemonic = instr.mnemonic();
    let (aligned, scalar, avx) = match mnemonic {
        M::Movaps | M::Movapd | M::Movdqa => (true, false, false),
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => (false, false, false),
        M::Movss | M::Movsd | M::Movd | M::Movq => (false, true, false),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa => (true, false, true),
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu => (false, false, true),
        M::Vmovss | M::Vmovsd | M::Vmovd | M::Vmovq => (false, true, true),
        _ => return None,
    };
    if instr.op_count() != 2 {
        return None;
    }
    let (k0, k1) = (instr.op0_kind(), instr.op1_kind());
    let (r0, r1) = (instr.op0_register(), instr.op1_register());
    let mut o = op(crate::ops::slow);
    let rest = match (avx, scalar) {
        (true, _) => Rest::All,
        (false, true) => Rest::Xmm,
        (false, false) => Rest::Kept,
    };
    let run: Handler = match (k0, k1) {
        (OpKind::Register, OpKind::Memory) => {
            o.dst = xmm(r0)?;
            let any = memory(instr, &mut o)? != 0;
            let size = instr.memory_size().size();
            o.aux = if aligned { size as u8 - 1 } else { 0 };
            by_form!(loads, any, rest, size)
        }
        (OpKind::Memory, OpKind::Register) => {
            o.src = xmm(r1)?;
            let any = memory(instr, &mut o)? != 0;
            let size = instr.memory_size().size();
            o.aux = if aligned { size as u8 - 1 } else { 0 };
            by_form!(stores, any, rest, size)
        }
        (OpKind::Register, OpKind::Register) => match (xmm(r0), xmm(r1)) {
            (Some(dst), Some(src)) if !scalar => {
                (o.dst, o.src) = (dst, src);
                match (avx, r0.size()) {
                    (false, 16) => copy::<16, { Rest::Kept as u8 }>,
                    (true, 16) => copy::<16, { Rest::All as u8 }>,
                    (true, 32) => copy::<32, { Rest::All as u8 }>,
                    _ => return None,
                }
            }
            (Some(dst), Some(src)) if matches!(mnemonic, M::Movq | M::Vmovq) => {
                (o.dst, o.src) = (dst, src);
                if avx { copy::<8, { Rest::All as u8 }> } else { copy::<8, { Rest::Xmm as u8 }> }
            }
            (Some(dst), None) if r1.is_gpr() => {
                (o.dst, o.src) = (dst, 8 * r1.number() as u8);
                match (avx, r1.size()) {
                    (false, 4) => from_general::<4, { Rest::Xmm as u8 }>,
                    (false, 8) => from_general::<8, { Rest::Xmm as u8 }>,
                    (true, 4) => from_general::<4, { Rest::All as u8 }>,
                    (true, 8) => from_general::<8, { Rest::All as u8 }>,
                    _ => return None,
                }
            }
            (None, Some(src)) if r0.is_gpr() => {
                (o.dst, o.src) = (8 * r0.number() as u8, src);
                match (avx, r0.size()) {
                    (false, 4) => to_general::<4, { Rest::Xmm as u8 }>,
                    (false, 8) => to_general::<8, { Rest::Xmm as u8 }>,
                    (true, 4) => to_general::<4, { Rest::All as u8 }>,
                    (true, 8) => to_general::<8, { Rest::All as u8 }>,
                    _ => return None,
                }
            }
            _ => return None,
        },
        _ => return None,
    };
    o.run.set(run);
    Some(o)
}

macro_rules! by_form {
    ($handler:ident, $any:expr, $rest:expr, $size:expr) => {{
        const KEPT: u8 = Rest::Kept as u8;
        const XMM: u8 = Rest::Xmm as u8;
        const ALL: u8 = Rest::All as u8;
        match ($any, $rest, $size) {
            (false, Rest::Kept, 16) => $handler::<BaseDisp, 16, KEPT>,
            (true, Rest::Kept, 16) => $handler::<Any, 16, KEPT>,
            (false, Rest::Xmm, 4) => $handler::<BaseDisp, 4, XMM>,
            (true, Rest::Xmm, 4) => $handler::<Any, 4, XMM>,
            (false, Rest::Xmm, 8) => $handler::<BaseDisp, 8, XMM>,
            (true, Rest::Xmm, 8) => $handler::<Any, 8, XMM>,
            (false, Rest::All, 4) => $handler::<BaseDisp, 4, ALL>,
            (true, Rest::All, 4) => $handler::<Any, 4, ALL>,
            (false, Rest::All, 8) => $handler::<BaseDisp, 8, ALL>,
            (true, Rest::All, 8) => $handler::<Any, 8, ALL>,
            (false, Rest::All, 16) => $handler::<BaseDisp, 16, ALL>,
            (true, Rest::All, 16) => $handler::<Any, 16, ALL>,
            (false, Rest::All, 32) => $handler::<BaseDisp, 32, ALL>,
            (true, Rest::All, 32) => $handler::<Any, 32, ALL>,
            _ => return None,
        }
    }};
}
use by_form;

/// An instruction that its stub executes: vector registers, and a memory operand that is read.
fn compute(cpu: &mut Cpu, instr: &Instruction) -> Option<Op> {
    let has_memory = (0..instr.op_count()).any(|n| instr.op_kind(n) == OpKind::Memory);
    let mut o = op(crate::ops::slow);
    let any = if has_memory { memory(instr, &mut o)? != 0 } else { false };
    let pointer = decode(cpu, instr)?;
    // SAFETY: stubs live as long as any block.
    let stub = unsafe { &*pointer };
    let plain = matches!(stub.unit, Unit::Sse | Unit::Avx)
        && !stub.mmx
        && stub.flags == 0
        && instr.rflags_read() == 0
        && stub.gpr.iter().all(Option::is_none)
        && !stub.writes
        && stub.reads == has_memory;
    if !plain {
        return None;
    }
    o.imm = pointer as u64;
    o.aux = (stub.align - 1) as u8;
    o.run.set(match (has_memory, any, stub.memory) {
        (false, ..) => registers,
        (_, false, 4) => with_memory::<BaseDisp, 4>,
        (_, true, 4) => with_memory::<Any, 4>,
        (_, false, 8) => with_memory::<BaseDisp, 8>,
        (_, true, 8) => with_memory::<Any, 8>,
        (_, false, 16) => with_memory::<BaseDisp, 16>,
        (_, true, 16) => with_memory::<Any, 16>,
        (_, false, 32) => with_memory::<BaseDisp, 32>,
        (_, true, 32) => with_memory::<Any, 32>,
        _ => return None,
    });
    Some(o)
}

impl Cpu {
    #[inline(always)]
    fn unit_available(&mut self, avx: bool) -> Res {
        if avx { self.avx_available() } else { self.sse_available() }
    }

    #[inline(always)]
    fn ymm(&mut self, n: u8) -> &mut [u8; 32] {
        &mut self.vector.context.ymm[usize::from(n & 15)]
    }

    /// Writes the low `N` bytes of register `n`.
    #[inline(always)]
    fn set_vector<const N: usize, const REST: u8>(&mut self, n: u8, data: [u8; N]) {
        let register = self.ymm(n);
        register[..N].copy_from_slice(&data);
        if REST == Rest::All as u8 {
            register[N..].fill(0);
        } else if REST == Rest::Xmm as u8 {
            register[N..16].fill(0);
        }
    }

    #[inline(always)]
    fn vector<const N: usize>(&mut self, n: u8) -> [u8; N] {
        let register = self.ymm(n);
        std::array::from_fn(|i| register[i])
    }
}

/// The address `$linear`, or out of the block with #GP(0) if it lacks the alignment that `aux` asks
/// for. That comes before anything else of the address.
macro_rules! aligned {
    ($cpu:expr, $op:expr, $linear:expr) => {{
        let linear = $linear;
        // SAFETY: contract of handlers.
        if linear & u64::from(unsafe { (*$op).aux }) != 0 {
            return misaligned($cpu, $op);
        }
        linear
    }};
}

#[cold]
fn misaligned(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // The Err is what `gp` always gives; that there is an exception stands in the CPU.
    let _: Res = cpu.gp(0);
    leave_as_is(cpu, op)
}

/// A load of `N` bytes into a vector register.
unsafe fn loads<E: Ea, const N: usize, const REST: u8>(
    cpu: &mut Cpu,
    op: *const Op,
) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    attempt!(cpu, op, cpu.unit_available(REST == Rest::All as u8));
    let linear = aligned!(cpu, op, E::address(cpu, o));
    let data = attempt!(cpu, op, cpu.load_array::<N>(linear));
    cpu.set_vector::<N, REST>(o.dst, data);
    next!(cpu, op)
}

/// A store of the low `N` bytes of a vector register.
unsafe fn stores<E: Ea, const N: usize, const REST: u8>(
    cpu: &mut Cpu,
    op: *const Op,
) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    attempt!(cpu, op, cpu.unit_available(REST == Rest::All as u8));
    let linear = aligned!(cpu, op, E::address(cpu, o));
    let data = cpu.vector::<N>(o.src);
    attempt!(cpu, op, cpu.store_array(linear, data));
    next!(cpu, op)
}

/// A move between vector registers.
unsafe fn copy<const N: usize, const REST: u8>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    attempt!(cpu, op, cpu.unit_available(REST == Rest::All as u8));
    let data = cpu.vector::<N>(o.src);
    cpu.set_vector::<N, REST>(o.dst, data);
    next!(cpu, op)
}

/// MOVD and MOVQ from a general register.
unsafe fn from_general<const N: usize, const REST: u8>(
    cpu: &mut Cpu,
    op: *const Op,
) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    attempt!(cpu, op, cpu.unit_available(REST == Rest::All as u8));
    let value = get::<u64>(cpu, o.src).to_le_bytes();
    cpu.set_vector::<N, REST>(o.dst, std::array::from_fn(|i| value[i]));
    next!(cpu, op)
}

/// MOVD and MOVQ to a general register.
unsafe fn to_general<const N: usize, const REST: u8>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers.
    let o = unsafe { &*op };
    attempt!(cpu, op, cpu.unit_available(REST == Rest::All as u8));
    let value = u64::from_le_bytes(cpu.vector::<8>(o.src));
    if N == 4 {
        set(cpu, o.dst, value as u32)
    } else {
        set(cpu, o.dst, value)
    }
    next!(cpu, op)
}

/// Runs the stub of an op that has its operands in vector registers and the context's memory.
#[inline(always)]
fn run(cpu: &mut Cpu, stub: &Stub) -> Res {
    if stub.float {
        return cpu.run_float(stub);
    }
    stub.run(&mut cpu.vector.context);
    Ok(())
}

/// A computation on registers.
unsafe fn registers(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers; `imm` of these ops is a stub, which lives as long as any block.
    let stub = unsafe { &*((*op).imm as *const Stub) };
    attempt!(cpu, op, cpu.unit_available(stub.unit == Unit::Avx));
    attempt!(cpu, op, run(cpu, stub));
    next!(cpu, op)
}

/// A computation that reads `N` bytes of memory.
unsafe fn with_memory<E: Ea, const N: usize>(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: as in `registers`.
    let (o, stub) = unsafe { (&*op, &*((*op).imm as *const Stub)) };
    attempt!(cpu, op, cpu.unit_available(stub.unit == Unit::Avx));
    let linear = aligned!(cpu, op, E::address(cpu, o));
    let data = attempt!(cpu, op, cpu.load_array::<N>(linear));
    cpu.vector.context.memory[..N].copy_from_slice(&data);
    attempt!(cpu, op, run(cpu, stub));
    next!(cpu, op)
}
