//! Registers by name, for `$name` in expressions.

use crate::state::{Registers, Segment};

/// HMP's names (`$eax` is all 64 bits of RAX in long mode) and today's.
const GPR: [[&str; 3]; 16] = [
    ["eax", "rax", ""],
    ["ecx", "rcx", ""],
    ["edx", "rdx", ""],
    ["ebx", "rbx", ""],
    ["esp", "rsp", "sp"],
    ["ebp", "rbp", "fp"],
    ["esi", "rsi", ""],
    ["edi", "rdi", ""],
    ["r8", "", ""],
    ["r9", "", ""],
    ["r10", "", ""],
    ["r11", "", ""],
    ["r12", "", ""],
    ["r13", "", ""],
    ["r14", "", ""],
    ["r15", "", ""],
];

const SEGMENTS: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"];

const OTHERS: [&str; 19] = [
    "eip", "rip", "pc", "eflags", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "dr0",
    "dr1", "dr2", "dr3", "dr6", "dr7", "gdt.base", "idt.base",
];

/// The value of register `name`; `None` if there is none of that name.
pub(crate) fn by_name(registers: &Registers, name: &str) -> Option<u64> {
    if let Some(at) = GPR.iter().position(|names| !name.is_empty() && names.contains(&name)) {
        return Some(registers.gpr[at]);
    }
    let (register, part) = name.split_once('.').unwrap_or((name, ""));
    if let Some(segment) = segment(registers, register) {
        return match part {
            "" => Some(segment.selector.into()),
            "base" => Some(segment.base),
            "limit" => Some(segment.limit.into()),
            "attr" => Some(segment.attr.into()),
            _ => None,
        };
    }
    Some(match name {
        "eip" | "rip" => registers.rip,
        "pc" => registers.pc(),
        "eflags" | "rflags" => registers.rflags,
        "cr0" => registers.cr0,
        "cr2" => registers.cr2,
        "cr3" => registers.cr3,
        "cr4" => registers.cr4,
        "cr8" => registers.cr8,
        "efer" => registers.efer,
        "dr0" => registers.dr[0],
        "dr1" => registers.dr[1],
        "dr2" => registers.dr[2],
        "dr3" => registers.dr[3],
        "dr6" => registers.dr[6],
        "dr7" => registers.dr[7],
        "gdt.base" => registers.gdt.base,
        "idt.base" => registers.idt.base,
        _ => return None,
    })
}

fn segment<'a>(registers: &'a Registers, name: &str) -> Option<&'a Segment> {
    Some(match name {
        "es" => &registers.es,
        "cs" => &registers.cs,
        "ss" => &registers.ss,
        "ds" => &registers.ds,
        "fs" => &registers.fs,
        "gs" => &registers.gs,
        "ldt" => &registers.ldt,
        "tr" => &registers.tr,
        _ => return None,
    })
}

/// All names, for completion.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    let gpr = GPR.iter().flatten().copied().filter(|name| !name.is_empty());
    gpr.chain(SEGMENTS).chain(OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_completion_offers_is_a_register() {
        for name in names() {
            assert!(by_name(&Registers::default(), name).is_some(), "{name}");
        }
        assert_eq!(by_name(&Registers::default(), ""), None);
        assert_eq!(by_name(&Registers::default(), "cs.x"), None);
    }

    #[test]
    fn pc_adds_the_base_outside_of_64_bit_code() {
        let mut registers = Registers { rip: 0xfff0, ..Registers::default() };
        registers.cs = Segment { selector: 0xf000, base: 0xffff_0000, ..Segment::default() };
        assert_eq!(by_name(&registers, "pc"), Some(0xffff_fff0));
        assert_eq!(by_name(&registers, "eip"), Some(0xfff0));
        assert_eq!(by_name(&registers, "cs"), Some(0xf000));
        assert_eq!(by_name(&registers, "cs.base"), Some(0xffff_0000));
    }
}
