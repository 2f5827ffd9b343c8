//! A vCPU's state in the monitor's terms.

use board::VcpuState;
use board::vcpu::{MpState, Segment};
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
