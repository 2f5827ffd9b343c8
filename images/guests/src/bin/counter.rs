//! `counter`: a calculation whose result does not depend on what happens to the machine meanwhile: stop, save, restore in
//! another process. It goes through memory and all general registers in rings 0 and 3, in ring 3 also through x87, XMM and,
//! where CPUID has AVX, YMM registers, while the local APIC's timer interrupts. The last lines are always the same.
//!
//! Words: `rounds=N` (10), each of which prints a line; `kernel=N` (3000) and `user=N` (20000), the iterations of one round in
//! ring 0 and in ring 3; `noavx`.

#![no_std]
#![no_main]

use core::arch::x86_64::__cpuid;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use runtime::apic::{self, register};
use runtime::serial::Hex;
use runtime::{Verdict, boot, clock, ensure, guest, interrupts, port, ring3, say};

guest!("counter", main);

const TICK: u8 = 0x40;

global_asm!(
    r#"
    /* One step: each general register but rsp takes in its neighbour and turns. */
    .macro mix_general
    .irp pair, "rax,rbx,3", "rbx,rcx,5", "rcx,rdx,7", "rdx,rsi,11", "rsi,rdi,13", "rdi,rbp,17", "rbp,r8,19", "r8,r9,23", "r9,r10,29", "r10,r11,31", "r11,r12,37", "r12,r13,41", "r13,r14,43", "r14,r15,47", "r15,rax,53"
    mix_pair \pair
    .endr
    .endm
    .macro mix_pair to, from, turn
    addq %\from, %\to
    rolq $\turn, %\to
    .endm

    .macro mix_vectors to, from
    paddq %xmm\from, %xmm\to
    pshufd $0x93, %xmm\to, %xmm\to
    .endm

    .macro seed_general
    .set number, 0x9e3779b97f4a7c15
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    movabsq $number, %\register
    .set number, number * 5 + 1
    .endr
    .endm

    /* All of them into rax. */
    .macro fold_general
    .irp register, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    rolq $9, %rax
    xorq %\register, %rax
    .endr
    .endm

    /* fn mix_in_ring0(iterations: u64) -> u64 */
    .section .text.mix, "ax"
    .globl mix_in_ring0
mix_in_ring0:
    .irp register, rbx, rbp, r12, r13, r14, r15
    pushq %\register
    .endr
    pushq %rdi
    seed_general
1:  mix_general
    incq kernel_count
    decq (%rsp)
    jnz 1b
    fold_general
    addq $8, %rsp
    .irp register, r15, r14, r13, r12, rbp, rbx
    popq %\register
    .endr
    retq

    .section .data.mix, "aw"
    .balign 8
    .globl kernel_count
kernel_count:
    .quad 0

    .section .user, "awx"
    .balign 16
user_seeds:
    .set number, 0x243f6a8885a308d3
    .rept 32
    .quad number
    .set number, number * 7 + 3
    .endr
user_registers:                 /* XMM registers at the end of a round */
    .fill 32, 8, 0
user_stack_registers:           /* x87 registers at the end of a round */
    .fill 8, 8, 0
user_step:
    .double 1.5
    .globl user_iterations
user_iterations:
    .quad 0
    .globl user_avx
user_avx:
    .quad 0
    .globl user_count
user_count:
    .quad 0
user_left:
    .quad 0

    .globl user_mix
user_mix:
    fninit
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    fldl user_step
    .endr
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqa user_seeds + \number * 16, %xmm\number
    .endr
    cmpq $0, user_avx
    je 1f
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinsertf128 $1, user_seeds + 240 - \number * 16, %ymm\number, %ymm\number
    .endr
1:  seed_general
2:  pushq user_iterations
    popq user_left
3:  mix_general
    .irp pair, "0,1", "1,2", "2,3", "3,4", "4,5", "5,6", "6,7", "7,8", "8,9", "9,10", "10,11", "11,12", "12,13", "13,14", "14,15", "15,0"
    mix_vectors \pair
    .endr
    faddl user_step
    fincstp
    cmpq $0, user_avx
    je 4f
    vperm2f128 $1, %ymm0, %ymm0, %ymm0
    vperm2f128 $1, %ymm9, %ymm9, %ymm9
4:  incq user_count
    decq user_left
    jnz 3b
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqa %xmm\number, user_registers + \number * 16
    .endr
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    fstl user_stack_registers + \number * 8
    fincstp
    .endr
    ud2
    jmp 2b
    .text
"#,
    options(att_syntax)
);

unsafe extern "C" {
    fn mix_in_ring0(iterations: u64) -> u64;
    static kernel_count: AtomicU64;
    fn user_mix();
    static user_iterations: AtomicU64;
    static user_avx: AtomicU64;
    static user_count: AtomicU64;
    static user_registers: [AtomicU64; 32];
    static user_stack_registers: [AtomicU64; 8];
}

static TICKS: AtomicU64 = AtomicU64::new(0);

fn main() -> Verdict {
    let rounds = boot::number("rounds", 10).max(1);
    let kernel = boot::number("kernel", 3000).max(1);
    let user = boot::number("user", 20_000).max(1);
    let avx = !boot::has("noavx") && enable_avx();
    ring3::init();
    start_timer();

    let mut context = ring3::program(user_mix);
    // SAFETY: these words are shared with ring 3, which does not run now.
    unsafe {
        user_iterations.store(user, SeqCst);
        user_avx.store(avx.into(), SeqCst);
    }
    let (mut ring0, mut general, mut vectors, mut x87) = (0u64, 0, 0, 0);
    for round in 1..=rounds {
        port::sti();
        // SAFETY: keeps what a function has to keep.
        ring0 = ring0.rotate_left(1) ^ unsafe { mix_in_ring0(kernel) };
        port::cli();
        ring3::run(&mut context);
        ensure!(context.vector == 6, "ring 3 ends in another exception than its #UD");
        // Behind the ud2.
        context.rip += 2;
        general = fold(&[
            context.rax,
            context.rbx,
            context.rcx,
            context.rdx,
            context.rsi,
            context.rdi,
            context.rbp,
            context.r8,
            context.r9,
            context.r10,
            context.r11,
            context.r12,
            context.r13,
            context.r14,
            context.r15,
        ]);
        // SAFETY: ring 3, which writes these, does not run now.
        (vectors, x87) =
            unsafe { (fold_words(&user_registers), fold_words(&user_stack_registers)) };
        say!("round ", round, " ring 0 ", Hex(ring0), " ring 3 ", Hex(general));
    }
    port::sti();
    ensure!(clock::until(|| TICKS.load(SeqCst) != 0), "the timer does not interrupt");
    port::cli();
    // SAFETY: as above.
    let (kernel_total, user_total) =
        unsafe { (kernel_count.load(SeqCst), user_count.load(SeqCst)) };
    ensure!(kernel_total == kernel * rounds, "the count in ring 0");
    ensure!(user_total == user * rounds, "the count in ring 3");
    say!("counts ", kernel_total, " ", user_total, if avx { " with AVX" } else { " without AVX" });
    say!(
        "checksums ring 0 ",
        Hex(ring0),
        " general ",
        Hex(general),
        " vectors ",
        Hex(vectors),
        " x87 ",
        Hex(x87)
    );
    Ok(())
}

fn fold(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum: u64, word| sum.rotate_left(9) ^ word)
}

fn fold_words(words: &[AtomicU64]) -> u64 {
    words.iter().fold(0, |sum: u64, word| sum.rotate_left(9) ^ word.load(SeqCst))
}

/// Enables AVX for ring 3 (CR4.OSXSAVE, XCR0), if CPUID has it.
fn enable_avx() -> bool {
    const XSAVE_AND_AVX: u32 = 1 << 26 | 1 << 28;
    if __cpuid(1).ecx & XSAVE_AND_AVX != XSAVE_AND_AVX {
        return false;
    }
    // SAFETY: CPUID has both, so neither the bit nor the register faults.
    unsafe {
        asm!("mov {0}, cr4", "or {0}, 1 << 18", "mov cr4, {0}", out(reg) _, options(nostack));
        asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0, options(nostack));
    }
    true
}

fn start_timer() {
    interrupts::handle(TICK, |_| {
        apic::eoi();
        TICKS.fetch_add(1, SeqCst);
    });
    apic::enable();
    apic::set(register::TIMER_DIVIDE, 0b1011);
    apic::set(register::LVT_TIMER, 1 << 17 | u32::from(TICK));
    // 1 ms where the timer's clock is 1 GHz, as KVM and QEMU have it.
    apic::set(register::TIMER_INITIAL, 1_000_000);
}
