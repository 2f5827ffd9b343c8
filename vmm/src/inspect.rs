//! A vCPU's state in the monitor's terms.

use board::VcpuState;
use board::vcpu::{MpState, Segment, msr};
use monitor::gdb::Register;
use monitor::state::{FpReg, LocalApic, Registers, TableRegister};

fn segment(s: &Segment) -> monitor::state::Segment {
    // As in a descriptor's second doubleword, whose bits 16 to 19 belong to the limit.
    let attr = if s.unusable() { 0 } else { (s.attributes & 0xF0FF) << 8 };
    monitor::state::Segment { selector: s.selector, base: s.base, limit: s.limit, attr }
}

/// A vCPU's state as the monitor shows it.
pub fn registers(state: &VcpuState) -> Registers {
    let table =
        |t: &board::vcpu::TableRegister| TableRegister { base: t.base, limit: t.limit.into() };
    let [dr0, dr1, dr2, dr3] = state.debug.address;
    let s = &state.segments;
    let fpu = &state.fpu;
    let top = usize::from(fpu.fsw >> 11 & 7);
    let mut fpr = [FpReg::default(); 8];
    for (i, st) in fpu.st.iter().enumerate() {
        let (mantissa, exponent) = st.split_at(8);
        fpr[(top + i) % 8] = FpReg {
            mantissa: mantissa.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)),
            exponent: u16::from_le_bytes([exponent[0], exponent[1]]),
        };
    }
    let ymm_high = (state.xcr0 & 4 != 0).then(|| {
        let component = state.xsave.get(&2);
        std::array::from_fn(|i| {
            let bytes = component.and_then(|c| c.get(16 * i..16 * i + 16)?.try_into().ok());
            u128::from_le_bytes(bytes.unwrap_or_default())
        })
    });
    Registers {
        gpr: state.gpr,
        rip: state.rip,
        rflags: state.rflags,
        es: segment(&s.es),
        cs: segment(&s.cs),
        ss: segment(&s.ss),
        ds: segment(&s.ds),
        fs: segment(&s.fs),
        gs: segment(&s.gs),
        ldt: segment(&s.ldt),
        tr: segment(&s.tr),
        gdt: table(&state.gdt),
        idt: table(&state.idt),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        dr: [dr0, dr1, dr2, dr3, 0, 0, state.debug.status, state.debug.control],
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftw: fpu.ftw,
        fop: fpu.fop,
        fip: fpu.fip,
        fdp: fpu.fdp,
        kernel_gs_base: state.msrs.get(&msr::KERNEL_GS_BASE).copied().unwrap_or(0),
        mxcsr: fpu.mxcsr,
        fpr,
        xmm: fpu.xmm.map(u128::from_le_bytes),
        ymm_high,
        interrupt_shadow: state.events.sti_shadow || state.events.mov_ss_shadow,
        a20: true,
        smm: false,
        halted: state.mp_state != MpState::Runnable,
    }
}

/// Changes one register, as a debugger does.
///
/// # Errors
/// Why it cannot have that value.
pub fn set_register(
    state: &mut VcpuState,
    register: Register,
    value: u128,
) -> Result<(), &'static str> {
    let (low, word) = (value as u64, value as u16);
    let fpu = &mut state.fpu;
    match register {
        Register::Gpr(number) => state.gpr[usize::from(number)] = low,
        Register::Rip => state.rip = low,
        // Bit 1 is always set.
        Register::Flags => state.rflags = state.rflags & !0xFFFF_FFFF | low & 0xFFFF_FFFF | 2,
        Register::Selector(number) => return set_selector(state, number, word),
        Register::St(number) => {
            fpu.st[usize::from(number)].copy_from_slice(&value.to_le_bytes()[..10]);
            // It is in use now.
            let top = fpu.fsw >> 11 & 7;
            fpu.ftw |= 1 << ((top + u16::from(number)) % 8);
        }
        Register::Fctrl => fpu.fcw = word,
        Register::Fstat => fpu.fsw = word,
        Register::Ftag => {
            fpu.ftw = (0..8).fold(0, |ftw, i| ftw | u8::from(word >> (2 * i) & 3 != 3) << i);
        }
        Register::Fiseg => fpu.fip = fpu.fip & 0xFFFF_FFFF | u64::from(word) << 32,
        Register::Fioff => fpu.fip = fpu.fip & !0xFFFF_FFFF | low & 0xFFFF_FFFF,
        Register::Foseg => fpu.fdp = fpu.fdp & 0xFFFF_FFFF | u64::from(word) << 32,
        Register::Fooff => fpu.fdp = fpu.fdp & !0xFFFF_FFFF | low & 0xFFFF_FFFF,
        Register::Fop => fpu.fop = word & 0x7FF,
        Register::Xmm(number) => fpu.xmm[usize::from(number)] = value.to_le_bytes(),
        Register::Mxcsr if low >> 16 != 0 => return Err("MXCSR has 16 bits"),
        Register::Mxcsr => fpu.mxcsr = low as u32,
        Register::YmmHigh(_) if state.xcr0 & 4 == 0 => return Err("XCR0 does not enable AVX"),
        Register::YmmHigh(number) => {
            let halves = state.xsave.entry(2).or_default();
            halves.resize(256.max(halves.len()), 0);
            let at = 16 * usize::from(number);
            halves[at..at + 16].copy_from_slice(&value.to_le_bytes());
        }
        Register::FsBase => {
            state.segments.fs.base = low;
            state.msrs.insert(msr::FS_BASE, low);
        }
        Register::GsBase => {
            state.segments.gs.base = low;
            state.msrs.insert(msr::GS_BASE, low);
        }
        Register::KernelGsBase => drop(state.msrs.insert(msr::KERNEL_GS_BASE, low)),
        Register::Cr(0) => state.cr0 = low,
        Register::Cr(2) => state.cr2 = low,
        Register::Cr(3) => state.cr3 = low,
        Register::Cr(4) => state.cr4 = low,
        Register::Cr(_) if low > 15 => return Err("CR8 has 4 bits"),
        Register::Cr(_) => state.cr8 = low,
        Register::Efer => state.efer = low,
    }
    Ok(())
}

/// In real mode a selector is its base. In protected mode it would have to be loaded from a table,
/// with all that can go wrong there.
fn set_selector(state: &mut VcpuState, number: u8, selector: u16) -> Result<(), &'static str> {
    let s = &mut state.segments;
    let segment = [&mut s.es, &mut s.cs, &mut s.ss, &mut s.ds, &mut s.fs, &mut s.gs]
        .into_iter()
        .nth(number.into())
        .ok_or("there are six segment registers")?;
    if segment.selector == selector {
        return Ok(());
    }
    if state.cr0 & 1 != 0 && state.rflags & 1 << 17 == 0 {
        return Err("a selector can be changed in real mode only");
    }
    (segment.selector, segment.base) = (selector, u64::from(selector) << 4);
    Ok(())
}

/// A local APIC's registers as the monitor shows them.
pub fn local_apic(registers: &[u32], apic_base: u64) -> LocalApic {
    let get = |index: usize| registers.get(index).copied().unwrap_or(0);
    let bits = |first: usize| std::array::from_fn(|i| get(first + i));
    let x2apic = apic_base & 1 << 10 != 0;
    LocalApic {
        // In both modes; see `LapicState`.
        id: get(0x02) >> 24,
        svr: get(0x0F),
        tpr: get(0x08) as u8,
        apr: get(0x09) as u8,
        ppr: get(0x0A) as u8,
        ldr: (get(0x0D) >> 24) as u8,
        dfr: (get(0x0E) >> 28) as u8,
        esr: get(0x28),
        icr_low: get(0x30),
        icr_high: get(0x31),
        lvt_lint0: get(0x35),
        lvt_lint1: get(0x36),
        lvt_perf: get(0x34),
        lvt_error: get(0x37),
        lvt_thermal: get(0x33),
        lvt_timer: get(0x32),
        divide: get(0x3E),
        initial_count: get(0x38),
        current_count: get(0x39),
        isr: bits(0x10),
        tmr: bits(0x18),
        irr: bits(0x20),
        x2apic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_that_is_set_reads_back() {
        let mut state = VcpuState { xcr0: 7, cr0: 0x31, ..VcpuState::default() };
        let mut set = |register, value| set_register(&mut state, register, value);
        set(Register::Gpr(15), 1 << 63).unwrap();
        set(Register::Flags, 0x44).unwrap();
        set(Register::St(2), 0x3FFF << 64 | 1 << 63).unwrap();
        set(Register::Ftag, 0xFF3F).unwrap();
        set(Register::Xmm(15), u128::MAX).unwrap();
        set(Register::YmmHigh(1), 7).unwrap();
        set(Register::KernelGsBase, 0x1234).unwrap();
        set(Register::FsBase, 0x5678).unwrap();
        assert!(set(Register::Mxcsr, 0x1_0000).is_err());
        assert!(set(Register::Cr(8), 16).is_err());
        assert!(set(Register::Selector(1), 8).is_err(), "protected mode");
        set(Register::Cr(0), 0x30).unwrap();
        set(Register::Selector(1), 0x1000).unwrap();
        let r = registers(&state);
        assert_eq!((r.gpr[15], r.rflags, r.fpr[2].exponent), (1 << 63, 0x46, 0x3FFF));
        assert_eq!((r.xmm[15], r.ymm_high.unwrap()[1]), (u128::MAX, 7));
        assert_eq!((r.kernel_gs_base, r.fs.base, r.cs.base), (0x1234, 0x5678, 0x1_0000));
        assert_eq!(r.ftw, 1 << 3);
    }
}
