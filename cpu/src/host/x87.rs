//! x87, MMX and SSE instructions that control the units, and those that save or load their state
//! whole (SDM vol. 1, 8.1 and 10.5).

use std::arch::asm;

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{MXCSR_MASK, masked};
use crate::cpu::{Cpu, RAX, cr0, seg};
use crate::exec::Exec;
use crate::exec::operand::segment_number;
use crate::fault::{Res, vector};

pub(crate) fn find(instr: &Instruction) -> Option<Exec> {
    use Mnemonic as M;
    Some(match instr.mnemonic() {
        M::Wait => wait,
        M::Fnop => |cpu, _| {
            cpu.x87_available()?;
            cpu.x87_pending()
        },
        M::Fninit => |cpu, _| {
            cpu.x87_available()?;
            cpu.x87_init();
            Ok(())
        },
        M::Fnclex => fnclex,
        M::Fldcw => fldcw,
        M::Fnstcw => fnstcw,
        M::Fnstsw => fnstsw,
        M::Fldenv => |cpu, i| load_state(cpu, i, false),
        M::Frstor => |cpu, i| load_state(cpu, i, true),
        M::Fnstenv => |cpu, i| store_state(cpu, i, false),
        M::Fnsave => |cpu, i| store_state(cpu, i, true),
        // Instructions of older coprocessors that do nothing now.
        M::Fneni | M::Fndisi | M::Fnsetpm => |cpu, _| cpu.x87_available(),
        M::Emms => |cpu, _| {
            cpu.mmx_available()?;
            cpu.x87_pending()?;
            // SAFETY: only the tags of the x87 unit change, which is the guest's.
            unsafe { asm!("emms", clobber_abi("sysv64")) };
            Ok(())
        },
        M::Ldmxcsr | M::Vldmxcsr => ldmxcsr,
        M::Stmxcsr | M::Vstmxcsr => stmxcsr,
        M::Vzeroupper => |cpu, _| {
            cpu.avx_available()?;
            for ymm in &mut cpu.vector.context.ymm {
                ymm[16..].fill(0);
            }
            Ok(())
        },
        M::Vzeroall => |cpu, _| {
            cpu.avx_available()?;
            cpu.vector.context.ymm = [[0; 32]; 16];
            Ok(())
        },
        _ => return masked::find(instr),
    })
}

impl Cpu {
    /// The status word of the unit, without what the guest's masks add.
    pub(crate) fn x87_status(&self) -> u16 {
        let fsw: u16;
        // SAFETY: FNSTSW only reads the status word.
        unsafe { asm!("fnstsw ax", out("ax") fsw, options(nomem, nostack)) };
        fsw
    }

    /// #MF when an exception that the guest does not mask is pending.
    #[inline]
    pub(crate) fn x87_pending(&mut self) -> Res {
        if self.vector.fcw & 0x3F == 0x3F {
            return Ok(());
        }
        if self.x87_status() & 0x80 == 0 {
            return Ok(());
        }
        self.raise_plain(vector::MF)
    }

    /// FNINIT.
    pub(crate) fn x87_init(&mut self) {
        // SAFETY: the x87 unit is the guest's.
        unsafe { asm!("fninit", clobber_abi("sysv64")) };
        self.vector.fcw = 0x37F;
        (self.vector.fip, self.vector.fdp, self.vector.fop) = (0, 0, 0);
    }

    fn set_fcw(&mut self, fcw: u16) {
        let fcw = fcw & 0x1F7F | 0x40;
        if self.x87_status() & 0x80 != 0 {
            // FLDCW would raise what is pending.
            self.vector.snapshot();
            self.vector.image.0[..2].copy_from_slice(&fcw.to_le_bytes());
            self.vector.reload();
            return;
        }
        self.vector.fcw = fcw;
        // SAFETY: no exception is pending; only the unit's control word and summary bits change.
        unsafe { asm!("fldcw [{}]", in(reg) &raw const fcw, options(nostack, readonly)) };
    }
}

fn wait(cpu: &mut Cpu, _: &Instruction) -> Res {
    const BOTH: u64 = cr0::MP | cr0::TS;
    if cpu.cr0 & BOTH == BOTH {
        return cpu.raise_plain(vector::NM);
    }
    cpu.x87_pending()
}

fn fnclex(cpu: &mut Cpu, _: &Instruction) -> Res {
    cpu.x87_available()?;
    // SAFETY: the x87 unit is the guest's.
    unsafe { asm!("fnclex", options(nomem, nostack)) };
    Ok(())
}

fn fldcw(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.x87_available()?;
    cpu.x87_pending()?;
    let linear = cpu.address(instr, 2, false)?;
    let fcw = cpu.load_n(linear, 2)? as u16;
    cpu.set_fcw(fcw);
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.x87_available()?;
    let linear = cpu.address(instr, 2, true)?;
    cpu.store_n(linear, 2, u64::from(cpu.vector.fcw))
}

fn fnstsw(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.x87_available()?;
    let fsw = u64::from(cpu.vector.summary(cpu.x87_status()));
    if instr.op0_kind() == OpKind::Register {
        cpu.set_reg(RAX, 2, fsw);
        return Ok(());
    }
    let linear = cpu.address(instr, 2, true)?;
    cpu.store_n(linear, 2, fsw)
}

/// The full tag word (two bits a register) of an FXSAVE image.
fn full_tags(image: &[u8; 512]) -> u16 {
    let top = image[3] >> 3 & 7;
    let mut tags = 0;
    for physical in 0..8_u8 {
        let tag = if image[4] >> physical & 1 == 0 {
            3
        } else {
            let at = 32 + 16 * usize::from((physical + 8 - top) & 7);
            let exponent = u16::from_le_bytes([image[at + 8], image[at + 9]]) & 0x7FFF;
            let mantissa = u64::from_le_bytes(std::array::from_fn(|i| image[at + i]));
            match (exponent, mantissa) {
                (0, 0) => 1,
                (0 | 0x7FFF, _) => 2,
                (_, m) if m >> 63 == 0 => 2,
                _ => 0,
            }
        };
        tags |= tag << (2 * physical);
    }
    tags
}

/// Whether the environment has the 16-bit format, and its size.
fn format(instr: &Instruction) -> (bool, u64) {
    match instr.code() {
        Code::Fldenv_m14byte | Code::Fnstenv_m14byte => (true, 14),
        Code::Frstor_m94byte | Code::Fnsave_m94byte => (true, 94),
        Code::Fldenv_m28byte | Code::Fnstenv_m28byte => (false, 28),
        _ => (false, 108),
    }
}

/// FNSTENV and FNSAVE.
fn store_state(cpu: &mut Cpu, instr: &Instruction, registers: bool) -> Res {
    cpu.x87_available()?;
    let (short, size) = format(instr);
    let linear = cpu.address(instr, size, true)?;
    cpu.vector.snapshot();
    let image = &cpu.vector.image.0;
    let v = &cpu.vector;
    let words: [u32; 7] = [
        u32::from(v.fcw),
        u32::from(u16::from_le_bytes([image[2], image[3]])),
        u32::from(full_tags(image)),
        v.fip as u32,
        u32::from(v.fop) << 16 | u32::from(cpu.segs[seg::CS].selector),
        v.fdp as u32,
        u32::from(cpu.segs[segment_number(instr.memory_segment())].selector),
    ];
    let mut data = [0; 108];
    let mut at = 0;
    for (i, word) in words.iter().enumerate() {
        let bytes = word.to_le_bytes();
        let n = if short { 2 } else { 4 };
        data[at..at + n].copy_from_slice(&bytes[..n]);
        // The upper halves of the first three words are reserved and read as ones.
        if !short && i < 3 {
            data[at + 2..at + 4].fill(0xFF);
        }
        at += n;
    }
    if registers {
        for i in 0..8 {
            data[at..at + 10].copy_from_slice(&image[32 + 16 * i..42 + 16 * i]);
            at += 10;
        }
    }
    cpu.write_bytes(linear, &data[..size as usize])?;
    if registers {
        cpu.x87_init();
    } else {
        // FNSTENV masks all exceptions.
        cpu.set_fcw(cpu.vector.fcw | 0x3F);
    }
    Ok(())
}

/// FLDENV and FRSTOR.
fn load_state(cpu: &mut Cpu, instr: &Instruction, registers: bool) -> Res {
    cpu.x87_available()?;
    let (short, size) = format(instr);
    let linear = cpu.address(instr, size, false)?;
    let mut data = [0; 108];
    cpu.read_bytes(linear, &mut data[..size as usize])?;
    let step = if short { 2 } else { 4 };
    let word = |i: usize| u16::from_le_bytes([data[step * i], data[step * i + 1]]);
    cpu.vector.snapshot();
    let image = &mut cpu.vector.image.0;
    image[..2].copy_from_slice(&word(0).to_le_bytes());
    image[2..4].copy_from_slice(&word(1).to_le_bytes());
    let tags = word(2);
    image[4] = (0..8).fold(0, |bits, i| bits | u8::from(tags >> (2 * i) & 3 != 3) << i);
    if registers {
        for i in 0..8 {
            let at = 7 * step + 10 * i;
            image[32 + 16 * i..42 + 16 * i].copy_from_slice(&data[at..at + 10]);
        }
    }
    cpu.vector.fip = u64::from(word(3));
    cpu.vector.fdp = u64::from(word(5));
    if !short {
        cpu.vector.fip |= u64::from(u16::from_le_bytes([data[14], data[15]])) << 16;
        cpu.vector.fop = u16::from_le_bytes([data[18], data[19]]) & 0x7FF;
        cpu.vector.fdp |= u64::from(u16::from_le_bytes([data[22], data[23]])) << 16;
    }
    cpu.vector.reload();
    Ok(())
}

fn mxcsr_available(cpu: &mut Cpu, instr: &Instruction) -> Res {
    match instr.mnemonic() {
        Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr => cpu.avx_available(),
        _ => cpu.sse_available(),
    }
}

fn ldmxcsr(cpu: &mut Cpu, instr: &Instruction) -> Res {
    mxcsr_available(cpu, instr)?;
    let linear = cpu.address(instr, 4, false)?;
    let value = cpu.load_n(linear, 4)? as u32;
    if value & !MXCSR_MASK != 0 {
        return cpu.gp(0);
    }
    cpu.vector.set_mxcsr(value);
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, instr: &Instruction) -> Res {
    mxcsr_available(cpu, instr)?;
    let linear = cpu.address(instr, 4, true)?;
    cpu.store_n(linear, 4, u64::from(cpu.vector.mxcsr()))
}
