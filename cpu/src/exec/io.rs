//! IN and OUT, and the permission that both need (SDM vol. 1, 19.5).

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Exec;
use super::operand::size;
use crate::cpu::{Cpu, RAX, RDX, seg};
use crate::fault::Res;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    Some(match mnemonic {
        Mnemonic::In => input,
        Mnemonic::Out => output,
        _ => return None,
    })
}

fn port(cpu: &Cpu, instr: &Instruction, n: u32) -> u16 {
    match instr.op_kind(n) {
        OpKind::Register => cpu.reg(RDX, 2) as u16,
        _ => u16::from(instr.immediate8()),
    }
}

fn input(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 0);
    let port = port(cpu, instr, 1);
    cpu.io_allowed(port, size)?;
    let v = cpu.port_read(port, size);
    cpu.set_reg(RAX, size, v);
    Ok(())
}

fn output(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let size = size(instr, 1);
    let port = port(cpu, instr, 0);
    cpu.io_allowed(port, size)?;
    cpu.port_write(port, size, cpu.regs[RAX]);
    Ok(())
}

impl Cpu {
    /// Reads a port; `run` looks at the machine's wishes before the next block.
    pub(crate) fn port_read(&mut self, port: u16, size: u64) -> u64 {
        self.watch_port(port, size);
        let mut data = [0; 8];
        self.io().pio_read(port, &mut data[..size as usize]);
        self.mailbox.attention.store(true, std::sync::atomic::Ordering::Relaxed);
        u64::from_le_bytes(data)
    }

    /// Writes a port; `run` looks at the machine's wishes before the next block.
    pub(crate) fn port_write(&mut self, port: u16, size: u64, value: u64) {
        self.watch_port(port, size);
        self.io().pio_write(port, &value.to_le_bytes()[..size as usize]);
        self.mailbox.attention.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// #GP(0) unless the program may reach `size` ports from `port` on.
    pub(crate) fn io_allowed(&mut self, port: u16, size: u64) -> Res {
        if !self.protected() || !self.v86() && self.cpl <= self.iopl() {
            return Ok(());
        }
        let tr = self.segs[seg::TR];
        // Only a 32-bit or 64-bit TSS has a permission bitmap.
        if tr.unusable() || tr.kind() & 0b1101 != 0b1001 || tr.limit < 103 {
            return self.gp(0);
        }
        let map = self.load_system(tr.base.wrapping_add(102), 2)?;
        let at = map + u64::from(port) / 8;
        if at + 1 > u64::from(tr.limit) {
            return self.gp(0);
        }
        let bits = self.load_system(tr.base.wrapping_add(at), 2)?;
        if bits >> (port & 7) & ((1 << size) - 1) != 0 { self.gp(0) } else { Ok(()) }
    }
}
