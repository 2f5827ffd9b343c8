//! From instruction bytes to blocks.

use std::cell::Cell;

use iced_x86::{
    Code, CodeSize, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic,
    OpKind, Register,
};

use crate::block::{Block, MAX_BLOCK, Op};
use crate::cpu::{Bits, Cpu};
use crate::exec;
use crate::fault::Res;
use crate::ops;
use crate::phys::Span;

/// Longest instruction, in bytes.
const MAX_LENGTH: usize = 15;

impl Cpu {
    /// Decodes the block at `linear`, which is at guest-physical address `phys`.
    ///
    /// # Errors
    /// What fetching the second page of an instruction raises, or #UD on memory that cannot be
    /// executed from.
    pub(crate) fn decode_block(&mut self, linear: u64, phys: u64, single: bool) -> Res<Block> {
        let off = (linear & 0xFFF) as usize;
        let mut bytes = [0; 4096 + MAX_LENGTH];
        let mut fetched = off;
        let bitness = match self.bits {
            Bits::B16 => 16,
            Bits::B32 => 32,
            Bits::B64 => 64,
        };
        let mut builder = Builder::default();
        let mut second = None;
        let mut at = off;
        let max = if single || self.phys.page(phys).is_none() { 1 } else { MAX_BLOCK };
        let mut instr = Instruction::default();
        let mut ended = false;
        while builder.count < max && at < 4096 && !ended {
            if builder.count > 0 && self.debugger.cuts(at) {
                break;
            }
            let end = (at + MAX_LENGTH).min(4096);
            if end > fetched {
                // As much as will be watched for writes in any case.
                let more = fetched..end.next_multiple_of(64);
                self.fetch_bytes((phys & !0xFFF) + fetched as u64, &mut bytes[more.clone()]);
                fetched = more.end;
            }
            let mut decoder =
                Decoder::with_ip(bitness, &bytes[at..end], at as u64, DecoderOptions::NONE);
            decoder.decode_out(&mut instr);
            if decoder.last_error() == DecoderError::NoMoreBytes && end == 4096 {
                if builder.count > 0 {
                    break;
                }
                let next = self.fetch_phys((linear & !0xFFF).wrapping_add(0x1000))?;
                self.fetch_bytes(next, &mut bytes[4096..]);
                second = Some(next);
                let rest = &bytes[at..at + MAX_LENGTH];
                let mut decoder = Decoder::with_ip(bitness, rest, at as u64, DecoderOptions::NONE);
                decoder.decode_out(&mut instr);
                correct(&mut instr, rest);
                self.add(&mut builder, &instr, decoder.last_error(), at, single);
                at += instr.len().max(1);
                break;
            }
            correct(&mut instr, &bytes[at..]);
            ended = self.add(&mut builder, &instr, decoder.last_error(), at, single);
            at += instr.len().max(1);
        }
        // A link would skip the look at what makes any other block special.
        let linkable =
            !single && second.is_none() && !self.debugger.cuts(off) && self.assist.is_none();
        Ok(builder.finish(off, at, second, linkable))
    }

    /// Adds an instruction; true if it ends the block.
    fn add(
        &mut self,
        builder: &mut Builder,
        instr: &Instruction,
        error: DecoderError,
        at: usize,
        single: bool,
    ) -> bool {
        builder.count += 1;
        let known = error == DecoderError::None && self.features.offers(instr);
        if known && let Some(guard) = crate::assist::guard(self, instr, single) {
            builder.ends = true;
            builder.ops.push(Op {
                imm: builder.slow.len() as u64,
                len: instr.len() as u8,
                off: at as u16,
                ..ops::op(ops::slow_end)
            });
            builder.slow.push((guard, *instr));
            return true;
        }
        if known
            && self.bits == Bits::B64
            && let Some(op) = ops::specialise(instr)
        {
            let ends = instr.flow_control() != FlowControl::Next;
            builder.ends = ends;
            builder.ops.push(Op { len: instr.len() as u8, off: at as u16, ..op });
            return ends;
        }
        let handler = if known { exec::find(instr) } else { None };
        if known
            && handler.is_none()
            && self.bits == Bits::B64
            && let Some(op) = crate::host::specialise(self, instr)
        {
            builder.ends = false;
            builder.ops.push(Op { len: instr.len() as u8, off: at as u16, ..op });
            return false;
        }
        if known
            && handler.is_none()
            && !instr.has_lock_prefix()
            && let Some(stub) = crate::host::decode(self, instr)
        {
            builder.ends = false;
            builder.ops.push(Op {
                imm: builder.slow.len() as u64,
                disp: stub as u64,
                len: instr.len() as u8,
                off: at as u16,
                ..ops::op(crate::host::run_op)
            });
            builder.slow.push((exec::undefined, *instr));
            return false;
        }
        let invalid = handler.is_none();
        let ends = invalid || ends_block(instr);
        builder.ends = ends;
        let run = if ends { ops::slow_end } else { ops::slow };
        let too_long = error != DecoderError::None && instr.len() >= MAX_LENGTH;
        let handler = handler.unwrap_or(if too_long { exec::too_long } else { exec::undefined });
        builder.ops.push(Op {
            imm: builder.slow.len() as u64,
            len: instr.len() as u8,
            off: at as u16,
            ..ops::op(run)
        });
        builder.slow.push((handler, *instr));
        ends
    }

    /// Reads code bytes of one page; the page is watched from before they are read.
    fn fetch_bytes(&mut self, phys: u64, data: &mut [u8]) {
        if let Some(page) = self.phys.page(phys) {
            self.watch_code(Span::new(phys, data.len() as u64));
            // SAFETY: the bytes from `phys` to the end of its page are guest memory, and `data` is
            // no longer than that.
            unsafe {
                let host = page.host.add((phys & 0xFFF) as usize);
                crate::mmu::access::copy_from_guest(host, data);
            }
        } else {
            // Code outside memory: one read of what an instruction can need.
            let n = data.len().min(MAX_LENGTH);
            for (i, byte) in data[..n].iter_mut().enumerate() {
                self.io().mmio_read(phys + i as u64, std::slice::from_mut(byte));
            }
        }
    }
}

/// What 64-bit code means and the decoder says otherwise.
fn correct(instr: &mut Instruction, bytes: &[u8]) {
    use Register as R;
    if instr.code_size() != CodeSize::Code64 {
        return;
    }
    // Such prefixes are ignored: the base register alone chooses between DS and SS.
    if matches!(instr.segment_prefix(), R::ES | R::CS | R::SS | R::DS) {
        instr.set_segment_prefix(R::None);
    }
    // With REX.B, 90 is an exchange, whether F3 precedes it or not.
    if instr.code() == Code::Pause && instr.len() >= 3 {
        let rex = bytes[instr.len() - 2];
        if rex & 0xF1 == 0x41 {
            let wide = rex & 8 != 0;
            let narrow = !wide && bytes[..instr.len() - 2].contains(&0x66);
            let (code, a, b) = match (wide, narrow) {
                (true, _) => (Code::Xchg_r64_RAX, R::R8, R::RAX),
                (_, true) => (Code::Xchg_r16_AX, R::R8W, R::AX),
                _ => (Code::Xchg_r32_EAX, R::R8D, R::EAX),
            };
            instr.set_code(code);
            instr.set_op0_kind(OpKind::Register);
            instr.set_op1_kind(OpKind::Register);
            instr.set_op0_register(a);
            instr.set_op1_register(b);
            instr.set_has_rep_prefix(false);
        }
    }
}

/// Whether what follows `instr` may have to be looked at anew: it branches, serialises, changes the mode, the
/// address space or the interrupt flag, reaches a device or shows the time, which is that of the
/// block's end.
fn ends_block(instr: &Instruction) -> bool {
    use Mnemonic as M;
    if instr.flow_control() != FlowControl::Next {
        return true;
    }
    match instr.mnemonic() {
        M::Mov => {
            let (a, b) = (instr.op0_register(), instr.op1_register());
            a.is_segment_register() || a.is_cr() || a.is_dr() || b.is_cr()
        }
        M::Pop => instr.op0_register().is_segment_register(),
        M::Sti
        | M::Popf
        | M::Popfd
        | M::Popfq
        | M::Hlt
        | M::Mwait
        | M::Monitor
        | M::Wrmsr
        | M::Rdmsr
        | M::Rdtsc
        | M::Rdtscp
        | M::Invlpg
        | M::Invpcid
        | M::Lmsw
        | M::Clts
        | M::Xsetbv
        | M::Swapgs
        | M::Wbinvd
        | M::Invd
        | M::In
        | M::Out
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd
        | M::Lss
        | M::Lds
        | M::Les
        | M::Lfs
        | M::Lgs
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Pause
        | M::Ltr
        | M::Lldt
        | M::Into
        | M::Bound
        | M::Cpuid
        | M::Vmcall
        | M::Vmmcall => true,
        _ => false,
    }
}

#[derive(Default)]
struct Builder {
    ops: Vec<Op>,
    slow: Vec<(exec::Exec, Instruction)>,
    count: usize,
    ends: bool,
}

impl Builder {
    fn finish(mut self, off: usize, end: usize, second: Option<u64>, linkable: bool) -> Block {
        if !self.ends {
            self.ops.push(Op { imm: end as u64, off: end as u16, ..ops::op(ops::fall_through) });
        }
        Block {
            ops: self.ops.into_boxed_slice(),
            slow: self.slow.into_boxed_slice(),
            links: [const { Cell::new(std::ptr::null()) }; 2],
            count: self.count as u32,
            off: off as u16,
            len: (end - off) as u16,
            second,
            linkable,
        }
    }
}
