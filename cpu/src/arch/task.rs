//! Hardware task switches (SDM vol. 3, 7).

use crate::arch::segment::{BUSY, Descriptor, null};
use crate::cpu::{Cpu, cr0, cr4, seg};
use crate::fault::{Res, vector};
use crate::flags::bit;

/// What makes the processor switch tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Jump,
    Call,
    /// A task gate in the interrupt table.
    Interrupt,
    /// IRET with NT set.
    Return,
}

/// Offsets of the fields that a switch saves and loads.
struct Layout {
    size: usize,
    limit: u32,
    eip: u64,
    eflags: u64,
    gpr: u64,
    segments: u64,
    segment_step: u64,
    segment_count: usize,
    ldt: u64,
}

const TSS16: Layout = Layout {
    size: 2,
    limit: 0x2B,
    eip: 14,
    eflags: 16,
    gpr: 18,
    segments: 34,
    segment_step: 2,
    segment_count: 4,
    ldt: 42,
};
const TSS32: Layout = Layout {
    size: 4,
    limit: 0x67,
    eip: 32,
    eflags: 36,
    gpr: 40,
    segments: 72,
    segment_step: 4,
    segment_count: 6,
    ldt: 96,
};

fn layout(kind: u8) -> &'static Layout {
    if kind & 8 != 0 { &TSS32 } else { &TSS16 }
}

impl Cpu {
    /// Switches to the TSS that `selector`, of a task gate or a far branch, names.
    ///
    /// # Errors
    /// #GP, #NP or #TS; the old task goes on unless the fault arose in the new one.
    pub(crate) fn task_switch_checked(&mut self, selector: u16, cause: Cause, ext: u32) -> Res {
        let error = u32::from(selector & !3) | ext;
        let fault = if cause == Cause::Return { vector::TS } else { vector::GP };
        if selector & 4 != 0 {
            return self.raise_error(fault, error);
        }
        let descriptor = self.descriptor(selector, fault, ext)?;
        let wanted = if cause == Cause::Return { 0b0011 } else { 0b0001 };
        if descriptor.s() || descriptor.kind() & 0b0111 != wanted {
            return self.raise_error(fault, error);
        }
        if !descriptor.present() {
            return self.raise_error(vector::NP, error);
        }
        self.task_switch(selector, &descriptor, cause, ext)
    }

    fn task_switch(&mut self, selector: u16, to: &Descriptor, cause: Cause, ext: u32) -> Res {
        let new = to.segment(selector);
        let fields = layout(new.kind());
        if new.limit < fields.limit {
            return self.raise_error(vector::TS, u32::from(selector & !3) | ext);
        }
        let old = self.segs[seg::TR];
        // All of the new state is read before anything changes.
        let size = fields.size;
        let at = |offset: u64| new.base.wrapping_add(offset);
        let cr3 = if size == 4 { self.load_system(at(28), 4)? } else { self.cr3 };
        let eip = self.load_system(at(fields.eip), size)?;
        let mut eflags = self.load_system(at(fields.eflags), size)?;
        let mut gpr = [0; 8];
        for (i, register) in gpr.iter_mut().enumerate() {
            *register = self.load_system(at(fields.gpr + (i * size) as u64), size)?;
        }
        let mut selectors = [0_u16; 6];
        for (i, selector) in selectors.iter_mut().enumerate().take(fields.segment_count) {
            *selector =
                self.load_system(at(fields.segments + i as u64 * fields.segment_step), 2)? as u16;
        }
        let ldt = self.load_system(at(fields.ldt), 2)? as u16;
        let trap = size == 4 && self.load_system(at(100), 2)? & 1 != 0;

        self.save_task(&old, cause)?;
        if matches!(cause, Cause::Jump | Cause::Return) {
            let mut old_descriptor = self.descriptor(old.selector, vector::TS, ext)?;
            old_descriptor.raw |= BUSY;
            self.mark_descriptor(&old_descriptor, 0, BUSY)?;
        }
        if matches!(cause, Cause::Call | Cause::Interrupt) {
            self.store_system(new.base, 2, u64::from(old.selector))?;
            eflags |= bit::NT;
        }
        if cause != Cause::Return {
            self.mark_descriptor(to, BUSY, 0)?;
        }
        let mut tr = new;
        tr.attributes |= 2;
        self.segs[seg::TR] = tr;
        self.cr0 |= cr0::TS;
        if size == 4 && self.cr0 & cr0::PG != 0 && cr3 != self.cr3 {
            if self.cr4 & cr4::PAE != 0 {
                self.load_pdptrs(cr3)?;
            }
            self.cr3 = cr3;
            self.tlb.flush_local();
        }
        for (register, value) in self.regs.iter_mut().zip(gpr) {
            *register = value;
        }
        self.flags.set(eflags);
        self.rip = eip;
        self.next_rip = eip;
        self.debug.control &= !0x155;
        let mut result = self.load_task_segments(&selectors, ldt, ext);
        self.update_mode();
        if result.is_ok() && eip > u64::from(self.segs[seg::CS].limit) {
            result = self.gp(ext);
        }
        self.in_new_task = result.is_err();
        result?;
        if trap {
            self.watch_hit |= 1 << 15;
        }
        Ok(())
    }

    /// Saves the current state in the current TSS.
    fn save_task(&mut self, old: &board::vcpu::Segment, cause: Cause) -> Res {
        let fields = layout(old.kind());
        let size = fields.size;
        let at = |offset: u64| old.base.wrapping_add(offset);
        let mut eflags = self.flags.get();
        if cause == Cause::Return {
            eflags &= !bit::NT;
        }
        self.store_system(at(fields.eip), size, self.next_rip)?;
        self.store_system(at(fields.eflags), size, eflags)?;
        for i in 0..8 {
            self.store_system(at(fields.gpr + (i * size) as u64), size, self.regs[i])?;
        }
        for i in 0..fields.segment_count {
            let selector = u64::from(self.segs[i].selector);
            self.store_system(at(fields.segments + i as u64 * fields.segment_step), 2, selector)?;
        }
        Ok(())
    }

    /// Loads LDTR and the segment registers of the new task; faults are the new task's.
    fn load_task_segments(&mut self, selectors: &[u16; 6], ldt: u16, ext: u32) -> Res {
        for (i, selector) in selectors.iter().enumerate() {
            self.segs[i] = null(*selector);
        }
        self.segs[seg::LDT] = null(ldt);
        let ts = |selector: u16| u32::from(selector & !3) | ext;
        if ldt & !3 != 0 {
            let d = match self.find_descriptor(ldt)? {
                Some(d) if ldt & 4 == 0 && !d.s() && d.kind() == 2 && d.present() => d,
                _ => return self.raise_error(vector::TS, ts(ldt)),
            };
            self.segs[seg::LDT] = d.segment(ldt);
        }
        if self.v86() {
            for (i, selector) in selectors.iter().enumerate() {
                self.load_real(i, *selector);
            }
            self.cpl = 3;
            return Ok(());
        }
        let cs = selectors[seg::CS];
        let rpl = (cs & 3) as u8;
        let mut code = self.descriptor(cs, vector::TS, ext)?;
        let level = if code.conforming() { code.dpl() <= rpl } else { code.dpl() == rpl };
        if !code.is_code() || !level {
            return self.raise_error(vector::TS, ts(cs));
        }
        if !code.present() {
            return self.raise_error(vector::NP, ts(cs));
        }
        self.mark_accessed(&mut code)?;
        self.set_cs(code.segment(cs), rpl);
        self.update_mode();
        self.segs[seg::SS] = self.stack_segment(selectors[seg::SS], rpl, vector::TS, ext)?;
        for i in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let selector = selectors[i];
            if selector & !3 == 0 {
                continue;
            }
            self.segs[i] = self.data_segment(selector, vector::TS, ext)?;
        }
        Ok(())
    }
}
