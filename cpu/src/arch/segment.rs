//! Descriptors and the loading of segment registers (SDM vol. 3, 3.4 and 5).

use board::vcpu::Segment;

use crate::cpu::{Bits, Cpu, cr0, seg};
use crate::fault::{Res, vector};

/// The accessed bit of a code or data descriptor's type, the busy bit of a TSS's.
const ACCESSED: u64 = 1 << 40;
pub(crate) const BUSY: u64 = 1 << 41;

/// A descriptor as it lies in memory, with its linear address; `high` is the second half of a
/// system descriptor in long mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) raw: u64,
    pub(crate) high: u64,
    pub(crate) at: u64,
}

impl Descriptor {
    pub(crate) fn kind(&self) -> u8 {
        (self.raw >> 40 & 0xF) as u8
    }
    /// Code or data.
    pub(crate) fn s(&self) -> bool {
        self.raw >> 44 & 1 != 0
    }
    pub(crate) fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }
    pub(crate) fn present(&self) -> bool {
        self.raw >> 47 & 1 != 0
    }
    pub(crate) fn is_code(&self) -> bool {
        self.s() && self.kind() & 8 != 0
    }
    pub(crate) fn conforming(&self) -> bool {
        self.kind() & 4 != 0
    }
    pub(crate) fn long(&self) -> bool {
        self.raw >> 53 & 1 != 0
    }
    pub(crate) fn db(&self) -> bool {
        self.raw >> 54 & 1 != 0
    }
    /// Selector, offset and type of a gate.
    pub(crate) fn gate(&self) -> Gate {
        Gate {
            selector: (self.raw >> 16) as u16,
            offset: self.raw & 0xFFFF | self.raw >> 32 & 0xFFFF_0000 | self.high << 32,
            count: (self.raw >> 32 & 0x1F) as u8,
            ist: (self.raw >> 32 & 7) as u8,
        }
    }

    /// The segment register's contents for `selector`.
    pub(crate) fn segment(&self, selector: u16) -> Segment {
        let raw = self.raw;
        let limit = (raw & 0xFFFF | raw >> 32 & 0xF_0000) as u32;
        let granular = raw >> 55 & 1 != 0;
        Segment {
            selector,
            base: raw >> 16 & 0xFF_FFFF | raw >> 32 & 0xFF00_0000 | self.high << 32,
            limit: if granular { limit << 12 | 0xFFF } else { limit },
            attributes: (raw >> 40) as u32 & 0xF0FF,
        }
    }
}

/// A call, interrupt, trap or task gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    pub(crate) selector: u16,
    pub(crate) offset: u64,
    pub(crate) count: u8,
    pub(crate) ist: u8,
}

/// What a register holds after a null selector was loaded.
pub(crate) fn null(selector: u16) -> Segment {
    Segment { selector, attributes: Segment::UNUSABLE, ..Segment::default() }
}

impl Cpu {
    /// The linear address of the descriptor for `selector`; `None` beyond its table.
    fn descriptor_address(&self, selector: u16, size: u64) -> Option<u64> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdt.base, u32::from(self.gdt.limit))
        } else {
            let ldt = &self.segs[seg::LDT];
            if ldt.unusable() || ldt.attributes == 0 {
                return None;
            }
            (ldt.base, ldt.limit)
        };
        let offset = u64::from(selector & !7);
        (offset + size - 1 <= u64::from(limit)).then(|| base.wrapping_add(offset))
    }

    /// Reads the descriptor for `selector`.
    ///
    /// # Errors
    /// `fault` with the selector as error code, plus `ext`, when it is null or beyond its table.
    pub(crate) fn descriptor(&mut self, selector: u16, fault: u8, ext: u32) -> Res<Descriptor> {
        match self.find_descriptor(selector)? {
            Some(descriptor) => Ok(descriptor),
            None => self.raise_error(fault, u32::from(selector & !3) | ext),
        }
    }

    /// Reads the descriptor for `selector`; `None` when it is null or beyond its table.
    pub(crate) fn find_descriptor(&mut self, selector: u16) -> Res<Option<Descriptor>> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let Some(at) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let raw = self.load_system(at, 8)?;
        let mut descriptor = Descriptor { raw, high: 0, at };
        if self.long() && !descriptor.s() {
            if self.descriptor_address(selector, 16).is_none() {
                return Ok(None);
            }
            descriptor.high = self.load_system(at.wrapping_add(8), 8)?;
        }
        Ok(Some(descriptor))
    }

    /// Sets bits of a descriptor in memory.
    pub(crate) fn mark_descriptor(&mut self, descriptor: &Descriptor, set: u64, clear: u64) -> Res {
        let raw = descriptor.raw & !clear | set;
        if raw != descriptor.raw {
            self.store_system(descriptor.at.wrapping_add(4), 4, raw >> 32)?;
        }
        Ok(())
    }

    /// Sets the accessed bit.
    pub(crate) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Res {
        if self.protected() {
            self.mark_descriptor(descriptor, ACCESSED, 0)?;
        }
        descriptor.raw |= ACCESSED;
        Ok(())
    }

    /// Loads a data segment register as MOV and POP do. The caller calls `update_mode`.
    pub(crate) fn load_segment(&mut self, i: usize, selector: u16) -> Res {
        if self.real_like() {
            self.load_real(i, selector);
            return Ok(());
        }
        self.segs[i] = if i == seg::SS {
            self.stack_segment(selector, self.cpl, vector::GP, 0)?
        } else {
            self.data_segment(selector, vector::GP, 0)?
        };
        Ok(())
    }

    /// Loads a segment register in real or virtual-8086 mode.
    pub(crate) fn load_real(&mut self, i: usize, selector: u16) {
        let segment = &mut self.segs[i];
        segment.selector = selector;
        segment.base = u64::from(selector) << 4;
        if self.flags.rest & crate::flags::bit::VM != 0 {
            segment.limit = 0xFFFF;
            segment.attributes = 0xF3;
        } else if i == seg::CS {
            // Writable in real mode; limit and width stay as they are ("unreal mode").
            segment.attributes = segment.attributes & 0xC000 | 0x93;
        } else {
            segment.attributes = segment.attributes & 0xC0FF & !Segment::UNUSABLE | 0x93;
        }
    }

    /// What DS, ES, FS or GS holds for `selector`; `fault` is raised for a bad one.
    pub(crate) fn data_segment(&mut self, selector: u16, fault: u8, ext: u32) -> Res<Segment> {
        if selector & !3 == 0 {
            return Ok(null(selector));
        }
        let error = u32::from(selector & !3) | ext;
        let mut d = self.descriptor(selector, fault, ext)?;
        let rpl = (selector & 3) as u8;
        let code = d.is_code();
        let readable = d.s() && (!code || d.kind() & 2 != 0);
        let conforming = code && d.conforming();
        if !readable || !conforming && (rpl > d.dpl() || self.cpl > d.dpl()) {
            return self.raise_error(fault, error);
        }
        if !d.present() {
            return self.raise_error(vector::NP, error);
        }
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// What SS holds for `selector` at privilege `cpl`; `fault` is raised for a bad one.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        fault: u8,
        ext: u32,
    ) -> Res<Segment> {
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            if self.bits == Bits::B64 && cpl != 3 && rpl == cpl {
                let mut segment = null(selector);
                segment.attributes |= u32::from(cpl) << 5;
                return Ok(segment);
            }
            return self.raise_error(fault, ext);
        }
        let error = u32::from(selector & !3) | ext;
        let mut d = self.descriptor(selector, fault, ext)?;
        if rpl != cpl || !d.s() || d.kind() & 0b1010 != 0b0010 || d.dpl() != cpl {
            return self.raise_error(fault, error);
        }
        if !d.present() {
            return self.raise_error(vector::SS, error);
        }
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// Puts `segment` in CS with `cpl` as its requested privilege.
    pub(crate) fn set_cs(&mut self, mut segment: Segment, cpl: u8) {
        segment.selector = segment.selector & !3 | u16::from(cpl);
        self.segs[seg::CS] = segment;
        self.cpl = cpl;
    }

    /// On a return to an outer level: data segments that the new level may not use become null.
    pub(crate) fn drop_privileged_segments(&mut self) {
        for i in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = &self.segs[i];
            let conforming = s.s() && s.kind() & 0b1100 == 0b1100;
            if !s.unusable() && !conforming && s.dpl() < self.cpl {
                self.segs[i] = null(0);
            }
        }
    }

    /// PE was just set or cleared by MOV CR0 or LMSW.
    pub(crate) fn protection_changed(&mut self) {
        if self.cr0 & cr0::PE == 0 {
            self.cpl = 0;
        }
    }
}
