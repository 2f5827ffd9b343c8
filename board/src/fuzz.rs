//! What fuzz targets share: a short seeded run of one as an ordinary test.
//!
//! A target is a function that takes any bytes and panics when something is wrong. The crate that
//! it tests has it in a module `fuzz`, with its seeded run as a unit test; `fuzz/` runs it under
//! cargo-fuzz (docs/testing.md).

/// Calls `target` with `count` random inputs of up to `max_len` bytes that follow from `seed`; a
/// hundred times as many with `VMM_SOAK=1`. Bytes are often small, repeated or all ones.
pub fn seeded(seed: u64, count: u64, max_len: usize, target: impl Fn(&[u8])) {
    let soak = std::env::var_os("VMM_SOAK").is_some_and(|value| value != "0");
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        // xorshift64*: small, and the same everywhere.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    };
    for case in 0..if soak { 100 * count } else { count } {
        let len = next() as usize % (max_len + 1);
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let (kind, byte) = (next() % 8, next() as u8);
            match kind {
                0 => bytes.push(byte & 7),
                1 => bytes.push(0xFF),
                2 => bytes.extend(std::iter::repeat_n(byte, 4.min(len - bytes.len()))),
                _ => bytes.push(byte),
            }
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&bytes)));
        if let Err(cause) = result {
            eprintln!("seed {seed}, case {case}: {bytes:02x?}");
            std::panic::resume_unwind(cause);
        }
    }
}
