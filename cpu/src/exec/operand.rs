//! Operands of decoded instructions.

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::{Cpu, PAGE, seg};
use crate::fault::Res;
use crate::int::mask;

/// Number of a general register, and whether it is one of AH, CH, DH and BH.
pub(crate) fn register_number(register: Register) -> Option<(usize, bool)> {
    let high = register as u32 >= Register::AH as u32 && register as u32 <= Register::BH as u32;
    if high {
        return Some(((register as u32 - Register::AH as u32) as usize, true));
    }
    register.is_gpr().then(|| (register.full_register().number(), false))
}

/// Number of a segment register in `Cpu::segs`.
pub(crate) fn segment_number(register: Register) -> usize {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// Bytes in operand `n`.
pub(crate) fn size(instr: &Instruction, n: u32) -> u64 {
    match instr.op_kind(n) {
        OpKind::Register => instr.op_register(n).size() as u64,
        OpKind::Memory => instr.memory_size().size() as u64,
        _ => size(instr, 0),
    }
}

/// Bytes in an address of the memory operand.
pub(crate) fn address_size(instr: &Instruction) -> u64 {
    let register = |r: Register| (r != Register::None).then(|| r.size() as u64);
    register(instr.memory_base())
        .or_else(|| register(instr.memory_index()).filter(|n| *n <= 8))
        .unwrap_or_else(|| u64::from(instr.memory_displ_size().max(2)))
}

impl Cpu {
    /// Reads a general register by name.
    pub(crate) fn get(&self, register: Register) -> u64 {
        match register_number(register) {
            Some((n, true)) => self.regs[n] >> 8 & 0xFF,
            Some((n, false)) => self.regs[n] & mask(register.size() as u64),
            None => 0,
        }
    }

    /// Writes a general register by name; a 32-bit one is zero-extended.
    pub(crate) fn put(&mut self, register: Register, value: u64) {
        match register_number(register) {
            Some((n, true)) => self.regs[n] = self.regs[n] & !0xFF00 | (value & 0xFF) << 8,
            Some((n, false)) => self.set_reg(n, register.size() as u64, value),
            None => {}
        }
    }

    /// Offset of the memory operand in its segment.
    pub(crate) fn offset(&self, instr: &Instruction) -> u64 {
        let base = match instr.memory_base() {
            Register::RIP | Register::EIP => self.regs[PAGE],
            base => self.get(base),
        };
        let index = self.get(instr.memory_index());
        base.wrapping_add(index.wrapping_mul(u64::from(instr.memory_index_scale())))
            .wrapping_add(instr.memory_displacement64())
            & mask(address_size(instr))
    }

    /// Linear address of the memory operand without any check.
    pub(crate) fn raw_address(&self, instr: &Instruction) -> u64 {
        let base = self.seg_base[segment_number(instr.memory_segment())];
        self.offset(instr).wrapping_add(base)
    }

    /// Linear address of the memory operand, `size` bytes of which are accessed.
    pub(crate) fn address(&mut self, instr: &Instruction, size: u64, write: bool) -> Res<u64> {
        let offset = self.offset(instr);
        self.linear(segment_number(instr.memory_segment()), offset, size, write)
    }

    /// Reads operand `n`, zero-extended; immediates come sign-extended where the encoding does it.
    pub(crate) fn read(&mut self, instr: &Instruction, n: u32) -> Res<u64> {
        match instr.op_kind(n) {
            OpKind::Register => Ok(self.get(instr.op_register(n))),
            OpKind::Memory => {
                let size = size(instr, n);
                let linear = self.address(instr, size, false)?;
                self.load_n(linear, size)
            }
            _ => Ok(instr.immediate(n)),
        }
    }

    /// Writes operand `n`.
    pub(crate) fn write(&mut self, instr: &Instruction, n: u32, value: u64) -> Res {
        match instr.op_kind(n) {
            OpKind::Register => {
                self.put(instr.op_register(n), value);
                Ok(())
            }
            _ => {
                let size = size(instr, n);
                let linear = self.address(instr, size, true)?;
                self.store_n(linear, size, value)
            }
        }
    }

    /// Replaces operand 0 by `f` of it, atomically under a LOCK prefix. `f` may set flags; they
    /// stay as they were if the operand cannot be written.
    pub(crate) fn modify(
        &mut self,
        instr: &Instruction,
        mut f: impl FnMut(&mut Cpu, u64) -> u64,
    ) -> Res {
        if instr.op0_kind() == OpKind::Register {
            let register = instr.op0_register();
            let old = self.get(register);
            let new = f(self, old);
            self.put(register, new);
            return Ok(());
        }
        let size = size(instr, 0);
        let linear = self.address(instr, size, true)?;
        let flags = self.flags;
        if instr.has_lock_prefix() {
            return self.locked(linear, size, |cpu, old| {
                cpu.flags = flags;
                f(cpu, old)
            });
        }
        let old = crate::int::by_size!(size, T => self.load_for_write::<T>(linear).map(crate::int::Int::zext))?;
        let new = f(self, old);
        let result = self.store_n(linear, size, new);
        if result.is_err() {
            self.flags = flags;
        }
        result
    }
}
