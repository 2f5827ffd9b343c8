//! Execution of stubs: operands in, operands out, exceptions.

use iced_x86::Instruction;

use super::MXCSR_FLAGS;
use super::stub::{self, Stub, Unit};
use crate::block::{Block, Op};
use crate::cpu::{Cpu, PAGE, cr4};
use crate::fault::{Res, vector};
use crate::ops::{attempt, next};

/// Fields of MXCSR: flags of what is found before anything is computed (invalid operation, denormal,
/// division by zero), of underflow; flush to zero.
const BEFORE: u32 = 7;
const UNDERFLOW: u32 = 1 << 4;
const FLUSH: u32 = 1 << 15;

/// The stub of `instr`, if it has one and there is room for it.
pub(crate) fn decode(cpu: &mut Cpu, instr: &Instruction) -> Option<*const Stub> {
    let (unit, host, key) = stub::normalise(instr)?;
    let vector = &mut cpu.vector;
    if let Some(stub) = vector.stubs.get(&key) {
        return Some(&raw const **stub);
    }
    let stub = Box::new(stub::build(&mut vector.code, instr, unit, &host, &key)?);
    let pointer = &raw const *stub;
    vector.stubs.insert(key, stub);
    Some(pointer)
}

/// Executes an instruction by its stub, which is `op.disp`.
pub(crate) unsafe fn run_op(cpu: &mut Cpu, op: *const Op) -> *const Block {
    // SAFETY: contract of handlers; `disp` of these ops is a stub, which lives as long as any
    // block, and `imm` an index of `slow`.
    let (stub, instr) =
        unsafe { (&*((*op).disp as *const Stub), (&(*cpu.block).slow)[(*op).imm as usize].1) };
    // SAFETY: contract of handlers.
    let off = unsafe { (*op).off };
    cpu.rip = cpu.regs[PAGE].wrapping_add(u64::from(off)) & cpu.ip_mask();
    attempt!(cpu, op, execute(cpu, stub, &instr));
    next!(cpu, op)
}

fn execute(cpu: &mut Cpu, stub: &Stub, instr: &Instruction) -> Res {
    match stub.unit {
        Unit::X87 => {
            cpu.x87_available()?;
            cpu.x87_pending()?;
        }
        Unit::Mmx => {
            cpu.mmx_available()?;
            cpu.x87_pending()?;
        }
        Unit::Sse => {
            cpu.sse_available()?;
            if stub.mmx {
                cpu.x87_pending()?;
            }
        }
        Unit::Avx => cpu.avx_available()?,
    }
    let mut linear = 0;
    let size = stub.memory;
    if size != 0 {
        // Alignment is looked at before the rest of the address.
        if stub.align > 1 && cpu.raw_address(instr) & (stub.align - 1) != 0 {
            return cpu.gp(0);
        }
        linear = cpu.address(instr, size, stub.writes)?;
        if stub.reads {
            cpu.load_operand(linear, size)?;
        }
        if stub.writes {
            cpu.ensure_writable(linear, size)?;
        }
    }
    for i in 0..5 {
        if let Some((register, _)) = stub.gpr[i] {
            cpu.vector.context.gpr[i] = cpu.get(register);
        }
    }
    if instr.rflags_read() != 0 {
        cpu.vector.context.flags = cpu.flags.get() & crate::flags::bit::ARITH | 2;
    }
    match stub.unit {
        Unit::X87 => cpu.run_x87(stub, linear)?,
        _ if stub.float => cpu.run_float(stub)?,
        _ => stub.run(&mut cpu.vector.context),
    }
    if stub.writes {
        cpu.store_operand(linear, size)?;
    }
    for i in 0..5 {
        if let Some((register, true)) = stub.gpr[i] {
            let value = cpu.vector.context.gpr[i];
            // An implicit result is 32 bits wide: ECX of PCMPESTRI.
            let register = if i >= 2 { register.full_register32() } else { register };
            cpu.put(register, value);
        }
    }
    if stub.flags != 0 {
        let flags = cpu.vector.context.flags;
        cpu.flags.replace(stub.flags, flags);
    }
    Ok(())
}

impl Cpu {
    /// Reads a memory operand into the context.
    fn load_operand(&mut self, linear: u64, size: u64) -> Res {
        match size {
            1 | 2 | 4 | 8 => {
                let v = self.load_n(linear, size)?;
                self.vector.context.memory[..8].copy_from_slice(&v.to_le_bytes());
            }
            16 => {
                let data = self.load_array::<16>(linear)?;
                self.vector.context.memory[..16].copy_from_slice(&data);
            }
            _ => {
                let mut data = [0; 64];
                self.read_bytes(linear, &mut data[..size as usize])?;
                self.vector.context.memory = data;
            }
        }
        Ok(())
    }

    /// Writes the context's memory operand back.
    fn store_operand(&mut self, linear: u64, size: u64) -> Res {
        let data = self.vector.context.memory;
        match size {
            1 | 2 | 4 | 8 => {
                let word = u64::from_le_bytes(std::array::from_fn(|i| data[i]));
                self.store_n(linear, size, word)
            }
            16 => self.store_array::<16>(linear, std::array::from_fn(|i| data[i])),
            _ => self.write_bytes(linear, &data[..size as usize]),
        }
    }

    /// Fails as a write would, before anything has happened.
    pub(super) fn ensure_writable(&mut self, linear: u64, size: u64) -> Res {
        let tag = self.tlb.tag(linear.wrapping_add(size - 1));
        if self.tlb.entry(linear).write == tag { Ok(()) } else { self.probe_write(linear, size) }
    }

    /// Runs a stub that computes under MXCSR; raises #XM for what the guest does not mask.
    #[inline(always)]
    pub(super) fn run_float(&mut self, stub: &Stub) -> Res {
        if self.vector.unmasked() != 0 {
            return self.run_unmasked(stub);
        }
        stub.run(&mut self.vector.context);
        Ok(())
    }

    /// As [`Self::run_float`], where the guest leaves exceptions unmasked (SDM vol. 1, 11.5): the
    /// host masks them all, and its flags say which ones are due.
    #[cold]
    fn run_unmasked(&mut self, stub: &Stub) -> Res {
        let (mxcsr, unmasked) = (self.vector.mxcsr(), self.vector.unmasked());
        let saved = stub.target.map(|n| (n, self.vector.context.ymm[n]));
        let image = stub.mmx.then(|| {
            self.vector.snapshot();
            self.vector.image.clone()
        });
        // Unmasked underflow is not flushed to zero, and is also due for a result that is tiny
        // and exact. To flush such results shows them, at the price of their precision flag.
        let mut tiny = 0;
        let mut base = mxcsr & !MXCSR_FLAGS;
        if unmasked & UNDERFLOW != 0 {
            tiny = self.run_under(stub, base | FLUSH) & UNDERFLOW;
            if let Some((n, value)) = saved {
                self.vector.context.ymm[n] = value;
            }
            base &= !FLUSH;
        }
        let mut raised = self.run_under(stub, base) | tiny;
        if raised & unmasked & BEFORE != 0 {
            // Nothing has been computed.
            raised &= BEFORE;
        }
        self.vector.set_mxcsr(mxcsr | raised);
        if raised & unmasked == 0 {
            return Ok(());
        }
        if let Some((n, value)) = saved {
            self.vector.context.ymm[n] = value;
        }
        if let Some(image) = image {
            self.vector.image = image;
            self.vector.reload();
        }
        if self.cr4 & cr4::OSXMMEXCPT == 0 { self.ud() } else { self.raise_plain(vector::XM) }
    }

    /// Runs a stub under `mxcsr`; returns the flags that it raises.
    fn run_under(&mut self, stub: &Stub, mxcsr: u32) -> u32 {
        self.vector.set_mxcsr(mxcsr);
        stub.run(&mut self.vector.context);
        self.vector.mxcsr() & MXCSR_FLAGS
    }

    /// Runs an x87 stub; what the guest does not mask stays pending.
    fn run_x87(&mut self, stub: &Stub, linear: u64) -> Res {
        if self.vector.fcw & 0x3F != 0x3F && stub.writes && !stub.reads {
            // A store that such an exception prevents leaves memory as it is.
            self.load_operand(linear, stub.memory)?;
        }
        stub.run(&mut self.vector.context);
        self.vector.fip = self.rip;
        if stub.memory != 0 {
            self.vector.fdp = linear;
        }
        Ok(())
    }
}
