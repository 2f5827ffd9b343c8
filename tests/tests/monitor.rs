//! The monitor of a running machine: in text and in JSON, on sockets and on the console.

use std::fs;

use serde_json::json;
use tests::{Accel, Machine, Terminal, Vmm, on_each_accel};

/// A guest that has come as far as `ready`, and a monitor in text form.
fn machine(accel: Accel, guest: &str, ready: &str, cpus: &str) -> Machine {
    let machine = Vmm::new(accel).guest(guest).args(["--smp", cpus]).with_hmp().with_qmp().start();
    machine.wait_for(ready);
    machine
}

/// `RIP=...` of the registers of one vCPU.
fn register(registers: &str, name: &str) -> u64 {
    let (_, rest) = registers.split_once(&format!("{name}=")).expect("the register is shown");
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).expect("it is a number")
}

#[test]
fn a_running_guest_is_stopped_looked_at_and_goes_on() {
    on_each_accel(|accel| {
        let machine = machine(accel, "spin", "spinning on 1", "1");
        let hmp = machine.hmp();
        assert_eq!(hmp.command("info status"), "VM status: running\n");
        // It answers while the guest runs as well, which prints before it comes to its loop.
        while register(&hmp.command("info registers"), "RDX") != 0x4444_4444_4444_4444 {}
        for _ in 0..5 {
            assert_eq!(hmp.command("stop"), "");
            assert_eq!(hmp.command("info status"), "VM status: paused\n");
            let registers = hmp.command("info registers");
            assert_eq!(register(&registers, "RDX"), 0x4444_4444_4444_4444);
            assert!(registers.contains("CPL=0") && registers.contains("HLT=0"), "{registers}");
            let rip = register(&registers, "RIP");
            assert_eq!(hmp.command("print /x $rip"), format!("{rip:#x}\n"));
            let listing = hmp.command("x/10i $rip");
            assert_eq!(listing.lines().count(), 10, "{listing}");
            assert!(listing.starts_with(&format!("{rip:#010x}:  eb fe ")), "{listing}");
            assert!(listing.lines().next().unwrap().contains("jmp"), "{listing}");
            assert_eq!(hmp.command("cont"), "");
            assert_eq!(hmp.command("info status"), "VM status: running\n");
        }
    });
}

#[test]
fn a_halted_guest_is_stopped_looked_at_and_goes_on() {
    on_each_accel(|accel| {
        let machine = machine(accel, "halt", "halted", "1");
        let hmp = machine.hmp();
        // It prints before it halts.
        while !hmp.command("info registers").contains("HLT=1") {}
        for _ in 0..3 {
            hmp.command("stop");
            let registers = hmp.command("info registers");
            assert!(registers.contains("HLT=1"), "{registers}");
            assert_eq!(hmp.command("x/10i $rip").lines().count(), 10);
            hmp.command("cont");
            assert!(hmp.command("info registers").contains("HLT=1"));
        }
    });
}

#[test]
fn a_halted_guest_wakes_up_after_stop_and_cont() {
    on_each_accel(|accel| {
        let mut machine = Vmm::new(accel).guest("echo").append("irq").with_hmp().start();
        machine.wait_for("ready");
        let hmp = machine.hmp();
        hmp.command("stop");
        machine.send("while it stands still");
        assert_eq!(hmp.command("info status"), "VM status: paused\n");
        hmp.command("cont");
        machine.wait_for("while it stands still");
        machine.send("\x04");
        machine.finish().succeeded();
    });
}

#[test]
fn two_vcpus_are_stopped_looked_at_and_go_on() {
    on_each_accel(|accel| {
        let machine = machine(accel, "spin", "spinning on 2", "2");
        let hmp = machine.hmp();
        let cpus = hmp.command("info cpus");
        assert!(cpus.starts_with("* CPU #0: thread_id="), "{cpus}");
        assert!(cpus.contains("\n  CPU #1: thread_id="), "{cpus}");
        for cpu in ["0", "1"] {
            hmp.command(&format!("cpu {cpu}"));
            while register(&hmp.command("info registers"), "RDX") != 0x4444_4444_4444_4444 {}
        }
        for _ in 0..3 {
            hmp.command("stop");
            for cpu in ["0", "1"] {
                hmp.command(&format!("cpu {cpu}"));
                let registers = hmp.command("info registers");
                assert!(registers.contains(&format!("CPU#{cpu}\n")), "{registers}");
                assert_eq!(register(&registers, "R15"), cpu.parse::<u64>().unwrap());
                assert_eq!(hmp.command("x/10i $rip").lines().count(), 10);
            }
            assert!(hmp.command("info cpus").contains("\n* CPU #1"));
            let all = hmp.command("info registers -a");
            assert!(all.contains("CPU#0") && all.contains("CPU#1"), "{all}");
            hmp.command("cont");
            assert_eq!(hmp.command("info status"), "VM status: running\n");
        }
        assert_eq!(hmp.command("cpu 2"), "invalid CPU index\n");
    });
}

#[test]
fn a_machine_started_by_hand() {
    on_each_accel(|accel| {
        let machine = Vmm::new(accel).guest("hello").arg("-S").with_hmp().start();
        let hmp = machine.hmp();
        assert_eq!(hmp.command("info status"), "VM status: paused (prelaunch)\n");
        assert!(hmp.command("xp/2xw 0x100000").starts_with("0000000000100000: 0x00000004"));
        hmp.send("cont");
        machine.finish().succeeded().says(&["Hello"]);
    });
}

#[test]
fn info_tells_what_the_command_line_said() {
    on_each_accel(|accel| {
        let uuid = "00112233-4455-6677-8899-aabbccddeeff";
        let vmm = Vmm::new(accel).guest("spin").args(["--name", "test", "--uuid", uuid]);
        let machine = vmm.args(["-m", "96M"]).with_hmp().start();
        machine.wait_for("spinning");
        let hmp = machine.hmp();
        assert_eq!(hmp.command("info name"), "test\n");
        assert_eq!(hmp.command("info uuid"), format!("{uuid}\n"));
        assert_eq!(hmp.command("info version"), format!("{}\n", env!("CARGO_PKG_VERSION")));
        let kvm = hmp.command("info kvm");
        assert_eq!(kvm.contains("enabled"), accel == Accel::Kvm, "{kvm}");
        let tree = hmp.command("info mtree");
        for line in [
            "0000000000000000-0000000005ffffff (prio 0, ram): pc.ram",
            "00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic",
            "00000000000003f8-00000000000003ff (prio 0, i/o): serial0",
        ] {
            assert!(tree.contains(line), "{tree}");
        }
        let pics = hmp.command("info pic");
        assert!(pics.contains("ioapic0: ver=0x20") && pics.contains("pic0: irr="), "{pics}");
        let lapic = hmp.command("info lapic");
        assert!(lapic.contains("APIC enabled") && lapic.contains("spurious vec 255"), "{lapic}");
        let irq = hmp.command("info irq");
        assert!(irq.contains("ioapic"), "{irq}");
        let chardevs = hmp.command("info chardev");
        assert!(chardevs.contains("serial0: filename=stdio"), "{chardevs}");
        let help = hmp.command("help");
        for command in ["stop", "cont|", "system_reset", "memsave", "sum", "xp"] {
            assert!(help.contains(command), "{command}: {help}");
        }
    });
}

#[test]
fn memory_is_shown_summed_and_saved() {
    on_each_accel(|accel| {
        let machine = machine(accel, "spin", "spinning on 1", "1");
        let hmp = machine.hmp();
        hmp.command("stop");
        // The image's note lies at 1 MiB: sizes 4 and 4, type 18, the name.
        let words = "0000000000100000: 0x00000004 0x00000004 0x00000012 0x006e6558\n";
        assert_eq!(hmp.command("xp/4xw 0x100000"), words);
        assert_eq!(hmp.command("x/4xw 0x100000"), words);
        let path = |name: &str| machine.dir().join(name).display().to_string();
        let (virt, phys) = (path("virtual"), path("physical"));
        assert_eq!(hmp.command(&format!("memsave 0x100000 4096 {virt}")), "");
        assert_eq!(hmp.command(&format!("pmemsave 0x100000 4096 \"{phys}\"")), "");
        let bytes = fs::read(&phys).unwrap();
        assert_eq!((bytes.len(), &bytes[12..15]), (4096, &b"Xen"[..]));
        assert_eq!(fs::read(&virt).unwrap(), bytes);
        let sum =
            bytes.iter().fold(0, |sum: u16, byte| sum.rotate_right(1).wrapping_add((*byte).into()));
        let answer = hmp.command("sum 0x100000 4096");
        assert_eq!(answer.trim().parse::<u32>().unwrap(), u32::from(sum));
        let absent = hmp.command("x 0x7fffffffffff");
        assert!(absent.contains("Cannot access memory"), "{absent}");
        let refused = hmp.command("pmemsave 0 16 /nonexistent/file");
        assert!(refused.contains("No such file or directory"), "{refused}");
        // Ports: the scratch register of COM1 keeps what is written.
        hmp.command("o /b 0x3ff 0x5a");
        assert_eq!(hmp.command("i /b 0x3ff"), "portb[0x03ff] = 0x5a\n");
    });
}

#[test]
fn a_reset_starts_the_guest_again() {
    on_each_accel(|accel| {
        for cpus in ["1", "2"] {
            let ready = format!("spinning on {cpus}");
            let machine = machine(accel, "spin", &ready, cpus);
            let hmp = machine.hmp();
            for _ in 0..3 {
                assert_eq!(hmp.command("system_reset"), "");
                machine.wait_for(&ready);
                assert_eq!(hmp.command("info status"), "VM status: running\n");
            }
            // A stopped machine is reset and stays stopped.
            hmp.command("stop");
            hmp.command("system_reset");
            assert_eq!(hmp.command("info status"), "VM status: paused\n");
            let entry = register(&hmp.command("info registers"), "IP");
            assert!((0x10_0000..0x20_0000).contains(&entry), "{entry:#x}");
            hmp.command("cont");
            machine.wait_for(&ready);
        }
    });
}

#[test]
fn an_nmi_reaches_the_guest() {
    on_each_accel(|accel| {
        let machine = machine(accel, "vectors", "ready", "1");
        let hmp = machine.hmp();
        hmp.command("nmi");
        machine.wait_for("irq 02");
    });
}

#[test]
fn nonsense_is_refused_with_a_hint() {
    on_each_accel(|accel| {
        let machine = machine(accel, "spin", "spinning", "1");
        let hmp = machine.hmp();
        for (line, answer) in [
            ("nonsense", "unknown command: 'nonsense'"),
            ("info nonsense", "unknown command: 'info nonsense'"),
            ("x/4i $rpi", "unknown register"),
            ("x/4q 0", "help x"),
            ("print 1+", "unexpected end of expression"),
            ("print 1/0", "division by zero"),
            ("print 0x", "help print"),
            ("sum 1", "help sum"),
            ("memsave", "help memsave"),
            ("stop now", "help stop"),
            ("cpu x", "help cpu"),
        ] {
            let said = hmp.command(line);
            assert!(said.to_lowercase().contains(&answer.to_lowercase()), "{line}: {said}");
        }
        assert_eq!(hmp.command("info status"), "VM status: running\n");
    });
}

#[test]
fn quit_ends_the_program() {
    on_each_accel(|accel| {
        for guest in ["spin", "halt"] {
            let machine = machine(accel, guest, guest, "1");
            let hmp = machine.hmp();
            hmp.send("quit");
            let finished = machine.finish();
            finished.succeeded();
            assert!(finished.files.is_empty(), "left behind: {:?}", finished.files);
            hmp.wait_for_end();
        }
    });
}

#[test]
fn json_has_greeting_capabilities_ids_and_errors() {
    on_each_accel(|accel| {
        let machine = machine(accel, "spin", "spinning on 1", "1");
        let mut qmp = machine.qmp();
        let version = &qmp.greeting()["QMP"]["version"]["qemu"];
        assert!(version["major"].is_u64() && version["minor"].is_u64(), "{version}");
        assert!(qmp.greeting()["QMP"]["capabilities"].is_array());
        // Before the capabilities nothing else is taken.
        qmp.send(r#"{"execute": "query-status"}"#);
        assert_eq!(qmp.answer()["error"]["class"], "CommandNotFound");
        qmp.send(r#"{"execute": "qmp_capabilities", "id": {"any": ["thing", 1]}}"#);
        assert_eq!(qmp.answer(), json!({ "return": {}, "id": { "any": ["thing", 1] } }));
        qmp.send(r#"{"execute": "nonsense", "id": 7}"#);
        let answer = qmp.answer();
        assert_eq!(
            (&answer["id"], &answer["error"]["class"]),
            (&7.into(), &"CommandNotFound".into())
        );
        for bad in [
            r#"{"execute": 1}"#,
            r#"{"nothing": 1}"#,
            r#"{"execute": "stop", "arguments": {"extra": 1}}"#,
            r#"{"execute": "memsave", "arguments": {"val": 0}}"#,
            "[]",
            "{]",
        ] {
            qmp.send(bad);
            assert_eq!(qmp.answer()["error"]["class"], "GenericError", "{bad}");
        }
        let status = qmp.execute("query-status", json!({}));
        assert_eq!((&status["status"], &status["running"]), (&"running".into(), &true.into()));
        let commands = qmp.execute("query-commands", json!({}));
        let commands = commands.as_array().unwrap();
        for name in ["stop", "cont", "quit", "query-version", "human-monitor-command"] {
            assert!(commands.iter().any(|command| command["name"] == name), "{name}");
        }
        assert!(
            qmp.execute("query-qmp-schema", json!({})).as_array().is_some_and(|s| !s.is_empty())
        );
        assert!(qmp.events().is_empty(), "events of before the client came: {:?}", qmp.events());
        assert_eq!(qmp.hmp("info status"), "VM status: running\n");
    });
}

#[test]
fn json_tells_events() {
    on_each_accel(|accel| {
        let machine = machine(accel, "spin", "spinning on 1", "1");
        let mut qmp = machine.qmp();
        qmp.negotiate();
        qmp.execute("stop", json!({}));
        qmp.wait_for_event("STOP");
        assert_eq!(qmp.execute("query-status", json!({}))["status"], "paused");
        qmp.execute("cont", json!({}));
        qmp.wait_for_event("RESUME");
        qmp.execute("system_reset", json!({}));
        assert_eq!(qmp.wait_for_event("RESET")["reason"], "host-qmp-system-reset");
        qmp.execute("quit", json!({}));
        assert_eq!(qmp.wait_for_event("SHUTDOWN")["reason"], "host-qmp-quit");
        machine.finish().succeeded();
    });
}

#[test]
fn no_shutdown_keeps_the_machine_to_be_looked_at() {
    on_each_accel(|accel| {
        let machine = Vmm::new(accel).guest("hello").arg("--no-shutdown").with_qmp().start();
        let mut qmp = machine.qmp();
        qmp.negotiate();
        while qmp.execute("query-status", json!({}))["status"] != "shutdown" {}
        machine.wait_for("ok");
        assert!(qmp.hmp("info registers").contains("RIP="));
        let refused = qmp.hmp("cont");
        assert!(refused.contains("Resetting the Virtual Machine is required"), "{refused}");
        qmp.execute("system_reset", json!({}));
        qmp.execute("cont", json!({}));
        machine.wait_for("ok");
        qmp.execute("quit", json!({}));
        machine.finish().succeeded();
    });
}

#[test]
fn the_console_switches_to_the_monitor_and_back() {
    on_each_accel(|accel| {
        let vmm = Vmm::new(accel).guest("echo").serial(Some("mon:stdio")).monitor(None);
        let mut machine = vmm.start();
        machine.wait_for("ready");
        machine.send("to the guest");
        machine.wait_for("to the guest");
        machine.send("\x01c");
        machine.wait_for("(vmm) ");
        machine.send("info status\n");
        machine.wait_for("VM status: running");
        machine.send("\x01cback");
        machine.wait_for("back");
        // The escape character itself, then help.
        machine.send("\x01\x01");
        machine.wait_for("\x01");
        machine.send("\x01h");
        machine.wait_for("Ctrl-A Ctrl-A");
        machine.send("\x01x");
        machine.finish().succeeded();
    });
}

#[test]
fn ctrl_a_x_quits_on_a_terminal() {
    on_each_accel(|accel| {
        for guest in ["spin", "halt"] {
            let terminal = Terminal::new();
            let before = terminal.settings();
            let machine = Vmm::new(accel).guest(guest).serial(None).monitor(None);
            let machine = machine.start_on(&terminal);
            terminal.wait_for(guest, machine.deadline());
            terminal.send("\x01x");
            machine.finish().succeeded();
            assert_eq!(terminal.settings(), before);
        }
    });
}
