#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cpu::fuzz::interpreter(bytes));
