//! Virtio devices, found and driven by Linux: on PCI and on MMIO.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tests::{Accel, Machine, Vmm, image, on_each_accel, repository};

/// Long enough for a KVM that emulates ring 0, on a busy host.
const LIMIT: u64 = 280;

/// The small Linux, or nothing, with a notice, where it has not been built.
fn small_linux(accel: Accel) -> Option<Vmm> {
    let (kernel, initrd): (PathBuf, PathBuf) = (image("vmlinux")?, image("initramfs.cpio")?);
    let words = repository().join("images/linux/small.cmdline");
    let words = fs::read_to_string(words).expect("it is in the repository");
    let vmm = Vmm::new(accel).arg("--no-reboot").args(["-m", "128M"]).within(LIMIT);
    let vmm = vmm.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    Some(vmm.append(words.trim_end()))
}

fn shell(machine: &mut Machine, command: &str, answer: &str) {
    machine.send(format!("{command}\n"));
    machine.wait_for(answer);
    machine.wait_for("~ # ");
}

/// What Linux makes of a random number generator, a balloon and two ports, whichever way it finds
/// them.
fn devices_work(machine: &mut Machine) {
    machine.wait_for("~ # ");
    shell(machine, "ls /sys/bus/virtio/devices | wc -w", "\n3\r");
    shell(machine, "head -c 65 /dev/hwrng | wc -c", "\n65\r");
    shell(machine, "cat /sys/class/virtio-ports/*/name", "\norg.test\r");
    shell(
        machine,
        "echo from-hvc >/dev/hvc0; echo from-port >/dev/$(basename $(dirname $(grep -l org.test /sys/class/virtio-ports/*/name))); echo written",
        "\nwritten\r",
    );
    for (file, text) in [("hvc", "from-hvc"), ("port", "from-port")] {
        let path = machine.dir().join(file);
        // The port's bytes are on the host before the guest's write returns to its shell, or a
        // little later.
        while !fs::read_to_string(&path).is_ok_and(|read| read.contains(text)) {
            assert!(std::time::Instant::now() < machine.deadline(), "{text} is not in {file}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

fn with_devices(vmm: Vmm) -> Vmm {
    let file = |id: &str| format!("file,id={id},path={}", vmm.dir().join(id).display());
    let (hvc, port) = (file("hvc"), file("port"));
    vmm.args(["--device", "virtio-rng", "--device", "virtio-balloon,id=balloon"])
        .args(["--device", "virtio-serial", "--chardev", &hvc, "--chardev", &port])
        .args(["--device", "virtconsole,chardev=hvc"])
        .args(["--device", "virtserialport,chardev=port,name=org.test"])
        .with_qmp()
}

#[test]
fn on_pci() {
    on_each_accel(|accel| {
        let Some(vmm) = small_linux(accel) else { return };
        let mut machine = with_devices(vmm).start();
        devices_work(&mut machine);
        // One interrupt a queue, by message.
        shell(
            &mut machine,
            "grep -c 'PCI-MSI.*virtio' /proc/interrupts >/dev/null && echo msi",
            "\nmsi\r",
        );
        let mut qmp = machine.qmp();
        qmp.negotiate();
        let path = "/machine/peripheral/balloon/virtio-backend";
        let status = qmp.execute("x-query-virtio-status", json!({ "path": path }));
        assert_eq!((&status["started"], &status["broken"]), (&json!(true), &json!(false)));
        qmp.execute("balloon", json!({ "value": 100 << 20 }));
        while qmp.wait_for_event("BALLOON_CHANGE")["actual"] != json!(100 << 20) {}
        assert_eq!(qmp.execute("query-balloon", json!({})), json!({ "actual": 100 << 20 }));
        machine.send("poweroff\n");
        machine.finish().succeeded();
    });
}

#[test]
fn on_mmio() {
    on_each_accel(|accel| {
        let Some(vmm) = small_linux(accel) else { return };
        let mut machine = with_devices(vmm.args(["--machine", "microvm"])).start();
        devices_work(&mut machine);
        let mut qmp = machine.qmp();
        qmp.negotiate();
        let devices = qmp.execute("x-query-virtio", json!({}));
        let names: Vec<_> = devices.as_array().unwrap().iter().map(|d| d["name"].clone()).collect();
        assert_eq!(names, ["virtio-rng", "virtio-balloon", "virtio-serial"]);
        machine.send("poweroff\n");
        machine.finish().succeeded();
    });
}

#[test]
fn what_a_machine_cannot_have_is_refused() {
    for (args, expected) in [
        (&["--device", "virtio-rng-device"][..], "give virtio-rng-pci"),
        (&["--machine", "microvm", "--device", "virtio-rng-pci"], "give virtio-rng-device"),
        (&["--machine", "pc,pci=off", "--device", "virtio-rng"], "no PCI bus"),
        (
            &["--chardev", "null,id=c", "--device", "virtconsole,chardev=c"],
            "give --device virtio-serial",
        ),
        (&["--device", "virtio-serial", "--device", "virtconsole,chardev=c"], "no chardev 'c'"),
    ] {
        let finished = Vmm::bare().guest("echo").args(args).start().finish();
        assert_eq!(finished.status(), 1, "{args:?}");
        assert!(finished.complaints().contains(expected), "{args:?}: {}", finished.complaints());
    }
}
