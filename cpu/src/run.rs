//! The run loop: block after block, with a look at interrupts, other threads' wishes and debug
//! traps between them.

use std::sync::atomic::Ordering;

use board::vcpu::MpState;
use board::{ApicEvent, Exit};

use crate::block::Block;
use crate::cpu::{BS, Cpu, PAGE, Todo, seg};
use crate::fault::{Exception, Stop, Why, vector};
use crate::flags::bit;

impl Cpu {
    /// Executes guest code until something asks for an exit.
    pub(crate) fn execute(&mut self) -> Exit {
        self.irq_hint = true;
        self.vector.enter();
        let exit = if self.count.is_some() {
            self.begin_count();
            let exit = self.execute_blocks::<true>();
            self.end_count();
            exit
        } else {
            self.execute_blocks::<false>()
        };
        self.vector.leave();
        exit
    }

    /// As [`Self::execute`], for `count` blocks at most, or single instructions.
    pub(crate) fn execute_some(&mut self, count: u64, single: bool) -> Option<Exit> {
        self.irq_hint = true;
        self.vector.enter();
        let mut result = None;
        for _ in 0..count {
            match self.turn::<false>(single) {
                Ok(Some(block)) => self.run_alone(block),
                Ok(None) => {}
                Err(exit) => {
                    result = Some(exit);
                    break;
                }
            }
        }
        self.vector.leave();
        result
    }

    /// Executes a block and does not follow its links.
    fn run_alone(&mut self, block: *const Block) {
        let next = self.run_block(block);
        if !next.is_null() {
            // SAFETY: handlers return blocks that are alive.
            let off = unsafe { (*next).off };
            self.rip = self.regs[PAGE].wrapping_add(u64::from(off)) & self.ip_mask();
            self.link = None;
        }
    }

    /// With `COUNTED`, no block goes past the count at which timers are due.
    fn execute_blocks<const COUNTED: bool>(&mut self) -> Exit {
        let mut next: *const Block = std::ptr::null();
        loop {
            if next.is_null()
                || COUNTED && self.is_too_long(next)
                || self.mailbox.attention.load(Ordering::Relaxed)
            {
                if !next.is_null() {
                    // SAFETY: handlers return blocks that are alive.
                    let off = unsafe { (*next).off };
                    self.rip = self.regs[PAGE].wrapping_add(u64::from(off)) & self.ip_mask();
                    self.link = None;
                }
                next = match self.advance::<COUNTED>() {
                    Ok(block) => block,
                    Err(exit) => return exit,
                };
            }
            next = self.run_block(next);
        }
    }

    /// Whether timers are due before the end of `block`.
    #[inline(always)]
    fn is_too_long(&self, block: *const Block) -> bool {
        // SAFETY: as in `run_block`.
        self.due.saturating_sub(self.icount) < u64::from(unsafe { (*block).count })
    }

    /// Executes one block, which `find_block` or a link has named.
    #[inline(always)]
    pub(crate) fn run_block(&mut self, block: *const Block) -> *const Block {
        self.block = block;
        // SAFETY: blocks live until `Blocks::clear`, which only `find_block` and `advance` call,
        // between blocks. A block has at least one op, and is the current one.
        unsafe {
            self.icount += u64::from((*block).count);
            let op = (*block).ops.as_ptr();
            ((*op).run.get())(self, op)
        }
    }

    /// Between blocks, with RIP exact: does what is due and finds the next block.
    fn advance<const COUNTED: bool>(&mut self) -> Result<*const Block, Exit> {
        if COUNTED {
            self.solo = true;
        }
        loop {
            if let Some(block) = self.turn::<COUNTED>(false)? {
                return Ok(block);
            }
        }
    }

    /// Does what is due and finds the next block, or executes one instruction: when something asks
    /// for single steps, or `single` does.
    #[inline(always)]
    fn turn<const COUNTED: bool>(&mut self, single: bool) -> Result<Option<*const Block>, Exit> {
        self.block = std::ptr::null();
        if let Some(exit) = self.settle_stop() {
            return Err(exit);
        }
        if COUNTED && self.icount >= self.due {
            self.run_due();
        }
        if self.mailbox.attention.swap(false, Ordering::SeqCst) {
            if let Some(exit) = self.attend() {
                return Err(exit);
            }
            if COUNTED {
                self.plan();
                if self.icount >= self.due || self.wait_for_host() {
                    return Ok(None);
                }
            }
        }
        let shadow = self.sti_shadow || self.mov_ss_shadow;
        if !shadow
            && self.nmi_pending | self.irq_hint
            && !self.debugger.holds_interrupts(self.mp_state)
        {
            self.interrupts();
            // Code that was changed before an interrupt was sent is not executed after it.
            if self.stop.is_some() || self.mailbox.attention.load(Ordering::SeqCst) {
                return Ok(None);
            }
        }
        if self.debugger.on
            && let Some(trap) = self.debugger_trap()
        {
            return Err(Exit::Debug(trap));
        }
        if self.mp_state != MpState::Runnable {
            if COUNTED {
                self.idle();
                return Ok(None);
            }
            return Err(Exit::Halted);
        }
        let special = self.flags.rest & (bit::TF | bit::RF) != 0
            || self.debug.control & 0xFF != 0
            || self.watch_hit != 0
            || self.debugger.step();
        if shadow || special || single || COUNTED && std::mem::take(&mut self.solo_next) {
            self.step();
            self.debugger.stepped = true;
            return Ok(None);
        }
        match self.find_block(false) {
            Ok(block) => {
                if COUNTED {
                    if self.is_too_long(block) {
                        self.step();
                        return Ok(None);
                    }
                    self.solo = false;
                }
                self.make_link(block);
                Ok(Some(block))
            }
            Err(Stop) => {
                self.link = None;
                Ok(None)
            }
        }
    }

    #[inline]
    fn make_link(&mut self, block: *const Block) {
        if let Some((from, which)) = self.link.take() {
            // SAFETY: both blocks are alive: `find_block` forgets the link when it drops memory.
            unsafe {
                if (*from).linkable && (*block).linkable {
                    (*from).links[which].set(block);
                }
            }
        }
    }

    /// Delivers the exception that ended the last block, if one did.
    pub(crate) fn settle_stop(&mut self) -> Option<Exit> {
        match self.stop.take()? {
            Why::Again | Why::Leave(_) => None,
            Why::Shutdown => Some(Exit::Shutdown),
            Why::Exception(exception) => {
                self.icount += 1;
                self.watch_hit = 0;
                if exception.vector != vector::DB {
                    self.debugger.forget_hit();
                }
                self.mov_ss_shadow = false;
                self.sti_shadow = false;
                // The trap behind HLT ends the halt.
                if self.mp_state == MpState::Halted {
                    self.mp_state = MpState::Runnable;
                }
                if self.deliver_exception(exception).is_err() {
                    self.stop = None;
                    return Some(Exit::Shutdown);
                }
                None
            }
        }
    }

    /// Looks at what other threads and the machine want.
    fn attend(&mut self) -> Option<Exit> {
        self.irq_hint = true;
        self.take_work();
        self.apic_events();
        if self.mailbox.kick.swap(false, Ordering::SeqCst) {
            return Some(Exit::Kicked);
        }
        if self.io().wants_exit() {
            self.mailbox.attention.store(true, Ordering::Relaxed);
            return Some(Exit::Kicked);
        }
        None
    }

    /// Does what others have left.
    pub(crate) fn take_work(&mut self) {
        let (work, ticket) = self.mailbox.take();
        work.into_iter().for_each(|todo| self.do_work(todo));
        self.mailbox.answer(ticket);
    }

    fn do_work(&mut self, todo: Todo) {
        match todo {
            Todo::DropCode(span) => {
                self.drop_code(span);
            }
            Todo::Protect(page) => {
                self.tlb.protect(page);
            }
            Todo::ProtectAll => {
                let phys = self.phys.clone();
                self.tlb.protect_all(|page| {
                    if let Some(page) = phys.page(page) {
                        phys.mark_dirty(page);
                    }
                });
            }
            Todo::NewMap => self.new_map(),
            Todo::NewClock => self.show_system_time(),
        }
    }

    /// Answers the vCPUs that wait for this one while it decodes a block. All else waits until it
    /// has: the block may be of code that is to be dropped.
    pub(crate) fn catch_up(&mut self) {
        let (work, ticket) = self.mailbox.take();
        for todo in work {
            match todo {
                Todo::Protect(_) => self.do_work(todo),
                _ => self.mailbox.post(todo),
            }
        }
        self.mailbox.answer(ticket);
    }

    /// Acts on what has arrived over the APIC bus besides interrupts.
    pub(crate) fn apic_events(&mut self) {
        while let Some(event) = self.apic.as_mut().and_then(|apic| apic.take_event()) {
            match event {
                ApicEvent::Init => self.init(),
                ApicEvent::Startup(vector) if self.mp_state == MpState::WaitForSipi => {
                    self.startup(vector);
                }
                ApicEvent::Startup(_) => {}
                ApicEvent::Nmi => self.nmi_pending = true,
            }
        }
    }

    /// Takes up the memory map that is now in force.
    pub(crate) fn new_map(&mut self) {
        self.phys = self.shared.map();
        self.tlb.flush_all();
        self.blocks.clear();
        self.link = None;
    }

    /// Delivers an NMI or an interrupt if one is due.
    fn interrupts(&mut self) {
        if self.mp_state != MpState::Runnable && self.mp_state != MpState::Halted {
            return;
        }
        let result = if self.nmi_pending && !self.nmi_masked {
            self.nmi_pending = false;
            self.nmi_masked = true;
            self.mp_state = MpState::Runnable;
            self.deliver_interrupt(vector::NMI)
        } else if self.flags.rest & bit::IF != 0 {
            let Some(vector) = self.take_interrupt() else {
                self.irq_hint = false;
                return;
            };
            self.mp_state = MpState::Runnable;
            self.deliver_interrupt(vector)
        } else {
            return;
        };
        if result.is_err() {
            self.stop = Some(Why::Shutdown);
        }
    }

    /// The vector of the interrupt to be delivered, which is in service from now on.
    fn take_interrupt(&mut self) -> Option<u8> {
        if let Some(vector) = self.taken_interrupt.take() {
            return Some(vector);
        }
        let passes = match &mut self.apic {
            Some(apic) => {
                if apic.pending().is_some() {
                    return apic.accept();
                }
                apic.passes_intr()
            }
            None => true,
        };
        (passes && self.io().intr()).then(|| self.io().intr_ack())
    }

    /// Executes a single instruction, with all that debugging asks for.
    pub(crate) fn step(&mut self) {
        self.step_trap = self.flags.rest & bit::TF != 0;
        let resume = self.flags.rest & bit::RF != 0;
        // What came before has been held off by MOV SS at most until now.
        let held = std::mem::take(&mut self.mov_ss_shadow);
        self.sti_shadow = false;
        if !held && self.watch_hit != 0 {
            return self.debug_trap(0);
        }
        if !resume && !held && self.breakpoint() {
            return;
        }
        self.flags.rest &= !bit::RF;
        let block = match self.find_block(true) {
            Ok(block) => block,
            Err(Stop) => return,
        };
        let null = self.run_block(block);
        self.block = std::ptr::null();
        debug_assert!(null.is_null(), "single-instruction blocks have no links");
        self.link = None;
        match self.stop {
            Some(Why::Exception(_) | Why::Leave(_)) => {
                // The exception's frame shows RF as the instruction found it.
                return;
            }
            Some(Why::Again) if resume => self.flags.rest |= bit::RF,
            _ => {}
        }
        if self.mov_ss_shadow {
            return;
        }
        if self.step_trap || self.watch_hit != 0 {
            self.debug_trap(if self.step_trap { BS } else { 0 });
        }
    }

    /// Raises the #DB that follows an instruction.
    fn debug_trap(&mut self, bits: u64) {
        let payload = std::mem::take(&mut self.watch_hit) | bits;
        self.stop = Some(Why::Exception(Exception { vector: vector::DB, error: None, payload }));
    }

    /// Raises #DB if an instruction breakpoint is at RIP.
    fn breakpoint(&mut self) -> bool {
        let linear = self.linear_ip(self.rip);
        let hit = (0..4)
            .filter(|i| {
                let control = self.debug.control;
                control >> (2 * i) & 3 != 0
                    && control >> (16 + 4 * i) & 3 == 0
                    && self.debug.address[*i] == linear
            })
            .fold(0, |bits, i| bits | 1 << i);
        if hit != 0 {
            self.debug_trap(hit);
        }
        hit != 0
    }

    /// A startup IPI: real mode at `vector << 12`.
    fn startup(&mut self, vector: u8) {
        self.segs[seg::CS].selector = u16::from(vector) << 8;
        self.segs[seg::CS].base = u64::from(vector) << 12;
        self.rip = 0;
        self.link = None;
        self.mp_state = MpState::Runnable;
        self.update_mode();
    }
}
