//! Debian's unmodified cloud kernel on the software CPU: to a shell, through a page of commands, and off; again and again.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tests::{Accel, Machine, Vmm, image, repository, soak};

/// Long enough for four vCPUs on a busy host with one free core.
const LIMIT: u64 = 280;

/// Debian's kernel with our initramfs, or nothing, with a notice, where it has not been fetched.
fn cloud() -> Option<Vmm> {
    let (kernel, initrd) = (image("vmlinuz-cloud")?, image("initramfs.cpio")?);
    let words = fs::read_to_string(repository().join("images/linux/cloud.cmdline"))
        .expect("it is in the repository");
    let vmm = Vmm::new(Accel::Soft).args(["-m", "256M", "--no-reboot"]).within(LIMIT);
    let vmm = vmm.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    Some(vmm.append(words.trim_end()))
}

/// A page of commands, and what has to come.
const PAGE: [(&str, &str); 14] = [
    ("uname -sm", "\nLinux x86_64"),
    ("echo $((6 * 7)) answers", "\n42 answers"),
    ("cat /proc/version", "\nLinux version 6."),
    ("mkdir -p /tmp/a/b && echo text >/tmp/a/b/c && cat /tmp/a/b/c", "\ntext"),
    ("for i in 1 2 3 4 5 6 7 8; do (echo $i); done | sort -rn | head -1", "\n8\r"),
    (
        "dd if=/dev/zero bs=64k count=64 2>/dev/null | sha256sum",
        "\nbb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8",
    ),
    ("seq 1 2000 | awk '{ s += $1 } END { print s }'", "\n2001000\r"),
    ("seq 1 300 | md5sum | cut -c1-8", "\nbf4fa711"),
    ("gzip -c /proc/kallsyms | zcat | cmp - /proc/kallsyms && echo same", "\nsame"),
    ("(sleep 0.3; echo later) & wait; echo joined", "\njoined"),
    ("i=0; while [ $i -lt 40 ]; do true | true; i=$((i + 1)); done; echo forked $i", "\nforked 40"),
    ("sh -c 'kill -SEGV $$'; echo status $?", "\nstatus 139"),
    ("grep -c . /proc/interrupts >/dev/null && echo interrupts", "\ninterrupts"),
    ("dmesg | grep -cE 'BUG:|Oops|Call Trace|soft lockup|stalls on|unchecked MSR'", "\n0\r"),
];

fn type_a_page(machine: &mut Machine, cpus: &str) {
    machine.wait_for("vmm: init reached");
    machine.wait_for("~ # ");
    for (typed, answer) in PAGE {
        machine.send(format!("{typed}\n"));
        machine.wait_for(answer);
        machine.wait_for("~ # ");
    }
    machine.send("nproc; grep -c ^processor /proc/cpuinfo\n");
    machine.wait_for(&format!("\n{cpus}\r\n{cpus}\r\n"));
}

/// 50 boots in a row with `VMM_SOAK=1`.
fn boots(cpus: &str) {
    for boot in 1..=soak(1, 50) {
        let Some(vmm) = cloud() else { return };
        let mut machine = vmm.args(["--smp", cpus]).start();
        type_a_page(&mut machine, cpus);
        machine.send("poweroff\n");
        let finished = machine.finish();
        assert_eq!(finished.status(), 0, "boot {boot}: {}\n{}", finished.errors, finished.text());
        finished.succeeded();
    }
}

#[test]
fn one_processor() {
    boots("1");
}

#[test]
fn two_processors() {
    boots("2");
}

#[test]
fn four_processors() {
    boots("4");
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs()
}

/// kvmclock: the kernel takes it, its wall clock is the host's, and it survives a stop.
#[test]
fn the_paravirtual_clock() {
    let Some(vmm) = cloud() else { return };
    let before = seconds_now();
    let mut machine = vmm.with_hmp().start();
    machine.wait_for("~ # ");
    machine.send(
        "dmesg | grep -o 'Hypervisor detected: KVM'; dmesg | grep -o 'kvm-clock: Using msrs'\n",
    );
    machine.wait_for("\nHypervisor detected: KVM\r\nkvm-clock: Using msrs");
    machine.send("cat /sys/devices/system/clocksource/clocksource0/available_clocksource\n");
    machine.wait_for("\ntsc kvm-clock");
    let hmp = machine.hmp();
    for _ in 0..3 {
        machine.send("echo kvm-clock >/sys/devices/system/clocksource/clocksource0/current_clocksource; date +now=%s.\n");
        machine.wait_for("\nnow=");
        let now: u64 = machine.wait_for(".").trim_end_matches('.').parse().expect("seconds");
        // The machine has been stopped for a while in between, which it does not see.
        assert!(
            (before - 5..=seconds_now() + 1).contains(&now),
            "{before} {now} {}",
            seconds_now()
        );
        hmp.command("stop");
        std::thread::sleep(Duration::from_millis(300));
        hmp.command("cont");
        machine.send("sleep 0.2; echo slept\n");
        machine.wait_for("\nslept");
    }
    machine.send("dmesg | grep -ciE 'clocksource.*unstable|stalls on'\n");
    machine.wait_for("\n0\r");
    machine.send("poweroff\n");
    machine.finish().succeeded();
}
