//! Networks apart from any guest: the card's rings driven as a driver would, and the host's own TCP
//! as the guest of the user network, by way of a tap interface in a network namespace.
//!
//! `cargo bench -p devices --features fuzz --bench net`; what needs a tap interface needs root and `ip`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use board::device::{Notifier, Tag};
use board::event::EventTarget;
use board::{Clock, EventLoop, VmTime};
use devices::net::{
    Gather, MacAddress, NetHeader, NetPort, NetdevKind, NetdevSpec, Netdevs, Offloads, Sent,
    TapConfig, UserConfig,
};
use devices::virtio::driver::{Buffer, Rig, poke};
use devices::virtio::net::{Net, NetOptions};

/// How long each row runs.
const ROW: Duration = Duration::from_millis(500);
/// The card's transmit queue, and frames in flight on it.
const TX: u32 = 1;
const DEPTH: u64 = 32;
/// Bytes of the header in front of a frame.
const HEADER: u32 = 12;
/// Bytes that go each way through the user network.
const TCP_BYTES: usize = 512 << 20;

/// User and system time of this process.
fn cpu_time() -> Duration {
    // SAFETY: an all-zero rusage is valid, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|t| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000))
        .sum()
}

fn print_row(name: &str, frames: f64, bytes: f64, time: Duration, cpu: Duration) {
    let seconds = time.as_secs_f64();
    let rate = if frames > 0.0 { format!("{:.0}", frames / seconds) } else { "-".to_owned() };
    println!(
        "{name:44} {rate:>12} {:>10.0} {:>10.2}",
        bytes / seconds / 1e6,
        cpu.as_secs_f64() / bytes * 1e9
    );
}

fn tap(ifname: &str) -> NetdevKind {
    let script = std::env::temp_dir().join(format!("vmm-bench-up-{}", std::process::id()));
    let text = "#!/bin/sh -e\nip addr add 10.0.2.15/24 dev $1\nip link set $1 up\n\
                ip route add default via 10.0.2.2\n";
    std::fs::write(&script, text).expect("the temporary directory is writable");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("it is ours");
    NetdevKind::Tap(TapConfig {
        ifname: Some(ifname.to_owned()),
        script: Some(script),
        vnet_hdr: true,
        ..TapConfig::default()
    })
}

/// Frames of `len` bytes out of the card, to nobody or to a tap interface.
fn transmit(kind: Option<NetdevKind>, len: u32, name: &str) {
    let mut rig = Rig::new(64 << 20, |attach, _| {
        let mut netdevs = Netdevs::new(attach.event_loop());
        let port = kind.map_or(NetPort::default(), |kind| {
            let netdev = netdevs.add(&NetdevSpec { id: "n".to_owned(), kind });
            netdev.and_then(|netdev| netdev.attach()).expect("the host has one")
        });
        Box::new(Net::new(port, NetOptions::new(MacAddress::of_card(0)), attach))
    });
    let mut ring = rig.start(u64::MAX, 256).remove(TX as usize);
    // An IPv4 packet of a protocol that nobody speaks, to nobody: the host's kernel drops it.
    let mut frame = vec![0; len as usize];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame[14] = 0x45;
    poke(&rig.ram, Rig::BUFFERS + u64::from(HEADER), &frame);
    let (start, cpu) = (Instant::now(), cpu_time());
    let (mut flying, mut done) = (0, 0_u64);
    while start.elapsed() < ROW {
        while flying < DEPTH {
            ring.add(&[Buffer::out(Rig::BUFFERS, HEADER + len)]);
            flying += 1;
        }
        if ring.wants_ring() {
            rig.write(0x50, TX);
        }
        let before = flying;
        while flying == before {
            rig.events.turn(Some(Duration::from_millis(100))).expect("epoll works");
            while ring.take().is_some() {
                flying -= 1;
                done += 1;
            }
        }
        rig.interrupts();
    }
    let bytes = done as f64 * f64::from(len);
    print_row(name, done as f64, bytes, start.elapsed(), cpu_time() - cpu);
}

/// Carries frames between two backends.
struct Pump(Mutex<(NetPort, NetPort)>);

impl EventTarget for Pump {
    fn event(&self, _tag: Tag, _now: VmTime) {
        let Ok(mut ports) = self.0.lock() else { return };
        let (one, other) = &mut *ports;
        pump(one, other);
        pump(other, one);
    }
}

fn pump(from: &mut NetPort, to: &mut NetPort) {
    from.receive(0, &mut |header: &NetHeader, frame| {
        to.send(0, header, Gather::new(frame)) == Sent::Done
    });
}

/// The host's TCP in a namespace as the guest, the user network between it and the host.
fn tcp(offloads: Offloads, name: &str) {
    let mut events = EventLoop::new(Clock::running()).expect("the host has fds");
    let mut netdevs = Netdevs::new(&events.handle());
    let mut port = |id: &str, kind| {
        let netdev = netdevs.add(&NetdevSpec { id: id.to_owned(), kind });
        let mut port = netdev.and_then(|netdev| netdev.attach()).expect("the host has one");
        port.set_offloads(offloads);
        port
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let place = (Ipv4Addr::new(10, 0, 2, 2), listener.local_addr().expect("it is bound").port());
    // The interface belongs to the namespace that this thread is in from now on; the sockets of the
    // user network are made on it too, so they have to be on another one.
    let (sender, receiver) = std::sync::mpsc::channel();
    let inner = thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: it concerns this thread alone.
                if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                    return None;
                }
                let port = port("tap", tap("vmmbench1"));
                let client = thread::spawn(move || {
                    let way: bool = receiver.recv().unwrap_or(false);
                    let mut stream = TcpStream::connect(place).expect("the user network answers");
                    carry(&mut stream, way);
                    let way: bool = receiver.recv().unwrap_or(false);
                    let mut stream = TcpStream::connect(place).expect("the user network answers");
                    carry(&mut stream, way);
                });
                Some((port, client))
            })
            .join()
            .ok()
            .flatten()
    });
    let Some((one, client)) = inner else { return println!("{name:44} NOT RUN: it needs root") };
    let other = port("user", NetdevKind::User(UserConfig::default()));
    let pump = Arc::new(Pump(Mutex::new((one, other))));
    let target: Arc<dyn EventTarget> = pump.clone();
    let target: Weak<dyn EventTarget> = Arc::downgrade(&target);
    if let Ok(mut ports) = pump.0.lock() {
        let notifier = || Notifier::new(&events.handle(), target.clone(), Tag(0));
        ports.0.set_notifier(notifier());
        ports.1.set_notifier(notifier());
    }
    let server = thread::spawn(move || {
        for (way, word) in [(true, "guest to host"), (false, "host to guest")] {
            sender.send(way).expect("the client waits");
            let (mut stream, _) = listener.accept().expect("the client comes");
            let (start, cpu) = (Instant::now(), cpu_time());
            carry(&mut stream, !way);
            print_way(word, start, cpu);
        }
    });
    println!("{name}");
    // What the server has sent is on its way to the client for a while.
    while !server.is_finished() || !client.is_finished() {
        events.turn(Some(Duration::from_millis(100))).expect("epoll works");
    }
    for thread in [server, client] {
        thread.join().expect("it does not panic");
    }
}

fn print_way(word: &str, start: Instant, cpu: Duration) {
    let name = format!("  {word}, both ends' TCP included");
    print_row(&name, 0.0, TCP_BYTES as f64, start.elapsed(), cpu_time() - cpu);
}

/// Sends or takes all bytes.
fn carry(stream: &mut TcpStream, send: bool) {
    let mut buffer = vec![0; 1 << 17];
    let mut left = TCP_BYTES;
    while left > 0 {
        let len = buffer.len().min(left);
        match if send { stream.write(&buffer[..len]) } else { stream.read(&mut buffer[..len]) } {
            Ok(len) if len > 0 => left -= len,
            _ => return,
        }
    }
}

fn main() {
    println!("{:44} {:>12} {:>10} {:>10}", "what", "frames/s", "MB/s", "CPU ns/B");
    for (len, size) in [(60, "60 bytes"), (1514, "1514 bytes"), (65_000, "65000 bytes")] {
        transmit(None, len, &format!("net (null), transmit {size}"));
    }
    let here = thread::spawn(|| {
        // SAFETY: it concerns this thread alone, which then makes a tap interface of its own.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return println!("net (tap) NOT RUN: it needs root");
        }
        for (len, size) in [(60, "60 bytes"), (1514, "1514 bytes")] {
            transmit(Some(tap("vmmbench0")), len, &format!("net (tap), transmit {size}"));
        }
    });
    here.join().expect("it does not panic");
    tcp(Offloads::all(), "user network, large segments");
    tcp(Offloads::empty(), "user network, no offloads");
    let script: PathBuf = std::env::temp_dir().join(format!("vmm-bench-up-{}", std::process::id()));
    // It is not there where no tap interface could be made.
    let _ = std::fs::remove_file(script);
}
