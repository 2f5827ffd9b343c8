//! `longmode`: exceptions in rings 0 and 3 with their error codes and CR2, a hardware interrupt that finds the processor in
//! ring 3, ports in ring 3 by the TSS's bitmap, memory-mapped devices from both rings in all widths.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use runtime::apic::{self, register};
use runtime::interrupts::{self, Frame};
use runtime::serial::Hex;
use runtime::{Verdict, boot, ensure, guest, paging, port, ring3, say};

guest!("longmode", main);

const TICK: u8 = 0x40;
/// COM1's scratch register, which ring 3 may use.
const SCRATCH: u16 = 0x3ff;
/// A page of RAM that ring 3 may read only, and neither write nor run.
const GUARDED: u64 = 0x60_0000;
/// A page of ring 0, the one that the image is in.
const KERNEL: u64 = 0x10_0000;
/// Above what is mapped.
const ABSENT: u64 = 0x1_0000_0000;

global_asm!(
    r#"
    .section .user, "awx"
user_flag:
    .quad 0
user_undefined:
    ud2
user_divide:
    xorl %ecx, %ecx
    divl %ecx
user_read_kernel:
    movl 0x100000, %eax
user_write_kernel:
    movl %eax, 0x100000
user_run_kernel:
    movl $0x100000, %eax
    jmpq *%rax
user_read_absent:
    movabsl 0x100000000, %eax
user_write_absent:
    movabsl %eax, 0x100000000
user_read_guarded:
    movl 0x600000, %eax
    ud2
user_write_guarded:
    movl %eax, 0x600000
user_run_guarded:
    movl $0x600000, %eax
    jmpq *%rax
user_cli:
    cli
user_hlt:
    hlt
user_rdmsr:
    rdmsr
user_cr3:
    movq %cr3, %rax
user_forbidden_port:
    outb %al, $0x80
user_wide_port:
    movl $0x3ff, %edx
    outw %ax, %dx
user_noncanonical:
    movabsq $0x800000000000, %rax
    movl (%rax), %eax
user_noncanonical_stack:
    movabsq $0x800000001000, %rsp
    pushq %rax
user_port:
    movl $0x3ff, %edx
    movb $0x5a, %al
    outb %al, %dx
    xorl %eax, %eax
    inb %dx, %al
    ud2
user_wait:
    lock cmpq $0, user_flag
    je user_wait
    ud2
    /* rdi the address; back in rax, rbx, rcx, rdx */
user_mmio:
    movzbl (%rdi), %eax
    movzwl (%rdi), %ebx
    movl (%rdi), %ecx
    movq (%rdi), %rdx
    movb %al, (%rdi)
    movw %bx, (%rdi)
    movl %ecx, (%rdi)
    movq %rdx, (%rdi)
    ud2
    .text
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static user_flag: AtomicU64;
    fn user_undefined();
    fn user_divide();
    fn user_read_kernel();
    fn user_write_kernel();
    fn user_run_kernel();
    fn user_read_absent();
    fn user_write_absent();
    fn user_read_guarded();
    fn user_write_guarded();
    fn user_run_guarded();
    fn user_cli();
    fn user_hlt();
    fn user_rdmsr();
    fn user_cr3();
    fn user_forbidden_port();
    fn user_wide_port();
    fn user_noncanonical();
    fn user_noncanonical_stack();
    fn user_port();
    fn user_wait();
    fn user_mmio();
}

/// What the last exception of ring 0 was: vector and error code. Its handler goes on at the address in r8.
static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

static TICKS: AtomicU64 = AtomicU64::new(0);

fn main() -> Verdict {
    ring0_exceptions()?;
    ring3::init();
    // Present, user, 2 MiB; neither to be written nor run.
    paging::set_page(GUARDED, GUARDED | 0x85 | 1 << 63);
    ring3_exceptions()?;
    ring3_ports()?;
    ring3_interrupt()?;
    devices()
}

fn seen(frame: &mut Frame) {
    SEEN[0].store(frame.vector, SeqCst);
    SEEN[1].store(frame.error, SeqCst);
    frame.rip = frame.r8;
}

/// Runs instructions with this value in rdi, and gives the vector and error code of the exception that they end in.
macro_rules! exception_of {
    ($instructions:literal, $rdi:expr) => {{
        // SAFETY: the instructions fault before they change anything, and `seen` goes on behind them.
        unsafe {
            asm!(
                "lea r8, [rip + 2f]",
                $instructions,
                "2:",
                in("rdi") $rdi,
                out("r8") _,
                out("rax") _,
                out("rdx") _,
            )
        }
        (SEEN[0].load(SeqCst), SEEN[1].load(SeqCst))
    }};
}

fn ring0_exceptions() -> Verdict {
    for vector in [0, 6, 13, 14] {
        interrupts::handle(vector, seen);
    }
    ensure!(exception_of!("ud2", 0u64) == (6, 0), "#UD in ring 0");
    ensure!(exception_of!("xor edx, edx; div edi", 0u64) == (0, 0), "#DE in ring 0");
    ensure!(exception_of!("mov eax, [rdi]", ABSENT + 8) == (14, 0), "#PF by reading in ring 0");
    ensure!(interrupts::cr2() == ABSENT + 8, "CR2 after a read in ring 0");
    ensure!(exception_of!("mov [rdi], eax", ABSENT + 12) == (14, 2), "#PF by writing in ring 0");
    ensure!(interrupts::cr2() == ABSENT + 12, "CR2 after a write in ring 0");
    ensure!(exception_of!("mov eax, [rdi]", 1u64 << 47) == (13, 0), "#GP by an address in ring 0");
    ensure!(exception_of!("mov ds, edi", 0x7f8u64) == (13, 0x7f8), "#GP by a selector in ring 0");
    say!("ring 0: #UD #DE #PF #GP");
    Ok(())
}

/// A program of ring 3 and the exception that it has to end in.
struct Fault {
    what: &'static str,
    program: unsafe extern "C" fn(),
    vector: u64,
    error: u64,
    cr2: u64,
}

const fn fault(what: &'static str, program: unsafe extern "C" fn(), vector: u64) -> Fault {
    Fault { what, program, vector, error: 0, cr2: 0 }
}

const fn page_fault(
    what: &'static str,
    program: unsafe extern "C" fn(),
    error: u64,
    cr2: u64,
) -> Fault {
    Fault { what, program, vector: 14, error, cr2 }
}

static FAULTS: [Fault; 16] = [
    fault("#UD", user_undefined, 6),
    fault("#DE", user_divide, 0),
    page_fault("#PF: reads ring 0's page", user_read_kernel, 5, KERNEL),
    page_fault("#PF: writes ring 0's page", user_write_kernel, 7, KERNEL),
    page_fault("#PF: runs ring 0's page", user_run_kernel, 0x15, KERNEL),
    page_fault("#PF: reads nothing", user_read_absent, 4, ABSENT),
    page_fault("#PF: writes nothing", user_write_absent, 6, ABSENT),
    page_fault("#PF: writes a read-only page", user_write_guarded, 7, GUARDED),
    page_fault("#PF: runs a no-execute page", user_run_guarded, 0x15, GUARDED),
    fault("reads a read-only page", user_read_guarded, 6),
    fault("#GP: cli", user_cli, 13),
    fault("#GP: hlt", user_hlt, 13),
    fault("#GP: rdmsr", user_rdmsr, 13),
    fault("#GP: mov from cr3", user_cr3, 13),
    fault("#GP: port", user_forbidden_port, 13),
    fault("#GP: non-canonical address", user_noncanonical, 13),
];

fn ring3_exceptions() -> Verdict {
    for fault in &FAULTS {
        let mut context = ring3::program(fault.program);
        ring3::run(&mut context);
        let cr2 = interrupts::cr2();
        let right = context.vector == fault.vector && context.error == fault.error;
        if !right || (fault.vector == 14 && cr2 != fault.cr2) {
            say!(fault.what, ": vector ", context.vector, " error ", Hex(context.error));
            say!("rip ", Hex(context.rip), " cr2 ", Hex(cr2));
            return Err("an exception of ring 3 is not as it should be");
        }
    }
    // #SS by the manuals; QEMU's TCG makes it a #GP.
    let mut context = ring3::program(user_noncanonical_stack);
    ring3::run(&mut context);
    ensure!(matches!(context.vector, 12 | 13), "a non-canonical stack in ring 3");
    say!("ring 3: #UD #DE #PF #GP, ", FAULTS.len(), " cases; bad stack ", context.vector);
    Ok(())
}

fn ring3_ports() -> Verdict {
    interrupts::allow_port(SCRATCH);
    let mut context = ring3::program(user_port);
    ring3::run(&mut context);
    ensure!(context.vector == 6, "an allowed port faults in ring 3");
    ensure!(
        context.rax == 0x5a && port::inb(SCRATCH) == 0x5a,
        "COM1's scratch register from ring 3"
    );
    let mut context = ring3::program(user_wide_port);
    ring3::run(&mut context);
    ensure!(context.vector == 13, "16 bits, of which 8 are forbidden, do not fault in ring 3");
    say!("ring 3: ports by the TSS bitmap");
    Ok(())
}

fn tick(frame: &mut Frame) {
    apic::eoi();
    TICKS.fetch_add(1, SeqCst);
    if frame.cs & 3 == 3 && TICKS.load(SeqCst) >= 3 {
        // SAFETY: the flag is a word of the ring 3 page, only read and written atomically.
        unsafe { user_flag.store(1, SeqCst) }
    }
}

fn ring3_interrupt() -> Verdict {
    interrupts::handle(TICK, tick);
    apic::enable();
    apic::set(register::TIMER_DIVIDE, 0b1011);
    apic::set(register::LVT_TIMER, 1 << 17 | u32::from(TICK));
    apic::set(register::TIMER_INITIAL, 2_000_000);
    let mut context = ring3::program(user_wait);
    ring3::run(&mut context);
    apic::set(register::TIMER_INITIAL, 0);
    ensure!(context.vector == 6, "the wait for an interrupt in ring 3 faults");
    say!("ring 3: interrupted by the local APIC's timer");
    Ok(())
}

/// Reads and writes back in widths 1, 2, 4 and 8; each must see the low bytes of the wider ones.
fn all_widths(address: u64) -> Verdict {
    let ring0 = (
        port::read::<u8>(address),
        port::read::<u16>(address),
        port::read::<u32>(address),
        port::read::<u64>(address),
    );
    port::write(address, ring0.0);
    port::write(address, ring0.1);
    port::write(address, ring0.2);
    port::write(address, ring0.3);
    paging::allow_page(address);
    let mut context = ring3::program(user_mmio);
    context.rdi = address;
    ring3::run(&mut context);
    ensure!(context.vector == 6, "a memory-mapped access faults in ring 3");
    let ring3 = (context.rax as u8, context.rbx as u16, context.rcx as u32, context.rdx);
    ensure!(ring0 == ring3, "rings 0 and 3 read different values");
    let wide = ring0.3;
    ensure!(
        (wide as u8, wide as u16, wide as u32) == (ring0.0, ring0.1, ring0.2),
        "narrow reads differ from wide ones"
    );
    say!("memory-mapped at ", Hex(address), ": ", Hex(wide));
    Ok(())
}

fn devices() -> Verdict {
    all_widths(boot::number("hole", 0xd000_0000))?;

    // The I/O APIC's version and the local APIC's, with 32 bits, as these have to be read.
    port::write::<u32>(apic::IO_APIC, 1);
    let io_apic: u32 = port::read(apic::IO_APIC + 0x10);
    let local_apic: u32 = port::read(apic::LOCAL_APIC + 0x30);
    say!("versions: I/O APIC ", Hex(io_apic.into()), " local APIC ", Hex(local_apic.into()));
    ensure!(io_apic >> 16 & 0xff >= 23, "the I/O APIC has less than 24 pins");
    for (address, expected) in
        [(apic::IO_APIC + 0x10, io_apic), (apic::LOCAL_APIC + 0x30, local_apic)]
    {
        paging::allow_page(address);
        let mut context = ring3::program(user_read);
        context.rdi = address;
        ring3::run(&mut context);
        ensure!(context.vector == 6, "an APIC's page faults in ring 3");
        ensure!(context.rax as u32 == expected, "ring 3 reads another version than ring 0");
    }
    say!("ring 3: I/O APIC and local APIC");
    Ok(())
}

global_asm!(
    r#"
    .section .user, "awx"
user_read:
    movl (%rdi), %eax
    ud2
    .text
"#,
    options(att_syntax)
);

unsafe extern "C" {
    fn user_read();
}
