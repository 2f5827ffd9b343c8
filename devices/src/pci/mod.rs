//! PCI: configuration space and what stands in it, the bus, and the chipset's own functions.

pub mod bar;
pub mod bus;
pub mod config;
pub mod function;
pub mod hotplug;
pub mod i440fx;
pub mod msi;
pub mod msix;
pub mod piix;
pub mod router;
pub mod testdev;
#[cfg(test)]
mod testing;
