//! The registers of an x86-64 vCPU as gdb sees them, and the target description that tells it so
//! (gdb's manual, appendix G, "Target Descriptions"; G.5.x "i386 Features").
//!
//! What QEMU shows is all there, under the same names; AVX is more.

use std::fmt::Write;
use std::sync::LazyLock;

use crate::state::{FpReg, Registers, Segment};

/// A register that gdb can read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// A general register by its number in instructions: RAX, RCX, RDX, RBX, RSP ... R15.
    Gpr(u8),
    /// RIP.
    Rip,
    /// RFLAGS, the lower half.
    Flags,
    /// A segment register's selector, in the order of instruction encoding: ES, CS, SS, DS, FS, GS.
    Selector(u8),
    /// ST(i).
    St(u8),
    /// x87 control word.
    Fctrl,
    /// x87 status word.
    Fstat,
    /// x87 tag word, two bits a physical register.
    Ftag,
    /// Upper part of the last x87 instruction's address.
    Fiseg,
    /// Lower part of it.
    Fioff,
    /// Upper part of the last x87 operand's address.
    Foseg,
    /// Lower part of it.
    Fooff,
    /// Last x87 opcode.
    Fop,
    /// XMM0 to XMM15.
    Xmm(u8),
    /// MXCSR.
    Mxcsr,
    /// The upper half of YMM0 to YMM15.
    YmmHigh(u8),
    /// Base of FS.
    FsBase,
    /// Base of GS.
    GsBase,
    /// IA32_KERNEL_GS_BASE.
    KernelGsBase,
    /// CR0, CR2, CR3, CR4 or CR8.
    Cr(u8),
    /// IA32_EFER.
    Efer,
}

/// How the description shows one.
struct Row {
    register: Register,
    name: String,
    bytes: u8,
    kind: &'static str,
    feature: &'static str,
}

const CORE: &str = "org.gnu.gdb.i386.core";
const SSE: &str = "org.gnu.gdb.i386.sse";
const AVX: &str = "org.gnu.gdb.i386.avx";
const SEGMENTS: &str = "org.gnu.gdb.i386.segments";
const SYSTEM: &str = "vmm.i386.system";

/// All rows; gdb's number of a register is its place.
static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let mut rows = Vec::new();
    let mut add = |feature, register, name: &str, bytes, kind| {
        rows.push(Row { register, name: name.to_owned(), bytes, kind, feature });
    };
    use Register as R;
    for (name, number) in [("rax", 0), ("rbx", 3), ("rcx", 1), ("rdx", 2), ("rsi", 6), ("rdi", 7)] {
        add(CORE, R::Gpr(number), name, 8, "int64");
    }
    add(CORE, R::Gpr(5), "rbp", 8, "data_ptr");
    add(CORE, R::Gpr(4), "rsp", 8, "data_ptr");
    for number in 8..16 {
        add(CORE, R::Gpr(number), &format!("r{number}"), 8, "int64");
    }
    add(CORE, R::Rip, "rip", 8, "code_ptr");
    add(CORE, R::Flags, "eflags", 4, "eflags_bits");
    for (name, number) in [("cs", 1), ("ss", 2), ("ds", 3), ("es", 0), ("fs", 4), ("gs", 5)] {
        add(CORE, R::Selector(number), name, 4, "int32");
    }
    for number in 0..8 {
        add(CORE, R::St(number), &format!("st{number}"), 10, "i387_ext");
    }
    for (register, name) in [
        (R::Fctrl, "fctrl"),
        (R::Fstat, "fstat"),
        (R::Ftag, "ftag"),
        (R::Fiseg, "fiseg"),
        (R::Fioff, "fioff"),
        (R::Foseg, "foseg"),
        (R::Fooff, "fooff"),
        (R::Fop, "fop"),
    ] {
        add(CORE, register, name, 4, "int\" group=\"float");
    }
    for number in 0..16 {
        add(SSE, R::Xmm(number), &format!("xmm{number}"), 16, "xmm_views");
    }
    add(SSE, R::Mxcsr, "mxcsr", 4, "mxcsr_bits\" group=\"vector");
    for number in 0..16 {
        add(AVX, R::YmmHigh(number), &format!("ymm{number}h"), 16, "uint128");
    }
    add(SEGMENTS, R::FsBase, "fs_base", 8, "int");
    add(SEGMENTS, R::GsBase, "gs_base", 8, "int");
    add(SYSTEM, R::KernelGsBase, "k_gs_base", 8, "int\" group=\"system");
    for (number, kind) in [
        (0, "cr0_bits\" group=\"system"),
        (2, "int\" group=\"system"),
        (3, "int\" group=\"system"),
        (4, "cr4_bits\" group=\"system"),
        (8, "int\" group=\"system"),
    ] {
        add(SYSTEM, R::Cr(number), &format!("cr{number}"), 8, kind);
    }
    add(SYSTEM, R::Efer, "efer", 8, "efer_bits\" group=\"system");
    rows
});

/// Names of single bits (Intel SDM vol. 1, 3.4.3 and 10.2.3; vol. 3, 2.2.1 and 2.5).
const EFLAGS: &[(&str, u8)] = &[
    ("CF", 0),
    ("", 1),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
];
const MXCSR: &[(&str, u8)] = &[
    ("IE", 0),
    ("DE", 1),
    ("ZE", 2),
    ("OE", 3),
    ("UE", 4),
    ("PE", 5),
    ("DAZ", 6),
    ("IM", 7),
    ("DM", 8),
    ("ZM", 9),
    ("OM", 10),
    ("UM", 11),
    ("PM", 12),
    ("FZ", 15),
];
const CR0: &[(&str, u8)] = &[
    ("PE", 0),
    ("MP", 1),
    ("EM", 2),
    ("TS", 3),
    ("ET", 4),
    ("NE", 5),
    ("WP", 16),
    ("AM", 18),
    ("NW", 29),
    ("CD", 30),
    ("PG", 31),
];
const CR4: &[(&str, u8)] = &[
    ("VME", 0),
    ("PVI", 1),
    ("TSD", 2),
    ("DE", 3),
    ("PSE", 4),
    ("PAE", 5),
    ("MCE", 6),
    ("PGE", 7),
    ("PCE", 8),
    ("OSFXSR", 9),
    ("OSXMMEXCPT", 10),
    ("UMIP", 11),
    ("LA57", 12),
    ("VMXE", 13),
    ("SMXE", 14),
    ("FSGSBASE", 16),
    ("PCIDE", 17),
    ("OSXSAVE", 18),
    ("SMEP", 20),
    ("SMAP", 21),
    ("PKE", 22),
];
const EFER: &[(&str, u8)] =
    &[("SCE", 0), ("LME", 8), ("LMA", 10), ("NXE", 11), ("SVME", 12), ("FFXSR", 14)];

static XML: LazyLock<String> = LazyLock::new(|| {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\
         <target><architecture>i386:x86-64</architecture>",
    );
    let mut feature = "";
    for row in ROWS.iter() {
        if row.feature != feature {
            if !feature.is_empty() {
                xml.push_str("</feature>");
            }
            feature = row.feature;
            let _ = write!(xml, "<feature name=\"{feature}\">");
            types(&mut xml, feature);
        }
        let _ = write!(
            xml,
            "<reg name=\"{}\" bitsize=\"{}\" type=\"{}\"/>",
            row.name,
            u32::from(row.bytes) * 8,
            row.kind
        );
    }
    xml.push_str("</feature></target>");
    xml
});

/// The types that a feature's registers need.
fn types(xml: &mut String, feature: &str) {
    match feature {
        CORE => bits(xml, "eflags_bits", 4, EFLAGS),
        SSE => {
            for (id, element, count) in [
                ("v16i8", "int8", 16),
                ("v8i16", "int16", 8),
                ("v4i32", "int32", 4),
                ("v2i64", "int64", 2),
                ("v4f", "ieee_single", 4),
                ("v2d", "ieee_double", 2),
            ] {
                let _ = write!(xml, "<vector id=\"{id}\" type=\"{element}\" count=\"{count}\"/>");
            }
            xml.push_str("<union id=\"xmm_views\">");
            for (name, kind) in [
                ("v4_float", "v4f"),
                ("v2_double", "v2d"),
                ("v16_int8", "v16i8"),
                ("v8_int16", "v8i16"),
                ("v4_int32", "v4i32"),
                ("v2_int64", "v2i64"),
                ("uint128", "uint128"),
            ] {
                let _ = write!(xml, "<field name=\"{name}\" type=\"{kind}\"/>");
            }
            xml.push_str("</union>");
            bits(xml, "mxcsr_bits", 4, MXCSR);
        }
        SYSTEM => {
            bits(xml, "cr0_bits", 8, CR0);
            bits(xml, "cr4_bits", 8, CR4);
            bits(xml, "efer_bits", 8, EFER);
        }
        _ => {}
    }
}

fn bits(xml: &mut String, id: &str, size: u8, names: &[(&str, u8)]) {
    let _ = write!(xml, "<flags id=\"{id}\" size=\"{size}\">");
    for (name, bit) in names {
        let _ = write!(xml, "<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>");
    }
    xml.push_str("</flags>");
}

/// The target description.
pub(super) fn description() -> &'static str {
    &XML
}

/// All registers with their sizes in bytes, by gdb's numbers.
pub(super) fn all() -> impl Iterator<Item = (Register, usize)> {
    ROWS.iter().map(|row| (row.register, usize::from(row.bytes)))
}

/// The register that gdb calls `number`, and its size in bytes.
pub(super) fn by_number(number: usize) -> Option<(Register, usize)> {
    ROWS.get(number).map(|row| (row.register, usize::from(row.bytes)))
}

/// Its value; `None` where the vCPU does not have it (now).
pub(super) fn value(r: &Registers, register: Register) -> Option<u128> {
    let segment = |number: u8| -> &Segment {
        [&r.es, &r.cs, &r.ss, &r.ds, &r.fs, &r.gs][usize::from(number)]
    };
    Some(match register {
        Register::Gpr(number) => r.gpr[usize::from(number)].into(),
        Register::Rip => r.rip.into(),
        Register::Flags => (r.rflags as u32).into(),
        Register::Selector(number) => segment(number).selector.into(),
        Register::St(number) => {
            let top = usize::from(r.fsw >> 11 & 7);
            let FpReg { mantissa, exponent } = r.fpr[(top + usize::from(number)) % 8];
            u128::from(exponent) << 64 | u128::from(mantissa)
        }
        Register::Fctrl => r.fcw.into(),
        Register::Fstat => r.fsw.into(),
        Register::Ftag => full_tags(r).into(),
        Register::Fiseg => (r.fip >> 32 & 0xFFFF).into(),
        Register::Fioff => (r.fip as u32).into(),
        Register::Foseg => (r.fdp >> 32 & 0xFFFF).into(),
        Register::Fooff => (r.fdp as u32).into(),
        Register::Fop => r.fop.into(),
        Register::Xmm(number) => r.xmm[usize::from(number)],
        Register::Mxcsr => r.mxcsr.into(),
        Register::YmmHigh(number) => r.ymm_high.as_ref()?[usize::from(number)],
        Register::FsBase => r.fs.base.into(),
        Register::GsBase => r.gs.base.into(),
        Register::KernelGsBase => r.kernel_gs_base.into(),
        Register::Cr(number) => match number {
            0 => r.cr0,
            2 => r.cr2,
            3 => r.cr3,
            4 => r.cr4,
            _ => r.cr8,
        }
        .into(),
        Register::Efer => r.efer.into(),
    })
}

/// The x87 tag word from the abridged one (SDM vol. 1, 8.1.7 and 10.5.1.1).
fn full_tags(r: &Registers) -> u16 {
    (0..8).fold(0, |tags, number| {
        let FpReg { mantissa, exponent } = r.fpr[number];
        let tag = match exponent & 0x7FFF {
            _ if r.ftw >> number & 1 == 0 => 3,
            0 if mantissa == 0 => 1,
            0 | 0x7FFF => 2,
            _ if mantissa >> 63 == 0 => 2,
            _ => 0,
        };
        tags | tag << (2 * number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_each_register_once() {
        let xml = description();
        for row in ROWS.iter() {
            assert_eq!(xml.matches(&format!("<reg name=\"{}\"", row.name)).count(), 1);
        }
        assert_eq!(all().count(), 24 + 16 + 17 + 16 + 2 + 1 + 5 + 1);
        assert_eq!(by_number(16), Some((Register::Rip, 8)));
        assert_eq!(by_number(all().count()), None);
        let opened = xml.matches("<feature").count();
        assert_eq!((opened, xml.matches("</feature>").count()), (5, 5));
    }

    #[test]
    fn tags_follow_the_contents() {
        let mut r = Registers { ftw: 0b1111, ..Registers::default() };
        r.fpr[1] = FpReg { mantissa: 1 << 63, exponent: 0x3FFF };
        r.fpr[2] = FpReg { mantissa: 1 << 63, exponent: 0xFFFF };
        r.fpr[3] = FpReg { mantissa: 1, exponent: 0x3FFF };
        assert_eq!(full_tags(&r), 0xFF00 | 0b10_10_00_01);
    }

    #[test]
    fn st_counts_from_top() {
        let mut r = Registers { fsw: 6 << 11, ..Registers::default() };
        r.fpr[7] = FpReg { mantissa: 5, exponent: 3 };
        assert_eq!(value(&r, Register::St(1)), Some(3 << 64 | 5));
    }
}
