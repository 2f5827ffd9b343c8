//! Modes and system semantics, each in a guest of a few instructions: paging, tasks, debugging,
//! virtual-8086 mode, alignment checks, MONITOR.

#[path = "../common/mod.rs"]
mod common;

mod alignment;
mod debug;
mod monitor;
mod paging;
mod tasks;
mod v86;
