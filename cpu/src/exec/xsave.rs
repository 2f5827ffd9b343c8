//! FXSAVE and the XSAVE family, XCR0 (SDM vol. 1, 10.5 and 13).

use iced_x86::{Code, Instruction, Mnemonic};

use super::Exec;
use crate::cpu::{Bits, Cpu, RAX, RCX, RDX, cr4};
use crate::fault::Res;
use crate::host::{MXCSR_MASK, MXCSR_RESET};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// Bytes before the component of AVX: legacy region and header.
const HEADER_END: usize = 576;
/// XCOMP_BV's bit for the compacted format.
const COMPACT: u64 = 1 << 63;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Fxsave | M::Fxsave64 => fxsave,
        M::Fxrstor | M::Fxrstor64 => fxrstor,
        M::Xsave | M::Xsave64 => |cpu, i| xsave(cpu, i, Form::Plain),
        M::Xsaveopt | M::Xsaveopt64 => |cpu, i| xsave(cpu, i, Form::Optimised),
        M::Xsavec | M::Xsavec64 => |cpu, i| xsave(cpu, i, Form::Compact),
        M::Xrstor | M::Xrstor64 => xrstor,
        M::Xgetbv => xgetbv,
        M::Xsetbv => xsetbv,
        _ => return None,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Optimised,
    Compact,
}

fn is_wide(instr: &Instruction) -> bool {
    use Code as C;
    matches!(
        instr.code(),
        C::Fxsave64_m512byte
            | C::Fxrstor64_m512byte
            | C::Xsave64_mem
            | C::Xsaveopt64_mem
            | C::Xsavec64_mem
            | C::Xrstor64_mem
    )
}

/// Writes the x87 part of the legacy region: bytes 0 to 23 and 32 to 159.
fn put_x87(cpu: &mut Cpu, area: &mut [u8], wide: bool) {
    cpu.vector.snapshot();
    let image = &cpu.vector.image.0;
    area[..5].copy_from_slice(&image[..5]);
    area[5] = 0;
    area[6..8].copy_from_slice(&cpu.vector.fop.to_le_bytes());
    let (fip, fdp) = (cpu.vector.fip.to_le_bytes(), cpu.vector.fdp.to_le_bytes());
    if wide {
        area[8..16].copy_from_slice(&fip);
        area[16..24].copy_from_slice(&fdp);
    } else {
        area[8..16].fill(0);
        area[16..24].fill(0);
        area[8..12].copy_from_slice(&fip[..4]);
        area[16..20].copy_from_slice(&fdp[..4]);
    }
    for i in 0..8 {
        let at = 32 + 16 * i;
        area[at..at + 10].copy_from_slice(&image[at..at + 10]);
        area[at + 10..at + 16].fill(0);
    }
}

fn put_mxcsr(cpu: &Cpu, area: &mut [u8]) {
    area[24..28].copy_from_slice(&cpu.vector.mxcsr().to_le_bytes());
    area[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

/// XMM registers that the mode can name.
fn xmm_count(cpu: &Cpu) -> usize {
    if cpu.bits == Bits::B64 { 16 } else { 8 }
}

fn put_xmm(cpu: &Cpu, area: &mut [u8]) {
    for i in 0..xmm_count(cpu) {
        area[160 + 16 * i..176 + 16 * i].copy_from_slice(&cpu.vector.context.ymm[i][..16]);
    }
}

fn take_x87(cpu: &mut Cpu, area: &[u8], wide: bool) {
    let image = &mut cpu.vector.image.0;
    image[..5].copy_from_slice(&area[..5]);
    image[32..160].copy_from_slice(&area[32..160]);
    let word = |at: usize, n: usize| {
        let mut bytes = [0; 8];
        bytes[..n].copy_from_slice(&area[at..at + n]);
        u64::from_le_bytes(bytes)
    };
    let n = if wide { 8 } else { 4 };
    cpu.vector.fop = word(6, 2) as u16 & 0x7FF;
    cpu.vector.fip = word(8, n);
    cpu.vector.fdp = word(16, n);
    cpu.vector.reload();
}

fn take_xmm(cpu: &mut Cpu, area: &[u8]) {
    for i in 0..xmm_count(cpu) {
        cpu.vector.context.ymm[i][..16].copy_from_slice(&area[160 + 16 * i..176 + 16 * i]);
    }
}

/// MXCSR of an area; #GP(0) if it has reserved bits.
fn mxcsr_of(cpu: &mut Cpu, area: &[u8]) -> Res<u32> {
    let value = u32::from_le_bytes(std::array::from_fn(|i| area[24 + i]));
    if value & !MXCSR_MASK != 0 { cpu.gp(0) } else { Ok(value) }
}

fn fxsave(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.x87_available()?;
    let linear = cpu.address(instr, 512, true)?;
    if linear & 15 != 0 {
        return cpu.gp(0);
    }
    let mut area = [0; 512];
    cpu.read_bytes(linear, &mut area)?;
    put_x87(cpu, &mut area, is_wide(instr));
    put_mxcsr(cpu, &mut area);
    put_xmm(cpu, &mut area);
    // The last 48 bytes and, outside 64-bit mode, XMM8 on are not written.
    cpu.write_bytes(linear, &area[..464.min(160 + 16 * xmm_count(cpu))])
}

fn fxrstor(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.x87_available()?;
    let linear = cpu.address(instr, 512, false)?;
    if linear & 15 != 0 {
        return cpu.gp(0);
    }
    let mut area = [0; 512];
    cpu.read_bytes(linear, &mut area)?;
    let mxcsr = mxcsr_of(cpu, &area)?;
    cpu.vector.set_mxcsr(mxcsr);
    take_x87(cpu, &area, is_wide(instr));
    take_xmm(cpu, &area);
    Ok(())
}

/// #UD or #NM when the XSAVE family cannot be used.
fn available(cpu: &mut Cpu) -> Res {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    if cpu.cr0 & crate::cpu::cr0::TS != 0 {
        return cpu.raise_plain(crate::fault::vector::NM);
    }
    Ok(())
}

fn requested(cpu: &Cpu) -> u64 {
    (cpu.reg(RDX, 4) << 32 | cpu.reg(RAX, 4)) & cpu.xcr0
}

/// Components that are not in their initial state.
fn in_use(cpu: &mut Cpu) -> u64 {
    cpu.vector.snapshot();
    let image = &cpu.vector.image.0;
    let fcw = u16::from_le_bytes([image[0], image[1]]);
    let fsw = u16::from_le_bytes([image[2], image[3]]);
    let v = &cpu.vector;
    let pointers = (v.fip, v.fdp, v.fop) != (0, 0, 0);
    // Registers count although their tags say empty, as MMX values outlive EMMS.
    let registers = image[32..160].chunks(16).any(|r| r[..10].iter().any(|b| *b != 0));
    let mut bits = 0;
    if fcw != 0x37F || fsw != 0 || image[4] != 0 || pointers || registers {
        bits |= X87;
    }
    let ymm = &v.context.ymm[..xmm_count(cpu)];
    if ymm.iter().any(|r| r[..16].iter().any(|b| *b != 0)) {
        bits |= SSE;
    }
    if ymm.iter().any(|r| r[16..].iter().any(|b| *b != 0)) {
        bits |= AVX;
    }
    bits
}

fn xsave(cpu: &mut Cpu, instr: &Instruction, form: Form) -> Res {
    available(cpu)?;
    let rfbm = requested(cpu);
    let size = if rfbm & AVX != 0 { HEADER_END + 256 } else { HEADER_END };
    let linear = cpu.address(instr, size as u64, true)?;
    if linear & 63 != 0 {
        return cpu.gp(0);
    }
    let mut area = [0; HEADER_END + 256];
    cpu.read_bytes(linear, &mut area[..size])?;
    let used = in_use(cpu);
    // The plain form writes all that is asked for; the others leave initial components out. A
    // non-initial MXCSR makes SSE count as in use for the compacted form.
    let mut saved = if form == Form::Plain { rfbm } else { rfbm & used };
    if form == Form::Compact && rfbm & SSE != 0 && cpu.vector.mxcsr() != MXCSR_RESET {
        saved |= SSE;
    }
    if saved & X87 != 0 {
        put_x87(cpu, &mut area, is_wide(instr));
    }
    let mxcsr = match form {
        Form::Compact => saved & SSE != 0,
        _ => rfbm & (SSE | AVX) != 0,
    };
    if mxcsr {
        put_mxcsr(cpu, &mut area);
    }
    if saved & SSE != 0 {
        put_xmm(cpu, &mut area);
    }
    if saved & AVX != 0 {
        for i in 0..xmm_count(cpu) {
            area[HEADER_END + 16 * i..HEADER_END + 16 * (i + 1)]
                .copy_from_slice(&cpu.vector.context.ymm[i][16..]);
        }
    }
    let mut xstate = u64::from_le_bytes(std::array::from_fn(|i| area[512 + i]));
    if form == Form::Compact {
        xstate = saved;
        area[520..528].copy_from_slice(&(COMPACT | rfbm).to_le_bytes());
        area[528..HEADER_END].fill(0);
    } else {
        xstate = xstate & !rfbm | rfbm & used;
    }
    area[512..520].copy_from_slice(&xstate.to_le_bytes());
    cpu.write_bytes(linear, &area[..size])
}

fn xrstor(cpu: &mut Cpu, instr: &Instruction) -> Res {
    available(cpu)?;
    let rfbm = requested(cpu);
    let linear = cpu.address(instr, HEADER_END as u64, false)?;
    if linear & 63 != 0 {
        return cpu.gp(0);
    }
    let mut area = [0; HEADER_END + 256];
    cpu.read_bytes(linear, &mut area[..HEADER_END])?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| area[at + i]));
    let (xstate, xcomp) = (word(512), word(520));
    let compact = xcomp & COMPACT != 0;
    let legal = if compact {
        xcomp & !COMPACT & !cpu.xcr0 == 0
            && xstate & !xcomp == 0
            && area[528..HEADER_END].iter().all(|b| *b == 0)
    } else {
        xstate & !cpu.xcr0 == 0 && area[520..536].iter().all(|b| *b == 0)
    };
    if !legal {
        return cpu.gp(0);
    }
    let present = rfbm & xstate;
    if present & AVX != 0 {
        // AVX is the only component behind the header, so its place is the same in both formats.
        let at = linear.wrapping_add(HEADER_END as u64);
        cpu.read_bytes(at, &mut area[HEADER_END..])?;
    }
    let mxcsr = if compact { present & SSE != 0 } else { rfbm & (SSE | AVX) != 0 };
    if mxcsr {
        let mxcsr = mxcsr_of(cpu, &area)?;
        cpu.vector.set_mxcsr(mxcsr);
    } else if rfbm & SSE != 0 {
        cpu.vector.set_mxcsr(MXCSR_RESET);
    }
    if present & X87 != 0 {
        take_x87(cpu, &area, is_wide(instr));
    } else if rfbm & X87 != 0 {
        let mut initial = [0; 512];
        initial[..2].copy_from_slice(&0x37F_u16.to_le_bytes());
        take_x87(cpu, &initial, true);
    }
    if present & SSE != 0 {
        take_xmm(cpu, &area);
    } else if rfbm & SSE != 0 {
        take_xmm(cpu, &[0; 512]);
    }
    if rfbm & AVX != 0 {
        for i in 0..xmm_count(cpu) {
            let high = &area[HEADER_END + 16 * i..HEADER_END + 16 * (i + 1)];
            let target = &mut cpu.vector.context.ymm[i][16..];
            if present & AVX != 0 {
                target.copy_from_slice(high);
            } else {
                target.fill(0);
            }
        }
    }
    Ok(())
}

fn xgetbv(cpu: &mut Cpu, _: &Instruction) -> Res {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    let value = match cpu.reg(RCX, 4) {
        0 => cpu.xcr0,
        1 => in_use(cpu) & cpu.xcr0,
        _ => return cpu.gp(0),
    };
    cpu.regs[RAX] = value & 0xFFFF_FFFF;
    cpu.regs[RDX] = value >> 32;
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _: &Instruction) -> Res {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    cpu.ring0()?;
    let value = cpu.reg(RDX, 4) << 32 | cpu.reg(RAX, 4);
    if cpu.reg(RCX, 4) != 0
        || value & !cpu.features.xcr0 != 0
        || value & X87 == 0
        || value & (SSE | AVX) == AVX
    {
        return cpu.gp(0);
    }
    cpu.xcr0 = value;
    Ok(())
}
