//! Sessions recorded with QEMU 7.2's monitor (TCG, `-monitor stdio`), the prompt and the help texts
//! aside, which are our own: ours must print the same, byte for byte.
//!
//! `reset`: `-S -smp 2`, at the reset vector. `protected`: a ROM of 32-bit code has set up segments,
//! I/O APIC, local APIC and 8259A. `long`: a ROM has gone on to 64-bit mode. `pci`: `-M pc -nodefaults
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
