//! Reset, INIT, and the way from and to the architectural state that all accelerators share.

use std::collections::BTreeMap;
use std::sync::Arc;

use board::vcpu::{
    Cpuid, DebugRegisters, Events, Fpu, MpState, Repeat, Segment, Segments, TableRegister,
    VcpuState,
};
use board::{Clock, Entropy, LocalApic};

use crate::block::Blocks;
use crate::cpu::{Bits, Cpu, Mailbox, RDX, Shared, cr0, cr4, efer, seg};
use crate::features::Features;
use crate::flags::Flags;
use crate::host::{MXCSR_MASK, Vector};
use crate::mmu::tlb::Tlb;
use crate::msr::Msrs;

/// What IA32_TSC counts in a second, in kHz.
pub(crate) const TSC_KHZ: u32 = 1_000_000;
/// XSAVE component of the upper halves of YMM0 to YMM15.
const YMM: u8 = 2;

impl Cpu {
    /// A vCPU after reset.
    pub(crate) fn new(
        id: u32,
        cpuid: &Cpuid,
        shared: &Arc<Shared>,
        mailbox: &Arc<Mailbox>,
        clock: &Clock,
        apic: Option<Box<dyn LocalApic>>,
    ) -> Self {
        let mut cpu = Self {
            regs: [0; 18],
            flags: Flags::new(),
            seg_base: [0; 8],
            tlb: Tlb::new(),
            block: std::ptr::null(),
            link: None,
            rip: 0,
            next_rip: 0,
            icount: 0,
            due: u64::MAX,
            mailbox: mailbox.clone(),
            stop: None,
            bits: Bits::B16,
            cpl: 0,
            segs: [Segment::default(); 8],
            gdt: TableRegister::default(),
            idt: TableRegister::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            xcr0: 1,
            pdptr: [0; 4],
            debug: DebugRegisters::default(),
            watch_hit: 0,
            step_trap: false,
            in_new_task: false,
            debugger: Default::default(),
            msrs: Msrs::new(),
            vector: Vector::new(),
            phys_bits: Features::phys_bits(cpuid),
            features: Features::new(cpuid),
            cpuid: cpuid.clone(),
            tsc_khz: TSC_KHZ,
            mp_state: if id == 0 { MpState::Runnable } else { MpState::WaitForInit },
            sipi_vector: 0,
            sti_shadow: false,
            mov_ss_shadow: false,
            nmi_pending: false,
            nmi_masked: false,
            irq_hint: true,
            taken_interrupt: None,
            blocks: Blocks::new(),
            phys: shared.map(),
            shared: shared.clone(),
            apic,
            clock: clock.clone(),
            count: None,
            solo: false,
            solo_next: false,
            entropy: Entropy::host(),
            io: None,
            id,
            assist: None,
            flushed: false,
        };
        cpu.reset_registers();
        cpu
    }

    /// What reset and INIT have in common (SDM vol. 3, table 10-1).
    fn reset_registers(&mut self) {
        self.regs = [0; 18];
        self.regs[RDX] = u64::from(self.cpuid.get(1, 0).map_or(0, |leaf| leaf.eax));
        self.flags.set(2);
        self.rip = 0xFFF0;
        let data = Segment { selector: 0, base: 0, limit: 0xFFFF, attributes: 0x93 };
        self.segs = [data; 8];
        self.segs[seg::CS] =
            Segment { selector: 0xF000, base: 0xFFFF_0000, limit: 0xFFFF, attributes: 0x9B };
        self.segs[seg::LDT].attributes = 0x82;
        self.segs[seg::TR].attributes = 0x8B;
        self.gdt = TableRegister { base: 0, limit: 0xFFFF };
        self.idt = TableRegister { base: 0, limit: 0xFFFF };
        self.cr0 = cr0::ET | cr0::CD | cr0::NW;
        (self.cr2, self.cr3, self.cr4, self.cr8, self.efer) = (0, 0, 0, 0, 0);
        self.cpl = 0;
        self.debug = DebugRegisters::default();
        self.new_address_space();
        self.update_mode();
    }

    /// INIT: x87, SSE, MSRs and caches keep their contents.
    pub(crate) fn init(&mut self) {
        self.reset_registers();
        (self.stop, self.link, self.watch_hit) = (None, None, 0);
        (self.sti_shadow, self.mov_ss_shadow, self.nmi_pending) = (false, false, false);
        self.nmi_masked = false;
        if let Some(apic) = &mut self.apic {
            apic.init();
        }
        self.mp_state = MpState::WaitForSipi;
        // The boot processor starts over at the reset vector.
        if self.id == 0 {
            self.mp_state = MpState::Runnable;
        }
    }

    /// The complete state, between two instructions.
    pub(crate) fn save_state(&mut self) -> VcpuState {
        // What has arrived and not been looked at has no place in the state.
        self.apic_events();
        let (fpu, xsave) = self.vectors();
        let msrs = self.save_msrs();
        let s = self.segs;
        VcpuState {
            gpr: std::array::from_fn(|i| self.regs[i]),
            rip: self.rip,
            rflags: self.flags.get(),
            segments: Segments {
                es: s[seg::ES],
                cs: s[seg::CS],
                ss: s[seg::SS],
                ds: s[seg::DS],
                fs: s[seg::FS],
                gs: s[seg::GS],
                ldt: s[seg::LDT],
                tr: s[seg::TR],
            },
            gdt: self.gdt,
            idt: self.idt,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.task_priority(),
            pdptr: self.pdptr,
            efer: self.efer,
            apic_base: self.apic.as_ref().map_or(self.msrs.apic_base, |apic| apic.base()),
            xcr0: self.xcr0,
            debug: self.debug,
            fpu,
            xsave,
            msrs,
            lapic: self.apic.as_mut().map(|apic| apic.save()),
            events: Events {
                interrupt: self.taken_interrupt.map(|vector| (vector, false)),
                sti_shadow: self.sti_shadow,
                mov_ss_shadow: self.mov_ss_shadow,
                nmi_pending: self.nmi_pending,
                nmi_masked: self.nmi_masked,
                sipi_vector: self.sipi_vector,
                ..Events::default()
            },
            mp_state: self.mp_state,
            tsc_khz: self.tsc_khz,
            cpuid: self.cpuid.clone(),
            repeat: Some(Repeat { instructions: self.icount, random: self.entropy.position() }),
        }
    }

    /// The vector and x87 registers.
    fn vectors(&mut self) -> (Fpu, BTreeMap<u8, Vec<u8>>) {
        self.vector.snapshot();
        let image = &self.vector.image.0;
        let mut fpu = Fpu {
            fcw: self.vector.fcw,
            fsw: u16::from_le_bytes([image[2], image[3]]),
            ftw: image[4],
            fop: self.vector.fop,
            fip: self.vector.fip,
            fdp: self.vector.fdp,
            mxcsr: self.vector.mxcsr(),
            ..Fpu::default()
        };
        for (i, st) in fpu.st.iter_mut().enumerate() {
            st.copy_from_slice(&image[32 + 16 * i..42 + 16 * i]);
        }
        let ymm = &self.vector.context.ymm;
        for (xmm, ymm) in fpu.xmm.iter_mut().zip(ymm) {
            xmm.copy_from_slice(&ymm[..16]);
        }
        let high: Vec<u8> = ymm.iter().flat_map(|ymm| ymm[16..].iter().copied()).collect();
        let xsave = if high.iter().any(|byte| *byte != 0) { vec![(YMM, high)] } else { vec![] };
        (fpu, xsave.into_iter().collect())
    }

    /// Puts the vector and x87 registers into `state`; components that are unknown here stay.
    pub(crate) fn save_vectors(&mut self, state: &mut VcpuState) {
        let (fpu, mut known) = self.vectors();
        state.fpu = fpu;
        state.xsave.remove(&YMM);
        state.xsave.append(&mut known);
    }

    /// Takes on `state`.
    pub(crate) fn restore_state(&mut self, state: &VcpuState) {
        self.regs[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.next_rip = state.rip;
        self.flags.set(state.rflags);
        let s = &state.segments;
        self.segs = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr];
        (self.gdt, self.idt) = (state.gdt, state.idt);
        self.cr0 = state.cr0 | cr0::ET;
        (self.cr2, self.cr3, self.cr4, self.cr8) = (state.cr2, state.cr3, state.cr4, state.cr8);
        self.pdptr = state.pdptr;
        self.efer = state.efer;
        self.xcr0 = state.xcr0 & self.features_of(state).xcr0 | 1;
        self.debug = state.debug;
        if !state.cpuid.leaves.is_empty() && state.cpuid != self.cpuid {
            // Blocks hold what the old features said of their instructions.
            self.blocks.clear();
            self.features = self.features_of(state);
            self.phys_bits = Features::phys_bits(&state.cpuid);
            self.cpuid = state.cpuid.clone();
        }
        if state.tsc_khz != 0 {
            self.tsc_khz = state.tsc_khz;
        }
        // Real mode has CPL 0 whatever the attributes say.
        self.cpl = if self.v86() {
            3
        } else if self.cr0 & cr0::PE == 0 {
            0
        } else {
            state.cpl()
        };
        self.restore_vectors(state);
        self.msrs.apic_base = state.apic_base;
        if let Some(apic) = &mut self.apic {
            match &state.lapic {
                Some(lapic) => apic.restore(state.apic_base, lapic),
                None => apic.set_tpr((state.cr8 << 4) as u8),
            }
        }
        self.restore_msrs(&state.msrs);
        // FS and GS come with the segments.
        self.segs = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr];
        let events = &state.events;
        self.taken_interrupt = events.interrupt.map(|(vector, _)| vector);
        self.sti_shadow = events.sti_shadow;
        self.mov_ss_shadow = events.mov_ss_shadow;
        self.nmi_pending = events.nmi_pending || events.nmi_injected;
        self.nmi_masked = events.nmi_masked && !events.nmi_injected;
        self.sipi_vector = events.sipi_vector;
        self.mp_state = state.mp_state;
        (self.stop, self.link, self.watch_hit) = (None, None, 0);
        self.restore_exception(events);
        if let Some(repeat) = state.repeat {
            self.icount = repeat.instructions;
            self.entropy.seek(repeat.random);
        }
        self.solo_next = false;
        self.irq_hint = true;
        self.new_address_space();
        self.update_mode();
    }

    fn restore_exception(&mut self, events: &Events) {
        use crate::fault::{Exception, Why};
        if let Some(e) = events.exception {
            // A payload that has been delivered to its register must not be lost.
            let default = if e.vector == crate::fault::vector::PF { self.cr2 } else { 0 };
            let payload = e.payload.unwrap_or(default);
            let (vector, error) = (e.vector, e.error_code);
            self.stop = Some(Why::Exception(Exception { vector, error, payload }));
        }
        if events.triple_fault {
            self.stop = Some(Why::Shutdown);
        }
    }

    fn features_of(&self, state: &VcpuState) -> Features {
        if state.cpuid.leaves.is_empty() {
            self.features.clone()
        } else {
            Features::new(&state.cpuid)
        }
    }

    pub(crate) fn restore_vectors(&mut self, state: &VcpuState) {
        let fpu = &state.fpu;
        let image = &mut self.vector.image.0;
        image[..2].copy_from_slice(&fpu.fcw.to_le_bytes());
        image[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
        image[4] = fpu.ftw;
        for (i, st) in fpu.st.iter().enumerate() {
            image[32 + 16 * i..42 + 16 * i].copy_from_slice(st);
        }
        self.vector.reload();
        (self.vector.fop, self.vector.fip, self.vector.fdp) = (fpu.fop, fpu.fip, fpu.fdp);
        self.vector.set_mxcsr(fpu.mxcsr & MXCSR_MASK);
        let high = state.xsave.get(&YMM);
        for (i, ymm) in self.vector.context.ymm.iter_mut().enumerate() {
            ymm[..16].copy_from_slice(&fpu.xmm[i]);
            match high.and_then(|high| high.get(16 * i..16 * (i + 1))) {
                Some(bytes) => ymm[16..].copy_from_slice(bytes),
                None => ymm[16..].fill(0),
            }
        }
    }
}

/// Whether the state is one that a processor can be in, as far as the CPU relies on it.
pub(crate) fn check(state: &VcpuState) -> Result<(), String> {
    let bad = |what: &str| Err(format!("the vCPU state has {what}: take the snapshot again"));
    if state.cr0 & cr0::PG != 0 && state.cr0 & cr0::PE == 0 {
        return bad("paging without protection in CR0");
    }
    let long = state.cr0 & cr0::PG != 0 && state.efer & efer::LME != 0;
    if long != (state.efer & efer::LMA != 0) || long && state.cr4 & cr4::PAE == 0 {
        return bad("an EFER that does not agree with CR0 and CR4");
    }
    Ok(())
}
