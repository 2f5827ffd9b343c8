//! Fuzz targets: functions that take any bytes and panic when something is wrong.

mod interpreter;
mod walker;

pub use interpreter::interpreter;
pub use walker::walker;
