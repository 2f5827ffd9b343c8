//! The small Linux on the user network: DHCP, connections both ways, forwards, the link.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use tests::{Accel, Machine, Vmm, image, on_each_accel, repository};

/// As for the small Linux in `linux.rs`.
const LIMIT: u64 = 140;

/// Bytes that go each way.
const BYTES: usize = 4 << 20;

fn linux(accel: Accel, machine: &str, network: &str) -> Option<Vmm> {
    let (kernel, initrd) = (image("vmlinux")?, image("initramfs.cpio")?);
    let words = repository().join("images/linux/small.cmdline");
    let words = fs::read_to_string(words).expect("it is in the repository");
    let vmm = Vmm::new(accel).args(["--no-reboot", "--machine", machine, "-m", "128M"]);
    let vmm = vmm.within(LIMIT).arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    Some(vmm.args(["--nic", network]).append(words.trim_end()))
}

/// A command at the shell, and what has to come before the next prompt.
fn shell(machine: &mut Machine, command: &str, answer: &str) {
    machine.send(format!("{command}\n"));
    machine.wait_for(answer);
    machine.wait_for("~ # ");
}

/// Takes one client and calls `serve` with it; the port.
fn serve<R: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> R + Send + 'static,
) -> (u16, thread::JoinHandle<R>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    (port, thread::spawn(move || serve(listener.accept().expect("a client").0)))
}

fn pattern() -> Vec<u8> {
    (0..BYTES).map(|n| (n * 31 + n / 509) as u8).collect()
}

/// On the software CPU: a KVM that emulates ring 0 takes minutes for what is typed here.
#[test]
fn a_guest_reaches_the_host_and_is_reached() {
    for accel in [Accel::Soft] {
        // A port that is free now.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let port = port.expect("a free port").port();
        let network = format!("user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:80");
        let Some(vmm) = linux(accel, "microvm", &network) else { continue };
        let mut machine = vmm.with_qmp().start();
        machine.wait_for("~ # ");
        // An address by DHCP. There is no script that would give it to the interface.
        shell(&mut machine, "ip link set eth0 up; echo is up", "\nis up");
        let lease = "udhcpc -i eth0 -n -q -s /bin/true";
        shell(&mut machine, lease, "lease of 10.0.2.15 obtained from 10.0.2.2");
        let address = "ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2";
        shell(&mut machine, &format!("{address}; echo is set"), "\nis set");
        shell(&mut machine, "ping -c 1 10.0.2.2", "1 packets received");

        // From the host to the guest, and from there back to the host.
        let (source, sender) = serve(|mut client| client.write_all(&pattern()));
        let (sink, receiver) = serve(|mut client| {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).map(|_| bytes)
        });
        let through = format!("nc 10.0.2.2 {source} </dev/null | nc 10.0.2.2 {sink}");
        shell(&mut machine, &format!("{through}; echo is through"), "\nis through");
        sender.join().expect("it does not panic").expect("all is sent");
        let bytes = receiver.join().expect("it does not panic").expect("all comes");
        assert!(bytes == pattern(), "{} bytes came of {BYTES}", bytes.len());

        // A port where nobody listens is refused at once.
        shell(&mut machine, "nc 10.0.2.2 1 </dev/null || echo refused", "\nrefused");

        // A client of the host.
        machine.send("echo from the guest | nc -l -p 80; echo served\n");
        let mut text = String::new();
        while text.is_empty() {
            // The guest may not listen yet: it resets the connection then.
            let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it is forwarded");
            let _ = client.read_to_string(&mut text);
        }
        assert_eq!(text, "from the guest\n");
        machine.wait_for("\nserved");
        machine.wait_for("~ # ");

        // The monitor sees it, and pulls the cable.
        let mut qmp = machine.qmp();
        qmp.negotiate();
        let network = qmp.hmp("info network");
        let model = "virtio-net-device.0: index=0,type=nic,model=virtio-net-device,macaddr=52:54:00:12:34:56";
        assert!(network.contains(model), "{network}");
        assert!(
            network.contains(" \\ n0: index=0,type=user,net=10.0.2.0,restrict=off"),
            "{network}"
        );
        let usernet = qmp.hmp("info usernet");
        assert!(
            usernet.contains("TCP[HOST_FORWARD]") && usernet.contains("10.0.2.15    80"),
            "{usernet}"
        );
        let removed = qmp.hmp(&format!("hostfwd_remove n0 tcp:127.0.0.1:{port}"));
        assert!(removed.contains("removed"), "{removed}");
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        assert_eq!(qmp.hmp("set_link n0 off"), "");
        let carrier = "until grep -q 0 /sys/class/net/eth0/carrier; do :; done; echo is down";
        shell(&mut machine, carrier, "\nis down");
        assert_eq!(qmp.hmp("set_link n0 on"), "");
        let carrier = "until grep -q 1 /sys/class/net/eth0/carrier; do :; done; echo is back";
        shell(&mut machine, carrier, "\nis back");
        shell(&mut machine, "ping -c 1 10.0.2.2", "1 packets received");
        machine.send("poweroff\n");
        machine.finish().succeeded();
    }
}

/// The same card on PCI, and the frames that DHCP takes.
#[test]
fn a_card_on_pci() {
    let Some(vmm) = linux(Accel::Soft, "pc", "user,mac=52:54:00:00:00:77") else { return };
    let mut machine = vmm.with_hmp().start();
    machine.wait_for("~ # ");
    shell(&mut machine, "cat /sys/class/net/eth0/address", "\n52:54:00:00:00:77");
    let lease = "ip link set eth0 up; udhcpc -i eth0 -n -q -s /bin/true";
    shell(&mut machine, lease, "lease of 10.0.2.15 obtained from 10.0.2.2");
    let network = machine.hmp().command("info network");
    let model = "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:77";
    assert!(network.contains(model), "{network}");
    machine.send("poweroff\n");
    machine.finish().succeeded();
}

/// The guest's connections are made while the program is confined.
#[test]
fn the_sandbox_leaves_a_user_network_its_sockets() {
    let Some(vmm) = linux(Accel::Soft, "microvm", "user") else { return };
    let mut machine = vmm.args(["--sandbox", "on"]).with_hmp().start();
    machine.wait_for("~ # ");
    let address = "ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; echo is set";
    shell(&mut machine, address, "\nis set");
    let (server, thread) = serve(|mut client| client.write_all(b"from outside\n"));
    shell(&mut machine, &format!("nc 10.0.2.2 {server} </dev/null"), "\nfrom outside");
    thread.join().expect("it does not panic").expect("it is sent");
    // A name that nobody knows; what matters is that the question is sent.
    shell(&mut machine, "nc -u -w 1 10.0.2.3 53 </dev/null; echo asked", "\nasked");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let port = port.expect("a free port").port();
    let hmp = machine.hmp();
    assert_eq!(hmp.command(&format!("hostfwd_add tcp:127.0.0.1:{port}-:80")), "");
    TcpStream::connect(("127.0.0.1", port)).expect("it is forwarded");
    machine.send("poweroff\n");
    machine.finish().succeeded();
}

#[test]
fn backends_come_and_go() {
    on_each_accel(|accel| {
        let vmm = Vmm::new(accel).guest("hello").arg("-S").with_qmp();
        let machine = vmm.args(["--netdev", "user,id=a,net=10.9.0.0/16"]).start();
        let mut qmp = machine.qmp();
        qmp.negotiate();
        let mut hmp = |line: &str| qmp.hmp(line);
        assert_eq!(hmp("info network"), "a: index=0,type=user,net=10.9.0.0,restrict=off\n");
        assert_eq!(hmp("netdev_add user,id=b,restrict=on"), "");
        assert!(hmp("netdev_add user,id=b").contains("Duplicate ID 'b' for netdev"));
        assert!(hmp("netdev_add usr,id=c").contains("did you mean 'user'?"));
        assert!(hmp("hostfwd_add b tcp:5558").contains("Invalid host forwarding rule 'tcp:5558'"));
        assert!(hmp("hostfwd_remove tcp::5559").contains("rule for tcp::5559 not found"));
        assert!(hmp("set_link nope off").contains("Device 'nope' not found"));
        assert_eq!(hmp("netdev_del a"), "");
        assert!(hmp("netdev_del a").contains("Device 'a' not found"));
        assert_eq!(hmp("info network"), "b: index=0,type=user,net=10.0.2.0,restrict=on\n");
        let arguments = serde_json::json!({
            "type": "user", "id": "d", "hostfwd": [{ "str": "udp:127.0.0.1:0-:7" }],
        });
        let request = serde_json::json!({ "execute": "netdev_add", "arguments": arguments });
        qmp.send(&request.to_string());
        let answer = qmp.answer();
        assert!(answer.to_string().contains("not a port"), "{answer}");
        qmp.send("{\"execute\": \"quit\"}");
        machine.finish();
    });
}
