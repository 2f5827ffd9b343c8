//! What the PVH start info says (Xen `xen/include/public/arch-x86/hvm/start_info.h`): command line, ACPI, memory map.

use crate::port::read;

unsafe extern "C" {
    static start_info: u64;
}

const MAGIC: u32 = 0x336e_c578;

/// An entry of the memory map.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MemoryRange {
    /// The first byte.
    pub address: u64,
    /// How many bytes.
    pub size: u64,
    /// 1 is RAM, else as e820 has it.
    pub kind: u32,
    reserved: u32,
}

fn info() -> Option<u64> {
    // SAFETY: written once by the start code, before any Rust code runs.
    let info = unsafe { start_info };
    (info != 0 && read::<u32>(info) == MAGIC).then_some(info)
}

/// The command line; empty where there is none.
pub fn command_line() -> &'static [u8] {
    let text = info().map_or(0, |info| read::<u64>(info + 24));
    if text == 0 {
        return &[];
    }
    let length = (0..4096).find(|&at| read::<u8>(text + at) == 0).unwrap_or(0);
    // SAFETY: these bytes have just been read, and nothing here writes to what the loader has laid down.
    unsafe { core::slice::from_raw_parts(text as *const u8, length as usize) }
}

/// The words of the command line.
pub fn words() -> impl Iterator<Item = &'static [u8]> {
    command_line().split(|&byte| byte == b' ').filter(|word| !word.is_empty())
}

/// Whether the command line has this word.
pub fn has(word: &str) -> bool {
    words().any(|it| it == word.as_bytes())
}

/// The text after `name=`, where the command line has such a word.
pub fn text(name: &str) -> Option<&'static [u8]> {
    words().find_map(|word| word.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The number after `name=`, or the default.
pub fn number(name: &str, default: u64) -> u64 {
    text(name).and_then(parse).unwrap_or(default)
}

/// A decimal number, or a hexadecimal one after `0x`.
pub fn parse(text: &[u8]) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix(b"0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &byte| {
        let digit = char::from(byte).to_digit(radix)?;
        Some(value.wrapping_mul(radix.into()).wrapping_add(digit.into()))
    })
}

/// The RSDP's address as the loader gave it.
pub fn rsdp() -> Option<u64> {
    info().map(|info| read::<u64>(info + 32)).filter(|&address| address != 0)
}

/// The memory map; empty where the loader gave none (start info version 0).
pub fn memory_map() -> impl Iterator<Item = MemoryRange> {
    let (table, entries) = match info() {
        Some(info) if read::<u32>(info + 4) >= 1 => {
            (read::<u64>(info + 40), read::<u32>(info + 48))
        }
        _ => (0, 0),
    };
    (0..u64::from(entries)).map(move |entry| read(table + entry * size_of::<MemoryRange>() as u64))
}
