//! `--icount`: a run repeats exactly, whatever the host and the user do meanwhile.

use std::io::Read;

use tests::{Accel, Machine, Vmm, image};

/// What makes the rest of the world the same for two runs.
const FIXED: [&str; 4] = ["--seed", "7", "--rtc", "base=2026-11-24T12:00:00"];

fn counted(icount: &str) -> Vmm {
    Vmm::new(Accel::Soft).args(["--icount", icount]).args(["--no-reboot", "--no-shutdown"])
}

/// What a run leaves: its output, and how many instructions and nanoseconds it took.
fn outcome(machine: Machine, disturb: bool) -> (String, String) {
    let hmp = machine.hmp();
    if disturb {
        // The vCPU leaves its loop for each of these, at an instruction of the host's choosing.
        while !hmp.command("info status").contains("paused") {
            hmp.command("info registers");
            hmp.command("stop");
            hmp.command("cont");
        }
    } else {
        while !hmp.command("info status").contains("(shutdown)") {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    let icount = hmp.command("info icount");
    hmp.send("quit");
    let finished = machine.finish();
    (finished.succeeded().text(), icount)
}

fn clockwork(args: &[&str], disturb: bool) -> (String, String) {
    let vmm = counted("shift=2,sleep=off").guest("clockwork").args(args).with_hmp();
    let (text, icount) = outcome(vmm.start(), disturb);
    assert!(text.ends_with("ok\n"), "{text}");
    assert!(icount.contains("instruction: 4 ns"), "{icount}");
    (text, icount)
}

#[test]
fn a_bare_metal_run_repeats_to_the_instruction() {
    let first = clockwork(&FIXED, false);
    assert_eq!(clockwork(&FIXED, false), first);
    assert_eq!(clockwork(&FIXED, true), first, "while the monitor stops it again and again");
    let other = clockwork(&["--seed", "8", FIXED[2], FIXED[3]], false);
    assert_ne!(other.0, first.0, "another seed gives other random numbers");
    assert_eq!(other.1, first.1, "and the same course");
}

#[test]
fn sleeping_or_jumping_the_run_is_the_same() {
    let run = |icount: &str| {
        let vmm = counted(icount).guest("clockwork").args(FIXED).append("ticks=20").with_hmp();
        outcome(vmm.start(), false)
    };
    assert_eq!(run("shift=3,sleep=on"), run("shift=3,sleep=off"));
}

/// Timers of all chips, and what they measure of each other.
#[test]
fn all_timers_work() {
    let vmm = counted("shift=6,sleep=off").within(280).guest("timers").args(FIXED).with_hmp();
    let (text, _) = outcome(vmm.start(), false);
    assert!(text.ends_with("ok\n"), "{text}");
}

/// A reader that does not read holds the machine up, and the guest does not notice.
#[test]
fn a_slow_reader_changes_nothing() {
    let vmm = || {
        let vmm = counted("sleep=off").guest("clockwork").args(FIXED).with_hmp();
        vmm.append("ticks=5 lines=16000")
    };
    let (expected, icount) = outcome(vmm().start(), false);
    assert!(expected.len() > 192 << 10, "more than pipe and buffers hold");

    let (mut reader, writer) = std::io::pipe().expect("the host has fds left");
    let machine = vmm().start_with(std::process::Stdio::null(), writer);
    let hmp = machine.hmp();
    let mut before = String::new();
    loop {
        let now = hmp.command("info icount");
        if now == before {
            break;
        }
        before = now;
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(hmp.command("info status").contains("running"), "it waits for the reader");
    assert_ne!(before, icount);
    let output = std::thread::spawn(move || {
        let mut output = Vec::new();
        reader.read_to_end(&mut output).expect("a pipe can be read");
        String::from_utf8_lossy(&output).replace('\r', "")
    });
    while !hmp.command("info status").contains("(shutdown)") {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(hmp.command("info icount"), icount);
    hmp.send("quit");
    machine.finish().succeeded();
    assert_eq!(output.join().expect("it does not panic"), expected);
}

#[test]
fn debians_kernel_boots_the_same_way_twice() {
    let (Some(kernel), Some(initrd)) = (image("vmlinuz-cloud"), image("initramfs.cpio")) else {
        return;
    };
    let run = |disturb| {
        // There is no such program in this initramfs: init goes on to power off.
        let words = "console=ttyS0 panic=-1 printk.time=1 bench=none";
        let vmm = counted("sleep=off").args(FIXED).args(["-m", "256M"]).within(280).with_hmp();
        let vmm = vmm.arg("--kernel").arg(&kernel).arg("--initrd").arg(&initrd);
        outcome(vmm.append(words).start(), disturb)
    };
    let first = run(false);
    assert!(first.0.contains("vmm: init reached"), "{}", first.0);
    assert!(first.0.contains("] reboot: Power down"), "{}", first.0);
    let second = run(true);
    for (a, b) in first.0.lines().zip(second.0.lines()) {
        assert_eq!(a, b);
    }
    assert_eq!(second, first);
}
