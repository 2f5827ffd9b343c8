//! `doorbell`: makes the accesses that its command line asks for, in order, then powers off. For doorbells (ioeventfd), dirty
//! logs, and any device that a test puts somewhere. Numbers are decimal, or hexadecimal after `0x`; widths are in bytes.
//!
//! - `pio:PORT:WIDTH=VALUE`, `mmio:ADDRESS:WIDTH=VALUE`: write; without `=VALUE`: read and print.
//! - `dirty:ADDRESS:LENGTH:STEP`: write a byte at each STEP of this range of memory.
//! - `repeat=N`: do all of it N times.

#![no_std]
#![no_main]

use runtime::boot::{self, parse};
use runtime::port::{self, read, write};
use runtime::serial::{Hex, Text};
use runtime::{Verdict, guest, paging, say};

guest!("doorbell", main);

fn main() -> Verdict {
    let repeat = boot::number("repeat", 1);
    for _ in 0..repeat {
        for word in boot::words() {
            if access(word).is_none() {
                say!("word ", Text(word));
                return Err("a word is not an access");
            }
        }
    }
    say!("done ", repeat);
    Ok(())
}

/// Does what a word says; `None` if that cannot be understood.
fn access(word: &[u8]) -> Option<()> {
    if word.starts_with(b"repeat=") {
        return Some(());
    }
    let mut sides = word.splitn(2, |&byte| byte == b'=');
    let mut parts = sides.next()?.split(|&byte| byte == b':');
    let value = match sides.next() {
        Some(value) => Some(parse(value)?),
        None => None,
    };
    let kind = parts.next()?;
    let address = parse(parts.next()?)?;
    let size = parse(parts.next()?)?;
    match kind {
        b"pio" => pio(address as u16, size, value),
        b"mmio" => mmio(paging::reach(address), size, value),
        b"dirty" => {
            let step = parse(parts.next()?)?.max(1);
            let mut at = address;
            while at < address + size {
                write::<u8>(paging::reach(at), 0xa5);
                at += step;
            }
            Some(())
        }
        _ => None,
    }
}

fn pio(port: u16, width: u64, value: Option<u64>) -> Option<()> {
    match (width, value) {
        (1, Some(value)) => port::outb(port, value as u8),
        (2, Some(value)) => port::outw(port, value as u16),
        (4, Some(value)) => port::outl(port, value as u32),
        (1, None) => say!("pio ", Hex(port.into()), ": ", Hex(port::inb(port).into())),
        (2, None) => say!("pio ", Hex(port.into()), ": ", Hex(port::inw(port).into())),
        (4, None) => say!("pio ", Hex(port.into()), ": ", Hex(port::inl(port).into())),
        _ => return None,
    }
    Some(())
}

fn mmio(address: u64, width: u64, value: Option<u64>) -> Option<()> {
    match (width, value) {
        (1, Some(value)) => write(address, value as u8),
        (2, Some(value)) => write(address, value as u16),
        (4, Some(value)) => write(address, value as u32),
        (8, Some(value)) => write(address, value),
        (1, None) => say!("mmio ", Hex(address), ": ", Hex(read::<u8>(address).into())),
        (2, None) => say!("mmio ", Hex(address), ": ", Hex(read::<u16>(address).into())),
        (4, None) => say!("mmio ", Hex(address), ": ", Hex(read::<u32>(address).into())),
        (8, None) => say!("mmio ", Hex(address), ": ", Hex(read::<u64>(address))),
        _ => return None,
    }
    Some(())
}
