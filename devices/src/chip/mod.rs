//! The chips of a PC, one file each.

pub mod acpi_pm;
pub mod apic_bus;
pub mod calendar;
pub mod debug_exit;
pub mod debugcon;
pub mod fw_cfg;
pub(crate) mod glue;
pub mod i8042;
pub mod i8254;
pub mod ioapic;
pub mod irqchip;
pub mod keyboard_controller;
pub mod lapic;
mod lapic_registers;
mod lapic_timer;
pub mod mc146818;
pub mod pic;
pub mod pit;
pub mod ps2_keyboard;
pub mod ps2_mouse;
pub mod pvpanic;
pub mod reset;
pub mod rtc;
pub mod serial;
#[cfg(test)]
pub(crate) mod testing;
pub mod uart16550;
