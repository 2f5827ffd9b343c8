//! `fwcfg`: the firmware configuration device (QEMU `docs/specs/fw_cfg.rst`), by its ports and by DMA: signature, RAM size,
//! processors, the file directory and `etc/e820`.

#![no_std]
#![no_main]

use core::cell::UnsafeCell;
use runtime::interrupts::Shared;
use runtime::port::{inb, inl, outl, outw, read};
use runtime::serial::{Hex, Text};
use runtime::{Verdict, ensure, guest, say};

guest!("fwcfg", main);

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DMA: u16 = 0x514;

const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const RAM_SIZE: u16 = 0x03;
const NB_CPUS: u16 = 0x05;
const FILE_DIR: u16 = 0x19;

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;

/// What DMA transfers go to.
static BUFFER: Shared<[u8; 4096]> = Shared(UnsafeCell::new([0; 4096]));

/// The name of a file.
static NAME: Shared<[u8; 56]> = Shared(UnsafeCell::new([0; 56]));

/// A DMA request; all fields are big-endian.
#[repr(C, align(16))]
struct Request {
    control: u32,
    length: u32,
    address: u64,
}

fn main() -> Verdict {
    outw(SELECTOR, SIGNATURE);
    ensure!(bytes::<4>() == *b"QEMU", "the signature");
    outw(SELECTOR, ID);
    let features = u32::from_le_bytes(bytes());
    say!("features ", Hex(features.into()));
    ensure!(features & 3 == 3, "no DMA interface");
    outw(SELECTOR, RAM_SIZE);
    let ram = u64::from_le_bytes(bytes());
    outw(SELECTOR, NB_CPUS);
    let cpus = u16::from_le_bytes(bytes());
    say!("RAM ", ram >> 20, " MiB, processors ", cpus);

    ensure!(inl(DMA) == u32::from_be_bytes(*b"QEMU").swap_bytes(), "the DMA signature");
    let e820 = directory()?.ok_or("there is no file etc/e820")?;
    table(e820, ram)
}

fn bytes<const N: usize>() -> [u8; N] {
    core::array::from_fn(|_| inb(DATA))
}

/// A file: its selector key and size.
#[derive(Clone, Copy)]
struct File {
    key: u16,
    size: u32,
}

/// Prints the directory, reads it again by DMA, and gives the file `etc/e820`.
fn directory() -> Result<Option<File>, &'static str> {
    outw(SELECTOR, FILE_DIR);
    let count = u32::from_be_bytes(bytes());
    let mut e820 = None;
    let mut sum = 0;
    for _ in 0..count {
        let size = u32::from_be_bytes(bytes());
        let key = u16::from_be_bytes(bytes());
        let reserved: [u8; 2] = bytes();
        // SAFETY: the name of the last turn is no longer in use.
        let name = unsafe { &mut *NAME.0.get() };
        for byte in &mut *name {
            *byte = inb(DATA);
        }
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(56);
        let name = name.get(..length).unwrap_or(&[]);
        say!("file ", Hex(key.into()), " size ", size, " ", Text(name));
        sum = checksum(sum, name);
        if name == b"etc/e820" && reserved == [0, 0] {
            e820 = Some(File { key, size });
        }
    }

    let mut by_dma = 0;
    dma(DMA_SELECT | u32::from(FILE_DIR) << 16 | DMA_SKIP, 4)?;
    for _ in 0..count {
        let entry = dma(DMA_READ, 64)?;
        let name = entry.get(8..64).unwrap_or(&[]);
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(56);
        by_dma = checksum(by_dma, name.get(..length).unwrap_or(&[]));
    }
    ensure!(sum == by_dma, "the directory by DMA is not the one by the port");
    say!("directory: ", count, " files, the same by DMA");
    Ok(e820)
}

fn checksum(sum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(sum, |sum, &byte| sum.rotate_left(5) ^ u32::from(byte))
}

fn table(file: File, ram: u64) -> Verdict {
    let content = dma(DMA_SELECT | u32::from(file.key) << 16 | DMA_READ, file.size.min(4096))?;
    let mut usable = 0;
    for entry in content.chunks_exact(20) {
        let word = |at: usize| {
            entry
                .iter()
                .skip(at)
                .take(4)
                .rev()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let (address, size, kind) = (word(0) | word(4) << 32, word(8) | word(12) << 32, word(16));
        say!("e820 ", Hex(address), " size ", Hex(size), " type ", kind);
        if kind == 1 {
            usable += size;
        }
    }
    ensure!(usable == ram, "the RAM in e820 is not the RAM size");
    Ok(())
}

/// Makes a DMA request for the buffer, waits for its end, and gives what is in the buffer then.
fn dma(control: u32, length: u32) -> Result<&'static [u8], &'static str> {
    let buffer = BUFFER.0.get();
    let mut request = Request {
        control: control.to_be(),
        length: length.to_be(),
        address: (buffer as u64).to_be(),
    };
    let at = &raw mut request;
    outl(DMA, ((at as u64 >> 32) as u32).to_be());
    outl(DMA + 4, (at as u32).to_be());
    let left = loop {
        // The device writes the first field, `control`, when it is done.
        let left = u32::from_be(read(at as u64));
        if left & !DMA_ERROR == 0 {
            break left;
        }
        runtime::port::pause();
    };
    ensure!(left == 0, "a DMA request ends with an error");
    // SAFETY: the device has finished, and the next request is made only after this slice's last use.
    Ok(unsafe { core::slice::from_raw_parts(buffer.cast(), (length as usize).min(4096)) })
}
