//! `exerciser`: nonsense, from a seeded random stream, to every port and every memory-mapped page that a machine has. What is
//! proved is the emulator: it must neither stop nor panic.
//!
//! Words: `seed=N` (1), `count=N` (1000000) accesses; `skip=N,N-N,...` ports, and addresses above 0xffff, to leave alone; `all`
//! for also that by which the guest would end itself: power-off, resets, A20, SMIs, exit devices, interrupt commands, INIT by an
//! interrupt controller, chips that carry the rest (PCI devices 0, 1 and 31).

#![no_std]
#![no_main]

use core::arch::asm;
use core::cell::UnsafeCell;
use runtime::interrupts::{self, Shared};
use runtime::port::{self, inb, inl, inw, outb, outl, outw, read, write};
use runtime::{Verdict, boot, guest, paging, say, serial};

guest!("exerciser", main);

const PROGRESS: u64 = 100_000;
const LOCAL_APIC: u64 = 0xfee0_0000;
const IO_APIC: u64 = 0xfec0_0000;

/// Where memory-mapped accesses go, below 4 GiB: start and length.
static WINDOWS: [(u64, u64); 8] = [
    (0x000a_0000, 0x2_0000),
    (0x000c_0000, 0x4_0000),
    (0xc000_0000, 0x3ec0_0000),
    (0xe000_0000, 0x1000_0000),
    (IO_APIC, 0x1000),
    (0xfed0_0000, 0x10_0000),
    (LOCAL_APIC, 0x1000),
    (0xff00_0000, 0x100_0000),
];

/// Where string instructions read and write.
static BUFFER: Shared<[u8; 256]> = Shared(UnsafeCell::new([0; 256]));

/// The ranges of `skip=`.
static SKIPPED: Shared<[(u64, u64); 16]> = Shared(UnsafeCell::new([(1, 0); 16]));

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below the limit, which is small.
    fn below(&mut self, limit: u64) -> u64 {
        ((self.next() & 0xffff_ffff) * limit) >> 32
    }

    /// 64 bits: often all zeros or ones, or one bit, as such values find more than others.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            _ => self.next() << 32 ^ self.next(),
        }
    }
}

fn main() -> Verdict {
    let count = boot::number("count", 1_000_000);
    let everything = boot::has("all");
    parse_skipped();
    interrupts::handle(2, |_| {});
    let mut random = Random(boot::number("seed", 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for done in 1..=count {
        match random.below(16) {
            0..7 => single(&mut random, everything),
            7..9 => string(&mut random, everything),
            9 => config(&mut random, everything),
            10 => firmware(&mut random),
            _ => memory(&mut random, everything),
        }
        if done % PROGRESS == 0 {
            serial::reset();
            say!("");
            say!("accesses ", done);
        }
    }
    serial::reset();
    say!("");
    say!("all ", count);
    Ok(())
}

fn parse_skipped() {
    let list = boot::text("skip").unwrap_or(&[]);
    let words = list.split(|&byte| byte == b',');
    // SAFETY: only this function writes it, before anything reads it.
    let ranges = unsafe { &mut *SKIPPED.0.get() };
    for (range, word) in ranges.iter_mut().zip(words) {
        let mut ends = word.splitn(2, |&byte| byte == b'-');
        let first = ends.next().and_then(boot::parse);
        let last = ends.next().and_then(boot::parse).or(first);
        if let (Some(first), Some(last)) = (first, last) {
            *range = (first, last);
        }
    }
}

/// Whether the command line wants these bytes left alone.
fn skipped(start: u64, size: u64) -> bool {
    // SAFETY: written once, before this.
    let ranges = unsafe { &*SKIPPED.0.get() };
    ranges.iter().any(|&(first, last)| start <= last && start + size > first)
}

/// Whether this byte at this port would end the guest.
fn deadly(port: u16, value: u8) -> bool {
    match port {
        // i8042: output port next, A20 off, pulses of the reset line.
        0x64 => matches!(value, 0xd1 | 0xdd | 0xf0..=0xff),
        // Reset, or A20 off.
        0x92 => value & 3 != 2,
        // SLP_EN, in the high byte of PM1a_CNT.
        0x605 => value & 0x20 != 0,
        // What raises SMIs, for which there is firmware or not: APM control, GBL_RLS, SMI_EN, TCO.
        0xb2 | 0x604 | 0x630..=0x67f => true,
        // isa-debug-exit at both of its places, pvpanic, fw_cfg's DMA, PCI config and reset control.
        0xf4..=0xf7 | 0x501..=0x502 | 0x505 | 0x514..=0x51b | 0xcf8..=0xcff => true,
        _ => false,
    }
}

/// Whether an access of this width has a byte that might. More than one byte may come to one port, and then any does.
fn special(port: u16, width: u16) -> bool {
    (0..width).any(|at| {
        let port = port.wrapping_add(at);
        matches!(port, 0x64 | 0x92 | 0x605) || deadly(port, 0)
    })
}

/// A port: half of the time one of those where chips are.
fn any_port(random: &mut Random) -> u16 {
    match random.below(8) {
        0..3 => random.next() as u16,
        3..6 => random.below(0x400) as u16,
        6 => 0x400 + random.below(0x300) as u16,
        _ => 0x3f8 - 0x100 * random.below(2) as u16 + random.below(8) as u16,
    }
}

fn single(random: &mut Random, everything: bool) {
    let port = any_port(random);
    let width = 1 << random.below(3);
    let value = random.next() as u32;
    let out = random.below(2) == 0;
    let kills = if width == 1 { deadly(port, value as u8) } else { special(port, width) };
    if skipped(port.into(), width.into()) || (out && !everything && kills) {
        return;
    }
    match (out, width) {
        (true, 1) => outb(port, value as u8),
        (true, 2) => outw(port, value as u16),
        (true, _) => outl(port, value),
        (false, 1) => _ = inb(port),
        (false, 2) => _ = inw(port),
        (false, _) => _ = inl(port),
    }
}

/// REP INS and REP OUTS.
fn string(random: &mut Random, everything: bool) {
    let port = any_port(random);
    let width = 1 << random.below(3);
    let count = 1 + random.below(64);
    let out = random.below(2) == 0;
    if skipped(port.into(), width.into()) || (out && !everything && special(port, width)) {
        return;
    }
    let buffer = BUFFER.0.get();
    // SAFETY: at most 64 elements of 4 bytes are in the buffer, which nothing else uses now.
    unsafe {
        (*buffer)[random.below(256) as usize & 255] = random.next() as u8;
        match (out, width) {
            (true, 1) => {
                asm!("rep outsb", in("dx") port, inout("rcx") count => _, inout("rsi") buffer => _);
            }
            (true, 2) => {
                asm!("rep outsw", in("dx") port, inout("rcx") count => _, inout("rsi") buffer => _);
            }
            (true, _) => {
                asm!("rep outsd", in("dx") port, inout("rcx") count => _, inout("rsi") buffer => _);
            }
            (false, 1) => {
                asm!("rep insb", in("dx") port, inout("rcx") count => _, inout("rdi") buffer => _);
            }
            (false, 2) => {
                asm!("rep insw", in("dx") port, inout("rcx") count => _, inout("rdi") buffer => _);
            }
            (false, _) => {
                asm!("rep insd", in("dx") port, inout("rcx") count => _, inout("rdi") buffer => _);
            }
        }
    }
}

/// PCI configuration space through 0xcf8 and 0xcfc.
fn config(random: &mut Random, everything: bool) {
    if skipped(0xcf8, 8) {
        return;
    }
    let bus = if random.below(16) == 0 { random.below(256) } else { 0 };
    let (device, function, register) = (random.below(32), random.below(8), random.below(256));
    let address = 1 << 31 | bus << 16 | device << 11 | function << 8 | (register & !3);
    outl(0xcf8, address as u32);
    let port = 0xcfc + (register & 3) as u16;
    let mut value = random.value() as u32;
    if !everything {
        if bus == 0 && matches!(device, 0 | 1 | 31) {
            _ = inl(0xcfc);
            return;
        }
        // Base addresses stay above the first chips' ports and above RAM.
        if (0x10..0x28).contains(&register) {
            value |= 0xc0c0_c0c0;
        }
    }
    match random.below(6) {
        0 => outb(port, value as u8),
        1 if register & 1 == 0 => outw(port, value as u16),
        2 if register & 3 == 0 => outl(port, value),
        3 => _ = inb(port),
        4 if register & 1 == 0 => _ = inw(port),
        _ => _ = inl(0xcfc),
    }
}

/// The firmware configuration device's DMA, with addresses where no request is.
fn firmware(random: &mut Random) {
    if skipped(0x510, 12) {
        return;
    }
    outw(0x510, random.below(0x60) as u16);
    outl(0x514, (random.next() as u32 | 1).to_be());
    outl(0x518, random.next() as u32);
}

fn memory(random: &mut Random, everything: bool) {
    let (mut address, window) = match random.below(256) {
        0 => ((4 + random.below(508)) << 30 | (random.next() & 0x3fff_ffff), 0),
        _ => {
            let window = random.below(WINDOWS.len() as u64) as usize;
            let (start, length) = WINDOWS[window & 7];
            (start + random.below(length), start)
        }
    };
    let width = 1 << random.below(4);
    if random.below(4) != 0 {
        address &= !(width - 1);
    }
    if skipped(address, width) || address >> 32 != (address + width - 1) >> 32 {
        return;
    }
    let mut value = random.value();
    let out = random.below(2) == 0;
    if out && !everything && (LOCAL_APIC - 7..LOCAL_APIC + 0x10_0000).contains(&address) {
        // Only the registers: what is behind them are messages. Not those that send, and no delivery mode but fixed.
        let offset = address.wrapping_sub(LOCAL_APIC);
        if window != LOCAL_APIC || offset < 0x20 || (0x2f8..0x320).contains(&offset) {
            return;
        }
        value &= 0xf8f8_f8f8_f8f8_f8f8;
    }
    if out && !everything && (IO_APIC - 7..IO_APIC + 0x1000).contains(&address) {
        value &= 0xf8ff_f8ff;
        if address & 0xf != 0 || width != 4 {
            value &= 0xf8f8_f8f8_f8f8_f8f8;
        }
    }
    paging::reach(address);
    match (out, width) {
        (true, 1) => write(address, value as u8),
        (true, 2) => unaligned(address, value, 2),
        (true, 4) => unaligned(address, value, 4),
        (true, _) => unaligned(address, value, 8),
        (false, 1) => _ = read::<u8>(address),
        (false, _) => load(address, width),
    }
    port::pause();
}

/// A store whose address need not be a multiple of its width.
fn unaligned(address: u64, value: u64, width: u64) {
    // SAFETY: the address is in none of the program's own pages.
    unsafe {
        match width {
            2 => asm!("mov [{}], {:x}", in(reg) address, in(reg) value, options(nostack)),
            4 => asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack)),
            _ => asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)),
        }
    }
}

/// A load whose address need not be a multiple of its width.
fn load(address: u64, width: u64) {
    // SAFETY: reading a device's page changes nothing of the program's.
    unsafe {
        match width {
            2 => asm!("mov {:x}, [{}]", out(reg) _, in(reg) address, options(nostack)),
            4 => asm!("mov {:e}, [{}]", out(reg) _, in(reg) address, options(nostack)),
            _ => asm!("mov {}, [{}]", out(reg) _, in(reg) address, options(nostack)),
        }
    }
}
