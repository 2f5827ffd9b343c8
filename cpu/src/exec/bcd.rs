//! Decimal adjustments: DAA, DAS, AAA, AAS, AAM, AAD (SDM vol. 2).

use iced_x86::{Instruction, Mnemonic};

use super::Exec;
use crate::cpu::{Cpu, RAX};
use crate::fault::{Res, vector};
use crate::flags::bit;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Daa => |cpu, _| packed(cpu, u8::wrapping_add, false),
        M::Das => |cpu, _| packed(cpu, u8::wrapping_sub, true),
        M::Aaa => |cpu, _| unpacked(cpu, 0x106, u16::wrapping_add),
        M::Aas => |cpu, _| unpacked(cpu, 0x106, u16::wrapping_sub),
        M::Aam => aam,
        M::Aad => aad,
        _ => return None,
    })
}

fn packed(cpu: &mut Cpu, f: fn(u8, u8) -> u8, subtract: bool) -> Res {
    let old = cpu.reg(RAX, 1) as u8;
    let (old_cf, old_af) = (cpu.flags.cf(), cpu.flags.af());
    let (mut al, mut cf, mut af) = (old, false, false);
    if old & 0xF > 9 || old_af {
        al = f(al, 6);
        // Only the subtraction lets the borrow of the low digit through.
        cf = old_cf || subtract && old < 6;
        af = true;
    }
    if old > 0x99 || old_cf {
        al = f(al, 0x60);
        cf = true;
    }
    cpu.set_reg(RAX, 1, u64::from(al));
    cpu.flags.result(al, cf, false);
    cpu.flags.replace(bit::AF, if af { bit::AF } else { 0 });
    Ok(())
}

fn unpacked(cpu: &mut Cpu, by: u16, f: fn(u16, u16) -> u16) -> Res {
    let mut ax = cpu.reg(RAX, 2) as u16;
    let adjust = ax & 0xF > 9 || cpu.flags.af();
    if adjust {
        ax = f(ax, by);
    }
    ax &= 0xFF0F;
    cpu.set_reg(RAX, 2, u64::from(ax));
    cpu.flags.result(ax as u8, adjust, false);
    cpu.flags.replace(bit::AF, if adjust { bit::AF } else { 0 });
    Ok(())
}

fn aam(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let base = instr.immediate8();
    let al = cpu.reg(RAX, 1) as u8;
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return cpu.raise_plain(vector::DE);
    };
    cpu.set_reg(RAX, 2, u64::from(high) << 8 | u64::from(low));
    cpu.flags.logic(low);
    Ok(())
}

fn aad(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let ax = cpu.reg(RAX, 2) as u16;
    let al = ((ax >> 8) as u8).wrapping_mul(instr.immediate8()).wrapping_add(ax as u8);
    cpu.set_reg(RAX, 2, u64::from(al));
    cpu.flags.logic(al);
    Ok(())
}
