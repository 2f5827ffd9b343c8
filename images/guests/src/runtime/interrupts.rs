//! IDT, TSS and the way from a vector to a Rust function.
//!
//! Every vector has a stack of its own by the TSS's IST (exceptions, interrupts, NMI), for two reasons: the compiler keeps
//! data below the stack pointer (the red zone of the System V ABI), and ring 3 may use its stack pointer as it likes.

use crate::serial::Hex;
use crate::start::{MAX_CPUS, selector};
use crate::{fail, say};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Registers at an interrupt, as the stub has pushed them.
#[allow(missing_docs)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What is called for a vector. A change of the frame changes where and with what the interrupted code goes on.
pub type Handler = fn(&mut Frame);

/// A variable of the machine's: the processors take care themselves not to collide.
#[repr(transparent)]
pub struct Shared<T>(pub UnsafeCell<T>);

// SAFETY: each use says why no two processors or interrupts touch it at once.
unsafe impl<T> Sync for Shared<T> {}

#[repr(C, packed)]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
    io_map: [u8; IO_MAP],
}

/// Ports 0 to 0x3ff and the byte of ones that must follow.
const IO_MAP: usize = 129;

const STACK: usize = 4096;

/// The stacks and the TSS of one processor. The start code of the others knows the size and where the stack is.
#[repr(C, align(4096))]
struct Cpu {
    stack: [u8; STACK],
    ist: [[u8; STACK]; 3],
    tss: Tss,
}

const _: () = assert!(size_of::<Cpu>() == 5 * 4096);

/// Zeros, in the image as the loader has left it.
#[unsafe(no_mangle)]
static CPUS: Shared<[Cpu; MAX_CPUS]> = Shared(UnsafeCell::new(
    [const {
        Cpu {
            stack: [0; STACK],
            ist: [[0; STACK]; 3],
            tss: Tss {
                reserved0: 0,
                rsp: [0; 3],
                reserved1: 0,
                ist: [0; 7],
                reserved2: 0,
                reserved3: 0,
                io_map_base: 0,
                io_map: [0; IO_MAP],
            },
        }
    }; MAX_CPUS],
));

static IDT: Shared<[[u64; 2]; 256]> = Shared(UnsafeCell::new([[0; 2]; 256]));

/// The address of each vector's `Handler`, 0 for none.
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

unsafe extern "C" {
    /// 256 stubs of 16 bytes.
    static vector_stubs: [[u8; 16]; 256];
    static gdt_tss: Shared<[[u64; 2]; MAX_CPUS]>;
}

global_asm!(
    r#"
    .globl first_cpu_stack
    .set first_cpu_stack, CPUS + 4096

    .section .text.vectors, "ax"
    .balign 16
    .globl vector_stubs
vector_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    /* #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC and #SX push an error code. */
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $vector
    jmp common_stub
    .set vector, vector + 1
    .endr

common_stub:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbx
    andq $-16, %rsp
    call dispatch
    movq %rbx, %rsp
    .globl leave_interrupt
leave_interrupt:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq
"#,
    options(att_syntax)
);

#[unsafe(no_mangle)]
extern "C" fn dispatch(frame: &mut Frame) {
    match HANDLERS[frame.vector as usize & 0xff].load(Relaxed) {
        0 => unexpected(frame),
        address => {
            // SAFETY: `handle` is the only writer, and wrote a `Handler`.
            let handler = unsafe { core::mem::transmute::<usize, Handler>(address) };
            handler(frame);
        }
    }
}

pub(crate) fn unexpected(frame: &Frame) -> ! {
    say!(
        "vector ",
        Hex(frame.vector),
        " error ",
        Hex(frame.error),
        " rip ",
        Hex(frame.rip),
        " cr2 ",
        Hex(cr2())
    );
    say!("cs ", Hex(frame.cs), " rsp ", Hex(frame.rsp), " rflags ", Hex(frame.rflags));
    if frame.rip < 1 << 32 {
        say!(
            "code ",
            Hex(crate::port::read::<u64>(frame.rip).swap_bytes()),
            " rax ",
            Hex(frame.rax)
        );
    }
    fail("unexpected interrupt or exception")
}

/// Sets what is called for a vector.
pub fn handle(vector: u8, handler: Handler) {
    HANDLERS[vector as usize].store(handler as usize, Relaxed);
}

/// The address of the last page fault.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Fills the IDT and takes it and the TSS into use on the first processor.
pub(crate) fn init() {
    let idt = IDT.0.get().cast::<[u64; 2]>();
    let stubs = &raw const vector_stubs as u64;
    for vector in 0..256u64 {
        let ist = match vector {
            2 => 3,
            0..32 => 1,
            _ => 2,
        };
        // Present, 64-bit interrupt gate; ring 3 may come in by INT3 and by INT 0x80.
        let kind = if vector == 3 || vector == 0x80 { 0xee00 } else { 0x8e00 };
        let stub = stubs + vector * 16;
        let low = (stub & 0xffff)
            | u64::from(selector::CODE) << 16
            | ist << 32
            | kind << 32
            | (stub >> 16 & 0xffff) << 48;
        // SAFETY: within the 256 entries; only one processor runs, and the IDT is not in use yet.
        unsafe { *idt.add(vector as usize) = [low, stub >> 32] };
    }
    load(0);
}

/// Takes the IDT and a TSS into use on the processor with this index.
pub fn load(index: usize) {
    let cpu = CPUS.0.get().cast::<Cpu>().wrapping_add(index);
    // SAFETY: the index is below `MAX_CPUS` and each processor has its own, so nobody else touches these.
    unsafe {
        let tss = &raw mut (*cpu).tss;
        for (number, stack) in (0..3).map(|number| (number, &raw const (*cpu).ist[number])) {
            (*tss).ist[number] = stack.add(1) as u64;
        }
        (*tss).rsp[0] = (*tss).ist[0];
        (*tss).io_map_base = core::mem::offset_of!(Tss, io_map) as u16;
        for byte in 0..IO_MAP {
            (*tss).io_map[byte] = 0xff;
        }
        let base = tss as u64;
        let limit = size_of::<Tss>() as u64 - 1;
        let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*gdt_tss.0.get())[index] = [low, base >> 32];
        let pointer = Pointer { limit: 0xfff, base: IDT.0.get() as u64 };
        asm!("lidt [{}]", in(reg) &pointer, options(nostack, preserves_flags));
        asm!("ltr {:x}", in(reg) selector::TSS + 16 * index as u16, options(nostack, preserves_flags));
    }
}

/// Lets ring 3 on the first processor use a port below 0x400.
pub fn allow_port(port: u16) {
    let byte = usize::from(port) / 8;
    assert!(byte < IO_MAP - 1);
    // SAFETY: within the map; the first processor, whose map it is, is the one that runs this.
    unsafe { (*CPUS.0.get())[0].tss.io_map[byte] &= !(1 << (port % 8)) }
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}
