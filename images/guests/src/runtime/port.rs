//! Port I/O, memory-mapped I/O and the privileged registers.

use core::arch::asm;

/// Writes a byte to a port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: the guest owns the machine; the instruction touches no memory of ours.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    }
}

/// Writes 16 bits to a port.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as for `outb`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags))
    }
}

/// Writes 32 bits to a port; a device may read or write memory before this returns.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as for `outb`; without `nomem`, so memory that a device fills is read anew.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags))
    }
}

/// Reads a byte from a port.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as for `outb`.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    }
    value
}

/// Reads 16 bits from a port.
pub fn inw(port: u16) -> u16 {
    let value;
    // SAFETY: as for `outb`.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags))
    }
    value
}

/// Reads 32 bits from a port.
pub fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: as for `outb`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
    }
    value
}

/// Reads `T` at a physical address, which is also its virtual address, with one access of its size.
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: all physical addresses below 4 GiB are mapped at themselves; the callers name devices or tables.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes `T` at a physical address, which is also its virtual address, with one access of its size.
pub fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as for `read`; the callers name devices or memory that is not ours.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Reads a model-specific register.
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading has no effect on memory; an unknown register is a #GP that ends the guest.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the callers set registers whose effect they intend.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// The time-stamp counter.
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe {
        asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Opens interrupts.
pub fn sti() {
    // SAFETY: the IDT has a handler for every vector, on stacks of their own.
    unsafe { asm!("sti", options(nostack)) }
}

/// Closes interrupts.
pub fn cli() {
    // SAFETY: closing interrupts breaks nothing.
    unsafe { asm!("cli", options(nostack)) }
}

/// Opens interrupts, halts until one has been taken, closes them again: `sti` opens after `hlt` has begun, so none is missed.
pub fn wait() {
    // SAFETY: as for `sti`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Tells the processor that this is a loop that waits.
pub fn pause() {
    core::hint::spin_loop();
}
