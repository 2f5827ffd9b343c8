//! Vector instructions whose memory accesses depend on a mask: masked moves and gathers. They
//! touch only what the mask selects, element by element.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{Cpu, RDI};
use crate::exec::Exec;
use crate::exec::operand::segment_number;
use crate::fault::Res;
use crate::int::{mask, sext};

pub(super) fn find(instr: &Instruction) -> Option<Exec> {
    use Mnemonic as M;
    Some(match instr.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd => |cpu, i| masked_move(cpu, i, 4),
        M::Vmaskmovpd | M::Vpmaskmovq => |cpu, i| masked_move(cpu, i, 8),
        M::Maskmovdqu | M::Vmaskmovdqu => byte_mask,
        M::Maskmovq => mmx_byte_mask,
        M::Vpgatherdd | M::Vgatherdps => |cpu, i| gather(cpu, i, 4, 4),
        M::Vpgatherdq | M::Vgatherdpd => |cpu, i| gather(cpu, i, 4, 8),
        M::Vpgatherqd | M::Vgatherqps => |cpu, i| gather(cpu, i, 8, 4),
        M::Vpgatherqq | M::Vgatherqpd => |cpu, i| gather(cpu, i, 8, 8),
        _ => return None,
    })
}

fn element(register: &[u8; 32], i: usize, size: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&register[i * size..(i + 1) * size]);
    u64::from_le_bytes(bytes)
}

fn set_element(register: &mut [u8; 32], i: usize, size: usize, value: u64) {
    register[i * size..(i + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
}

fn selected(register: &[u8; 32], i: usize, size: usize) -> bool {
    register[(i + 1) * size - 1] & 0x80 != 0
}

fn masked_move(cpu: &mut Cpu, instr: &Instruction, size: usize) -> Res {
    cpu.avx_available()?;
    let load = instr.op0_kind() == OpKind::Register;
    let bytes = instr.memory_size().size();
    let mask = cpu.vector.context.ymm[instr.op1_register().number()];
    let count = bytes / size;
    if (0..count).all(|i| !selected(&mask, i, size)) {
        if load {
            cpu.vector.context.ymm[instr.op0_register().number()] = [0; 32];
        }
        return Ok(());
    }
    let base = cpu.address(instr, bytes as u64, !load)?;
    let at = |i: usize| base.wrapping_add((i * size) as u64);
    if load {
        let mut result = [0; 32];
        for i in (0..count).filter(|i| selected(&mask, *i, size)) {
            let v = cpu.load_n(at(i), size as u64)?;
            set_element(&mut result, i, size, v);
        }
        cpu.vector.context.ymm[instr.op0_register().number()] = result;
    } else {
        let data = cpu.vector.context.ymm[instr.op2_register().number()];
        for i in (0..count).filter(|i| selected(&mask, *i, size)) {
            cpu.ensure_writable(at(i), size as u64)?;
        }
        for i in (0..count).filter(|i| selected(&mask, *i, size)) {
            cpu.store_n(at(i), size as u64, element(&data, i, size))?;
        }
    }
    Ok(())
}

fn store_bytes(cpu: &mut Cpu, instr: &Instruction, data: &[u8], select: &[u8]) -> Res {
    let address = match instr.op0_kind() {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    };
    let offset = cpu.regs[RDI] & mask(address);
    let segment = segment_number(instr.memory_segment());
    // The address must be legal even if no byte is selected.
    cpu.linear(segment, offset, data.len() as u64, true)?;
    let chosen = || (0..data.len()).filter(|i| select[*i] & 0x80 != 0);
    let mut places = Vec::with_capacity(data.len());
    for i in chosen() {
        let linear = cpu.linear(segment, offset.wrapping_add(i as u64) & mask(address), 1, true)?;
        cpu.ensure_writable(linear, 1)?;
        places.push((linear, data[i]));
    }
    for (linear, byte) in places {
        cpu.store_n(linear, 1, u64::from(byte))?;
    }
    Ok(())
}

fn byte_mask(cpu: &mut Cpu, instr: &Instruction) -> Res {
    if instr.mnemonic() == Mnemonic::Vmaskmovdqu {
        cpu.avx_available()?;
    } else {
        cpu.sse_available()?;
    }
    let data = cpu.vector.context.ymm[instr.op1_register().number()];
    let select = cpu.vector.context.ymm[instr.op2_register().number()];
    store_bytes(cpu, instr, &data[..16], &select[..16])
}

fn mmx_byte_mask(cpu: &mut Cpu, instr: &Instruction) -> Res {
    cpu.mmx_available()?;
    cpu.x87_pending()?;
    cpu.vector.snapshot();
    let register = |r: Register| {
        // With TOP at 0, as MMX instructions leave it, MMi is the i-th register of the image.
        let top = usize::from(cpu.vector.image.0[3] >> 3 & 7);
        let at = 32 + 16 * ((r.number() + 8 - top) & 7);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&cpu.vector.image.0[at..at + 8]);
        bytes
    };
    let (data, select) = (register(instr.op1_register()), register(instr.op2_register()));
    store_bytes(cpu, instr, &data, &select)?;
    // Like every MMX instruction it marks all registers as valid and sets TOP to 0.
    // SAFETY: the unit, which is the guest's, does the same for this read of a register.
    unsafe { std::arch::asm!("movd eax, mm0", out("eax") _, options(nomem, nostack)) };
    Ok(())
}

/// Gathers elements of `size` bytes by indices of `index` bytes; each that has arrived clears its
/// part of the mask, so that a fault in the middle can be returned from.
fn gather(cpu: &mut Cpu, instr: &Instruction, index: usize, size: usize) -> Res {
    cpu.avx_available()?;
    let (target, indices, mask_at) = (
        instr.op0_register().number(),
        instr.memory_index().number(),
        instr.op2_register().number(),
    );
    if target == indices || target == mask_at || indices == mask_at {
        return cpu.ud();
    }
    let index_bytes = if instr.memory_index().is_ymm() { 32 } else { 16 };
    let bytes = instr.op0_register().size();
    let count = (index_bytes / index).min(bytes / size);
    let segment = segment_number(instr.memory_segment());
    let base = cpu.get(instr.memory_base()).wrapping_add(instr.memory_displacement64());
    let address = crate::exec::operand::address_size(instr).min(8);
    let all = cpu.vector.context.ymm[mask_at];
    let chosen: Vec<bool> = (0..count).map(|i| selected(&all, i, size)).collect();
    // The mask first becomes all ones or zeros an element.
    for (i, chosen) in chosen.iter().enumerate() {
        let ones = if *chosen { u64::MAX } else { 0 };
        set_element(&mut cpu.vector.context.ymm[mask_at], i, size, ones);
    }
    for i in (0..count).filter(|i| chosen[*i]) {
        let raw = element(&cpu.vector.context.ymm[indices], i, index);
        let scaled = sext(raw, index as u64).wrapping_mul(u64::from(instr.memory_index_scale()));
        let offset = base.wrapping_add(scaled) & mask(address);
        let linear = cpu.linear(segment, offset, size as u64, false)?;
        let v = cpu.load_n(linear, size as u64)?;
        set_element(&mut cpu.vector.context.ymm[target], i, size, v);
        set_element(&mut cpu.vector.context.ymm[mask_at], i, size, 0);
    }
    cpu.vector.context.ymm[mask_at] = [0; 32];
    cpu.vector.context.ymm[target][count * size..].fill(0);
    Ok(())
}
