//! An idle machine costs nothing: while its guest halts, no thread of the program wakes up.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use tests::{Accel, Machine, Vmm, on_each_accel};

/// How often any thread of the program has gone to sleep so far.
fn sleeps(machine: &Machine) -> u64 {
    let count = |status: String| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.expect("Linux has it").trim().parse().expect("it is a number")
    };
    let statuses = machine.threads().into_iter().map(|task| task.join("status"));
    // A thread that has ended is not there any more.
    statuses.filter_map(|path| fs::read_to_string(path).ok()).map(count).sum()
}

/// Two seconds without more than one wake-up must come, once the start is over.
fn becomes_idle(machine: &Machine) {
    let mut seen = Vec::new();
    for _ in 0..8 {
        let before = sleeps(machine);
        sleep(Duration::from_secs(2));
        let woken = sleeps(machine) - before;
        if woken <= 1 {
            return;
        }
        seen.push(woken);
    }
    panic!("wake-ups in two seconds: {seen:?}");
}

#[test]
fn a_halted_guest_wakes_nobody() {
    on_each_accel(|accel| {
        for cpus in ["1", "2"] {
            let vmm = Vmm::new(accel).guest("halt").args(["--smp", cpus]).with_hmp().with_qmp();
            let machine = vmm.start();
            machine.wait_for("halted");
            let hmp = machine.hmp();
            becomes_idle(&machine);
            // Nor after somebody has looked at it.
            hmp.command("info registers");
            hmp.command("stop");
            hmp.command("cont");
            becomes_idle(&machine);
        }
    });
}

#[test]
fn a_stopped_machine_wakes_nobody() {
    on_each_accel(|accel: Accel| {
        let machine = Vmm::new(accel).guest("spin").with_hmp().start();
        machine.wait_for("spinning");
        machine.hmp().command("stop");
        becomes_idle(&machine);
    });
}
