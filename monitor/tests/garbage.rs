//! Random input, from bytes to nearly right commands: whatever comes in, the sessions go on.

mod common;

use monitor::{Hmp, Qmp};

/// xorshift64*, seeded: the same run every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, longest: usize) -> Vec<u8> {
        (0..self.below(longest)).map(|_| self.next() as u8).collect()
    }
}

const HMP_WORDS: &[&str] = &[
    "x",
    "xp",
    "/",
    "/4xb",
    "/3i",
    "/c",
    "/9g",
    "p",
    "print",
    "i",
    "o",
    "sum",
    "memsave",
    "cpu",
    "info",
    "registers",
    "-a",
    "lapic",
    "mtree",
    "help",
    "?",
    " ",
    "\t",
    "\n",
    "\r",
    "$",
    "$rip",
    "$cs.base",
    "0x",
    "0xffffffffffffffff",
    "0",
    "1",
    "-",
    "+",
    "*",
    "/",
    "%",
    "(",
    ")",
    "'",
    "\"",
    "\\",
    ".",
    "~",
    "é",
    "\x1b[A",
    "\x1b[D",
    "\x1b[",
    "\x01",
    "\x17",
    "\x0b",
    "\x7f",
    "\x03",
    "\x0c",
    "\x10",
];

const QMP_WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "'",
    "\\",
    "\\u",
    "\"execute\"",
    "\"arguments\"",
    "\"id\"",
    "\"query-status\"",
    "\"memsave\"",
    "\"human-monitor-command\"",
    "{\"execute\":\"qmp_capabilities\"}",
    "{\"command-line\":\"info cpus\"}",
    "{\"val\":0,\"size\":8,\"filename\":\"f\"}",
    "1e999",
    "-",
    "null",
    " ",
    "\n",
    "\u{e9}",
    "0",
];

#[test]
fn hmp_survives_anything() {
    let mut random = Random(0x5eed_0001);
    let mut machine = common::protected_mode();
    let mut hmp = Hmp::new("(vmm) ");
    for round in 0..20_000 {
        if round % 100 == 0 {
            hmp.open(&machine);
            hmp.set_width(random.below(100));
        }
        let input = match random.below(3) {
            0 => random.bytes(20),
            _ => random.pick(HMP_WORDS).as_bytes().to_vec(),
        };
        hmp.feed(&mut machine, &input);
    }
    hmp.set_width(80);
    hmp.open(&machine);
    let out = hmp.feed(&mut machine, b"info name\n");
    assert_eq!(out, b"info name\r\ngolden\r\n(vmm) ");
}

#[test]
fn qmp_survives_anything() {
    let mut random = Random(0x5eed_0002);
    let mut machine = common::protected_mode();
    let mut qmp = Qmp::new();
    for round in 0..40_000 {
        if round % 200 == 0 {
            qmp.open(&machine);
        }
        let input = match random.below(4) {
            0 => random.bytes(20),
            _ => random.pick(QMP_WORDS).as_bytes().to_vec(),
        };
        let out = qmp.feed(&mut machine, &input);
        for line in String::from_utf8(out).unwrap().lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }
}
