//! `info tlb`, `info mem`.

use std::fmt::{self, Write};

use crate::state::{Range, Translation};

const MORE: &str = "... and more: x and gva2gpa show single addresses";

pub(super) fn pages(out: &mut String, pages: &[Translation], whole: bool) -> fmt::Result {
    for page in pages {
        write!(out, "{:016x}: {:016x} ", page.linear, page.physical)?;
        // NX, global, large, dirty, accessed, PCD, PWT, user, write.
        for (bit, letter) in [
            (63, 'X'),
            (8, 'G'),
            (7, 'P'),
            (6, 'D'),
            (5, 'A'),
            (4, 'C'),
            (3, 'T'),
            (2, 'U'),
            (1, 'W'),
        ] {
            // In the entry of a small page, bit 7 is PAT.
            let set = page.entry >> bit & 1 != 0 && (bit != 7 || page.size > 4096);
            out.push(if set { letter } else { '-' });
        }
        out.push('\n');
    }
    end(out, whole)
}

pub(super) fn ranges(out: &mut String, ranges: &[Range], whole: bool) -> fmt::Result {
    for range in ranges {
        writeln!(
            out,
            "{:016x}-{:016x} {:016x} {}r{}",
            range.start,
            range.start.wrapping_add(range.size),
            range.size,
            if range.user { 'u' } else { '-' },
            if range.write { 'w' } else { '-' },
        )?;
    }
    end(out, whole)
}

fn end(out: &mut String, whole: bool) -> fmt::Result {
    if whole { Ok(()) } else { writeln!(out, "{MORE}") }
}
