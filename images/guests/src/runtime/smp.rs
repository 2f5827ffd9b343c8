//! The other processors: INIT, SIPI (Intel SDM vol. 3A, 9.4), and from real mode to a Rust function.

use crate::interrupts;
use crate::port::write;
use crate::start::MAX_CPUS;
use crate::{acpi, apic, boot, clock};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

/// Where the 16-bit code is copied to; the SIPI's vector is its page.
const TRAMPOLINE: u64 = 0x8000;

global_asm!(
    r#"
    .section .rodata.trampoline, "a"
    .globl trampoline
    .globl trampoline_end
    .code16
trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl gdt_pointer_low - trampoline
    movl $0x11, %eax            /* PE, ET; caches on */
    movl %eax, %cr0
    ljmpl $0x08, $start_processor
    .balign 4
gdt_pointer_low:
    .word gdt_limit
    .long gdt
trampoline_end:

    .section .text.processor, "ax"
    .code32
start_processor:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $1, %esp
    lock xaddl %esp, next_processor
    movl %esp, %edi             /* stack: CPUS[index].stack, whose size is 4 KiB of 20 */
    imull $20480, %esp
    addl $(CPUS + 4096), %esp
    movl $processor_main, %ebp
    jmp enter_long_mode
    .code64

    .section .data.processor, "aw"
    .balign 4
next_processor:
    .long 1
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// The address of a `fn(usize) -> !`.
static ENTRY: AtomicUsize = AtomicUsize::new(0);
/// How many of the others have arrived.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

#[unsafe(no_mangle)]
extern "C" fn processor_main(index: usize) -> ! {
    interrupts::load(index);
    apic::enable();
    ARRIVED.fetch_add(1, SeqCst);
    // SAFETY: `start` stored a `fn(usize) -> !` before this processor was started.
    let entry = unsafe { core::mem::transmute::<usize, fn(usize) -> !>(ENTRY.load(SeqCst)) };
    entry(index)
}

/// APIC ids of all processors: `cpus=N` on the command line says 0 to N-1, else the MADT does.
pub fn processors() -> impl Iterator<Item = u32> {
    let count = boot::number("cpus", 0) as u32;
    (0..count).chain(acpi::processors().filter(move |_| count == 0)).take(MAX_CPUS)
}

/// Starts the other processors, which call `entry` with their index, counted from 1 in the order of arrival. Returns
/// how many were started when all have arrived, or what went wrong.
pub fn start(entry: fn(usize) -> !) -> Result<u32, &'static str> {
    ENTRY.store(entry as usize, SeqCst);
    let (first, end) = (&raw const trampoline as u64, &raw const trampoline_end as u64);
    for at in 0..end - first {
        write::<u8>(TRAMPOLINE + at, crate::port::read(first + at));
    }
    apic::enable();
    let own = apic::id();
    let mut started = 0;
    for id in processors().filter(|&id| id != own) {
        apic::send(id, 0x4500);
        clock::delay(200);
        let before = ARRIVED.load(SeqCst);
        let arrived = || ARRIVED.load(SeqCst) != before;
        for _ in 0..2 {
            apic::send(id, 0x4600 | (TRAMPOLINE >> 12) as u32);
            let start = clock::now();
            while !arrived() && clock::since(start) < clock::HZ / 4 {
                crate::port::pause();
            }
            if arrived() {
                break;
            }
        }
        if !clock::until(arrived) {
            return Err("a processor does not start");
        }
        started += 1;
    }
    Ok(started)
}
