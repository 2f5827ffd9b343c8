//! The two 8259A interrupt controllers (Intel 8259A datasheet): vectors 0x20 to 0x2f, the slave on line 2.

use crate::port::{inb, outb};

/// The vector of line 0; the others follow.
pub const BASE: u8 = 0x20;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const EOI: u8 = 0x20;

/// Initialises both with every line masked.
pub fn init() {
    for (chip, base, cascade) in [(MASTER, BASE, 4), (SLAVE, BASE + 8, 2)] {
        outb(chip, 0x11);
        outb(chip + 1, base);
        outb(chip + 1, cascade);
        outb(chip + 1, 0x01);
        outb(chip + 1, 0xff);
    }
}

/// Lets a line through, and the cascade where it is needed.
pub fn unmask(line: u8) {
    if line >= 8 {
        outb(SLAVE + 1, inb(SLAVE + 1) & !(1 << (line - 8)));
        unmask(2);
    } else {
        outb(MASTER + 1, inb(MASTER + 1) & !(1 << line));
    }
}

/// Masks every line.
pub fn mask_all() {
    outb(MASTER + 1, 0xff);
    outb(SLAVE + 1, 0xff);
}

/// Ends the interrupt of a line.
pub fn eoi(line: u8) {
    if line >= 8 {
        outb(SLAVE, EOI);
    }
    outb(MASTER, EOI);
}
