//! `selfmod`: code that changes under the processor that executes it: by its own stores, by a device's DMA (fw_cfg), and by
//! another processor's stores, with a serialising instruction at the receiver (SDM vol. 3, 9.1.3) and with an IPI.

#![no_std]
#![no_main]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use runtime::interrupts::{self, Frame, Shared};
use runtime::port::{inl, outl};
use runtime::{Verdict, apic, boot, clock, ensure, guest, port, say, smp};

guest!("selfmod", main);

const IPI: u8 = 0x50;

#[repr(C, align(4096))]
struct Code([u8; 8192]);

static CODE: Shared<Code> = Shared(UnsafeCell::new(Code([0xcc; 8192])));

/// `mov eax, imm32; ret`; the number is at offset 4, where a store of it is atomic.
const CONSTANT: [u8; 9] = [0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0xc3];
/// Reads the number at RDI, serialises by CPUID, and gives the constant with that number in the upper half. The constant is
/// at offset 12:
/// `nop; push rbx; mov r8d, [rdi]; xor eax, eax; xor ecx, ecx; cpuid; mov eax, imm32; shl r8, 32; or rax, r8; pop rbx; ret`.
const READER: [u8; 25] = [
    0x90, 0x53, 0x44, 0x8b, 0x07, 0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2, 0xb8, 0, 0, 0, 0, 0x49, 0xc1,
    0xe0, 0x20, 0x4c, 0x09, 0xc0, 0x5b, 0xc3,
];

/// Where each lies in CODE.
const OWN: u64 = 0;
const BY_IPI: u64 = 64;
const BY_FLAG: u64 = 128;
/// The first instruction's number crosses into the next page.
const ACROSS: u64 = 4096 - 6;

/// The number that the reader may rely on.
static FLAG: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);
static ANSWER: AtomicU32 = AtomicU32::new(0);
static ANSWERS: AtomicU32 = AtomicU32::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

fn at(offset: u64) -> u64 {
    CODE.0.get() as u64 + offset
}

fn place(offset: u64, code: &[u8]) {
    for (i, byte) in code.iter().enumerate() {
        port::write::<u8>(at(offset) + i as u64, *byte);
    }
}

/// Calls what is at `offset` with RDI = `argument`.
fn call(offset: u64, argument: u64) -> u64 {
    let result;
    // SAFETY: what lies there is one of the functions above, which changes no more than a C function.
    unsafe {
        asm!("call {}", in(reg) at(offset), in("rdi") argument, out("rax") result, clobber_abi("sysv64"));
    }
    result
}

/// Changes the number of the function at `offset`, by one store.
fn patch(offset: u64, number_at: u64, value: u32) {
    port::write::<u32>(at(offset) + number_at, value);
}

fn main() -> Verdict {
    let rounds = boot::number("rounds", 2000) as u32;
    own_stores(rounds)?;
    within_a_block()?;
    dma(rounds / 20)?;
    interrupts::handle(IPI, |_: &mut Frame| {
        if call(BY_IPI, 0) as u32 != ANSWER.load(SeqCst) {
            WRONG.fetch_add(1, SeqCst);
        }
        ANSWERS.fetch_add(1, SeqCst);
        apic::eoi();
    });
    place(BY_IPI, &CONSTANT);
    place(BY_FLAG, &READER);
    let others = smp::start(other)?;
    if others > 0 {
        by_another_processor(rounds, others)?;
    }
    Ok(())
}

fn own_stores(rounds: u32) -> Verdict {
    place(OWN, &CONSTANT);
    place(ACROSS, &CONSTANT);
    for n in 1..=rounds {
        patch(OWN, 4, n);
        ensure!(call(OWN, 0) as u32 == n, "a store into code is not seen");
        // Half of this number is in the second page.
        patch(ACROSS, 4, n << 8);
        ensure!(call(ACROSS, 0) as u32 == n << 8, "a store across pages is not seen");
    }
    say!("own stores: ", rounds);
    Ok(())
}

/// A store into the instruction that follows it, which any processor since the Pentium notices.
fn within_a_block() -> Verdict {
    // mov dword [rip + 1], edi; mov eax, imm32; ret
    place(OWN, &[0x89, 0x3d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3]);
    for n in 1..50 {
        ensure!(call(OWN, n) == n, "a store into the next instruction is not seen");
    }
    say!("the next instruction");
    Ok(())
}

/// A DMA request of fw_cfg; all fields are big-endian.
#[repr(C, align(16))]
struct Request {
    control: u32,
    length: u32,
    address: u64,
}

fn dma(rounds: u32) -> Verdict {
    const DMA: u16 = 0x514;
    const SIGNATURE: u32 = u32::from_le_bytes(*b"QEMU");
    if inl(DMA) != u32::from_be_bytes(*b"QEMU").swap_bytes() {
        say!("DMA: there is no fw_cfg");
        return Ok(());
    }
    place(OWN, &CONSTANT);
    for n in 1..=rounds {
        patch(OWN, 4, n);
        ensure!(call(OWN, 0) as u32 == n, "a store after DMA is not seen");
        // Select item 0, the signature, and read.
        let mut request = Request {
            control: 0x0a_u32.to_be(),
            length: 4_u32.to_be(),
            address: (at(OWN) + 4).to_be(),
        };
        let address = &raw mut request as u64;
        outl(DMA, ((address >> 32) as u32).to_be());
        outl(DMA + 4, (address as u32).to_be());
        // SAFETY: the device is done with it; it is read as it is now.
        ensure!(unsafe { (&raw const request.control).read_volatile() } == 0, "the DMA fails");
        ensure!(call(OWN, 0) as u32 == SIGNATURE, "DMA into code is not seen");
    }
    say!("DMA: ", rounds);
    Ok(())
}

fn by_another_processor(rounds: u32, others: u32) -> Verdict {
    for n in 1..=rounds {
        patch(BY_FLAG, 12, n);
        FLAG.store(n, SeqCst);
        if n % 4 == 0 {
            ensure!(clock::until(|| SEEN.load(SeqCst) >= n), "a patch never arrives");
        }
        if n % 8 == 0 {
            let before = ANSWERS.load(SeqCst);
            ANSWER.store(n, SeqCst);
            patch(BY_IPI, 4, n);
            apic::send(0, 0xc_4000 | u32::from(IPI));
            ensure!(
                clock::until(|| ANSWERS.load(SeqCst) == before + others),
                "an IPI is not answered"
            );
        }
        ensure!(WRONG.load(SeqCst) == 0, "another processor executes old code");
    }
    DONE.store(true, SeqCst);
    say!("by another processor: ", rounds, ", by IPI: ", rounds / 8);
    Ok(())
}

fn other(_: usize) -> ! {
    port::sti();
    let mut last = 0;
    while !DONE.load(SeqCst) {
        let result = call(BY_FLAG, FLAG.as_ptr() as u64);
        let (flag, value) = ((result >> 32) as u32, result as u32);
        // Never older than what was promised, and never older than before.
        if value < flag || value < last {
            WRONG.fetch_add(1, SeqCst);
        }
        last = value;
        SEEN.fetch_max(value, SeqCst);
    }
    loop {
        port::wait();
    }
}
