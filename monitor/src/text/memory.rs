//! `x`, `xp`, `print`, `info mtree`.

use std::fmt::{self, Write};

use crate::format::Style;
use crate::reply::{Disassembly, MemoryDump, Printed};
use crate::state::{AddressSpace, MemoryRegion, RegionKind};

pub(super) fn dump(out: &mut String, dump: &MemoryDump) -> fmt::Result {
    // Characters are bytes, but the size still says how many there are and how long a row is.
    let row = if dump.size == 1 { 8 } else { 16 };
    let unit = if dump.style == Style::Char { 1 } else { usize::from(dump.size) };
    let mut addr = dump.addr;
    for bytes in dump.data.chunks(row) {
        write!(out, "{addr:016x}:")?;
        for bytes in bytes.chunks(unit) {
            let mut value = [0; 8];
            value[..bytes.len()].copy_from_slice(bytes);
            out.push(' ');
            unit_of(out, dump.style, unit, u64::from_le_bytes(value))?;
        }
        out.push('\n');
        addr = addr.wrapping_add(row as u64);
    }
    match dump.fault {
        Some(addr) => writeln!(out, "{addr:016x}: Cannot access memory"),
        None => Ok(()),
    }
}

/// One value of `size` bytes, in the column that the longest one needs.
fn unit_of(out: &mut String, style: Style, size: usize, value: u64) -> fmt::Result {
    let bits = size * 8;
    match style {
        Style::Hex => write!(out, "0x{value:0width$x}", width = bits / 4),
        Style::Octal => write!(out, "{:>width$}", octal(value), width = bits.div_ceil(3)),
        Style::Char => out.write_str(&character(value)),
        Style::Signed if size == 8 => write!(out, "{:>20}", value as i64),
        Style::Signed | Style::Unsigned | Style::Instruction => {
            write!(out, "{value:>width$}", width = (bits * 10).div_ceil(33))
        }
    }
}

pub(super) fn printed(out: &mut String, printed: Printed) -> fmt::Result {
    let value = printed.value as u64;
    match printed.style {
        Style::Hex if value == 0 => writeln!(out, "0"),
        Style::Hex => writeln!(out, "{value:#x}"),
        Style::Octal => writeln!(out, "{}", octal(value)),
        Style::Unsigned => writeln!(out, "{value}"),
        Style::Char => writeln!(out, "{}", character(value)),
        Style::Signed | Style::Instruction => writeln!(out, "{}", printed.value),
    }
}

/// With a leading zero, as C's `%#o` has it.
fn octal(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("0{value:o}") }
}

/// A character constant; what is not printable ASCII by its low byte in hexadecimal.
fn character(value: u64) -> String {
    match value as u8 {
        b'\'' => r"'\''".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        c @ 0x20..=0x7e if value < 0x80 => format!("'{}'", char::from(c)),
        _ => format!(r"'\x{value:02x}'"),
    }
}

pub(super) fn disassembly(out: &mut String, code: &Disassembly) -> fmt::Result {
    for instruction in &code.instructions {
        instruction.render(out);
    }
    match code.fault {
        Some(addr) => writeln!(out, "{addr:#x}: unable to read memory"),
        None => Ok(()),
    }
}

pub(super) fn tree(out: &mut String, spaces: &[AddressSpace]) -> fmt::Result {
    for space in spaces {
        for name in &space.names {
            writeln!(out, "address-space: {name}")?;
        }
        region(out, 1, &space.root)?;
        out.push('\n');
    }
    Ok(())
}

fn kind(kind: RegionKind) -> &'static str {
    match kind {
        RegionKind::Ram => "ram",
        RegionKind::Rom => "rom",
        RegionKind::Io => "i/o",
    }
}

fn region(out: &mut String, depth: usize, r: &MemoryRegion) -> fmt::Result {
    let kind = kind(r.kind);
    write!(
        out,
        "{:indent$}{:016x}-{:016x} (prio {}, {kind}): ",
        "",
        r.start,
        r.end,
        r.priority,
        indent = depth * 2
    )?;
    match &r.alias {
        Some((target, offset)) => {
            let end = offset.wrapping_add(r.end.wrapping_sub(r.start));
            writeln!(out, "alias {} @{target} {offset:016x}-{end:016x}", r.name)?;
        }
        None => writeln!(out, "{}", r.name)?,
    }
    r.children.iter().try_for_each(|child| region(out, depth + 1, child))
}

/// What is seen of each address space: regions cut where one of higher priority lies over them.
pub(super) fn flat_views(out: &mut String, spaces: &[AddressSpace]) -> fmt::Result {
    for (index, space) in spaces.iter().enumerate() {
        writeln!(out, "FlatView #{index}")?;
        for name in &space.names {
            writeln!(out, " AS \"{name}\", root: {}", space.root.name)?;
        }
        writeln!(out, " Root memory region: {}", space.root.name)?;
        for (start, end, region) in flat(&space.root) {
            let (name, mut offset) = match &region.alias {
                Some((name, offset)) => (name, *offset),
                None => (&region.name, 0),
            };
            offset += start - region.start;
            write!(
                out,
                "  {start:016x}-{end:016x} (prio {}, {}): {name}",
                region.priority,
                kind(region.kind)
            )?;
            match offset {
                0 => out.push('\n'),
                _ => writeln!(out, " @{offset:016x}")?,
            }
        }
        out.push('\n');
    }
    Ok(())
}

/// The visible pieces of `root`'s children, by ascending address.
fn flat(root: &MemoryRegion) -> Vec<(u64, u64, &MemoryRegion)> {
    let mut leaves = Vec::new();
    for child in &root.children {
        leaves.push(child);
        leaves.extend(&child.children);
    }
    // Of two with the same priority the inner one is seen, and it comes later.
    leaves.sort_by_key(|leaf| leaf.priority);
    let mut seen: Vec<(u64, u64, &MemoryRegion)> = Vec::new();
    for leaf in leaves {
        let mut rest = Vec::new();
        for (start, end, region) in seen {
            if end < leaf.start || start > leaf.end {
                rest.push((start, end, region));
                continue;
            }
            if start < leaf.start {
                rest.push((start, leaf.start - 1, region));
            }
            if end > leaf.end {
                rest.push((leaf.end + 1, end, region));
            }
        }
        rest.push((leaf.start, leaf.end, leaf));
        seen = rest;
    }
    seen.sort_by_key(|(start, ..)| *start);
    seen
}
