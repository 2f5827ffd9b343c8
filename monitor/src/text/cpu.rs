//! `info registers`.

use std::fmt::{self, Write};

use crate::state::{Registers, Segment, TableRegister};

/// The order in which the general registers are shown, by encoding.
const ORDER: [usize; 8] = [0, 3, 1, 2, 6, 7, 5, 4];
const NAMES: [&str; 8] = ["AX", "BX", "CX", "DX", "SI", "DI", "BP", "SP"];

pub(super) fn registers(out: &mut String, r: &Registers) -> fmt::Result {
    general(out, r)?;
    let flags = r.rflags as u32;
    let (name, ip) = if r.code64() { ("R", r.rip) } else { ("E", r.rip & 0xffff_ffff) };
    let width = if r.code64() { 16 } else { 8 };
    writeln!(
        out,
        "{name}IP={ip:0width$x} {name}FL={flags:08x} [{}] CPL={} II={} A20={} SMM={} HLT={}",
        flag_letters(flags),
        r.cpl(),
        u8::from(r.interrupt_shadow),
        u8::from(r.a20),
        u8::from(r.smm),
        u8::from(r.halted),
    )?;
    for (name, register) in [
        ("ES", &r.es),
        ("CS", &r.cs),
        ("SS", &r.ss),
        ("DS", &r.ds),
        ("FS", &r.fs),
        ("GS", &r.gs),
        ("LDT", &r.ldt),
        ("TR", &r.tr),
    ] {
        segment(out, r, name, register)?;
    }
    table(out, r, "GDT", r.gdt)?;
    table(out, r, "IDT", r.idt)?;
    let width = if r.long_mode() { 16 } else { 8 };
    writeln!(
        out,
        "CR0={:08x} CR2={:0width$x} CR3={:0width$x} CR4={:08x}",
        r.cr0, r.cr2, r.cr3, r.cr4
    )?;
    for (at, value) in r.dr[..4].iter().enumerate() {
        write!(out, "DR{at}={value:016x} ")?;
    }
    writeln!(out, "\nDR6={:016x} DR7={:016x}", r.dr[6], r.dr[7])?;
    writeln!(out, "EFER={:016x}", r.efer)?;
    floating_point(out, r)?;
    vectors(out, r)
}

fn general(out: &mut String, r: &Registers) -> fmt::Result {
    if !r.code64() {
        for (column, (at, name)) in ORDER.into_iter().zip(NAMES).enumerate() {
            let end = if column % 4 == 3 { '\n' } else { ' ' };
            write!(out, "E{name}={:08x}{end}", r.gpr[at] as u32)?;
        }
        return Ok(());
    }
    let legacy = ORDER.into_iter().zip(NAMES).map(|(at, name)| (at, format!("R{name}")));
    let extended = (8..16).map(|at| (at, format!("R{at:<2}")));
    for (column, (at, name)) in legacy.chain(extended).enumerate() {
        let end = if column % 4 == 3 { '\n' } else { ' ' };
        write!(out, "{name}={:016x}{end}", r.gpr[at])?;
    }
    Ok(())
}

/// DF, OF, SF, ZF, AF, PF and CF, each its letter or a dash.
fn flag_letters(flags: u32) -> String {
    [(10, 'D'), (11, 'O'), (7, 'S'), (6, 'Z'), (4, 'A'), (2, 'P'), (0, 'C')]
        .map(|(bit, letter)| if flags >> bit & 1 != 0 { letter } else { '-' })
        .iter()
        .collect()
}

fn segment(out: &mut String, r: &Registers, name: &str, seg: &Segment) -> fmt::Result {
    let width = if r.code64() { 16 } else { 8 };
    let base = if r.code64() { seg.base } else { seg.base & 0xffff_ffff };
    write!(
        out,
        "{name:<3}={:04x} {base:0width$x} {:08x} {:08x}",
        seg.selector, seg.limit, seg.attr
    )?;
    let bit = |n: u32| seg.attr >> n & 1 != 0;
    let present = bit(15);
    if r.protected() && present {
        write!(out, " DPL={} ", seg.attr >> 13 & 3)?;
        let letter = |n, letter| if bit(n) { letter } else { '-' };
        if !bit(12) {
            out.push_str(system_type(r.long_mode(), seg.attr >> 8 & 15));
        } else if bit(11) {
            let size = match (bit(21), bit(22)) {
                (true, _) => "CS64",
                (_, true) => "CS32",
                _ => "CS16",
            };
            write!(out, "{size} [{}{}{}]", letter(10, 'C'), letter(9, 'R'), letter(8, 'A'))?;
        } else {
            let size = if bit(22) || r.long_mode() { "DS  " } else { "DS16" };
            write!(out, "{size} [{}{}{}]", letter(10, 'E'), letter(9, 'W'), letter(8, 'A'))?;
        }
    }
    out.push('\n');
    Ok(())
}

/// Types of system descriptors (Intel SDM vol. 3A, table 3-2).
fn system_type(long_mode: bool, kind: u32) -> &'static str {
    match (long_mode, kind) {
        (true, 0) => "<hiword>",
        (_, 2) => "LDT",
        (true, 9) => "TSS64-avl",
        (true, 11) => "TSS64-busy",
        (true, 12) => "CallGate64",
        (true, 14) => "IntGate64",
        (true, 15) => "TrapGate64",
        (false, 1) => "TSS16-avl",
        (false, 3) => "TSS16-busy",
        (false, 4) => "CallGate16",
        (false, 5) => "TaskGate",
        (false, 6) => "IntGate16",
        (false, 7) => "TrapGate16",
        (false, 9) => "TSS32-avl",
        (false, 11) => "TSS32-busy",
        (false, 12) => "CallGate32",
        (false, 14) => "IntGate32",
        (false, 15) => "TrapGate32",
        _ => "Reserved",
    }
}

fn table(out: &mut String, r: &Registers, name: &str, table: TableRegister) -> fmt::Result {
    let width = if r.long_mode() { 16 } else { 8 };
    writeln!(out, "{name}=     {:0width$x} {:08x}", table.base, table.limit)
}

fn floating_point(out: &mut String, r: &Registers) -> fmt::Result {
    let top = r.fsw >> 11 & 7;
    writeln!(
        out,
        "FCW={:04x} FSW={:04x} [ST={top}] FTW={:02x} MXCSR={:08x}",
        r.fcw, r.fsw, r.ftw, r.mxcsr
    )?;
    for (at, register) in r.fpr.iter().enumerate() {
        let end = if at % 2 == 1 { '\n' } else { ' ' };
        write!(out, "FPR{at}={:016x} {:04x}{end}", register.mantissa, register.exponent)?;
    }
    Ok(())
}

fn vectors(out: &mut String, r: &Registers) -> fmt::Result {
    let count = if r.code64() { 16 } else { 8 };
    let halves = |value: u128| format!("{:016x} {:016x}", (value >> 64) as u64, value as u64);
    for at in 0..count {
        match &r.ymm_high {
            Some(high) => writeln!(out, "YMM{at:02}={} {}", halves(high[at]), halves(r.xmm[at]))?,
            None => {
                let end = if at % 2 == 1 { '\n' } else { ' ' };
                write!(out, "XMM{at:02}={}{end}", halves(r.xmm[at]))?;
            }
        }
    }
    Ok(())
}
