//! A lightweight machine emulator: command line, machine models, boot loaders, KVM, vCPU threads.

pub mod accel;
pub mod acpi;
pub mod app;
mod block;
pub mod boot;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod cpuid;
pub mod daemon;
pub mod doorbell;
mod error;
pub mod gdb;
pub mod inspect;
#[cfg(feature = "kvm")]
pub mod kvm;
pub mod log;
pub mod machine;
pub mod paging;
pub mod pidfile;
pub mod report;
pub mod sandbox;
pub mod signals;
pub mod soft;
pub mod suggest;
pub mod vcpu;

pub use error::Error;
