//! `devices::fuzz::user_net`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| devices::fuzz::user_net(bytes));
