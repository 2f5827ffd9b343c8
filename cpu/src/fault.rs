//! Exceptions, and the one error type of everything that executes guest code.

/// Execution leaves the block; `Cpu::stop` says why.
///
/// It is empty so that a `Result` of a register fits the host's registers.
#[derive(Debug)]
pub(crate) struct Stop;

/// Whatever can be left half-way.
pub(crate) type Res<T = ()> = Result<T, Stop>;

/// Why execution left a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The instruction at RIP raised an exception. RIP is still at it.
    Exception(Exception),
    /// The instruction at RIP is to be started again once interrupts have been looked at: a
    /// string instruction in the middle.
    Again,
    /// Triple fault.
    Shutdown,
    /// The instruction at RIP is not executed here, or not yet: see [`crate::assist`].
    Leave(Leave),
}

/// What an assistant leaves its code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The accelerator executes the instruction.
    Accelerator,
    /// It needs the vector and x87 registers.
    Vectors,
    /// It needs MSRs.
    Msrs,
}

/// An exception with its side effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) vector: u8,
    /// Error code of the vectors that have one.
    pub(crate) error: Option<u32>,
    /// CR2 of a page fault, DR6 bits of a debug exception.
    pub(crate) payload: u64,
}

#[allow(missing_docs)]
pub(crate) mod vector {
    pub(crate) const DE: u8 = 0;
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const BR: u8 = 5;
    pub(crate) const UD: u8 = 6;
    pub(crate) const NM: u8 = 7;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const AC: u8 = 17;
    pub(crate) const XM: u8 = 19;
}

impl Exception {
    /// A fault in whose frame RF is set (SDM vol. 3, 18.3.1.1): all but traps, aborts and
    /// instruction breakpoints.
    pub(crate) fn is_fault(&self) -> bool {
        /// DR6: general detect, the one debug exception of that kind.
        const BD: u64 = 1 << 13;
        /// Machine check.
        const MC: u8 = 18;
        match self.vector {
            vector::DB => self.payload & BD != 0,
            vector::NMI | vector::BP | vector::OF | vector::DF | MC => false,
            _ => true,
        }
    }

    /// Benign, contributory or page fault (SDM vol. 3, table 6-5): whether `self`, raised while
    /// `first` was being delivered, makes a double fault.
    pub(crate) fn doubles(&self, first: u8) -> bool {
        let contributory =
            |v: u8| matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP);
        match first {
            vector::PF => contributory(self.vector) || self.vector == vector::PF,
            v if contributory(v) => contributory(self.vector),
            _ => false,
        }
    }
}
