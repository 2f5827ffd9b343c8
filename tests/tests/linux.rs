//! The small Linux under KVM: to its shell, commands and answers, and power-off.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use tests::{Accel, Terminal, Vmm, image, on_each_accel, repository};

/// Long enough for a KVM that emulates ring 0, on a busy host. Both accelerators together end before the runner loses
/// its patience, so that what is missing gets said.
const LIMIT: u64 = 140;

/// The small Linux with its initramfs, or nothing, with a notice, where it has not been built.
fn small_linux(accel: Accel) -> Option<Vmm> {
    let kernel: PathBuf = image("vmlinux")?;
    let initrd = image("initramfs.cpio")?;
    let words = repository().join("images/linux/small.cmdline");
    let words = fs::read_to_string(words).expect("it is in the repository");
    let vmm = Vmm::new(accel).arg("--no-reboot").args(["-m", "128M"]).within(LIMIT);
    let vmm = vmm.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    Some(vmm.append(words.trim_end()))
}

/// A dialogue: what is typed, and what has to come.
const DIALOGUE: [(&str, &str); 3] = [
    ("echo $((6 * 7)) answers\n", "\n42 answers"),
    ("cat /proc/version\n", "\nLinux version 6.1."),
    ("echo one two | wc -w\n", "\n2\r"),
];

#[test]
fn a_shell_on_pipes() {
    on_each_accel(|accel| {
        let Some(vmm) = small_linux(accel) else { return };
        let mut machine = vmm.start();
        machine.wait_for("vmm: init reached");
        machine.wait_for("~ # ");
        for (typed, answer) in DIALOGUE {
            machine.send(typed);
            machine.wait_for(answer);
            machine.wait_for("~ # ");
        }
        machine.send("nproc; grep -c ttyS0 /proc/cmdline\n");
        machine.wait_for("\n1\r\n1\r\n");
        machine.send("poweroff\n");
        machine.finish().succeeded();
    });
}

#[test]
fn two_processors() {
    on_each_accel(|accel| {
        let Some(vmm) = small_linux(accel) else { return };
        let mut machine = vmm.args(["--smp", "2"]).with_qmp().start();
        machine.wait_for("~ # ");
        machine.send("nproc; grep -c ^processor /proc/cpuinfo\n");
        machine.wait_for("\n2\r\n2\r\n");
        // Interrupts find both of them.
        machine.send("(while :; do :; done) & sleep 0.2; kill $!; echo both\n");
        machine.wait_for("\nboth");
        let mut qmp = machine.qmp();
        qmp.negotiate();
        assert_eq!(qmp.hmp("info cpus").lines().count(), 2);
        machine.send("reboot\n");
        // --no-reboot makes an end of it.
        let shutdown = qmp.wait_for_event("SHUTDOWN");
        assert_eq!(shutdown["reason"], "guest-reset");
        machine.finish().succeeded();
    });
}

#[test]
fn a_shell_on_a_terminal() {
    on_each_accel(|accel| {
        let Some(vmm) = small_linux(accel) else { return };
        let terminal = Terminal::new();
        let before = terminal.settings();
        // What a user types who gives no console options.
        let machine = vmm.serial(None).monitor(None).start_on(&terminal);
        let deadline: Instant = machine.deadline();
        let wait_for = |text: &str| terminal.wait_for(text, deadline);
        wait_for("~ # ");
        assert_ne!(terminal.settings(), before, "the terminal is raw meanwhile");
        for (typed, answer) in DIALOGUE {
            terminal.send(typed);
            wait_for(answer);
            wait_for("~ # ");
        }
        // Ctrl-C goes to the guest, whose shell gives up the line that is being typed, and the command that runs.
        terminal.send("never 1000");
        wait_for("never 1000");
        terminal.send("\x03");
        wait_for("~ # ");
        terminal.send("sh -c 'echo r\"\"uns; exec sleep 1000'\n");
        wait_for("\nruns\r");
        terminal.send("\x03");
        wait_for("~ # ");
        terminal.send("\x01c");
        wait_for("(vmm) ");
        terminal.send("info status\n");
        wait_for("VM status: running");
        terminal.send("\x01c");
        terminal.send("echo $((8 * 8))\n");
        wait_for("\n64\r");
        terminal.send("poweroff\n");
        machine.finish().succeeded();
        assert_eq!(terminal.settings(), before);
    });
}
