//! Lines of text to COM1 by polling, without `core::fmt`, whose code calculates in SSE registers.

use crate::port::{inb, outb, pause};

const COM1: u16 = 0x3f8;
const IER: u16 = COM1 + 1;
const LCR: u16 = COM1 + 3;
const MCR: u16 = COM1 + 4;
const LSR: u16 = COM1 + 5;
const LSR_DR: u8 = 0x01;
const LSR_THRE: u8 = 0x20;

/// 8N1, no interrupts, DTR and RTS up. FIFO and divisor stay as they are, so that no input is lost.
pub fn init() {
    outb(LCR, 0x03);
    outb(IER, 0);
    outb(MCR, 0x03);
}

/// Sends one byte.
pub fn put(byte: u8) {
    while inb(LSR) & LSR_THRE == 0 {
        pause();
    }
    outb(COM1, byte);
}

/// The next byte received, if there is one.
pub fn get() -> Option<u8> {
    (inb(LSR) & LSR_DR != 0).then(|| inb(COM1))
}

/// Something that can be printed.
pub trait Show {
    /// Prints it.
    fn show(&self);
}

impl Show for str {
    fn show(&self) {
        self.bytes().for_each(put);
    }
}

impl<T: Show + ?Sized> Show for &T {
    fn show(&self) {
        (**self).show();
    }
}

impl Show for u64 {
    fn show(&self) {
        let ten = self / 10;
        if ten != 0 {
            ten.show();
        }
        put(b'0' + (self % 10) as u8);
    }
}

macro_rules! show_as_u64 {
    ($($type:ty)*) => {$(
        impl Show for $type {
            fn show(&self) {
                (*self as u64).show();
            }
        }
    )*};
}
show_as_u64!(u8 u16 u32 usize);

/// A number to be printed as `0x` and its hexadecimal digits without leading zeros.
pub struct Hex(pub u64);

impl Show for Hex {
    fn show(&self) {
        "0x".show();
        let digits = (67 - (self.0 | 1).leading_zeros()) / 4;
        digits_of(self.0, digits);
    }
}

/// A byte to be printed as two hexadecimal digits.
pub struct Byte(pub u8);

impl Show for Byte {
    fn show(&self) {
        digits_of(self.0.into(), 2);
    }
}

/// ASCII text, printed without blanks at its end; unprintable bytes become dots.
pub struct Text<'a>(pub &'a [u8]);

impl Show for Text<'_> {
    fn show(&self) {
        for &byte in self.0.trim_ascii_end() {
            put(if (b' '..=b'~').contains(&byte) { byte } else { b'.' });
        }
    }
}

fn digits_of(value: u64, digits: u32) {
    for digit in (0..digits).rev() {
        let nibble = (value >> (digit * 4)) as u8 & 15;
        put(if nibble < 10 { b'0' + nibble } else { b'a' - 10 + nibble });
    }
}

/// Prints its arguments and ends the line.
#[macro_export]
macro_rules! say {
    ($($part:expr),* $(,)?) => {{
        $($crate::serial::Show::show(&$part);)*
        $crate::serial::Show::show("\r\n");
    }};
}

/// Raises IRQ 4 as long as there is something to read.
pub fn interrupt_on_input() {
    outb(MCR, 0x0b);
    outb(IER, 0x01);
}

/// Makes the UART usable again, whatever has been written to it: 115200 baud, 8N1, no loopback, no FIFO.
pub fn reset() {
    outb(LCR, 0x83);
    outb(COM1, 1);
    outb(IER, 0);
    outb(LCR, 0x03);
    outb(COM1 + 2, 0);
    init();
}
