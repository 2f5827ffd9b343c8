//! Every bare-metal guest on every accelerator: what it says, and how the program ends.
//!
//! The guests check themselves; see `images/guests/README.md` for what each proves.

use std::time::Duration;

use serde_json::json;
use tests::{Accel, Finished, Vmm, file_of, guest, notice, on_each_accel, soak, with_kvm};

/// The machines that there are, as far as guests can tell.
const MACHINES: [&str; 3] = ["pc", "microvm", "pc,kernel-irqchip=on"];

fn has_machine(accel: Accel, machine: &str) -> bool {
    accel == Accel::Kvm || !machine.contains("kernel-irqchip")
}

fn boot(accel: Accel, guest: &str) -> Vmm {
    Vmm::new(accel).guest(guest).arg("--no-reboot")
}

/// Boots a guest with one argument, its command line, and expects it to end well.
fn run(accel: Accel, guest: &str, append: &str) -> Finished {
    let finished = boot(accel, guest).append(append).start().finish();
    finished.succeeded().says(&[&format!("{guest}\n")]);
    assert!(finished.text().ends_with("ok\n"), "{}", finished.text());
    finished
}

#[test]
fn hello_on_every_machine() {
    on_each_accel(|accel| {
        run(accel, "hello", "").says(&["Hello from vmm guest\n"]);
        for machine in MACHINES.iter().filter(|machine| has_machine(accel, machine)) {
            boot(accel, "hello").args(["--machine", machine]).start().finish().succeeded();
        }
    });
}

#[test]
fn null_says_nothing_and_ends() {
    on_each_accel(|accel| {
        let finished = boot(accel, "null").start().finish();
        assert_eq!(finished.succeeded().text(), "");
    });
}

#[test]
fn exceptions_ports_and_mmio_in_both_rings() {
    on_each_accel(|accel| {
        run(accel, "longmode", "").says(&[
            "ring 0: #UD #DE #PF #GP\n",
            "ring 3: #UD #DE #PF #GP, 16 cases",
            "ring 3: ports by the TSS bitmap\n",
            "ring 3: interrupted by the local APIC's timer\n",
            "memory-mapped at 0xd0000000: 0xffffffffffffffff\n",
            "ring 3: I/O APIC and local APIC\n",
        ]);
    });
}

#[test]
fn system_calls_from_ring_3() {
    on_each_accel(|accel| {
        run(accel, "syscalls", "").says(&["INT n, INT3: rings 0 and 3\n"]);
    });
}

#[test]
fn a_calculation_has_the_same_result_everywhere() {
    on_each_accel(|accel| {
        for (words, vectors) in [(" noavx", "0x306d8b9602556432"), ("", "0x9003c6be40876ba6")] {
            let finished = run(accel, "counter", &format!("rounds=3 kernel=3000 user=2000{words}"));
            if words.is_empty() && finished.text().contains("without AVX") {
                notice(&format!("AVX on accelerator {}: this host has none", accel.name()));
                continue;
            }
            finished.says(&[
                "counts 9000 6000 with",
                "checksums ring 0 0xc44076818d3b4bdd general 0xe425ff99eebcbf14 ",
                &format!("vectors {vectors} x87 0x2bfd7b70b85c2e17\n"),
            ]);
        }
    });
}

#[test]
fn timers() {
    on_each_accel(|accel| {
        run(accel, "timers", "").says(&[
            "PM timer: monotone",
            "through the PIC:\n",
            "through the I/O APIC:\n",
            "local APIC periodic: 50 in ",
        ]);
    });
}

#[test]
fn timers_with_the_kernels_irqchip() {
    with_kvm(|| {
        let vmm = boot(Accel::Kvm, "timers").args(["--machine", "pc,kernel-irqchip=on"]);
        vmm.start().finish().succeeded().says(&["local APIC periodic: 50 in ", "ok\n"]);
    });
}

#[test]
fn processors_start_and_talk() {
    on_each_accel(|accel| {
        for machine in MACHINES.iter().filter(|machine| has_machine(accel, machine)) {
            let vmm = boot(accel, "smp").args(["--smp", "2", "--machine", machine]);
            vmm.start().finish().succeeded().says(&[
                "processor 0 apic id 0\n",
                "processor 1 apic id 1\n",
                "counter 2000 of 2000\n",
                "ipis to one 1 to all others 1 answers 1 nmi 1\nok\n",
            ]);
        }
    });
}

#[test]
fn four_processors_by_xapic_and_x2apic() {
    on_each_accel(|accel| {
        for append in ["", "x2apic"] {
            let vmm = boot(accel, "smp").args(["--smp", "4", "--append", append]);
            vmm.start().finish().succeeded().says(&[
                "processor 3 apic id 3\n",
                "counter 4000 of 4000\n",
                "ipis to one 3 to all others 3 answers 3 nmi 1\nok\n",
            ]);
        }
    });
}

#[test]
fn acpi_tables() {
    on_each_accel(|accel| {
        let vmm = boot(accel, "acpi").args(["--smp", "3"]);
        vmm.start().finish().succeeded().says(&[
            "RSDP 0xe0000 revision 2",
            "local APIC 0xfee00000\n",
            "I/O APIC 0 at 0xfec00000\n",
            "IRQ 0 is GSI 2",
            "processors 3\n",
            "SCI 9\n",
            "PM1a event block 0x600\n",
            "PM1a control block 0x604\n",
            "PM timer 0x608\n",
            "reset register 0xcf9 value 0xf\n",
            "DSDT",
            "ok\n",
        ]);
        let none = boot(accel, "acpi").args(["--machine", "pc,acpi=off"]).start().finish();
        none.ended_with(7).says(&["FAIL: there is no RSDP\n"]);
    });
}

#[test]
fn firmware_configuration() {
    on_each_accel(|accel| {
        let vmm = boot(accel, "fwcfg");
        let file = file_of(vmm.dir(), "blob", &[0; 300]);
        let vmm = vmm.args(["-m", "64M", "--smp", "2", "--fw_cfg"]);
        let vmm = vmm.arg(format!("name=opt/blob,file={}", file.display()));
        vmm.args(["--fw_cfg", "name=opt/words,string=hello"]).start().finish().succeeded().says(&[
            "RAM 64 MiB, processors 2\n",
            " size 300 opt/blob\n",
            " size 5 opt/words\n",
            "the same by DMA\n",
            "e820 0x0 size 0x4000000 type 1\n",
            "ok\n",
        ]);
    });
}

#[test]
fn both_serial_ports() {
    on_each_accel(|accel| {
        run(accel, "uart", "").says(&["COM1: latch, loopback, FIFO", "COM2: not there\n"]);
        let finished = boot(accel, "uart").args(["--serial", "null"]).start().finish();
        finished.succeeded().says(&["COM1: latch", "COM2: latch", "ok\n"]);
    });
}

/// What the kernel and the multiboot specification agree to hand over.
fn multiboot(accel: Accel, kernel: &str) {
    let words = if accel.lacks_instructions() { "noring3" } else { "with ring 3" };
    let vmm = boot(accel, kernel).append(words).args(["-m", "32M"]);
    let first = file_of(vmm.dir(), "first", b"hello module");
    let second = file_of(vmm.dir(), "second", &[0; 5000]);
    let modules = format!("{} some words,{}", first.display(), second.display());
    let finished = vmm.arg("--initrd").arg(modules).start().finish();
    finished.succeeded().says(&[
        &format!("{kernel}\n"),
        // 639 KiB below the BIOS's data, and all but the first MiB.
        "lower 0x0000027f upper 0x00007c00 KiB\n",
        &format!("command line {} {words}\n", guest(kernel).display()),
        "loader vmm ",
        &format!("module {} some words size 0x0000000c sum 0x00003f11\n", first.display()),
        &format!("module {} size 0x00001388 sum 0x00000000\n", second.display()),
        "map base 0x00000000 0x00000000 length 0x00000000 0x0009fc00 type 0x00000001\n",
        "map base 0x00000000 0x00100000 length 0x00000000 0x01f00000 type 0x00000001\n",
        "segments: limits, expand-down, rights\n",
        "far: jump, call, return\n",
        "ok\n",
    ]);
}

#[test]
fn multiboot_elf32() {
    on_each_accel(|accel| multiboot(accel, "protected"));
}

#[test]
fn multiboot_elf64() {
    on_each_accel(|accel| multiboot(accel, "multiboot64"));
}

#[test]
fn multiboot_with_the_aout_kludge() {
    on_each_accel(|accel| multiboot(accel, "kludge"));
}

#[test]
fn real_mode_from_the_reset_vector() {
    on_each_accel(|accel| {
        let vmm = Vmm::new(accel).arg("--bios").arg(guest("realmode")).debug_exit();
        vmm.start().finish().succeeded().says(&[
            "realmode\n",
            "protected mode and back, with a limit of 4 GiB\n",
            "interrupts: INT n, #DE, IRQ 0\n",
            "ok\n",
        ]);
    });
}

#[test]
fn the_guest_sets_the_exit_status() {
    on_each_accel(|accel| {
        for (value, status) in [(0, 1), (3, 7), (0x7F, 255)] {
            let vmm = boot(accel, "doorbell").append(&format!("pio:0xf4:4={value}"));
            vmm.start().finish().ended_with(status);
        }
    });
}

#[test]
fn a_triple_fault_resets_or_ends() {
    on_each_accel(|accel| {
        let finished = boot(accel, "triplefault").start().finish();
        finished.succeeded().says(&["triplefault\n", "faulting\n"]);
        assert_eq!(finished.text().matches("faulting").count(), 1);

        let machine = Vmm::new(accel).guest("triplefault").with_qmp().start();
        for _ in 0..3 {
            machine.wait_for("faulting");
        }
        let mut qmp = machine.qmp();
        qmp.negotiate();
        let data = qmp.wait_for_event("RESET");
        assert_eq!((&data["guest"], &data["reason"]), (&true.into(), &"guest-reset".into()));
    });
}

#[test]
fn every_way_to_reset_and_to_power_off() {
    // i8042's pulse, port 0x92, the reset control register, isa-debug-exit is elsewhere.
    const RESETS: [&str; 3] = ["pio:0x64:1=0xfe", "pio:0x92:1=0x01", "pio:0xcf9:1=0x06"];
    on_each_accel(|accel| {
        for reset in RESETS {
            let finished = boot(accel, "doorbell").append(reset).start().finish();
            finished.succeeded().says(&["doorbell\n"]);
            assert!(!finished.text().contains("done"), "{reset}: the guest goes on");
            let machine = Vmm::new(accel).guest("doorbell").append(reset).start();
            machine.wait_for("doorbell\r\n");
            machine.wait_for("doorbell\r\n");
        }
    });
}

#[test]
fn the_power_button_interrupts() {
    on_each_accel(|accel| {
        let machine = boot(accel, "powerbtn").with_qmp().start();
        machine.wait_for("ready");
        let mut qmp = machine.qmp();
        qmp.negotiate();
        qmp.execute("system_powerdown", json!({}));
        qmp.wait_for_event("POWERDOWN");
        machine.finish().succeeded().says(&["power button\n", "ok\n"]);
    });
}

#[test]
fn a_panic_of_the_guests_kernel_stops_the_machine() {
    on_each_accel(|accel| {
        let vmm = boot(accel, "doorbell").args(["--device", "pvpanic"]).with_qmp();
        let machine = vmm.append("pio:0x505:1=1").start();
        let mut qmp = machine.qmp();
        qmp.negotiate();
        while qmp.execute("query-status", json!({}))["status"] != "guest-panicked" {}
        qmp.execute("quit", json!({}));
        machine.finish().succeeded();
    });
}

#[test]
fn nonsense_to_every_port_and_page() {
    on_each_accel(|accel| {
        let count = soak(200_000, 10_000_000);
        let vmm = boot(accel, "exerciser").append(&format!("seed=1 count={count}"));
        let vmm = vmm.args(["--serial", "null", "--device", "pvpanic"]).within(soak(170, 14_000));
        let finished = vmm.start().finish();
        finished.ended_with(0);
        let text = finished.text();
        assert!(text.ends_with(&format!("all {count}\nok\n")), "{text}");
        assert!(!finished.errors.contains("panicked"), "{}", finished.errors);
    });
}

#[test]
fn nonsense_that_may_end_the_guest_ends_nothing_else() {
    on_each_accel(|accel| {
        for seed in 1..=soak(4, 200) {
            let words = format!("seed={seed} count=20000 all");
            let vmm = Vmm::new(accel).guest("exerciser").append(&words).with_qmp();
            let mut machine = vmm.args(["--device", "pvpanic"]).within(120).start();
            machine.wait_for("exerciser");
            if !machine.ends_within(Duration::from_secs(2)) {
                // Resets, a halt for ever, or still under way: the program obeys.
                let mut qmp = machine.qmp();
                qmp.negotiate();
                qmp.execute("quit", json!({}));
            }
            let finished = machine.finish();
            // isa-debug-exit gives odd statuses; 128 and more by signals it gives as well.
            let status = finished.status();
            assert!(status == 0 || status & 1 == 1, "seed {seed}: status {status}");
            assert!(!finished.errors.contains("panicked"), "seed {seed}: {}", finished.errors);
        }
    });
}

/// Code that changes under those who execute it. KVM that emulates ring 0 has its own idea of that.
#[test]
fn code_that_changes() {
    for cpus in ["1", "2", "4"] {
        let rounds = format!("rounds={}", soak(600, 20_000));
        let vmm = boot(Accel::Soft, "selfmod").append(&rounds).args(["--smp", cpus]).within(280);
        let finished = vmm.start().finish();
        finished.succeeded().says(&["own stores: ", "the next instruction\n", "DMA: "]);
        if cpus != "1" {
            finished.says(&["by another processor: ", "by IPI: "]);
        }
    }
}
