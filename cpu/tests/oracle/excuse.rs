//! Where processors differ among themselves: what may differ from the host, and why.

use iced_x86::{Instruction, Mnemonic};

/// An exception to "the same", which `main` applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Excuse {
    MmxStoreFault,
    ConvertStoreFault,
    MaskedFaultAddress,
    ByteMaskFault,
    FbstpFault,
    ShaAlignment,
    ConvertPending,
    GatherMask,
    MxcsrMask,
    UnmaskedRange,
}

impl Excuse {
    pub(crate) const ALL: [(Self, &'static str); 10] = [
        (Self::MmxStoreFault, "an MMX instruction that faults has set TOP and tags already"),
        (
            Self::ConvertStoreFault,
            "VCVTPS2PH whose store faults has set MXCSR's flags on some processors already",
        ),
        (
            Self::MaskedFaultAddress,
            "VMASKMOV, VPMASKMOV: of an element that crosses pages, CR2 names any byte in the page",
        ),
        (
            Self::ByteMaskFault,
            "MASKMOVQ, MASKMOVDQU: whether bytes that are not selected fault is the \
             implementation's choice",
        ),
        (
            Self::FbstpFault,
            "FBSTP across pages that faults has stored its first part on some processors",
        ),
        (
            Self::ShaAlignment,
            "SHA with an unaligned operand: AMD's processors take it, Intel's raise #GP",
        ),
        (
            Self::ConvertPending,
            "CVTPI2PS from memory with an x87 exception pending: AMD's processors do not look",
        ),
        (
            Self::GatherMask,
            "gathers that fault: of the mask's elements that are left, only the sign is the same",
        ),
        (Self::MxcsrMask, "LDMXCSR that sets bit 17: AMD's processors have that bit"),
        (
            Self::UnmaskedRange,
            "#XM with overflow or underflow unmasked: the precision flag beside it, all flags of dot products, \
             and whether VCVTPS2PH sees an exact result as tiny, are not computed here",
        ),
    ];
}

/// What may apply to `instr` when it faults.
pub(crate) fn of(instr: &Instruction) -> Option<Excuse> {
    let mmx = (0..instr.op_count()).any(|n| instr.op_register(n).is_mm());
    Some(match instr.mnemonic() {
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => Excuse::ByteMaskFault,
        _ if mmx => Excuse::MmxStoreFault,
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => Excuse::MxcsrMask,
        Mnemonic::Vcvtps2ph => Excuse::ConvertStoreFault,
        Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq => Excuse::MaskedFaultAddress,
        Mnemonic::Sha1msg1
        | Mnemonic::Sha1msg2
        | Mnemonic::Sha1nexte
        | Mnemonic::Sha1rnds4
        | Mnemonic::Sha256msg1
        | Mnemonic::Sha256msg2
        | Mnemonic::Sha256rnds2 => Excuse::ShaAlignment,
        Mnemonic::Cvtpi2ps => Excuse::ConvertPending,
        _ if instr.is_vsib() => Excuse::GatherMask,
        Mnemonic::Fbstp => Excuse::FbstpFault,
        _ => return None,
    })
}

/// Whether [`Excuse::UnmaskedRange`] is about more than the precision flag.
pub(crate) fn loose(instr: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instr.mnemonic(), M::Dpps | M::Dppd | M::Vdpps | M::Vdppd | M::Vcvtps2ph)
}
