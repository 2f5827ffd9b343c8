//! XCHG, XADD, CMPXCHG, CMPXCHG8B/16B, and LOCK in general (SDM vol. 3, 9.1).
//!
//! A locked access is one compare-exchange of the host in a loop; split locks included, as the
//! host's instruction has no alignment to keep either. Only where the operand crosses pages or is
//! no plain memory, a lock that all vCPUs share stands in.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Exec;
use super::operand::size;
use crate::cpu::{Cpu, RAX, RBX, RCX, RDX};
use crate::fault::Res;
use crate::int::{Int, by_size};
use crate::ops::alu::{Alu, Cmp};
use crate::phys::Span;

pub(super) fn find(mnemonic: Mnemonic) -> Option<Exec> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Xchg => xchg,
        M::Xadd => xadd,
        M::Cmpxchg => cmpxchg,
        M::Cmpxchg8b => |cpu, i| cmpxchg_wide(cpu, i, 4),
        M::Cmpxchg16b => |cpu, i| cmpxchg_wide(cpu, i, 8),
        _ => return None,
    })
}

/// Whether LOCK is legal on `instr`.
pub(super) fn lockable(instr: &Instruction) -> bool {
    use Mnemonic as M;
    instr.op0_kind() == OpKind::Memory
        && matches!(
            instr.mnemonic(),
            M::Add
                | M::Or
                | M::Adc
                | M::Sbb
                | M::And
                | M::Sub
                | M::Xor
                | M::Inc
                | M::Dec
                | M::Not
                | M::Neg
                | M::Bts
                | M::Btr
                | M::Btc
                | M::Xchg
                | M::Xadd
                | M::Cmpxchg
                | M::Cmpxchg8b
                | M::Cmpxchg16b
        )
}

macro_rules! host_cmpxchg {
    ($name:ident, $t:ty, $template:literal, $new:tt, $old:tt) => {
        /// Writes `new` if memory holds `old`; returns what it held.
        ///
        /// # Safety
        /// `host` must point to writable guest memory of the operand's size.
        unsafe fn $name(host: *mut u8, old: $t, new: $t) -> $t {
            let seen;
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    $template,
                    host = in(reg) host,
                    new = in($new) new,
                    inout($old) old => seen,
                    options(nostack),
                );
            }
            seen
        }
    };
}
host_cmpxchg!(cmpxchg_1, u8, "lock cmpxchg [{host}], {new}", reg_byte, "al");
host_cmpxchg!(cmpxchg_2, u16, "lock cmpxchg [{host}], {new:x}", reg, "ax");
host_cmpxchg!(cmpxchg_4, u32, "lock cmpxchg [{host}], {new:e}", reg, "eax");
host_cmpxchg!(cmpxchg_8, u64, "lock cmpxchg [{host}], {new}", reg, "rax");

/// Compare-exchange of 16 bytes, 16-byte aligned; returns what memory held.
///
/// # Safety
/// `host` must point to 16 writable bytes of guest memory, aligned.
unsafe fn cmpxchg_16(host: *mut u8, old: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller's promise. RBX is not available as an operand, so it is swapped in.
    unsafe {
        asm!(
            "xchg {b}, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, {b}",
            b = inout(reg) new as u64 => _,
            in("rdi") host,
            in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => low,
            inout("rdx") (old >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

impl Cpu {
    /// Replaces `size` bytes at `linear` by `f` of them, atomically. `f` may run several times.
    pub(crate) fn locked(
        &mut self,
        linear: u64,
        size: u64,
        mut f: impl FnMut(&mut Cpu, u64) -> u64,
    ) -> Res {
        let flags = self.flags;
        let Some((host, place)) = self.writable_host(linear, size)? else {
            let shared = self.shared.clone();
            let _guard = shared.split_lock.lock().unwrap_or_else(|e| e.into_inner());
            let old = by_size!(size, T => self.load_for_write::<T>(linear).map(Int::zext))?;
            let new = f(self, old);
            let result = self.store_n(linear, size, new);
            if result.is_err() {
                self.flags = flags;
            }
            return result;
        };
        let host = host.as_ptr();
        let mut old = by_size!(size, T => self.load_for_write::<T>(linear).map(Int::zext))?;
        loop {
            let new = f(self, old);
            // SAFETY: `writable_host` found `size` writable bytes of guest memory there.
            let seen = unsafe {
                match size {
                    1 => u64::from(cmpxchg_1(host, old as u8, new as u8)),
                    2 => u64::from(cmpxchg_2(host, old as u16, new as u16)),
                    4 => u64::from(cmpxchg_4(host, old as u32, new as u32)),
                    _ => cmpxchg_8(host, old, new),
                }
            };
            if seen == old {
                break;
            }
            old = seen;
            self.flags = flags;
        }
        if let Some(page) = place.page {
            self.wrote(page, Span::new(place.phys, size));
        }
        Ok(())
    }
}

fn xchg(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let register = instr.op1_register();
    let new = cpu.get(register);
    let old = if instr.op0_kind() == OpKind::Memory {
        let size = size(instr, 0);
        let linear = cpu.address(instr, size, true)?;
        let mut seen = 0;
        cpu.locked(linear, size, |_, old| {
            seen = old;
            new
        })?;
        seen
    } else {
        let old = cpu.get(instr.op0_register());
        cpu.put(instr.op0_register(), new);
        old
    };
    cpu.put(register, old);
    Ok(())
}

fn xadd(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let n = size(instr, 0);
    let addend = cpu.get(instr.op1_register());
    let mut seen = 0;
    // The register is written first, so that XADD of one register with itself doubles it.
    if instr.op0_kind() == OpKind::Register {
        seen = cpu.get(instr.op0_register());
        cpu.put(instr.op1_register(), seen);
    }
    cpu.modify(instr, |cpu, old| {
        let old = if instr.op0_kind() == OpKind::Register { seen } else { old };
        seen = old;
        by_size!(n, T => {
            let (a, b) = (<T as Int>::trunc(old), <T as Int>::trunc(addend));
            crate::ops::alu::Add::apply::<T>(&mut cpu.flags, a, b).zext()
        })
    })?;
    if instr.op0_kind() == OpKind::Memory {
        cpu.put(instr.op1_register(), seen);
    }
    Ok(())
}

fn cmpxchg(cpu: &mut Cpu, instr: &Instruction) -> Res {
    let n = size(instr, 0);
    let wanted = cpu.reg(RAX, n);
    let new = cpu.get(instr.op1_register());
    let mut seen = 0;
    // A failed comparison writes the old value back, so that memory is written in any case. The
    // destination register keeps its upper half then.
    if instr.op0_kind() == OpKind::Register {
        seen = cpu.get(instr.op0_register());
        if seen == wanted {
            cpu.put(instr.op0_register(), new);
        }
    } else {
        cpu.modify(instr, |_, old| {
            seen = old;
            if old == wanted { new } else { old }
        })?;
    }
    by_size!(n, T => {
        Cmp::apply::<T>(&mut cpu.flags, <T as Int>::trunc(wanted), <T as Int>::trunc(seen));
    });
    if seen != wanted {
        cpu.set_reg(RAX, n, seen);
    }
    Ok(())
}

fn cmpxchg_wide(cpu: &mut Cpu, instr: &Instruction, half: u64) -> Res {
    let pair = |cpu: &Cpu, high: usize, low: usize| {
        u128::from(cpu.reg(high, half)) << (8 * half) | u128::from(cpu.reg(low, half))
    };
    let wanted = pair(cpu, RDX, RAX);
    let new = pair(cpu, RCX, RBX);
    // Alignment is looked at before the rest of the address.
    if half == 8 && cpu.raw_address(instr) & 15 != 0 {
        return cpu.gp(0);
    }
    let linear = cpu.address(instr, 2 * half, true)?;
    let seen = if half == 4 {
        let mut seen = 0;
        cpu.locked(linear, 8, |_, old| {
            seen = old;
            if old == wanted as u64 { new as u64 } else { old }
        })?;
        u128::from(seen)
    } else {
        match cpu.writable_host(linear, 16)? {
            Some((host, place)) => {
                // SAFETY: `writable_host` found 16 writable bytes there, and `linear`, which has
                // the same offset in its page, is aligned.
                let seen = unsafe { cmpxchg_16(host.as_ptr(), wanted, new) };
                if let Some(page) = place.page {
                    cpu.wrote(page, Span::new(place.phys, 16));
                }
                seen
            }
            None => {
                let mut bytes = [0; 16];
                cpu.read_bytes(linear, &mut bytes)?;
                let seen = u128::from_le_bytes(bytes);
                let value = if seen == wanted { new } else { seen };
                cpu.write_bytes(linear, &value.to_le_bytes())?;
                seen
            }
        }
    };
    cpu.flags.set_zf(seen == wanted);
    if seen != wanted {
        cpu.set_reg(RAX, half, seen as u64);
        cpu.set_reg(RDX, half, (seen >> (8 * half)) as u64);
    }
    Ok(())
}
