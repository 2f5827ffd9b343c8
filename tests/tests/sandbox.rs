//! `--sandbox on`: machines run to their end in it, and the monitor says what it no longer does.

use tests::{Accel, Vmm, on_each_accel};

fn boot(accel: Accel, guest: &str) -> Vmm {
    Vmm::new(accel).guest(guest).args(["--sandbox", "on"])
}

#[test]
fn guests_run_to_their_end() {
    on_each_accel(|accel| {
        boot(accel, "hello").start().finish().succeeded().says(&["Hello from vmm guest\n"]);
        boot(accel, "counter").args(["--smp", "2"]).start().finish().succeeded();
    });
}

#[test]
fn consoles_and_monitor_work() {
    on_each_accel(|accel| {
        let vmm = boot(accel, "echo").with_hmp().with_qmp();
        let target = vmm.dir().join("saved");
        let mut machine = vmm.start();
        machine.wait_for("ready");
        let hmp = machine.hmp();
        assert_eq!(hmp.command("stop"), "");
        assert!(hmp.command("info registers").contains("RIP="));
        let refused = hmp.command(&format!("memsave 0 16 {}", target.display()));
        assert!(refused.contains("--sandbox on"), "{refused}");
        assert!(!target.exists());
        assert_eq!(hmp.command("cont"), "");
        machine.send("abc");
        machine.wait_for("abc");
        // The kernel is read again.
        hmp.command("system_reset");
        machine.wait_for("ready");
        machine.send("\x04");
        machine.finish().succeeded();
    });
}

#[test]
fn every_thread_is_confined() {
    on_each_accel(|accel| {
        let machine = boot(accel, "halt").args(["--smp", "2"]).with_hmp().start();
        let hmp = machine.hmp();
        // The monitor answers once the machine runs.
        hmp.command("info status");
        for thread in machine.threads() {
            let status = std::fs::read_to_string(thread.join("status")).unwrap();
            assert!(status.contains("Seccomp:\t2\n"), "{status}");
        }
        hmp.send("quit");
        machine.finish().succeeded();
    });
}
