//! The real gdb on bare-metal guests, on every accelerator, and on the small Linux.

use std::fs;
use std::path::PathBuf;

use tests::{Accel, Gdb, Machine, Vmm, guest, image, notice, on_each_accel, repository};

/// A machine that waits for gdb, and gdb attached to it.
fn attached(accel: Accel, name: &str, more: impl FnOnce(Vmm) -> Vmm) -> Option<(Machine, Gdb)> {
    let vmm = more(Vmm::new(accel).guest(name).args(["--no-reboot", "-S"]));
    let socket = vmm.dir().join("gdb");
    let machine = vmm.arg("--gdb").arg(format!("unix:{}", socket.display())).start();
    let mut gdb = Gdb::start(&guest(name), machine.deadline())?;
    gdb.attach(&socket);
    Some((machine, gdb))
}

fn counter(vmm: Vmm) -> Vmm {
    vmm.append("rounds=2 kernel=300 user=500")
}

#[test]
fn from_the_first_instruction_to_a_detach() {
    on_each_accel(|accel| {
        let Some((machine, mut gdb)) = attached(accel, "counter", counter) else { return };
        gdb.expect("info registers rip cr0", &["_start", "[ PE ET ]"]);
        gdb.expect("monitor info status", &["VM status: paused (prelaunch)"]);
        gdb.expect("x/i $pc", &["cld"]);
        let start = gdb.print("(long)$pc");
        gdb.command("stepi");
        let next = gdb.print("(long)$pc");
        assert_eq!(next.parse::<u64>().unwrap(), start.parse::<u64>().unwrap() + 1);

        gdb.expect("break mix_in_ring0", &["Breakpoint 1 at"]);
        gdb.expect("continue", &["Breakpoint 1, ", "mix_in_ring0"]);
        gdb.expect("info registers cr0 cr4 efer", &["PG", "PAE", "LMA"]);
        // `finish` puts a breakpoint of its own, and steps over ours.
        gdb.expect("finish", &["Run till exit", "run"]);
        gdb.expect("hbreak kernel_loop_that_is_not_there", &["not defined"]);
        gdb.expect("continue", &["Breakpoint 1, "]);
        gdb.expect("delete", &[]);

        // Registers and memory, what is there and what is not.
        gdb.command("set $xmm3.v2_int64[1] = 0x1122334455667788");
        assert_eq!(gdb.print("/x $xmm3.v2_int64[1]"), "0x1122334455667788");
        let (rbx, slot) = (gdb.print("$rbx"), gdb.print("*(long*)($sp-4096)"));
        gdb.command("set $rbx = -7");
        gdb.command("set *(long*)($sp-4096) = 77");
        assert_eq!(
            (gdb.print("$rbx"), gdb.print("*(long*)($sp-4096)")),
            ("-7".into(), "77".into())
        );
        gdb.command(&format!("set $rbx = {rbx}"));
        gdb.command(&format!("set *(long*)($sp-4096) = {slot}"));
        gdb.expect("x/bx 0x7fffffffffff", &["Cannot access memory"]);
        gdb.expect("info threads", &["* 1 ", "CPU#0"]);
        gdb.expect("detach", &["detached"]);
        // What was changed has been put back, so the result is right.
        machine.finish().succeeded();
    });
}

#[test]
fn more_breakpoints_than_debug_registers() {
    on_each_accel(|accel| {
        let Some((machine, mut gdb)) = attached(accel, "counter", counter) else { return };
        for symbol in ["enter_long_mode", "mix_in_ring0", "dispatch", "guest", "memset", "memcpy"] {
            gdb.expect(&format!("break {symbol}"), &["Breakpoint"]);
        }
        if accel == Accel::Kvm {
            gdb.expect("continue", &["Cannot insert breakpoint"]);
            machine.wait_for_error("gdb: KVM has 4 breakpoints and watchpoints together");
            gdb.command("delete 4 5 6");
        }
        gdb.expect("continue", &["enter_long_mode"]);
        gdb.command("delete 1 3 4 5 6");
        gdb.expect("continue", &["mix_in_ring0"]);
        gdb.command("delete");
        gdb.expect("detach", &["detached"]);
        machine.finish().ended_with(0);
    });
}

#[test]
fn watchpoints_stop_after_the_access() {
    on_each_accel(|accel| {
        if accel.lacks_instructions() {
            return notice("gdb's watchpoints: this host's KVM emulates ring 0 and has none");
        }
        let Some((machine, mut gdb)) = attached(accel, "counter", counter) else { return };
        gdb.expect("watch *(long*)&kernel_count", &["Hardware watchpoint 1"]);
        gdb.expect("continue", &["Old value = 0", "New value = "]);
        gdb.command("delete");
        gdb.expect("awatch *(long*)&kernel_count", &["access"]);
        gdb.expect("continue", &["alue = "]);
        gdb.command("delete");
        if accel == Accel::Soft {
            gdb.expect("rwatch *(long*)&kernel_count", &["read"]);
            gdb.expect("continue", &["Value = "]);
            gdb.command("delete");
        }
        // Ring 3 is no different.
        gdb.expect("break user_mix", &["Breakpoint"]);
        gdb.expect("continue", &["user_mix"]);
        gdb.expect("info registers cs", &["0x"]);
        assert_eq!(gdb.print("$cs & 3"), "3");
        gdb.command("delete");
        gdb.expect("detach", &["detached"]);
        machine.finish().succeeded();
    });
}

#[test]
fn ctrl_c_stops_all_vcpus_which_are_threads() {
    on_each_accel(|accel| {
        let two = |vmm: Vmm| vmm.args(["--smp", "2"]).with_hmp();
        let Some((machine, mut gdb)) = attached(accel, "smp", two) else { return };
        // Where the second processor comes to, once it is there.
        gdb.expect("break processor_main", &["Breakpoint"]);
        gdb.expect("continue", &["Switching to Thread 1.2", "processor_main"]);
        gdb.expect("info threads", &["1 ", "CPU#0", "* 2 ", "CPU#1"]);
        gdb.command("delete");
        // One steps, the other stays where it is.
        gdb.command("set scheduler-locking on");
        gdb.command("thread 1");
        let other = gdb.print("$rip");
        gdb.command("thread 2");
        let mine = gdb.print("$rip");
        gdb.command("stepi");
        assert_ne!(gdb.print("$rip"), mine);
        gdb.command("thread 1");
        assert_eq!(gdb.print("$rip"), other);
        gdb.command("set scheduler-locking off");
        gdb.command("detach");
        machine.finish().succeeded();
    });
}

#[test]
fn a_machine_that_runs_is_stopped_by_attaching_and_by_ctrl_c() {
    on_each_accel(|accel| {
        let vmm = Vmm::new(accel).guest("echo").with_hmp();
        let socket = vmm.dir().join("gdb");
        let mut machine = vmm.start();
        let hmp = machine.hmp();
        machine.wait_for("ready");
        let said = hmp.command(&format!("gdbserver unix:{}", socket.display()));
        assert!(said.contains("Waiting for gdb connection on device 'unix:"), "{said}");
        let Some(mut gdb) = Gdb::start(&guest("echo"), machine.deadline()) else { return };
        gdb.attach(&socket);
        assert!(hmp.command("info status").contains("paused"));
        gdb.send("continue");
        // The console's `stop` stops it as well.
        machine.send("a");
        machine.wait_for("a");
        hmp.command("stop");
        assert!(gdb.wait().contains("SIGINT"));
        gdb.send("continue");
        machine.send("b");
        machine.wait_for("b");
        gdb.interrupt();
        assert!(gdb.wait().contains("SIGINT"));
        assert!(hmp.command("info status").contains("paused"));
        gdb.expect("detach", &["detached"]);
        machine.send("c");
        machine.wait_for("c");
        assert!(hmp.command("gdbserver none").contains("Disabled gdbserver"));
        hmp.send("quit");
        machine.finish().succeeded();
    });
}

#[test]
fn the_end_of_the_machine_reaches_gdb() {
    on_each_accel(|accel| {
        let Some((machine, mut gdb)) = attached(accel, "hello", |vmm| vmm) else { return };
        gdb.expect("continue", &["exited normally"]);
        machine.finish().succeeded();
        let Some((machine, mut gdb)) = attached(accel, "hello", |vmm| vmm) else { return };
        gdb.command("kill");
        machine.finish().succeeded().says(&[]);
    });
}

#[test]
fn gdb_opens_a_core_of_the_machine() {
    on_each_accel(|accel| {
        let Some((machine, mut live)) =
            attached(accel, "counter", |vmm| counter(vmm).with_hmp().args(["-m", "16M"]))
        else {
            return;
        };
        live.expect("break mix_in_ring0", &["Breakpoint"]);
        live.expect("continue", &["mix_in_ring0"]);
        let hmp = machine.hmp();
        for paging in ["", "-p "] {
            let core = machine.dir().join(&format!("core{}", paging.len()));
            let said = hmp.command(&format!("dump-guest-memory {paging}{}", core.display()));
            assert!(!said.contains("rror"), "{said}");
            assert!(hmp.command("info dump").contains("Status: completed"));
            let mut dead = Gdb::start(&guest("counter"), machine.deadline()).expect("it is there");
            dead.expect(&format!("core-file {}", core.display()), &["mix_in_ring0"]);
            for value in ["$rip", "$rsp", "*(long*)$rsp", "/x *(long*)&gdt", "/x $eflags"] {
                assert_eq!(dead.print(value), live.print(value), "{value} {paging}");
            }
        }
        hmp.send("quit");
        machine.finish().ended_with(0);
    });
}

#[test]
fn a_linux_kernel_by_its_symbols_addresses() {
    let (Some(kernel), Some(initrd)) = (image("vmlinux"), image("initramfs.cpio")) else { return };
    let words: PathBuf = repository().join("images/linux/small.cmdline");
    let words = fs::read_to_string(words).expect("it is in the repository");
    let vmm = Vmm::new(Accel::Soft).args(["-m", "128M", "-S"]).within(140);
    let socket = vmm.dir().join("gdb");
    let vmm = vmm.arg("--kernel").arg(&kernel).arg("--initrd").arg(initrd);
    let vmm = vmm.append(words.trim_end()).arg("--gdb").arg(format!("unix:{}", socket.display()));
    let mut machine = vmm.start();
    let Some(mut gdb) = Gdb::start(&kernel, machine.deadline()) else { return };
    gdb.attach(&socket);
    gdb.expect("hbreak start_kernel", &["reakpoint 1 at 0x"]);
    gdb.expect("continue", &["Breakpoint 1", "start_kernel"]);
    // The kernel's own half of the address space, through its page tables.
    gdb.expect("x/s (char*)&linux_banner", &["Linux version 6.1."]);
    let core = machine.dir().join("core");
    gdb.expect(&format!("monitor dump-guest-memory -p {}", core.display()), &[]);
    let mut dead = Gdb::start(&kernel, machine.deadline()).expect("it is there");
    dead.expect(&format!("core-file {}", core.display()), &["start_kernel"]);
    dead.expect("x/s (char*)&linux_banner", &["Linux version 6.1."]);
    gdb.expect("watch *(long*)&jiffies_64", &["Hardware watchpoint 2"]);
    gdb.expect("continue", &["Old value", "New value"]);
    gdb.command("delete");
    gdb.send("continue");
    machine.wait_for("~ # ");
    gdb.interrupt();
    assert!(gdb.wait().contains("SIGINT"));
    gdb.expect("detach", &["detached"]);
    machine.send("echo $((6 * 7)) answers\n");
    machine.wait_for("\n42 answers");
    machine.send("poweroff\n");
    machine.finish().succeeded();
}
