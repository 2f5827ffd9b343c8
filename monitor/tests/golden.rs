//! Sessions recorded with QEMU 7.2's monitor (TCG, `-monitor stdio`), the prompt and the help texts
//! aside, which are our own: ours must print the same, byte for byte.
//!
//! `reset`: `-S -smp 2`, at the reset vector. `protected`: a ROM of 32-bit code has set up segments,
//! I/O APIC, local APIC and 8259A. `paging`: a kernel has mapped 4 GiB by large pages; what a file's name lacks is said
//! in our words. `long`: a ROM has gone on to 64-bit mode. `pci`: `-M pc -nodefaults
//! -device pci-testdev,membar=4096,addr=3 -device edu,id=e,addr=4`, with `-S` and after SeaBIOS. The contents of memory
//! and registers are those of `common`; `info mtree` shows an excerpt.

mod common;

use common::Fake;
use monitor::Hmp;

const PROMPT: &str = "(vmm) ";

fn replay(mut machine: Fake, transcript: &str) -> Fake {
    let mut hmp = Hmp::new(PROMPT);
    hmp.open(&machine);
    let mut wrong = Vec::new();
    for exchange in transcript.split(PROMPT).skip(1) {
        let (command, expected) = exchange.split_once('\n').unwrap_or((exchange, ""));
        let output = hmp.feed(&mut machine, format!("{command}\n").as_bytes());
        let output = String::from_utf8(output).unwrap().replace("\r\n", "\n");
        let shown = output.strip_suffix(PROMPT).unwrap_or(&output);
        if shown != format!("{command}\n{expected}") {
            wrong.push(format!("expected:\n{command}\n{expected}got:\n{shown}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(hmp.finished());
    machine
}

#[test]
fn at_the_reset_vector() {
    let machine = replay(common::reset(), include_str!("golden/reset.txt"));
    assert_eq!(machine.log, ["cont", "quit"]);
}

#[test]
fn pci_before_and_after_firmware() {
    let machine = replay(common::reset(), include_str!("golden/pci.txt"));
    let done = ["cont", "device_add pci-testdev,id=t", "device_del t", "quit"];
    assert_eq!(machine.log, done);
}

#[test]
fn in_protected_mode() {
    replay(common::protected_mode(), include_str!("golden/protected.txt"));
}

#[test]
fn in_long_mode() {
    let machine = replay(common::long_mode(), include_str!("golden/long.txt"));
    assert_eq!(
        machine.log,
        [
            "out 0x70 1 0xf",
            "out 0x70 1 0xf",
            "out 0x80 1 0x1",
            "out 0x80 2 0x2345",
            "stop",
            "stop",
            "cont",
            "system_reset",
            "system_powerdown",
            "nmi",
            "quit",
        ]
    );
}

#[test]
fn with_paging() {
    let machine = replay(common::long_mode(), include_str!("golden/paging.txt"));
    assert_eq!(
        machine.log,
        [
            "log [\"unimp\", \"cpu_reset\"]",
            "log []",
            "logfile /tmp/qlog.txt",
            "gdbserver tcp::1299",
            "gdbserver none",
            "dump /tmp/q.core paging=false None",
            "dump /tmp/qr.core paging=true Some((1000, 2000))",
            "quit",
        ]
    );
}

/// The first and the last lines of `info tlb` of the machine that `paging` was recorded on.
#[test]
fn pages_with_their_flags() {
    let mut hmp = Hmp::new(PROMPT);
    let mut machine = common::long_mode();
    let output = String::from_utf8(hmp.feed(&mut machine, b"info tlb\n")).unwrap();
    let lines: Vec<_> = output.lines().filter(|line| line.starts_with('0')).collect();
    assert_eq!(lines.len(), 2048);
    assert_eq!(lines[0], "0000000000000000: 0000000000000000 --PDA---W");
    assert_eq!(lines[2], "0000000000400000: 0000000000400000 --P-----W");
    assert_eq!(lines[2047], "00000000ffe00000: 00000000ffe00000 --P-----W");
    machine = common::reset();
    let output = String::from_utf8(hmp.feed(&mut machine, b"info tlb\n")).unwrap();
    assert!(output.contains("PG disabled"), "{output}");
}

#[test]
fn flat_views_show_what_is_seen() {
    let mut hmp = Hmp::new(PROMPT);
    let output = hmp.feed(&mut common::reset(), b"info mtree -f\n");
    let output = String::from_utf8(output).unwrap().replace("\r\n", "\n");
    let expected = "\
FlatView #0
 AS \"cpu-memory-0\", root: system
 AS \"memory\", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  00000000000e0000-0000000007ffffff (prio 0, ram): pc.ram @00000000000e0000
  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi

FlatView #1
 AS \"I/O\", root: io
 Root memory region: io
  0000000000000070-0000000000000070 (prio 0, i/o): rtc-index
  0000000000000071-0000000000000071 (prio 0, i/o): rtc @0000000000000001

";
    assert!(output.contains(expected), "{output}");
}
