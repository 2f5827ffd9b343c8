//! PCI: a bare-metal guest with the test device, plugging and unplugging through the monitor, Linux,
//! firmware.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::{
    Accel, Machine, Qmp, Vmm, emulates_ring0, guest, image, notice, on_each_accel, repository,
};

fn boot(accel: Accel, words: &str) -> Vmm {
    Vmm::new(accel).guest("pci").arg("--no-reboot").append(words)
}

fn machine_with_qmp(vmm: Vmm) -> (Machine, Qmp) {
    let machine = vmm.with_qmp().start();
    let mut qmp = machine.qmp();
    qmp.negotiate();
    (machine, qmp)
}

#[test]
fn bars_move_and_interrupts_come() {
    on_each_accel(|accel| {
        let mut machines = vec!["pc"];
        if accel == Accel::Kvm && !emulates_ring0() {
            machines.push("pc,kernel-irqchip=on");
        }
        let words = if accel.lacks_instructions() { "lenient" } else { "" };
        for machine in machines {
            let vmm =
                boot(accel, words).args(["--device", "pci-testdev,addr=3", "--machine", machine]);
            let finished = vmm.start().finish();
            finished.succeeded().says(&[
                "slot 0 function 0 id 0x12378086 class 0x600\n",
                "slot 1 function 0 id 0x70008086 class 0x601\n",
                "slot 1 function 3 id 0x71138086 class 0x680\n",
                "slot 3 function 0 id 0x51b36 class 0xff\n",
                "BARs sized\n",
                "BARs moved\n",
                "doorbell\n",
                "INTx by the I/O APIC: pin 18\n",
                "INTx by the PIC: line 11\n",
                "MSI\n",
                "MSI-X\nok\n",
            ]);
        }
    });
}

#[test]
fn a_device_comes_and_goes_while_the_machine_runs() {
    on_each_accel(|accel| {
        let (machine, mut qmp) = machine_with_qmp(boot(accel, "hotplug"));
        machine.wait_for("ready");
        let added = json!({ "driver": "pci-testdev", "id": "t", "addr": "5", "membar": "1M" });
        assert_eq!(qmp.execute("device_add", added), json!({}));
        machine.wait_for("plugged into slot 5");
        let list = qmp.hmp("info pci").replace('\r', "");
        let expected = [
            "  Bus  0, device   5, function 0:\n    Class 0255: PCI device 1b36:0005\n",
            "      PCI subsystem 1af4:1100\n      IRQ 0, pin A\n",
            "      BAR0: 32 bit memory at 0xd8000000 [0xd8000fff].\n",
            "      BAR1: I/O at 0xffffffffffffffff [0x001e].\n      BAR2: 64 bit prefetchable memory at 0x",
            "      id \"t\"\n",
        ];
        for text in expected {
            assert!(list.contains(text), "{text}\nis not in\n{list}");
        }
        // What cannot be is refused, and the device is asked for once.
        for (line, error) in [
            (
                "device_add pci-testdev,addr=5",
                "Error: PCI: slot 5 function 0 not available, in use by t",
            ),
            ("device_add pci-testdev,id=t", "Error: --device: there is a device 't' already"),
            ("device_add pci-testdex", "did you mean 'pci-testdev'?"),
            ("device_add pvpanic", "cannot be added to a running machine"),
            ("device_del nope", "Error: Device 'nope' not found"),
            ("device_del t", ""),
            ("device_del t", "Error: Device t is already in the process of unplug"),
        ] {
            let answer = qmp.hmp(line);
            // The guest may have been quicker than the second request.
            let gone = answer.contains("Error: Device 't' not found");
            assert!(answer.contains(error) || gone, "{line}: {answer}");
        }
        let event = qmp.wait_for_event("DEVICE_DELETED");
        assert_eq!(event, json!({ "device": "t", "path": "/machine/peripheral/t" }));
        machine.wait_for("ejected");
        machine.finish().succeeded();
    });
}

#[test]
fn a_reset_takes_out_what_was_wanted_back() {
    on_each_accel(|accel| {
        // This guest gives nothing up.
        let vmm = Vmm::new(accel).guest("halt").args(["--device", "pci-testdev,id=t,addr=1f.0"]);
        let (machine, mut qmp) = machine_with_qmp(vmm);
        let devices = |qmp: &mut Qmp| -> Vec<Value> {
            let buses = qmp.execute("query-pci", json!({}));
            buses[0]["devices"].as_array().expect("it is a list").clone()
        };
        assert_eq!(devices(&mut qmp)[3]["qdev_id"], "t");
        qmp.execute("device_del", json!({ "id": "t" }));
        assert_eq!(devices(&mut qmp).len(), 4);
        qmp.execute("system_reset", json!({}));
        qmp.wait_for_event("DEVICE_DELETED");
        assert_eq!(devices(&mut qmp).len(), 3);
        qmp.execute("quit", json!({}));
        machine.finish().succeeded();
    });
}

#[test]
fn a_machine_without_pci_has_none() {
    on_each_accel(|accel| {
        for machine in ["microvm", "pc,pci=off"] {
            let vmm = Vmm::new(accel).guest("halt").args(["--machine", machine]);
            let (machine, mut qmp) = machine_with_qmp(vmm);
            assert_eq!(qmp.execute("query-pci", json!({})), json!([]));
            let answer = qmp.hmp("device_add pci-testdev");
            assert!(answer.contains("no PCI bus: ask for --machine pc"), "{answer}");
            qmp.execute("quit", json!({}));
            machine.finish().succeeded();
        }
    });
}

#[test]
fn linux_finds_devices_that_come_and_go() {
    let Some(kernel) = image("vmlinuz-cloud") else { return };
    let Some(initrd) = image("initramfs.cpio") else { return };
    let words = fs::read_to_string(repository().join("images/linux/cloud.cmdline"));
    let vmm = Vmm::new(Accel::Soft).arg("--no-reboot").args(["-m", "256M"]).within(150);
    let vmm = vmm.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    let vmm = vmm.args(["--device", "pci-testdev,id=cold"]);
    let (mut machine, mut qmp) =
        machine_with_qmp(vmm.append(words.expect("it is in the repository").trim_end()));
    machine.wait_for("~ # ");
    let mut ask = |typed: &str, answer: &str| {
        machine.send(typed);
        machine.wait_for(answer);
        machine.wait_for("~ # ");
    };
    ask(
        "cd /; cd sys/bus/pci/devices; PS1='~ # '; echo $(ls)\n",
        "\n0000:00:00.0 0000:00:01.0 0000:00:01.3 0000:00:02.0\r\n",
    );
    ask("cat 0000:00:02.0/device 0000:00:02.0/class\n", "\n0x0005\r\n0x00ff00\r\n");
    // Extended space is read through ECAM only: there is none of it here, and 256 bytes.
    ask(
        "dmesg | grep -c 'MMCONFIG at .* reserved'; wc -c < 0000:00:02.0/config\n",
        "\n1\r\n256\r\n",
    );
    qmp.execute("device_add", json!({ "driver": "pci-testdev", "id": "hot", "addr": "8" }));
    ask("until [ -e 0000:00:08.0 ]; do :; done; cat 0000:00:08.0/vendor\n", "\n0x1b36\r\n");
    ask("grep -c 0x00000000d 0000:00:08.0/resource\n", "\n2\r\n");
    for (id, place) in [("hot", "08"), ("cold", "02")] {
        qmp.execute("device_del", json!({ "id": id }));
        let event = qmp.wait_for_event("DEVICE_DELETED");
        assert_eq!(event["device"], id);
        let gone =
            format!("while [ -e 0000:00:{place}.0 ]; do :; done; echo {id} is $((40 + 2))\n");
        ask(&gone, &format!("\n{id} is 42"));
    }
    machine.send("poweroff\n");
    machine.finish().succeeded();
}

#[test]
fn seabios_gets_to_its_boot_attempt() {
    let bios = Path::new("/usr/share/seabios/bios-256k.bin");
    if !bios.exists() {
        return notice("SeaBIOS: there is no package seabios");
    }
    let vmm = Vmm::new(Accel::Soft).arg("--bios").arg(bios).within(120);
    let log: PathBuf = vmm.dir().join("seabios");
    let chardev = format!("file,id=d,path={}", log.display());
    let vmm = vmm.args(["--chardev", &chardev, "--device", "isa-debugcon,iobase=0x402,chardev=d"]);
    let (machine, mut qmp) = machine_with_qmp(vmm.args(["--device", "pci-testdev,addr=4"]));
    let said = || fs::read_to_string(&log).unwrap_or_default();
    while !said().contains("No bootable device.") {
        assert!(std::time::Instant::now() < machine.deadline(), "{}", said());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for text in [
        "Running on QEMU (i440fx)",
        "PCI: map device bdf=00:04.0  bar 0, addr febf",
        "Booting from Hard Disk...",
    ] {
        assert!(said().contains(text), "{text} is not in {}", said());
    }
    let list = qmp.hmp("info pci");
    assert!(list.contains("IRQ 11, pin A") && list.contains("BAR1: I/O at 0xc000"), "{list}");
    qmp.execute("quit", json!({}));
    machine.finish().succeeded();
}

#[test]
fn what_cannot_be_plugged_in_is_an_error_with_a_way_out() {
    let fails = |args: &[&str], text: &str| {
        let vmm = Vmm::new(Accel::Soft).arg("--kernel").arg(guest("halt")).args(args);
        let finished = vmm.start().finish();
        finished.ended_with(1);
        assert!(finished.complaints().contains(text), "{args:?}: {}", finished.complaints());
    };
    for (args, text) in [
        (
            &["--device", "pci-testdev,addr=1"][..],
            "slot 1 function 0 not available, in use by piix3",
        ),
        (&["--device", "pci-testdev,addr=20"], "up to 1f.7 in hexadecimal"),
        (&["--device", "pci-testdev,bus=pci.1"], "pci.0, which is the only bus"),
        (&["--device", "pci-testdev,membar=5000"], "a power of two from 4K on"),
        (&["--device", "pci-testdev,adr=3"], "did you mean 'addr'?"),
        (&["--machine", "microvm", "--device", "pci-testdev"], "has no PCI bus"),
        (&["--machine", "microvm,pci=on"], "microvm has no PCI bus"),
    ] {
        fails(args, text);
    }
}
