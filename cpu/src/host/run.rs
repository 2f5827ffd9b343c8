//! Execution of stubs: operands in, operands out, exceptions.

use iced_x86::Instruction;

use super::MXCSR_FLAGS;
use super::stub::{self, Stub, Unit};
use crate::block::{Block, Op};
use crate::cpu::{Cpu, PAGE, cr4};
use crate::fault::{Res, vector};
use crate::ops::{attempt, next};

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
        Unit::Sse => cpu.sse_available()?,
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
            16 if linear & 0xFFF <= 0xFF0 => {
                let (low, high): (u64, u64) = (self.load(linear)?, self.load(linear + 8)?);
                self.vector.context.memory[..8].copy_from_slice(&low.to_le_bytes());
                self.vector.context.memory[8..16].copy_from_slice(&high.to_le_bytes());
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
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| data[at + i]));
        match size {
            1 | 2 | 4 | 8 => self.store_n(linear, size, word(0)),
            16 if linear & 0xFFF <= 0xFF0 => {
                self.store(linear, word(0))?;
                self.store(linear + 8, word(8))
            }
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

    #[cold]
    fn run_unmasked(&mut self, stub: &Stub) -> Res {
        let (mxcsr, unmasked) = (self.vector.mxcsr(), self.vector.unmasked());
        self.vector.set_mxcsr(mxcsr & !MXCSR_FLAGS);
        let saved = stub.target.map(|n| (n, self.vector.context.ymm[n]));
        stub.run(&mut self.vector.context);
        let raised = self.vector.mxcsr() & MXCSR_FLAGS;
        self.vector.set_mxcsr(mxcsr | raised);
        if raised & unmasked == 0 {
            return Ok(());
        }
        if let Some((n, value)) = saved {
            self.vector.context.ymm[n] = value;
        }
        if self.cr4 & cr4::OSXMMEXCPT == 0 { self.ud() } else { self.raise_plain(vector::XM) }
    }

    /// Runs an x87 stub; the next waiting instruction finds what the guest does not mask.
    fn run_x87(&mut self, stub: &Stub, linear: u64) -> Res {
        let unmasked = !self.vector.fcw & 0x3F;
        if unmasked == 0 {
            stub.run(&mut self.vector.context);
        } else {
            // Invalid operation, denormal and division by zero leave the operands as they were.
            self.vector.snapshot();
            let before = self.vector.image.clone();
            stub.run(&mut self.vector.context);
            let raised = self.x87_status() & unmasked;
            if raised & 7 != 0 {
                self.vector.image = before;
                let fsw = u16::from_le_bytes([self.vector.image.0[2], self.vector.image.0[3]]);
                let fsw = fsw & 0x7F7F | raised & 7;
                self.vector.image.0[2..4].copy_from_slice(&fsw.to_le_bytes());
                self.vector.reload();
            }
        }
        self.vector.fip = self.rip;
        if stub.memory != 0 {
            self.vector.fdp = linear;
        }
        Ok(())
    }
}
