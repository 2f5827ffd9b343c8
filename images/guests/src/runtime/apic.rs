//! The local APIC in xAPIC and x2APIC mode (Intel SDM vol. 3A, chapter 11) and the I/O APIC (82093AA datasheet).

use crate::port::{rdmsr, read, write, wrmsr};
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

const IA32_APIC_BASE: u32 = 0x1b;
const GLOBAL_ENABLE: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

/// Where the local APIC's registers are in xAPIC mode.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Where the I/O APIC's index register is; the data register is 0x10 further on.
pub const IO_APIC: u64 = 0xfec0_0000;

/// Offsets of registers in xAPIC mode.
#[allow(missing_docs)]
pub mod register {
    pub const ID: u32 = 0x20;
    pub const EOI: u32 = 0xb0;
    pub const SPURIOUS: u32 = 0xf0;
    pub const IN_SERVICE: u32 = 0x100;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
}

/// The vector of spurious interrupts.
pub const SPURIOUS: u8 = 0xff;
/// The mask bit of a local vector table entry.
pub const MASKED: u32 = 1 << 16;
/// The delivery mode by which a PIC's interrupts come through LINT0.
pub const EXTINT: u32 = 7 << 8;

/// All processors are in the same mode.
static X2: AtomicBool = AtomicBool::new(false);

/// Enables this processor's local APIC, with LINT0 and LINT1 masked: in xAPIC mode, or in x2APIC mode where
/// `enable_x2` has come before on any processor.
pub fn enable() {
    let mode = if X2.load(Relaxed) { GLOBAL_ENABLE | X2APIC } else { GLOBAL_ENABLE };
    wrmsr(IA32_APIC_BASE, rdmsr(IA32_APIC_BASE) | mode);
    set(register::SPURIOUS, 0x100 | u32::from(SPURIOUS));
    set(register::LVT_LINT0, MASKED);
    set(register::LVT_LINT1, MASKED);
}

/// Enables this processor's local APIC in x2APIC mode, if CPUID says that it has it.
pub fn enable_x2() -> bool {
    if __cpuid(1).ecx & 1 << 21 == 0 {
        return false;
    }
    wrmsr(IA32_APIC_BASE, rdmsr(IA32_APIC_BASE) | GLOBAL_ENABLE | X2APIC);
    X2.store(true, Relaxed);
    true
}

/// Switches this processor's local APIC off: what the PIC says reaches the processor straight.
pub fn disable() {
    wrmsr(IA32_APIC_BASE, rdmsr(IA32_APIC_BASE) & !GLOBAL_ENABLE);
}

/// Reads a register.
pub fn get(register: u32) -> u32 {
    if X2.load(Relaxed) {
        rdmsr(0x800 + register / 16) as u32
    } else {
        read(LOCAL_APIC + u64::from(register))
    }
}

/// Writes a register.
pub fn set(register: u32, value: u32) {
    if X2.load(Relaxed) {
        wrmsr(0x800 + register / 16, value.into());
    } else {
        write(LOCAL_APIC + u64::from(register), value);
    }
}

/// This processor's APIC id.
pub fn id() -> u32 {
    let id = get(register::ID);
    if X2.load(Relaxed) { id } else { id >> 24 }
}

/// Ends the interrupt with the highest priority.
pub fn eoi() {
    set(register::EOI, 0);
}

/// Whether the local APIC has given this vector to the processor and awaits its EOI.
pub fn in_service(vector: u8) -> bool {
    get(register::IN_SERVICE + u32::from(vector / 32) * 16) & 1 << (vector % 32) != 0
}

/// Writes the interrupt command register: sends an IPI. `command` is its low half.
pub fn send(destination: u32, command: u32) {
    if X2.load(Relaxed) {
        wrmsr(0x830, u64::from(destination) << 32 | u64::from(command));
    } else {
        set(register::ICR_HIGH, destination << 24);
        set(register::ICR, command);
        while get(register::ICR) & 1 << 12 != 0 {
            crate::port::pause();
        }
    }
}

/// Reads a register of the I/O APIC.
pub fn io_get(index: u32) -> u32 {
    write(IO_APIC, index);
    read(IO_APIC + 0x10)
}

/// Writes a register of the I/O APIC.
pub fn io_set(index: u32, value: u32) {
    write(IO_APIC, index);
    write(IO_APIC + 0x10, value);
}

/// The level-triggered bit of an I/O APIC redirection entry.
pub const LEVEL: u32 = 1 << 15;

/// How many pins the I/O APIC has.
pub fn io_pins() -> u32 {
    (io_get(1) >> 16 & 0xff) + 1
}

/// Sends what comes at a pin to the processor with APIC id 0, as `entry` says: the vector and the mode bits.
pub fn io_route(pin: u32, entry: u32) {
    io_set(0x10 + 2 * pin, MASKED);
    io_set(0x11 + 2 * pin, 0);
    io_set(0x10 + 2 * pin, entry);
}
