//! `syscalls`: the instructions by which ring 3 calls ring 0: SYSCALL and SYSRET, SYSENTER and SYSEXIT, INT n, INT3; the last
//! two from ring 0, too. A KVM that emulates ring 0 does not do these.

#![no_std]
#![no_main]

use core::arch::x86_64::__cpuid;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use runtime::interrupts::{self, Frame};
use runtime::port::{rdmsr, wrmsr};
use runtime::serial::Hex;
use runtime::start::selector;
use runtime::{Verdict, ensure, guest, ring3, say};

guest!("syscalls", main);

const EFER: u32 = 0xc000_0080;
const SCE: u64 = 1;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;

const DIRECTION: u64 = 1 << 10;

const UNDEFINED: u64 = 6;
const PROTECTION: u64 = 13;

global_asm!(
    r#"
    .section .text.calls, "ax"
    .globl syscall_entry
syscall_entry:
    pushfq                      /* on the stack of ring 3, which is still in rsp */
    popq seen_flags
    movw %cs, seen_selectors
    movw %ss, seen_selectors + 2
    incq %rax
    sysretq

    .globl sysenter_entry
sysenter_entry:
    movw %cs, seen_selectors
    movw %ss, seen_selectors + 2
    movq %rsp, seen_flags
    incq %rax
    sysexitq

    .section .data.calls, "aw"
    .balign 8
    .globl seen_flags
seen_flags:
    .quad 0
    .globl seen_selectors
seen_selectors:
    .quad 0

    .section .user, "awx"
    .globl user_syscall
    .globl after_syscall
user_syscall:
    std
    movl $41, %eax
    syscall
after_syscall:
    ud2

    .globl user_sysenter
user_sysenter:
    movl $51, %eax
    movq %rsp, %rcx
    leaq 1f(%rip), %rdx
    sysenter
    hlt
1:  ud2

    .globl user_int80
user_int80:
    movl $61, %eax
    int $0x80
    ud2

    .globl user_int3
user_int3:
    movl $71, %eax
    int3
    ud2

    .globl user_int81
user_int81:
    int $0x81
    ud2
    .text
"#,
    options(att_syntax)
);

unsafe extern "C" {
    fn syscall_entry();
    fn sysenter_entry();
    static seen_flags: AtomicU64;
    static seen_selectors: AtomicU64;
    fn user_syscall();
    fn after_syscall();
    fn user_sysenter();
    fn user_int80();
    fn user_int3();
    fn user_int81();
}

static CALLS: AtomicU64 = AtomicU64::new(0);

fn main() -> Verdict {
    ring3::init();
    interrupts::handle(3, called);
    interrupts::handle(0x80, called);
    software_interrupts()?;
    syscall()?;
    sysenter()
}

fn called(frame: &mut Frame) {
    CALLS.fetch_add(1, SeqCst);
    frame.rax += 1;
}

fn run(program: unsafe extern "C" fn()) -> Frame {
    let mut context = ring3::program(program);
    ring3::run(&mut context);
    context
}

fn seen() -> (u64, u64) {
    // SAFETY: written by the entry code above, which does not run now.
    unsafe { (seen_flags.load(SeqCst), seen_selectors.load(SeqCst)) }
}

fn software_interrupts() -> Verdict {
    let context = run(user_int80);
    ensure!(context.vector == UNDEFINED && context.rax == 62, "INT 0x80 from ring 3");
    let context = run(user_int3);
    ensure!(context.vector == UNDEFINED && context.rax == 72, "INT3 from ring 3");
    let context = run(user_int81);
    say!("INT 0x81: vector ", context.vector, " error ", Hex(context.error));
    // The vector times 8 and the bit that says IDT; QEMU's TCG multiplies by 16.
    ensure!(
        context.vector == PROTECTION && matches!(context.error, 0x40a | 0x812),
        "INT 0x81 through a gate that ring 3 may not use"
    );
    ensure!(context.rip == user_int81 as *const () as u64, "RIP at an INT that is refused");
    let rax: u64;
    // SAFETY: the handler changes nothing but rax.
    unsafe { asm!("int 0x80", "int3", inout("rax") 80u64 => rax) }
    ensure!(rax == 82 && CALLS.load(SeqCst) == 4, "INT 0x80 and INT3 in ring 0");
    say!("INT n, INT3: rings 0 and 3");
    Ok(())
}

fn syscall() -> Verdict {
    wrmsr(EFER, rdmsr(EFER) & !SCE);
    let context = run(user_syscall);
    ensure!(context.vector == UNDEFINED && context.rax == 41, "SYSCALL with EFER.SCE clear");

    wrmsr(STAR, 0x2b << 48 | u64::from(selector::CODE) << 32);
    wrmsr(LSTAR, syscall_entry as *const () as u64);
    wrmsr(FMASK, 0x200 | DIRECTION);
    wrmsr(EFER, rdmsr(EFER) | SCE);
    let context = run(user_syscall);
    let (flags, selectors) = seen();
    say!("SYSCALL: flags ", Hex(flags), " selectors ", Hex(selectors));
    ensure!(context.vector == UNDEFINED && context.rax == 42, "SYSCALL and SYSRET");
    ensure!(context.rip == after_syscall as *const () as u64, "RIP after SYSRET");
    ensure!(context.rcx == context.rip, "RCX after SYSCALL");
    ensure!(flags & (0x200 | DIRECTION) == 0, "FMASK");
    ensure!(context.r11 & (0x200 | DIRECTION) == 0x200 | DIRECTION, "R11 after SYSCALL");
    ensure!(context.rflags & (0x200 | DIRECTION) == 0x200 | DIRECTION, "RFLAGS after SYSRET");
    ensure!(selectors == 0x0020_0018, "the selectors of ring 0");
    ensure!(
        (context.cs, context.ss) == (selector::USER_CODE.into(), selector::USER_DATA.into()),
        "the selectors of ring 3"
    );
    Ok(())
}

fn sysenter() -> Verdict {
    const STACK: u64 = 0x7000;
    let vendor = __cpuid(0);
    if vendor.ebx != u32::from_le_bytes(*b"Genu") {
        // Outside of Intel's, 64-bit mode has no SYSENTER.
        let context = run(user_sysenter);
        ensure!(
            context.vector == UNDEFINED && context.rax == 51,
            "SYSENTER, which this vendor has not"
        );
        say!("SYSENTER: #UD");
        return Ok(());
    }
    wrmsr(SYSENTER_CS, 0);
    let context = run(user_sysenter);
    ensure!(context.vector == PROTECTION, "SYSENTER with a null selector");
    wrmsr(SYSENTER_CS, selector::CODE.into());
    wrmsr(SYSENTER_ESP, STACK);
    wrmsr(SYSENTER_EIP, sysenter_entry as *const () as u64);
    let context = run(user_sysenter);
    let (stack, selectors) = seen();
    say!("SYSENTER: stack ", Hex(stack), " selectors ", Hex(selectors));
    ensure!(context.vector == UNDEFINED && context.rax == 52, "SYSENTER and SYSEXIT");
    ensure!(stack == STACK && selectors == 0x0020_0018, "the stack and selectors of ring 0");
    ensure!((context.cs, context.ss) == (0x3b, 0x43), "the selectors after SYSEXIT");
    Ok(())
}
