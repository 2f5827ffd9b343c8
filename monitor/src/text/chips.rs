//! `info pic`, `info lapic`, `info irq`.

use std::fmt::{self, Write};

use crate::state::{IoApic, IrqStats, LocalApic, Pic};

/// Delivery modes of a redirection entry (Intel 82093AA, 3.2.4) and of an LVT entry.
const DELIVERY: [&str; 8] = ["fixed", "lowest", "SMI", "...", "NMI", "INIT", "...", "extINT"];
const LVT_DELIVERY: [&str; 8] = ["Fixed", "...", "SMI", "...", "NMI", "INIT", "...", "ExtINT"];
const LVT_NMI: u32 = 4;

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 != 0
}

fn polarity(low: bool) -> &'static str {
    if low { "active-lo" } else { "active-hi" }
}

fn trigger(level: bool) -> &'static str {
    if level { "level" } else { "edge" }
}

fn mask(masked: bool) -> &'static str {
    if masked { "masked" } else { "" }
}

pub(super) fn interrupt_controllers(
    out: &mut String,
    io_apics: &[IoApic],
    pics: &[Pic],
) -> fmt::Result {
    for (index, apic) in io_apics.iter().enumerate() {
        io_apic(out, index, apic)?;
    }
    // The slave comes first.
    for (index, pic) in pics.iter().enumerate().rev() {
        writeln!(
            out,
            "pic{index}: irr={:02x} imr={:02x} isr={:02x} hprio={} irq_base={:02x} rr_sel={} \
             elcr={:02x} fnm={}",
            pic.irr,
            pic.imr,
            pic.isr,
            pic.highest_priority,
            pic.irq_base,
            u8::from(pic.reads_isr),
            pic.elcr,
            u8::from(pic.special_fully_nested),
        )?;
    }
    Ok(())
}

fn io_apic(out: &mut String, index: usize, apic: &IoApic) -> fmt::Result {
    let (version, id, select) = (apic.version, apic.id, apic.select);
    write!(out, "ioapic{index}: ver={version:#x} id={id:#04x} sel={select:#04x}")?;
    if let Some(entry) = select.checked_sub(0x10) {
        write!(out, " (redir[{}])", entry >> 1)?;
    }
    out.push('\n');
    for (pin, &entry) in apic.redirection.iter().enumerate() {
        let logical = bit(entry, 11);
        let dest = entry >> 56 & if logical { 0xff } else { 0xf };
        writeln!(
            out,
            "  pin {pin:<2} {entry:#018x} dest={dest:x} vec={:<3} {} {:<5} {:<6} {:<6} {}",
            entry & 0xff,
            polarity(bit(entry, 13)),
            trigger(bit(entry, 15)),
            mask(bit(entry, 16)),
            DELIVERY[(entry >> 8 & 7) as usize],
            if logical { "logical" } else { "physical" },
        )?;
    }
    pins(out, "IRR", |pin| apic.irr >> pin & 1 != 0, apic.redirection.len())?;
    let remote = |pin: usize| bit(apic.redirection[pin], 14) && bit(apic.redirection[pin], 15);
    pins(out, "Remote IRR", remote, apic.redirection.len())
}

fn pins(out: &mut String, name: &str, set: impl Fn(usize) -> bool, count: usize) -> fmt::Result {
    write!(out, "  {name:<8}")?;
    let mut any = false;
    for pin in (0..count.min(32)).filter(|pin| set(*pin)) {
        write!(out, " {pin}")?;
        any = true;
    }
    writeln!(out, "{}", if any { "" } else { " (none)" })
}

pub(super) fn irq_stats(out: &mut String, stats: &IrqStats) -> fmt::Result {
    writeln!(out, "IRQ statistics for {}:", stats.controller)?;
    for (irq, count) in stats.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        writeln!(out, "{irq:2}: {count}")?;
    }
    Ok(())
}

pub(super) fn local_apic(out: &mut String, apic: &LocalApic) -> fmt::Result {
    writeln!(out, "dumping local APIC state for CPU {:<2}\n", apic.id)?;
    lvt(out, "LVT0", apic.lvt_lint0, "")?;
    lvt(out, "LVT1", apic.lvt_lint1, "")?;
    lvt(out, "LVTPC", apic.lvt_perf, "")?;
    lvt(out, "LVTERR", apic.lvt_error, "")?;
    lvt(out, "LVTTHMR", apic.lvt_thermal, "")?;
    let mode = match apic.lvt_timer >> 17 & 3 {
        0 => "one-shot",
        1 => "periodic",
        2 => "tsc-deadline",
        _ => "<unknown>",
    };
    lvt(out, "LVTT", apic.lvt_timer, mode)?;
    // Bits 0, 1 and 3 count from "divide by 2" on; all ones is "divide by 1".
    let divide = 2 << (apic.divide & 3 | apic.divide >> 1 & 4);
    writeln!(
        out,
        "Timer\t DCR={:#x} (divide by {}) initial_count = {} current_count = {}",
        apic.divide & 0xf,
        if divide == 256 { 1 } else { divide },
        apic.initial_count,
        apic.current_count
    )?;
    writeln!(
        out,
        "SPIV\t {:#010x} APIC {}, focus={}, spurious vec {}",
        apic.svr,
        if bit(apic.svr.into(), 8) { "enabled" } else { "disabled" },
        if bit(apic.svr.into(), 9) { "on" } else { "off" },
        apic.svr & 0xff
    )?;
    interrupt_command(out, apic)?;
    writeln!(out, "ESR\t {:#010x}", apic.esr)?;
    vectors(out, "ISR", &apic.isr, &apic.tmr)?;
    vectors(out, "IRR", &apic.irr, &apic.tmr)?;
    write!(
        out,
        "\nAPR {:#04x} TPR {:#04x} DFR {:#04x} LDR {:#04x}",
        apic.apr, apic.tpr, apic.dfr, apic.ldr
    )?;
    if apic.dfr == 0 {
        write!(out, "(cluster {}: id {})", apic.ldr >> 4, apic.ldr & 0xf)?;
    }
    writeln!(out, " PPR {:#04x}", apic.ppr)
}

fn lvt(out: &mut String, name: &str, entry: u32, timer_mode: &str) -> fmt::Result {
    let delivery = entry >> 8 & 7;
    let entry_bit = |n| bit(entry.into(), n);
    write!(
        out,
        "{name}\t {entry:#010x} {} {:<5} {:<6} {:<7} {timer_mode:<12} {:<6}",
        polarity(entry_bit(13)),
        trigger(entry_bit(15)),
        mask(entry_bit(16)),
        if entry_bit(12) { "pending" } else { "" },
        LVT_DELIVERY[delivery as usize],
    )?;
    if delivery != LVT_NMI {
        write!(out, " (vec {})", entry & 0xff)?;
    }
    out.push('\n');
    Ok(())
}

fn interrupt_command(out: &mut String, apic: &LocalApic) -> fmt::Result {
    let low = u64::from(apic.icr_low);
    let logical = bit(low, 11);
    let shorthand = low >> 18 & 3;
    writeln!(
        out,
        "ICR\t {low:#010x} {} {} {} {}",
        if logical { "logical" } else { "physical" },
        trigger(bit(low, 15)),
        if bit(low, 14) { "assert" } else { "de-assert" },
        ["no-shorthand", "self", "all-self", "all"][shorthand as usize],
    )?;
    write!(out, "ICR2\t {:#010x}", apic.icr_high)?;
    let (dest, kind, member_bits) = match apic.x2apic {
        true => (apic.icr_high, "X2APIC ID", 16),
        false => (apic.icr_high >> 24, "APIC ID", 4),
    };
    if shorthand != 0 {
        writeln!(out)
    } else if !logical {
        writeln!(out, " cpu {dest} ({kind})")
    } else if apic.dfr == 0xf && !apic.x2apic {
        writeln!(out, " mask {dest:08b} ({kind})")
    } else {
        let members = dest & ((1 << member_bits) - 1);
        writeln!(out, " cluster {} mask {members:0member_bits$b} ({kind})", dest >> member_bits)
    }
}

fn vectors(out: &mut String, name: &str, set: &[u32; 8], level: &[u32; 8]) -> fmt::Result {
    let has = |words: &[u32; 8], vector: usize| words[vector / 32] >> (vector % 32) & 1 != 0;
    write!(out, "{name}\t ")?;
    let mut any = false;
    for vector in (0..256).filter(|vector| has(set, *vector)) {
        write!(out, "{vector}{} ", if has(level, vector) { "(level)" } else { "" })?;
        any = true;
    }
    writeln!(out, "{}", if any { "" } else { "(none)" })
}
