//! The vCPU's state between KVM's structures and [`VcpuState`].

use std::io;

use board::vcpu::{
    DebugRegisters, Events, Exception, LapicState, MpState, Segment, Segments, TableRegister, msr,
};
use board::{AccelError, VcpuState};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS,
    KVM_SYNC_X86_SREGS, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, Msrs,
    kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};

use super::vcpu::KvmVcpu;
use super::xsave::{bytes_of, pack_xsave, unpack_xsave, words_of};
use super::{host, sys};

fn segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        attributes: u32::from(s.type_ & 0xF)
            | bit(s.s, 4)
            | u32::from(s.dpl & 3) << 5
            | bit(s.present, 7)
            | bit(s.avl, 12)
            | bit(s.l, 13)
            | bit(s.db, 14)
            | bit(s.g, 15)
            | bit(s.unusable, 16),
    }
}

fn kvm_segment(s: &Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind(),
        present: s.present().into(),
        dpl: s.dpl(),
        db: s.db().into(),
        s: s.s().into(),
        l: s.long().into(),
        g: s.granular().into(),
        avl: s.avl().into(),
        unusable: s.unusable().into(),
        padding: 0,
    }
}

fn table(t: &kvm_dtable) -> TableRegister {
    TableRegister { base: t.base, limit: t.limit }
}

fn kvm_table(t: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

/// Bit 0 of `kvm_sregs2::flags`: the PDPTRs are valid.
const PDPTRS_VALID: u64 = 1;

fn widened(s: &kvm_sregs) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: s.cs,
        ds: s.ds,
        es: s.es,
        fs: s.fs,
        gs: s.gs,
        ss: s.ss,
        tr: s.tr,
        ldt: s.ldt,
        gdt: s.gdt,
        idt: s.idt,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        flags: 0,
        pdptrs: [0; 4],
    }
}

fn narrowed(s: &kvm_sregs2, interrupt_bitmap: [u64; 4]) -> kvm_sregs {
    kvm_sregs {
        cs: s.cs,
        ds: s.ds,
        es: s.es,
        fs: s.fs,
        gs: s.gs,
        ss: s.ss,
        tr: s.tr,
        ldt: s.ldt,
        gdt: s.gdt,
        idt: s.idt,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap,
    }
}

fn put_regs(state: &mut VcpuState, r: &kvm_regs) {
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    (state.rip, state.rflags) = (r.rip, r.rflags);
}

fn put_sregs(state: &mut VcpuState, s: &kvm_sregs2) {
    state.segments = Segments {
        es: segment(&s.es),
        cs: segment(&s.cs),
        ss: segment(&s.ss),
        ds: segment(&s.ds),
        fs: segment(&s.fs),
        gs: segment(&s.gs),
        ldt: segment(&s.ldt),
        tr: segment(&s.tr),
    };
    (state.gdt, state.idt) = (table(&s.gdt), table(&s.idt));
    (state.cr0, state.cr2, state.cr3, state.cr4, state.cr8) = (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8);
    (state.efer, state.apic_base) = (s.efer, s.apic_base);
    if s.flags & PDPTRS_VALID != 0 {
        state.pdptr = s.pdptrs;
    }
}

impl KvmVcpu {
    fn sregs(&self) -> io::Result<kvm_sregs2> {
        if self.shared.sregs2 {
            return sys::get_sregs2(&self.fd);
        }
        Ok(widened(&self.fd.get_sregs()?))
    }

    fn set_sregs(&self, s: &kvm_sregs2) -> io::Result<()> {
        if self.shared.sregs2 {
            return sys::set_sregs2(&self.fd, s);
        }
        self.fd.set_sregs(&narrowed(s, [0; 4]))?;
        Ok(())
    }

    /// Those of `numbers` that this vCPU has.
    pub(super) fn get_msrs(&self, mut numbers: &[u32]) -> io::Result<Vec<(u32, u64)>> {
        let mut found = Vec::new();
        while !numbers.is_empty() {
            let entries: Vec<_> = numbers
                .iter()
                .map(|&index| kvm_msr_entry { index, ..Default::default() })
                .collect();
            let mut msrs = Msrs::from_entries(&entries).map_err(io::Error::other)?;
            let count = self.fd.get_msrs(&mut msrs)?;
            found.extend(msrs.as_slice()[..count].iter().map(|m| (m.index, m.data)));
            // KVM stops at the first MSR that this vCPU lacks.
            numbers = numbers.get(count + 1..).unwrap_or(&[]);
        }
        Ok(found)
    }

    pub(super) fn set_msrs(&self, msrs: &[(u32, u64)]) -> Result<(), AccelError> {
        let mut rest = msrs;
        while !rest.is_empty() {
            let entries: Vec<_> = rest
                .iter()
                .map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() })
                .collect();
            let table = Msrs::from_entries(&entries).map_err(|_| {
                AccelError::Unsupported(format!("{} MSRs are too many for KVM", rest.len()))
            })?;
            let count =
                host(self.fd.set_msrs(&table), || format!("KVM_SET_MSRS of vCPU {}", self.id))?;
            if let Some(&(index, data)) = rest.get(count)
                && data != 0
            {
                return Err(AccelError::Unsupported(format!(
                    "this host's KVM does not take {data:#x} for MSR {index:#x}: restore the state where it \
                     was saved, or with a --cpu that both hosts offer"
                )));
            }
            rest = rest.get(count + 1..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// XCR0 and what XSAVE saves.
    pub(super) fn save_vectors(&self, state: &mut VcpuState) -> Result<(), AccelError> {
        let (id, fd) = (self.id, &self.fd);
        let call = |name: &'static str| move || format!("{name} of vCPU {id}");
        let xcrs = host(fd.get_xcrs(), call("KVM_GET_XCRS"))?;
        let xcr0 = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|x| x.xcr == 0);
        state.xcr0 = xcr0.map_or(1, |x| x.value);
        let mut area = self.shared.xsave.buffer();
        host(sys::get_xsave(fd, &mut area, self.shared.xsave.xsave2), call("KVM_GET_XSAVE"))?;
        unpack_xsave(&self.shared.xsave, &bytes_of(&area), state);
        Ok(())
    }

    /// XCR0, if `xcr0` says so, and what XRSTOR restores.
    pub(super) fn restore_vectors(&self, state: &VcpuState, xcr0: bool) -> Result<(), AccelError> {
        let id = self.id;
        let call = |name: &'static str| move || format!("{name} of vCPU {id}");
        let area = pack_xsave(&self.shared.xsave, state)?;
        if xcr0 {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0].value = state.xcr0;
            host(self.fd.set_xcrs(&xcrs), call("KVM_SET_XCRS"))?;
        }
        host(sys::set_xsave(&self.fd, &words_of(&area)), call("KVM_SET_XSAVE"))
    }

    pub(super) fn restore_debug(&self, state: &VcpuState) -> Result<(), AccelError> {
        let debug = kvm_debugregs {
            db: state.debug.address,
            dr6: state.debug.status,
            dr7: state.debug.control,
            ..Default::default()
        };
        host(self.fd.set_debug_regs(&debug), || format!("KVM_SET_DEBUGREGS of vCPU {}", self.id))
    }

    /// The general, segment and control registers and pending events.
    pub(super) fn core_state(&mut self) -> Result<VcpuState, AccelError> {
        let id = self.id;
        let call = |name: &'static str| move || format!("{name} of vCPU {id}");
        let mut state = VcpuState::default();
        if self.gaps.synced {
            let all = self.fd.sync_regs();
            put_regs(&mut state, &all.regs);
            put_sregs(&mut state, &widened(&all.sregs));
            state.events = events(&all.events);
        } else {
            put_regs(&mut state, &host(self.fd.get_regs(), call("KVM_GET_REGS"))?);
            put_sregs(&mut state, &host(self.sregs(), call("KVM_GET_SREGS"))?);
            let all = host(self.fd.get_vcpu_events(), call("KVM_GET_VCPU_EVENTS"))?;
            state.events = events(&all);
        }
        Ok(state)
    }

    /// Sets what [`Self::core_state`] gives; events only if `with_events`.
    pub(super) fn set_core_state(
        &mut self,
        state: &VcpuState,
        with_events: bool,
    ) -> Result<(), AccelError> {
        let id = self.id;
        let call = |name: &'static str| move || format!("{name} of vCPU {id}");
        let (regs, sregs) = (kvm_regs_of(state), kvm_sregs2_of(state));
        // KVM's own view is from the exit; what has opened interrupts since is not in it.
        self.fd.get_kvm_run().ready_for_interrupt_injection = 0;
        if !self.gaps.synced {
            host(self.set_sregs(&sregs), call("KVM_SET_SREGS"))?;
            host(self.fd.set_regs(&regs), call("KVM_SET_REGS"))?;
            if with_events {
                let all = kvm_events(&state.events);
                host(self.fd.set_vcpu_events(&all), call("KVM_SET_VCPU_EVENTS"))?;
            }
            return Ok(());
        }
        let mut dirty = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
        let all = self.fd.sync_regs_mut();
        all.regs = regs;
        all.sregs = narrowed(&sregs, all.sregs.interrupt_bitmap);
        if with_events {
            all.events = kvm_events(&state.events);
            dirty |= KVM_SYNC_X86_EVENTS;
        }
        self.fd.get_kvm_run().kvm_dirty_regs = dirty.into();
        self.unfinished = true;
        Ok(())
    }

    /// Makes KVM forget all translations: what changes CR4.PGE does.
    pub(super) fn flush_translations(&self, state: &VcpuState) -> Result<(), AccelError> {
        const PGE: u64 = 1 << 7;
        let mut sregs = kvm_sregs2_of(state);
        for _ in 0..2 {
            sregs.cr4 ^= PGE;
            host(self.set_sregs(&sregs), || format!("KVM_SET_SREGS of vCPU {}", self.id))?;
        }
        Ok(())
    }

    pub(super) fn save_state(&mut self) -> Result<VcpuState, AccelError> {
        let id = self.id;
        let call = |name: &'static str| move || format!("{name} of vCPU {id}");
        let fd = &self.fd;
        let mut state = VcpuState { cpuid: self.cpuid.clone(), ..VcpuState::default() };

        put_regs(&mut state, &host(fd.get_regs(), call("KVM_GET_REGS"))?);
        put_sregs(&mut state, &host(self.sregs(), call("KVM_GET_SREGS"))?);
        self.save_vectors(&mut state)?;

        let d = host(fd.get_debug_regs(), call("KVM_GET_DEBUGREGS"))?;
        state.debug = DebugRegisters { address: d.db, status: d.dr6, control: d.dr7 };
        state.msrs =
            host(self.get_msrs(&self.shared.msrs), call("KVM_GET_MSRS"))?.into_iter().collect();
        let lapic = host(fd.get_lapic(), call("KVM_GET_LAPIC"))?;
        state.lapic = Some(LapicState {
            registers: lapic.regs.chunks_exact(16).map(lapic_register).collect(),
        });
        // KVM_GET_MP_STATE acts on a pending INIT or startup IPI, so events come after it.
        let mp = host(fd.get_mp_state(), call("KVM_GET_MP_STATE"))?;
        state.mp_state = match mp.mp_state {
            KVM_MP_STATE_HALTED => MpState::Halted,
            KVM_MP_STATE_UNINITIALIZED => MpState::WaitForInit,
            KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => MpState::WaitForSipi,
            _ => MpState::Runnable,
        };
        state.events = events(&host(fd.get_vcpu_events(), call("KVM_GET_VCPU_EVENTS"))?);
        state.tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        Ok(state)
    }

    pub(super) fn restore_state(&mut self, state: &VcpuState) -> Result<(), AccelError> {
        let id = self.id;
        let call = |name: &'static str| move || format!("{name} of vCPU {id}");
        let fd = &self.fd;

        host(self.set_sregs(&kvm_sregs2_of(state)), call("KVM_SET_SREGS"))?;
        self.restore_vectors(state, true)?;
        host(fd.set_regs(&kvm_regs_of(state)), call("KVM_SET_REGS"))?;
        self.restore_debug(state)?;
        // The deadline is relative to the TSC and needs the timer mode that the local APIC has.
        let last = [msr::IA32_TSC_DEADLINE];
        let (later, first): (Vec<_>, Vec<_>) =
            state.msrs.iter().map(|(i, v)| (*i, *v)).partition(|(i, _)| last.contains(i));
        self.set_msrs(&first)?;
        if let Some(lapic) = &state.lapic {
            host(fd.set_lapic(&kvm_lapic(lapic)), call("KVM_SET_LAPIC"))?;
        }
        self.set_msrs(&later)?;
        let mp_state = match state.mp_state {
            MpState::Runnable => KVM_MP_STATE_RUNNABLE,
            MpState::Halted => KVM_MP_STATE_HALTED,
            MpState::WaitForInit => KVM_MP_STATE_UNINITIALIZED,
            MpState::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        };
        host(fd.set_mp_state(kvm_mp_state { mp_state }), call("KVM_SET_MP_STATE"))?;
        host(fd.set_vcpu_events(&kvm_events(&state.events)), call("KVM_SET_VCPU_EVENTS"))
    }
}

fn lapic_register(bytes: &[i8]) -> u32 {
    u32::from_le_bytes([bytes[0] as u8, bytes[1] as u8, bytes[2] as u8, bytes[3] as u8])
}

fn kvm_lapic(lapic: &LapicState) -> kvm_lapic_state {
    let mut regs = kvm_lapic_state::default();
    for (bytes, value) in regs.regs.chunks_exact_mut(16).zip(&lapic.registers) {
        for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *byte = new as i8;
        }
    }
    regs
}

fn kvm_regs_of(state: &VcpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn kvm_sregs2_of(state: &VcpuState) -> kvm_sregs2 {
    let s = &state.segments;
    let pae = state.cr0 >> 31 & 1 != 0 && state.cr4 >> 5 & 1 != 0 && !state.long_mode();
    kvm_sregs2 {
        cs: kvm_segment(&s.cs),
        ds: kvm_segment(&s.ds),
        es: kvm_segment(&s.es),
        fs: kvm_segment(&s.fs),
        gs: kvm_segment(&s.gs),
        ss: kvm_segment(&s.ss),
        tr: kvm_segment(&s.tr),
        ldt: kvm_segment(&s.ldt),
        gdt: kvm_table(&state.gdt),
        idt: kvm_table(&state.idt),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic_base,
        flags: if pae { PDPTRS_VALID } else { 0 },
        pdptrs: state.pdptr,
    }
}

fn events(e: &kvm_vcpu_events) -> Events {
    let exception = (e.exception.injected != 0 || e.exception.pending != 0).then(|| Exception {
        vector: e.exception.nr,
        error_code: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
        pending: e.exception.injected == 0,
        payload: (e.exception_has_payload != 0).then_some(e.exception_payload),
    });
    let shadow = u32::from(e.interrupt.shadow);
    Events {
        exception,
        interrupt: (e.interrupt.injected != 0).then_some((e.interrupt.nr, e.interrupt.soft != 0)),
        sti_shadow: shadow & KVM_X86_SHADOW_INT_STI != 0,
        mov_ss_shadow: shadow & KVM_X86_SHADOW_INT_MOV_SS != 0,
        nmi_injected: e.nmi.injected != 0,
        nmi_pending: e.nmi.pending != 0,
        nmi_masked: e.nmi.masked != 0,
        sipi_vector: e.sipi_vector as u8,
        triple_fault: e.triple_fault.pending != 0,
    }
}

fn kvm_events(events: &Events) -> kvm_vcpu_events {
    let mut e = kvm_vcpu_events {
        sipi_vector: events.sipi_vector.into(),
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR,
        ..Default::default()
    };
    if let Some(exception) = events.exception {
        // Without KVM_CAP_EXCEPTION_PAYLOAD one that is pending is given back as injected, with
        // CR2 or DR6 set already; KVM reports it so as well.
        e.exception.injected = 1;
        e.exception.nr = exception.vector;
        e.exception.has_error_code = exception.error_code.is_some().into();
        e.exception.error_code = exception.error_code.unwrap_or(0);
    }
    if let Some((vector, soft)) = events.interrupt {
        e.interrupt.injected = 1;
        e.interrupt.nr = vector;
        e.interrupt.soft = soft.into();
    }
    let shadow = |on: bool, bit: u32| if on { bit as u8 } else { 0 };
    e.interrupt.shadow = shadow(events.sti_shadow, KVM_X86_SHADOW_INT_STI)
        | shadow(events.mov_ss_shadow, KVM_X86_SHADOW_INT_MOV_SS);
    e.nmi.injected = events.nmi_injected.into();
    e.nmi.pending = events.nmi_pending.into();
    e.nmi.masked = events.nmi_masked.into();
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_round_trip() {
        for attributes in [0, 0xF, 0xA09B, 0xC093, 0x1_0000, 0x1_F0FF] {
            let s = Segment { selector: 0x10, base: 0x1234, limit: 0xFFFF_FFFF, attributes };
            assert_eq!(segment(&kvm_segment(&s)), s, "{attributes:#x}");
        }
    }

    #[test]
    fn events_survive_the_round_trip() {
        let all = Events {
            exception: Some(Exception {
                vector: 14,
                error_code: Some(2),
                pending: false,
                payload: None,
            }),
            interrupt: Some((0x80, true)),
            sti_shadow: true,
            mov_ss_shadow: false,
            nmi_injected: true,
            nmi_pending: true,
            nmi_masked: true,
            sipi_vector: 0x9F,
            triple_fault: false,
        };
        assert_eq!(events(&kvm_events(&all)), all);
        assert_eq!(events(&kvm_events(&Events::default())), Events::default());
    }
}
