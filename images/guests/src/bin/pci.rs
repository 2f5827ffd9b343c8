//! `pci`: the bus by ports and by ECAM, and a `pci-testdev` on it: sizes and moves its BARs, takes its interrupts by INTx
//! (I/O APIC and PIC), MSI and MSI-X with masks and pending bits, rings its doorbell. With the word `hotplug`: waits for a
//! device, and for its being wanted back, by the hot-plug registers.
//!
//! PCI 3.0; the device is described in `devices/src/pci/testdev.rs`, the hot-plug registers in `hotplug.rs` there.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use runtime::apic::{self, LEVEL, MASKED};
use runtime::interrupts::{self, Frame};
use runtime::port::{inl, inw, outb, outl, outw, read, write};
use runtime::serial::Hex;
use runtime::{Verdict, boot, clock, ensure, guest, pic, port, say};

guest!("pci", main);

const ECAM: u64 = 0xc000_0000;
const TEST_DEVICE: u32 = 0x0005_1b36;
const MAGIC: u32 = 0x5453_4554;

/// The device's registers in BAR 0 and BAR 1.
const COMPLEMENT: u64 = 0x04;
const RAISE: u64 = 0x08;
const STATUS: u64 = 0x0c;
const BELL: u64 = 0x10;

/// Where the BARs go.
const REGISTERS: u64 = 0xd800_0000;
const SCRATCH: u64 = 0xd900_0000;
const TABLE: u64 = 0xda00_0000;
const PORTS: u16 = 0x2000;
const PENDING: u64 = TABLE + 0x800;

/// Vectors: INTx, MSI's two, MSI-X's two.
const INTX: u8 = 0x50;
const MSI: u8 = 0x60;
const MSIX: u8 = 0x70;

const LOCAL_APICS: u64 = 0xfee0_0000;

/// What the BARs read while their sizes are asked.
static SIZES: [u32; 6] = [0xffff_f000, 0xffff_ffe1, 0xffff_f00c, 0xffff_ffff, 0xffff_f000, 0];

/// The I/O APIC's pin that INTx drives.
static PIN: AtomicU32 = AtomicU32::new(0);

static TAKEN: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// A function on bus 0.
#[derive(Clone, Copy)]
struct Function(u32);

impl Function {
    fn select(self, offset: u16) {
        outl(0xcf8, 0x8000_0000 | self.0 << 8 | u32::from(offset & !3));
    }

    fn get(self, offset: u16) -> u32 {
        self.select(offset);
        inl(0xcfc)
    }

    fn set(self, offset: u16, value: u32) {
        self.select(offset);
        outl(0xcfc, value);
    }

    fn set_word(self, offset: u16, value: u16) {
        self.select(offset);
        outw(0xcfc + (offset & 2), value);
    }

    fn ecam(self, offset: u16) -> u64 {
        ECAM + u64::from(self.0) * 4096 + u64::from(offset)
    }

    fn slot(self) -> u32 {
        self.0 >> 3
    }

    /// Where the capability is, if there is one.
    fn capability(self, id: u32) -> Option<u16> {
        let mut at = (self.get(0x34) & 0xfc) as u16;
        for _ in 0..48 {
            if at == 0 {
                return None;
            }
            let head = self.get(at);
            if head & 0xff == id {
                return Some(at);
            }
            at = (head >> 8 & 0xfc) as u16;
        }
        None
    }
}

fn main() -> Verdict {
    let mut device = None;
    for number in 0..256 {
        let function = Function(number);
        let id = function.get(0);
        if id == 0xffff_ffff {
            continue;
        }
        let class = function.get(8) >> 16;
        say!(
            "slot ",
            function.slot(),
            " function ",
            number & 7,
            " id ",
            Hex(id.into()),
            " class ",
            Hex(class.into())
        );
        for offset in (0..64).step_by(4) {
            ensure!(
                read::<u32>(function.ecam(offset)) == function.get(offset),
                "ECAM shows something else"
            );
        }
        if id == TEST_DEVICE && device.is_none() {
            device = Some(function);
        }
    }
    for vector in [INTX, MSI, MSI + 1, MSIX, MSIX + 1] {
        interrupts::handle(vector, message);
    }
    interrupts::handle(INTX, level);
    apic::enable();
    if boot::has("hotplug") {
        return hotplug();
    }
    let device = device.ok_or("there is no pci-testdev")?;
    bars(device)?;
    doorbell()?;
    intx(device)?;
    intx_by_pic(device)?;
    msi(device)?;
    msix(device)
}

fn message(frame: &mut Frame) {
    TAKEN[frame.vector as usize].fetch_add(1, SeqCst);
    apic::eoi();
}

/// INTx: one interrupt is acknowledged each time, so that the line stays high while there are others.
fn level(frame: &mut Frame) {
    if acknowledge() {
        TAKEN[frame.vector as usize].fetch_add(1, SeqCst);
    }
    apic::eoi();
}

/// Acknowledges the lowest interrupt of the device. None at all: the same interrupt was delivered twice, see `open`.
fn acknowledge() -> bool {
    let status = read::<u32>(REGISTERS + STATUS);
    write(REGISTERS + STATUS, status & status.wrapping_neg());
    status != 0 || !boot::has("lenient")
}

fn taken(vector: u8) -> u32 {
    TAKEN[usize::from(vector)].load(SeqCst)
}

/// Lets interrupts in between two instructions that leave the guest for nothing. A KVM that emulates ring 0 delivers an
/// interrupt twice where it meets the end of an access, and may lose its end; with the word `lenient` that is mended.
fn open() {
    port::sti();
    port::pause();
    port::cli();
}

/// Waits until so many interrupts have come to a vector, and a moment more; whether it was just as many.
fn comes(vector: u8, count: u32) -> bool {
    let wait = || {
        clock::until(|| {
            open();
            taken(vector) >= count
        })
    };
    let mut come = wait();
    if !come && vector == INTX && boot::has("lenient") {
        // A moment of edge mode forgets that an end of interrupt is awaited.
        let pin = PIN.load(SeqCst);
        apic::io_route(pin, MASKED);
        apic::io_route(pin, LEVEL | u32::from(INTX));
        come = wait();
    }
    for _ in 0..100 {
        open();
    }
    let taken = TAKEN[usize::from(vector)].swap(0, SeqCst);
    let most = if boot::has("lenient") { 2 * count } else { count };
    if !(count..=most).contains(&taken) {
        say!("vector ", vector, " taken ", taken, " of ", count);
    }
    come && taken <= most
}

/// Opens interrupts for a moment; whether none has come.
fn none_comes(vector: u8) -> bool {
    for _ in 0..100 {
        open();
    }
    TAKEN[usize::from(vector)].swap(0, SeqCst) == 0 || boot::has("lenient")
}

fn bars(device: Function) -> Verdict {
    device.set_word(4, 0);
    for (offset, &expected) in (0x10..0x28).step_by(4).zip(&SIZES) {
        device.set(offset, 0xffff_ffff);
        ensure!(device.get(offset) == expected, "the size of a BAR");
    }
    say!("BARs sized");

    device.set(0x10, 0xd700_0000);
    device.set(0x14, PORTS.into());
    device.set(0x18, SCRATCH as u32);
    device.set(0x1c, 0);
    device.set(0x20, TABLE as u32);
    ensure!(read::<u32>(0xd700_0000) == 0xffff_ffff, "a BAR answers while decoding is off");
    device.set_word(4, 0b111);
    ensure!(read::<u32>(0xd700_0000) == MAGIC, "BAR 0 does not answer");
    ensure!(inl(PORTS) == MAGIC, "BAR 1 does not answer");
    write(0xd700_0000 + COMPLEMENT, 0x1234_5678_u32);
    // It moves while it decodes, by ECAM.
    write(device.ecam(0x10), REGISTERS as u32);
    ensure!(read::<u32>(0xd700_0000) == 0xffff_ffff, "BAR 0 answers where it was");
    ensure!(
        read::<u32>(REGISTERS + COMPLEMENT) == !0x1234_5678,
        "BAR 0 does not answer where it is"
    );
    ensure!(inl(PORTS + COMPLEMENT as u16) == !0x1234_5678, "BAR 1 is another device");
    for at in (0..4096).step_by(8) {
        write(SCRATCH + at, at * 0x0101_0101_0101);
    }
    for at in (0..4096).step_by(8) {
        ensure!(read::<u64>(SCRATCH + at) == at * 0x0101_0101_0101, "BAR 2 forgets");
    }
    ensure!(read::<u8>(SCRATCH + 9) == (8 * 0x0101_u64 >> 8) as u8, "a byte of BAR 2");
    say!("BARs moved");
    Ok(())
}

fn doorbell() -> Verdict {
    for count in 1..=3_u32 {
        write(REGISTERS + BELL, 0_u32);
        ensure!(clock::until(|| read::<u32>(REGISTERS + BELL) == count), "the doorbell");
    }
    say!("doorbell");
    Ok(())
}

fn intx(device: Function) -> Verdict {
    let pin = 16 + (device.slot() + 3) % 4;
    PIN.store(pin, SeqCst);
    apic::io_route(pin, LEVEL | u32::from(INTX));
    write(REGISTERS + RAISE, 0b1_u32);
    ensure!(device.get(4) >> 19 & 1 == 1, "Interrupt Status is clear");
    ensure!(comes(INTX, 1), "an INTx");
    ensure!(device.get(4) >> 19 & 1 == 0, "Interrupt Status stays set");
    // Three at once: after each end of interrupt the line is looked at again.
    write(REGISTERS + RAISE, 0b111_u32);
    ensure!(comes(INTX, 3), "three INTx");
    device.set_word(4, 0b111 | 1 << 10);
    write(REGISTERS + RAISE, 0b1_u32);
    ensure!(none_comes(INTX), "INTx although it is disabled");
    device.set_word(4, 0b111);
    ensure!(comes(INTX, 1), "INTx after it was disabled");
    apic::io_route(pin, MASKED);
    say!("INTx by the I/O APIC: pin ", pin);
    Ok(())
}

/// As firmware has routed it, which has left the number in Interrupt Line.
fn intx_by_pic(device: Function) -> Verdict {
    let line = device.get(0x3c) as u8;
    ensure!(line == 10 || line == 11, "Interrupt Line");
    outb(0x4d1, 0b1100);
    apic::disable();
    pic::init();
    interrupts::handle(pic::BASE + line, |frame| {
        let line = frame.vector as u8 - pic::BASE;
        if acknowledge() {
            TAKEN[frame.vector as usize].fetch_add(1, SeqCst);
        }
        pic::eoi(line);
    });
    pic::unmask(line);
    write(REGISTERS + RAISE, 0b11_u32);
    ensure!(comes(pic::BASE + line, 2), "INTx by the PIC");
    pic::mask_all();
    apic::enable();
    say!("INTx by the PIC: line ", line);
    Ok(())
}

fn msi(device: Function) -> Verdict {
    let at = device.capability(5).ok_or("no MSI")?;
    let control = device.get(at) >> 16;
    ensure!(control & 0x18e == 0x184, "MSI: four vectors, 64 bits, maskable");
    device.set(at + 4, LOCAL_APICS as u32);
    device.set(at + 8, 0);
    device.set(at + 12, MSI.into());
    // Two vectors.
    device.set_word(at + 2, 1 | 1 << 4);
    write(REGISTERS + RAISE, 0b01_u32);
    ensure!(comes(MSI, 1), "an MSI");
    write(REGISTERS + RAISE, 0b10_u32);
    ensure!(comes(MSI + 1, 1), "the second MSI");
    device.set(at + 16, 0b01);
    write(REGISTERS + RAISE, 0b01_u32);
    ensure!(none_comes(MSI) && device.get(at + 20) == 0b01, "a masked MSI");
    device.set(at + 16, 0);
    ensure!(comes(MSI, 1) && device.get(at + 20) == 0, "an MSI after its mask");
    device.set_word(at + 2, 0);
    say!("MSI");
    Ok(())
}

fn msix(device: Function) -> Verdict {
    let at = device.capability(0x11).ok_or("no MSI-X")?;
    ensure!(device.get(at) >> 16 & 0x7ff == 7, "the size of the table");
    ensure!(
        device.get(at + 4) == 4 && device.get(at + 8) == 0x804,
        "where table and pending bits are"
    );
    for (vector, number) in [(0, MSIX), (1, MSIX + 1)] {
        let entry = TABLE + vector * 16;
        ensure!(read::<u32>(entry + 12) == 1, "a vector is not masked after reset");
        write(entry, LOCAL_APICS);
        write(entry + 8, u32::from(number));
        write(entry + 12, 0_u32);
    }
    // On, with the function masked, as Linux begins.
    device.set_word(at + 2, 0xc000);
    write(REGISTERS + RAISE, 0b11_u32);
    ensure!(none_comes(MSIX) && read::<u64>(PENDING) == 0b11, "the function mask");
    device.set_word(at + 2, 0x8000);
    ensure!(comes(MSIX, 1) && comes(MSIX + 1, 1), "what was pending");
    ensure!(read::<u64>(PENDING) == 0, "pending bits stay set");
    write(REGISTERS + RAISE, 0b10_u32);
    ensure!(comes(MSIX + 1, 1), "an MSI-X");
    write(TABLE + 12, 1_u32);
    write(REGISTERS + RAISE, 0b01_u32);
    ensure!(none_comes(MSIX) && read::<u64>(PENDING) == 0b01, "a masked MSI-X");
    // Another message while it is masked.
    write(TABLE + 8, u32::from(MSIX + 1));
    write(TABLE + 12, 0_u32);
    ensure!(comes(MSIX + 1, 1) && none_comes(MSIX), "a vector that has got another message");
    ensure!(read::<u32>(REGISTERS + STATUS) == 0, "INTx as well");
    say!("MSI-X");
    Ok(())
}

/// Status of general-purpose events, and the hot-plug registers.
const GPE0: u16 = 0x620;
const PCIU: u16 = 0xcc0;
const PCID: u16 = 0xcc4;
const B0EJ: u16 = 0xcc8;

fn hotplug() -> Verdict {
    outw(GPE0, 0xffff);
    say!("ready");
    while inw(GPE0) & 0b10 == 0 {
        port::pause();
    }
    let slots = inl(PCIU);
    ensure!(slots.count_ones() == 1 && inl(PCIU) == 0, "the slots of new devices");
    let function = Function(slots.trailing_zeros() * 8);
    ensure!(function.get(0) == TEST_DEVICE, "there is nothing in the slot");
    outw(GPE0, 0xffff);
    function.set(0x10, REGISTERS as u32);
    function.set_word(4, 0b10);
    ensure!(read::<u32>(REGISTERS) == MAGIC, "the device does not answer");
    say!("plugged into slot ", function.slot());
    while inw(GPE0) & 0b10 == 0 {
        port::pause();
    }
    ensure!(inl(PCID) == slots, "the slots that are wanted back");
    outl(B0EJ, slots);
    ensure!(function.get(0) == 0xffff_ffff, "it is still there");
    ensure!(read::<u32>(REGISTERS) == 0xffff_ffff, "its BAR still answers");
    ensure!(inl(PCID) == 0, "it is still wanted back");
    say!("ejected");
    Ok(())
}
