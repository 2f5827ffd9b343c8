//! Predecoded basic blocks, and the caches that find them.
//!
//! A block is a run of instructions within one guest-physical page, kept as an array of [`Op`]s
//! that call each other in turn (each ends in a tail call of the next) up to one that returns.
//! It holds no linear address, so it serves wherever its page is mapped: branch targets
//! and RIP-relative operands are relative to [`crate::cpu::PAGE`].
//!
//! A block is found in three ways, the quickest first: by a link from the block before it, if
//! both lie in one page; by the jump cache, indexed by linear address; by its guest-physical
//! address. To drop a block, the handlers of its ops are replaced by one that returns to the run
//! loop at once; so links to it and even its own execution need no check. Its memory is
//! kept until all blocks go at once.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use board::memory::PAGE_SIZE;
use iced_x86::Instruction;

use crate::cpu::{Bits, Cpu, PAGE, Todo};
use crate::exec::Exec;
use crate::fault::Res;
use crate::mmu::walk::{Access, Kind};
use crate::phys::Span;

/// Executes an op and all that follow it in its block. Returns the block to go on with, or null
/// when that is the one at `cpu.rip`, or `cpu.stop` says what happened.
///
/// # Safety
/// `op` must point into the ops of `*cpu.block`.
pub(crate) type Handler = unsafe fn(cpu: &mut Cpu, op: *const Op) -> *const Block;

/// A predecoded instruction. What the fields hold is the handler's affair; the usual meaning:
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Op {
    pub(crate) run: Cell<Handler>,
    /// Immediate operand, or branch target relative to the page.
    pub(crate) imm: u64,
    /// Displacement of the memory operand.
    pub(crate) disp: u64,
    /// Byte offsets of register operands in `cpu.regs`.
    pub(crate) dst: u8,
    pub(crate) src: u8,
    /// Base and index of the memory operand, as indices of `cpu.regs`, and the shift of the index.
    pub(crate) base: u8,
    pub(crate) index: u8,
    pub(crate) scale: u8,
    pub(crate) seg: u8,
    /// Bytes of the instruction.
    pub(crate) len: u8,
    /// Condition code and the like.
    pub(crate) aux: u8,
    /// Offset of the instruction in its page.
    pub(crate) off: u16,
}

/// A basic block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) ops: Box<[Op]>,
    /// Instructions that have no specialised op, which names them by `imm`.
    pub(crate) slow: Box<[(Exec, Instruction)]>,
    /// Successors within the page: the branch's target, and what follows the block.
    pub(crate) links: [Cell<*const Block>; 2],
    /// Instructions in the block.
    pub(crate) count: u32,
    /// Offset of the first instruction in its page.
    pub(crate) off: u16,
    /// Bytes of code.
    pub(crate) len: u16,
    /// Guest-physical page of the rest of an instruction that crosses into it.
    pub(crate) second: Option<u64>,
    /// Whether links may start and end here.
    pub(crate) linkable: bool,
}

impl Block {
    /// The bytes of a block at `phys`, page by page.
    fn parts(&self, phys: u64) -> [Option<Span>; 2] {
        let len = u64::from(self.len);
        let beyond = (phys % PAGE_SIZE + len).saturating_sub(PAGE_SIZE);
        let second = self.second.filter(|_| beyond > 0).map(|page| Span::new(page, beyond));
        [Some(Span::new(phys, len)), second]
    }
}

/// Most instructions in a block; it bounds the host stack too where the compiler makes no tail
/// calls.
pub(crate) const MAX_BLOCK: usize = 32;
/// When decoded blocks take more bytes than this, all are dropped.
const MAX_BYTES: usize = 24 << 20;
const JUMP_CACHE: usize = 2048;

#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    key: u64,
    block: *const Block,
}

/// A hasher for small integer keys.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(5) ^ v).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 ^= self.0 >> 29;
    }
}

type Map<V> = HashMap<u64, V, BuildHasherDefault<Mix>>;

/// All blocks of a vCPU.
pub(crate) struct Blocks {
    jumps: Box<[Jump]>,
    /// By guest-physical address of the first byte and, in bits 60 to 62, kind.
    by_phys: Map<Box<Block>>,
    /// Keys of `by_phys` by guest-physical page.
    by_page: Map<Vec<u64>>,
    /// Dropped blocks: one may be in execution, and others link to them.
    #[expect(clippy::vec_box, reason = "blocks are pointed to and must not move")]
    dropped: Vec<Box<Block>>,
    bytes: usize,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        let none = Jump { linear: 0, key: u64::MAX, block: std::ptr::null() };
        Self {
            jumps: vec![none; JUMP_CACHE].into_boxed_slice(),
            by_phys: Map::default(),
            by_page: Map::default(),
            dropped: Vec::new(),
            bytes: 0,
        }
    }

    /// Forgets all blocks, as [`Self::clear`] does, once the TLB's epoch is another one: what is in
    /// the jump cache is of no use then. None may be in execution.
    pub(crate) fn forget(&mut self) {
        self.by_phys.clear();
        self.by_page.clear();
        self.dropped.clear();
        self.bytes = 0;
    }

    /// Forgets all blocks. None may be in execution.
    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }
}

/// The address in a key of `Blocks::by_phys`.
const PHYS: u64 = (1 << 60) - 1;

/// Cuts `bits` and `single` into a key of `Blocks::by_phys`.
fn key(phys: u64, bits: Bits, single: bool) -> u64 {
    phys | (bits as u64) << 60 | (single as u64) << 62
}

fn jump_index(linear: u64) -> usize {
    (linear ^ linear >> 11) as usize & (JUMP_CACHE - 1)
}

impl Cpu {
    /// The block at RIP, decoded if need be. With `single`, one of a single instruction.
    ///
    /// # Errors
    /// What fetching it raises.
    #[inline]
    pub(crate) fn find_block(&mut self, single: bool) -> Res<*const Block> {
        if self.bits != Bits::B64 {
            return self.find_block_in_segment(single);
        }
        self.find_block_at(self.rip, single)
    }

    /// As [`Self::find_block`], within the limit of CS: what is cached knows nothing of it.
    fn find_block_in_segment(&mut self, single: bool) -> Res<*const Block> {
        let limit = u64::from(self.segs[crate::cpu::seg::CS].limit);
        let Some(room) = limit.checked_sub(self.rip) else { return self.gp(0) };
        let linear = self.linear_ip(self.rip);
        if room >= PAGE_SIZE {
            return self.find_block_at(linear, single);
        }
        // The end of the segment may be in the page: one instruction at a time is looked at.
        let block = self.find_block_at(linear, true)?;
        // SAFETY: `find_block_at` gives a block that is alive.
        if u64::from(unsafe { (*block).len }) > room + 1 { self.gp(0) } else { Ok(block) }
    }

    #[inline]
    fn find_block_at(&mut self, linear: u64, single: bool) -> Res<*const Block> {
        let key = self.tlb.key(linear) ^ (self.bits as u64) << 61 ^ (single as u64) << 63;
        let jump = self.blocks.jumps[jump_index(linear)];
        self.regs[PAGE] = self.rip.wrapping_sub(linear & 0xFFF);
        if jump.linear == linear && jump.key == key {
            return Ok(jump.block);
        }
        let block = self.find_block_slow(linear, single)?;
        let key = self.tlb.key(linear) ^ (self.bits as u64) << 61 ^ (single as u64) << 63;
        self.tlb.note_jump(linear);
        // SAFETY: `find_block_slow` gives a block that is alive.
        if unsafe { (*block).second.is_some() } {
            self.tlb.note_jump(linear.wrapping_add(PAGE_SIZE));
        }
        self.blocks.jumps[jump_index(linear)] = Jump { linear, key, block };
        Ok(block)
    }

    #[inline(never)]
    fn find_block_slow(&mut self, linear: u64, single: bool) -> Res<*const Block> {
        if self.blocks.bytes > MAX_BYTES || self.vector.code.nearly_full() {
            self.blocks.clear();
            self.vector.stubs.clear();
            self.vector.code.clear();
            self.link = None;
        }
        if self.bits == Bits::B64 && !self.canonical(linear) {
            return self.gp(0);
        }
        let phys = self.fetch_phys(linear)?;
        let at = key(phys, self.bits, single);
        if let Some(block) = self.blocks.by_phys.get(&at) {
            let block: *const Block = &**block;
            // SAFETY: blocks in the map are alive.
            let Some(second) = (unsafe { (*block).second }) else { return Ok(block) };
            let next = self.fetch_phys((linear & !0xFFF).wrapping_add(0x1000))?;
            if next == second {
                return Ok(block);
            }
            self.drop_code(Span::new(phys, 1));
        }
        let block = Box::new(self.decode_block(linear, phys, single)?);
        let pointer: *const Block = &*block;
        self.blocks.bytes += std::mem::size_of::<Block>()
            + block.ops.len() * std::mem::size_of::<Op>()
            + block.slow.len() * std::mem::size_of::<(Exec, Instruction)>();
        for page in std::iter::once(phys & !0xFFF).chain(block.second) {
            let keys = self.blocks.by_page.entry(page).or_default();
            if !keys.contains(&at) {
                keys.push(at);
            }
        }
        if let Some(old) = self.blocks.by_phys.insert(at, block) {
            self.blocks.dropped.push(old);
        }
        Ok(pointer)
    }

    /// The guest-physical address of code at `linear`.
    ///
    /// # Errors
    /// A page fault on fetching.
    pub(crate) fn fetch_phys(&mut self, linear: u64) -> Res<u64> {
        if self.tlb.entry(linear).exec == self.tlb.tag(linear) {
            return Ok(self.tlb.phys(linear) | linear & 0xFFF);
        }
        let access = Access { kind: Kind::Exec, user: self.cpl == 3, smap: self.smap_now() };
        Ok(self.translate(linear, access)?.phys)
    }

    fn smap_now(&self) -> bool {
        self.data_access(false).smap
    }

    /// Notes that this vCPU is about to decode code in `span`: from now on, writes to it are
    /// noticed.
    pub(crate) fn watch_code(&mut self, span: Span) {
        let Some(page) = self.phys.page(span.page) else { return };
        let Some(unsettled) = self.phys.set_code(page, span.lines(), self.id) else { return };
        self.tlb.protect(span.page);
        if !unsettled.only_own {
            self.protect_everywhere(span.page);
        }
        self.phys.settle(page, unsettled);
    }

    /// Has all other vCPUs' TLBs lead writes to the page to the slow path, and returns once none of
    /// them is in a block that began before.
    fn protect_everywhere(&mut self, phys: u64) {
        let asked = self.shared.ask_others(&self.mailbox, Todo::Protect(phys));
        // Another one may wait for this one, which executes nothing meanwhile.
        self.mailbox.leave();
        for (mailbox, ticket) in asked {
            let mut turns = 0_u32;
            while !mailbox.has_answered(ticket) {
                turns += 1;
                if turns.is_multiple_of(64) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
        }
        self.mailbox.enter();
        self.catch_up();
    }

    /// Drops the blocks that have bytes in `span`, the current one included: execution leaves it
    /// at the next instruction boundary. Returns the lines of `span` of which blocks remain.
    pub(crate) fn drop_code(&mut self, span: Span) -> u64 {
        let Blocks { by_phys, by_page, dropped, .. } = &mut self.blocks;
        let Some(keys) = by_page.get_mut(&span.page) else { return 0 };
        let (mut any, mut remain) = (false, 0);
        keys.retain(|key| {
            // A block of two pages may have been dropped by way of the other.
            let Some(block) = by_phys.get(key) else { return false };
            let parts = block.parts(key & PHYS);
            let here = || parts.iter().flatten().filter(|part| part.page == span.page);
            if !here().any(|part| part.first <= span.last && span.first <= part.last) {
                remain |= here().fold(0, |lines, part| lines | part.lines());
                return true;
            }
            for op in &block.ops {
                op.run.set(crate::ops::bail);
            }
            dropped.extend(by_phys.remove(key));
            any = true;
            false
        });
        if keys.is_empty() {
            by_page.remove(&span.page);
        }
        if any {
            // The jump cache may name these blocks.
            self.tlb.forget_jumps();
        }
        remain & span.lines()
    }
}
