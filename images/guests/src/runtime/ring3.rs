//! Ring 3: into it by IRETQ, out of it by an exception. Hardware interrupts come and go without ending the stay.

use crate::interrupts::{self, Frame, Shared};
use crate::start::selector;
use crate::{paging, port};
use core::arch::global_asm;
use core::cell::UnsafeCell;

/// The 2 MiB page that `link/pvh.ld` gives to ring 3.
pub const PAGE: u64 = 0x40_0000;
/// The end of that page, where a stack may start.
pub const STACK: u64 = PAGE + (2 << 20);

global_asm!(
    r#"
    .section .text.ring3, "ax"
    /* fn enter_ring3(context: *mut Frame): leaves a way back on the stack, then goes on as the frame says. */
    .globl enter_ring3
enter_ring3:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, ring0_stack
    movq %rdi, %rsp
    jmp leave_interrupt

    /* Back to where enter_ring3 was called. */
    .globl back_to_ring0
back_to_ring0:
    movq ring0_stack, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    retq

    .section .bss.ring3, "aw", @nobits
    .balign 8
ring0_stack:
    .skip 8
"#,
    options(att_syntax)
);

unsafe extern "C" {
    fn enter_ring3(context: *mut Frame);
    fn back_to_ring0() -> !;
}

/// Registers of ring 3 as the last exception has left them.
static LEFT: Shared<Frame> = Shared(UnsafeCell::new(REGISTERS));

/// Registers with which ring 3 starts: interrupts are open. It is read as memory, since code that makes it on the spot
/// would take SSE registers for the zeros.
static START: Frame = REGISTERS;

const REGISTERS: Frame = Frame {
    r15: 0,
    r14: 0,
    r13: 0,
    r12: 0,
    r11: 0,
    r10: 0,
    r9: 0,
    r8: 0,
    rbp: 0,
    rdi: 0,
    rsi: 0,
    rdx: 0,
    rcx: 0,
    rbx: 0,
    rax: 0,
    vector: 0,
    error: 0,
    rip: 0,
    cs: selector::USER_CODE as u64,
    rflags: 0x202,
    rsp: STACK,
    ss: selector::USER_DATA as u64,
};

/// A program of ring 3 that starts here, with its stack at the end of the page and interrupts open.
pub fn program(entry: unsafe extern "C" fn()) -> Frame {
    let mut start: Frame = port::read(&raw const START as u64);
    start.rip = entry as usize as u64;
    start
}

/// Makes the exceptions of ring 3 come back, and gives ring 3 its page.
pub fn init() {
    for vector in (0..32).filter(|vector| *vector != 2) {
        interrupts::handle(vector, leave);
    }
    paging::allow_page(PAGE);
}

fn leave(frame: &mut Frame) {
    if frame.cs & 3 == 0 {
        interrupts::unexpected(frame);
    }
    // SAFETY: ring 3 runs on one processor, inside `run`, which reads this afterwards and has left a way back.
    unsafe {
        *LEFT.0.get() = *frame;
        back_to_ring0()
    }
}

/// Runs ring 3 until its next exception, whose vector and error code are in what the frame becomes.
pub fn run(context: &mut Frame) {
    // SAFETY: the exception handler comes back with interrupts closed, to this stack, with callee-saved registers.
    unsafe {
        enter_ring3(context);
        *context = *LEFT.0.get();
    }
}
