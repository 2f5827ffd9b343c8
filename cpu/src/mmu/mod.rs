//! The soft MMU: page walks, the software TLB and every access to guest memory.

pub(crate) mod access;
pub(crate) mod tlb;
pub(crate) mod walk;
