//! String instructions, with REP run in stretches that stay within a page.
//!
//! Between stretches RSI, RDI and RCX are up to date, so a fault or an interrupt finds them as
//! the architecture says, and the instruction starts again from there.

use std::sync::atomic::Ordering;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Exec;
use super::operand::segment_number;
use crate::cpu::{Cpu, RAX, RCX, RDI, RDX, RSI, seg};
use crate::fault::{Res, Stop, Why};
use crate::flags::bit;
use crate::int::{Int, by_size, mask};
use crate::ops::alu::{Alu, Cmp};

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movsb => |cpu, i| run(cpu, i, 1, movs),
        M::Movsw => |cpu, i| run(cpu, i, 2, movs),
        M::Movsd => |cpu, i| run(cpu, i, 4, movs),
        M::Movsq => |cpu, i| run(cpu, i, 8, movs),
        M::Stosb => |cpu, i| run(cpu, i, 1, stos),
        M::Stosw => |cpu, i| run(cpu, i, 2, stos),
        M::Stosd => |cpu, i| run(cpu, i, 4, stos),
        M::Stosq => |cpu, i| run(cpu, i, 8, stos),
        M::Lodsb => |cpu, i| run(cpu, i, 1, lods),
        M::Lodsw => |cpu, i| run(cpu, i, 2, lods),
        M::Lodsd => |cpu, i| run(cpu, i, 4, lods),
        M::Lodsq => |cpu, i| run(cpu, i, 8, lods),
        M::Scasb => |cpu, i| run(cpu, i, 1, scas),
        M::Scasw => |cpu, i| run(cpu, i, 2, scas),
        M::Scasd => |cpu, i| run(cpu, i, 4, scas),
        M::Scasq => |cpu, i| run(cpu, i, 8, scas),
        M::Cmpsb => |cpu, i| run(cpu, i, 1, cmps),
        M::Cmpsw => |cpu, i| run(cpu, i, 2, cmps),
        M::Cmpsd => |cpu, i| run(cpu, i, 4, cmps),
        M::Cmpsq => |cpu, i| run(cpu, i, 8, cmps),
        M::Insb => |cpu, i| run(cpu, i, 1, ins),
        M::Insw => |cpu, i| run(cpu, i, 2, ins),
        M::Insd => |cpu, i| run(cpu, i, 4, ins),
        M::Outsb => |cpu, i| run(cpu, i, 1, outs),
        M::Outsw => |cpu, i| run(cpu, i, 2, outs),
        M::Outsd => |cpu, i| run(cpu, i, 4, outs),
        _ => return None,
    })
}

/// A string instruction in execution.
struct Run {
    /// Bytes in an element and in an address.
    size: u64,
    address: u64,
    /// Segment of RSI.
    source: usize,
    /// Elements that may be done at once.
    most: u64,
}

/// Does up to `most` elements; returns how many. It stops after one whose flags are to be looked
/// at, or before one that faults if it has done any.
type Step = fn(&mut Cpu, &Run) -> Res<u64>;

fn run(cpu: &mut Cpu, instr: &Instruction, size: u64, step: Step) -> Res {
    let kinds = [instr.op0_kind(), instr.op1_kind()];
    let has = |names: [OpKind; 2]| kinds.iter().any(|k| names.contains(k));
    let address = if has([OpKind::MemorySegSI, OpKind::MemoryESDI]) {
        2
    } else if has([OpKind::MemorySegESI, OpKind::MemoryESEDI]) {
        4
    } else {
        8
    };
    let source = segment_number(instr.memory_segment());
    let mut run = Run { size, address, source, most: 1 };
    let (rep, repne) = (instr.has_rep_prefix(), instr.has_repne_prefix());
    if !rep && !repne {
        return step(cpu, &run).map(drop);
    }
    let compares = matches!(
        instr.mnemonic(),
        Mnemonic::Scasb
            | Mnemonic::Scasw
            | Mnemonic::Scasd
            | Mnemonic::Scasq
            | Mnemonic::Cmpsb
            | Mnemonic::Cmpsw
            | Mnemonic::Cmpsd
            | Mnemonic::Cmpsq
    );
    let single = cpu.flags.rest & bit::TF != 0;
    loop {
        let left = cpu.reg(RCX, address);
        if left == 0 {
            if address == 4 {
                cpu.set_reg(RCX, 4, 0);
            }
            return Ok(());
        }
        run.most = left;
        let done = step(cpu, &run)?;
        cpu.set_reg(RCX, address, left - done);
        if compares && cpu.flags.zf() != rep || left == done {
            return Ok(());
        }
        if single || cpu.watch_hit != 0 || cpu.mailbox.attention.load(Ordering::Relaxed) {
            // Whatever comes between two iterations saves RF set.
            cpu.flags.rest |= bit::RF;
            cpu.stop = Some(Why::Again);
            return Err(Stop);
        }
    }
}

impl Run {
    fn offset(&self, cpu: &Cpu, register: usize) -> u64 {
        cpu.reg(register, self.address)
    }

    fn source(&self, cpu: &mut Cpu) -> Res<u64> {
        let offset = self.offset(cpu, RSI);
        cpu.linear(self.source, offset, self.size, false)
    }

    fn target(&self, cpu: &mut Cpu, write: bool) -> Res<u64> {
        let offset = self.offset(cpu, RDI);
        cpu.linear(seg::ES, offset, self.size, write)
    }

    /// Moves an index register past `n` elements.
    fn advance(&self, cpu: &mut Cpu, register: usize, n: u64) {
        let by = n * self.size;
        let old = cpu.regs[register];
        let new =
            if cpu.flags.rest & bit::DF != 0 { old.wrapping_sub(by) } else { old.wrapping_add(by) };
        cpu.set_reg(register, self.address, new);
    }

    /// Elements from the one at `linear` on that can be done in one go: they run upwards, stay in
    /// the page, and (outside 64-bit mode, where limits are checked one by one) are one.
    fn stretch(&self, cpu: &Cpu, linear: u64) -> u64 {
        let watched =
            cpu.debug.control & 0xFF != 0 || cpu.checks_alignment() || cpu.debugger.watching;
        if cpu.flags.rest & (bit::DF | bit::TF) != 0 || self.most == 1 || watched {
            return 1;
        }
        if cpu.bits != crate::cpu::Bits::B64 {
            let flat = |s: usize| {
                cpu.segs[s].limit == u32::MAX
                    && cpu.segs[s].base == 0
                    && cpu.segs[s].kind() & 4 == 0
            };
            let wraps = self.address == 2;
            if wraps || !flat(seg::ES) || !flat(self.source) {
                return 1;
            }
        }
        ((4096 - (linear & 0xFFF)) / self.size).min(self.most).max(1)
    }

    fn compare(&self, cpu: &mut Cpu, a: u64, b: u64) {
        by_size!(self.size, T => {
            Cmp::apply::<T>(&mut cpu.flags, <T as Int>::trunc(a), <T as Int>::trunc(b));
        });
    }
}

fn movs(cpu: &mut Cpu, run: &Run) -> Res<u64> {
    let from = run.source(cpu)?;
    let to = match run.target(cpu, true) {
        Ok(to) => to,
        Err(Stop) => {
            // What is wrong with the source comes first.
            let why = cpu.stop;
            cpu.load_n(from, run.size)?;
            cpu.stop = why;
            return Err(Stop);
        }
    };
    let mut n = run.stretch(cpu, from).min(run.stretch(cpu, to));
    let bytes = n * run.size;
    // Overlapping upwards copies repeat what they have just written; they go one by one, unless
    // what is written is not read again.
    if n > 1 && to.wrapping_sub(from) >= bytes {
        let mut buffer = [0; 4096];
        let data = &mut buffer[..bytes as usize];
        cpu.read_bytes(from, data)?;
        cpu.write_bytes(to, data)?;
    } else {
        n = 1;
        let v = cpu.load_n(from, run.size)?;
        cpu.store_n(to, run.size, v)?;
    }
    run.advance(cpu, RSI, n);
    run.advance(cpu, RDI, n);
    Ok(n)
}

fn stos(cpu: &mut Cpu, run: &Run) -> Res<u64> {
    let to = run.target(cpu, true)?;
    let n = run.stretch(cpu, to);
    if n > 1 {
        let value = cpu.regs[RAX].to_le_bytes();
        let mut buffer = [0; 4096];
        let data = &mut buffer[..(n * run.size) as usize];
        if run.size == 1 {
            data.fill(value[0]);
        } else {
            for chunk in data.chunks_exact_mut(run.size as usize) {
                chunk.copy_from_slice(&value[..run.size as usize]);
            }
        }
        cpu.write_bytes(to, data)?;
    } else {
        cpu.store_n(to, run.size, cpu.regs[RAX])?;
    }
    run.advance(cpu, RDI, n);
    Ok(n)
}

fn lods(cpu: &mut Cpu, run: &Run) -> Res<u64> {
    let from = run.source(cpu)?;
    let v = cpu.load_n(from, run.size)?;
    cpu.set_reg(RAX, run.size, v);
    run.advance(cpu, RSI, 1);
    Ok(1)
}

fn scas(cpu: &mut Cpu, run: &Run) -> Res<u64> {
    let from = run.target(cpu, false)?;
    let v = cpu.load_n(from, run.size)?;
    run.compare(cpu, cpu.regs[RAX], v);
    run.advance(cpu, RDI, 1);
    Ok(1)
}

fn cmps(cpu: &mut Cpu, run: &Run) -> Res<u64> {
    // Processors read the second operand first, as faults show.
    let to = run.target(cpu, false)?;
    let b = cpu.load_n(to, run.size)?;
    let from = run.source(cpu)?;
    let a = cpu.load_n(from, run.size)?;
    run.compare(cpu, a, b);
    run.advance(cpu, RSI, 1);
    run.advance(cpu, RDI, 1);
    Ok(1)
}

fn ins(cpu: &mut Cpu, run: &Run) -> Res<u64> {
    let port = cpu.reg(RDX, 2) as u16;
    cpu.io_allowed(port, run.size)?;
    let to = run.target(cpu, true)?;
    // The device must not lose what cannot be stored.
    cpu.probe_write(to, run.size)?;
    let v = cpu.port_read(port, run.size);
    cpu.store_n(to, run.size, v)?;
    run.advance(cpu, RDI, 1);
    Ok(1)
}

fn outs(cpu: &mut Cpu, run: &Run) -> Res<u64> {
    let port = cpu.reg(RDX, 2) as u16;
    cpu.io_allowed(port, run.size)?;
    let from = run.source(cpu)?;
    let v = cpu.load_n(from, run.size)? & mask(run.size);
    cpu.port_write(port, run.size, v);
    run.advance(cpu, RSI, 1);
    Ok(1)
}
