//! Backends with a real event loop on the test's thread and pipes, sockets and ptys at the far end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use board::device::{Notifier, Tag};
use board::event::{EventLoop, EventTarget};
use board::time::{Clock, VmTime};
use rustix::fs::{Mode, OFlags};

use super::host::HostFd;
use super::source::{Fixed, Peer};
use super::*;

/// A loop, and a record of what the backends told the program.
struct Rig {
    events: EventLoop,
    chardevs: Chardevs,
    host: Host,
    reports: Arc<Mutex<Vec<String>>>,
    keys: Arc<Mutex<Vec<HotKey>>>,
    directory: PathBuf,
}

impl Rig {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("chardev-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        let events = EventLoop::new(Clock::stopped()).unwrap();
        let (reports, keys) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let host = Host {
            events: events.handle(),
            escape: 1,
            hot_key: {
                let keys = keys.clone();
                Arc::new(move |key| keys.lock().unwrap().push(key))
            },
            report: {
                let reports = reports.clone();
                Arc::new(move |text| reports.lock().unwrap().push(text.to_owned()))
            },
        };
        let chardevs = Chardevs::new(host.clone());
        Self { events, chardevs, host, reports, keys, directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    fn open(&mut self, spec: &str) -> Arc<Chardev> {
        self.try_open(spec).unwrap_or_else(|e| panic!("{spec}: {e}"))
    }

    fn try_open(&mut self, spec: &str) -> Result<Arc<Chardev>, ChardevError> {
        let label = format!("serial{}", self.chardevs.info().len());
        self.chardevs.open(&BackendSpec::parse(spec)?, &label)
    }

    /// A multiplexed backend on a socket, whose far end is returned.
    fn mux(&mut self) -> (Arc<Chardev>, UnixStream) {
        let path = self.path("mux");
        let chardev = self.open(&format!("mon:unix:{path},server=on,wait=off"));
        let client = UnixStream::connect(path).unwrap();
        client.set_nonblocking(true).unwrap();
        self.turns();
        (chardev, client)
    }

    /// A backend on the given fds.
    fn on(&mut self, input: Option<HostFd>, output: Option<HostFd>) -> Arc<Chardev> {
        let peer = Peer { input, output, filename: "test".to_owned(), hangs_up: false };
        let source = Box::new(Fixed("gone".to_owned()));
        Chardev::new("test", false, &self.host, source, Some(peer)).unwrap()
    }

    /// Handles all that is due.
    fn turns(&mut self) {
        for _ in 0..8 {
            self.events.turn(Some(Duration::from_millis(1))).unwrap();
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < end, "no {what} within a minute");
            self.events.turn(Some(Duration::from_millis(5))).unwrap();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Counts notifications.
#[derive(Default)]
struct Bell(AtomicUsize);

impl EventTarget for Bell {
    fn event(&self, _tag: Tag, _now: VmTime) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    fn on(rig: &Rig, port: &mut dyn CharPort) -> Arc<Self> {
        let bell = Arc::new(Self::default());
        let target: Arc<dyn EventTarget> = bell.clone();
        port.set_notifier(Notifier::new(&rig.events.handle(), Arc::downgrade(&target), Tag(0)));
        bell
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn input_of(port: &mut dyn CharPort) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 100]);
    loop {
        let n = port.read(&mut piece);
        all.extend_from_slice(&piece[..n]);
        if n < piece.len() {
            return all;
        }
    }
}

/// What a nonblocking far end has got.
fn output_at(mut far: impl Read) -> String {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = far.read(&mut piece) {
        all.extend_from_slice(&piece[..n]);
    }
    String::from_utf8(all).unwrap()
}

/// Bytes that show a loss, a doubling or a change of order.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

fn nonblocking(fd: impl Into<OwnedFd>) -> HostFd {
    let fd = fd.into();
    rustix::io::ioctl_fionbio(&fd, true).unwrap();
    HostFd::nonblocking(fd)
}

#[test]
fn a_slow_reader_loses_nothing() {
    let mut rig = Rig::new();
    let (mut reader, writer) = io::pipe().unwrap();
    let chardev = rig.on(None, Some(nonblocking(writer)));
    let mut port = chardev.attach().unwrap();
    let bell = Bell::on(&rig, &mut *port);
    let sent = pattern(1 << 20);
    let (mut taken, mut refused) = (0, 0);
    let mut got = Vec::new();
    let mut piece = [0; 3000];
    while got.len() < sent.len() {
        while taken < sent.len() {
            let end = sent.len().min(taken + 5000);
            let n = port.write(&sent[taken..end]);
            taken += n;
            if n < 5000 {
                refused += 1;
                break;
            }
        }
        let rung = bell.count();
        let n = reader.read(&mut piece).unwrap();
        got.extend_from_slice(&piece[..n]);
        rig.events.turn(Some(Duration::ZERO)).unwrap();
        if taken - got.len() < 1000 && taken < sent.len() {
            rig.until("room", || bell.count() > rung);
        }
    }
    assert!(refused > 1, "the reader was never slow");
    assert!(bell.count() > 0, "told of room");
    assert!(got == sent);
}

#[test]
fn input_waits_while_the_frontend_does_not_read() {
    let mut rig = Rig::new();
    let (near, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let chardev = rig.on(Some(HostFd::socket(near.into())), None);
    let mut port = chardev.attach().unwrap();
    let bell = Bell::on(&rig, &mut *port);
    let all = pattern(4 << 20);
    let mut sent = 0;
    while let Ok(n) = far.write(&all[sent..]) {
        sent += n;
        rig.turns();
    }
    assert!(sent < all.len(), "the far end has to wait");
    let mut got = Vec::new();
    while got.len() < sent {
        let rung = bell.count();
        got.extend(input_of(&mut *port));
        if got.len() < sent {
            rig.until("input", || bell.count() > rung);
        }
    }
    assert!(got == all[..sent]);
}

#[test]
fn what_is_buffered_goes_out_at_the_end() {
    let mut rig = Rig::new();
    let (mut reader, writer) = io::pipe().unwrap();
    let chardev = rig.on(None, Some(nonblocking(writer)));
    let mut port = chardev.attach().unwrap();
    let sent = pattern(1 << 20);
    let taken = port.write(&sent);
    assert!(taken < sent.len());
    let thread = std::thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got
    });
    chardev.finish(Instant::now() + Duration::from_secs(3600));
    assert!(thread.join().unwrap() == sent[..taken]);
    assert_eq!(port.write(&sent), sent.len(), "thrown away from then on");
}

#[test]
fn the_end_does_not_wait_for_a_reader_that_is_gone() {
    let mut rig = Rig::new();
    let (reader, writer) = io::pipe().unwrap();
    let chardev = rig.on(None, Some(nonblocking(writer)));
    assert!(chardev.attach().unwrap().write(&pattern(1 << 20)) < 1 << 20);
    drop(reader);
    // A day, were it to wait.
    chardev.finish(Instant::now() + Duration::from_secs(86_400));
    assert!(rig.reports.lock().unwrap()[0].contains("Broken pipe"));
}

#[test]
fn a_full_disk_is_reported_once_and_does_not_hold_the_guest_up() {
    let mut rig = Rig::new();
    let chardev = rig.open("file:/dev/full");
    let mut port = chardev.attach().unwrap();
    assert_eq!(port.write(b"abc"), 3);
    assert_eq!(port.write(b"def"), 3);
    let reports = rig.reports.lock().unwrap();
    assert_eq!(reports.len(), 1);
    assert!(reports[0].contains("serial0: cannot write to file: No space left"), "{reports:?}");
}

#[test]
fn keys_go_to_the_frontend_with_the_focus() {
    let mut rig = Rig::new();
    let (chardev, mut far) = rig.mux();
    let (mut serial, mut monitor) = (chardev.attach().unwrap(), chardev.attach().unwrap());
    let bell = Bell::on(&rig, &mut *monitor);
    assert_eq!((serial.take_focus(), monitor.take_focus()), (Some(true), None));

    far.write_all(b"ls\x01cinfo\x01\x01").unwrap();
    rig.turns();
    assert_eq!((serial.take_focus(), monitor.take_focus()), (Some(false), Some(true)));
    assert_eq!(input_of(&mut *serial), b"ls");
    assert_eq!(input_of(&mut *monitor), b"info\x01");
    assert!(bell.count() > 0);

    far.write_all(b"\x01cx").unwrap();
    rig.turns();
    assert_eq!((serial.take_focus(), monitor.take_focus()), (Some(true), Some(false)));
    assert_eq!(input_of(&mut *serial), b"x");

    assert_eq!((serial.write(b"A"), monitor.write(b"B")), (1, 1));
    assert_eq!(output_at(&far), "AB", "output does not depend on the focus");
}

#[test]
fn a_break_reaches_the_frontend_with_the_focus() {
    let mut rig = Rig::new();
    let (chardev, mut far) = rig.mux();
    let (mut serial, mut monitor) = (chardev.attach().unwrap(), chardev.attach().unwrap());
    far.write_all(b"\x01b").unwrap();
    rig.turns();
    assert!(serial.take_break() && !serial.take_break() && !monitor.take_break());
    far.write_all(b"\x01c\x01b").unwrap();
    rig.turns();
    assert!(!serial.take_break() && monitor.take_break());
}

#[test]
fn hot_keys_and_help() {
    let mut rig = Rig::new();
    let (chardev, mut far) = rig.mux();
    let mut port = chardev.attach().unwrap();
    far.write_all(b"\x01h").unwrap();
    rig.turns();
    let help = output_at(&far);
    assert!(help.contains("Ctrl-A x       quit\r\n"), "{help}");
    far.write_all(b"\x01s\x01x").unwrap();
    rig.turns();
    assert_eq!(*rig.keys.lock().unwrap(), [HotKey::SaveDisks, HotKey::Quit]);
    assert!(output_at(&far).contains("terminated"));
    assert_eq!(input_of(&mut *port), b"");
}

#[test]
fn the_escape_key_works_while_the_guest_does_not_read() {
    let mut rig = Rig::new();
    let (chardev, mut far) = rig.mux();
    let (_serial, mut monitor) = (chardev.attach().unwrap(), chardev.attach().unwrap());
    far.write_all(&[b'y'; 1000]).unwrap();
    far.write_all(b"\x01cq").unwrap();
    rig.turns();
    assert_eq!(input_of(&mut *monitor), b"q");
}

#[test]
fn time_stamps_stand_before_each_line() {
    let mut rig = Rig::new();
    let (chardev, mut far) = rig.mux();
    let mut port = chardev.attach().unwrap();
    far.write_all(b"\x01t").unwrap();
    rig.turns();
    for piece in [&b"on"[..], b"e\ntwo\n", b"th"] {
        assert_eq!(port.write(piece), piece.len());
    }
    let text = output_at(&far);
    let lines: Vec<_> = text.lines().map(|line| line.split_at(15)).collect();
    let texts: Vec<_> = lines.iter().map(|(_, text)| *text).collect();
    assert_eq!(texts, ["one", "two", "th"]);
    assert!(lines.iter().all(|(stamp, _)| stamp.starts_with("[00:00:") && stamp.ends_with("] ")));
}

#[test]
fn the_focus_leaves_a_frontend_that_goes() {
    let mut rig = Rig::new();
    let (chardev, mut far) = rig.mux();
    let (serial, mut monitor) = (chardev.attach().unwrap(), chardev.attach().unwrap());
    drop(serial);
    assert_eq!(monitor.take_focus(), Some(true));
    far.write_all(b"m").unwrap();
    rig.turns();
    assert_eq!(input_of(&mut *monitor), b"m");
    drop(monitor);
    far.write_all(b"n").unwrap();
    rig.turns();
    let mut next = chardev.attach().unwrap();
    rig.turns();
    assert_eq!(input_of(&mut *next), b"n", "input waits for the next frontend");
}

#[test]
fn stdin_may_be_a_file() {
    let mut rig = Rig::new();
    let (input, output) = (rig.path("in"), rig.path("out"));
    fs::write(&input, pattern(10_000)).unwrap();
    let (stdin, stdout) = (File::open(input).unwrap(), File::create(&output).unwrap());
    let peer = stdio::peer(stdin.as_fd(), stdout.as_fd()).unwrap();
    let chardev = rig.on(peer.input, peer.output);
    let mut port = chardev.attach().unwrap();
    let mut got = Vec::new();
    rig.until("whole file", || {
        got.extend(input_of(&mut *port));
        got.len() >= 10_000
    });
    assert!(got == pattern(10_000));
    rig.turns();
    assert_eq!(port.write(b"after the end of input"), 22);
    assert_eq!(fs::read(output).unwrap(), b"after the end of input");
}

#[test]
fn stdin_may_be_dev_null() {
    let mut rig = Rig::new();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let peer = stdio::peer(null.as_fd(), null.as_fd()).unwrap();
    let chardev = rig.on(peer.input, peer.output);
    let mut port = chardev.attach().unwrap();
    rig.turns();
    assert_eq!(input_of(&mut *port), b"");
    assert_eq!(port.write(b"x"), 1);
}

#[test]
fn null_takes_all_and_gives_nothing() {
    let mut rig = Rig::new();
    let chardev = rig.open("null");
    let mut port = chardev.attach().unwrap();
    assert_eq!((port.write(&[0; 100_000]), port.read(&mut [0; 1])), (100_000, 0));
    assert_eq!(port.take_focus(), None);
    assert_eq!(chardev.info()[0].filename, "null");
}

#[test]
fn files_are_begun_anew_or_continued() {
    let mut rig = Rig::new();
    let path = rig.path("log");
    for (spec, expected) in [
        (format!("file:{path}"), "a"),
        (format!("file:{path},append=on"), "aa"),
        (format!("file:{path},append=off"), "a"),
    ] {
        let chardev = rig.open(&spec);
        assert_eq!(chardev.attach().unwrap().write(b"a"), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }
}

#[test]
fn a_pair_of_fifos_outlives_its_users() {
    let mut rig = Rig::new();
    let path = rig.path("p");
    for suffix in ["in", "out"] {
        let name = format!("{path}.{suffix}");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            name,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
    }
    let chardev = rig.open(&format!("pipe:{path}"));
    let mut port = chardev.attach().unwrap();
    for text in [b"one", b"two"] {
        fs::write(format!("{path}.in"), text).unwrap();
        rig.turns();
        assert_eq!(input_of(&mut *port), text);
        assert_eq!(port.write(text), 3);
        let mut got = [0; 3];
        File::open(format!("{path}.out")).unwrap().read_exact(&mut got).unwrap();
        assert_eq!(&got, text);
    }
    assert_eq!(chardev.info()[0].filename, "pipe");
}

#[test]
fn a_unix_server_has_one_client_after_the_other() {
    let mut rig = Rig::new();
    let path = rig.path("s");
    let chardev = rig.open(&format!("unix:{path},server,nowait"));
    let mut port = chardev.attach().unwrap();
    let filename = |c: &Chardev| c.info()[0].filename.clone();
    assert_eq!(filename(&chardev), format!("disconnected:unix:{path},server=on"));
    assert_eq!(port.take_focus(), None);
    assert_eq!(port.write(b"to nobody"), 9);

    for round in [b"1", b"2"] {
        let mut far = UnixStream::connect(&path).unwrap();
        rig.turns();
        assert_eq!(filename(&chardev), format!("unix:{path},server=on"));
        assert_eq!(port.take_focus(), Some(true));
        far.write_all(round).unwrap();
        rig.turns();
        assert_eq!(input_of(&mut *port), round);
        assert_eq!(port.write(round), 1);
        let mut got = [0; 1];
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, round);
        drop(far);
        rig.turns();
        assert_eq!(port.take_focus(), Some(false));
        assert_eq!(port.write(b"to nobody"), 9);
    }
    rig.chardevs.finish(Duration::ZERO);
    assert!(!fs::exists(path).unwrap(), "the socket's file is gone");
}

#[test]
fn a_second_client_waits_for_the_first_to_go() {
    let mut rig = Rig::new();
    let path = rig.path("s");
    let chardev = rig.open(&format!("unix:{path},server,nowait"));
    let mut port = chardev.attach().unwrap();
    let first = UnixStream::connect(&path).unwrap();
    rig.turns();
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"second").unwrap();
    rig.turns();
    assert_eq!(input_of(&mut *port), b"");
    drop(first);
    rig.turns();
    assert_eq!(input_of(&mut *port), b"second");
    assert_eq!(port.take_focus(), Some(true));
}

#[test]
fn a_client_that_has_said_all_still_gets_its_output() {
    let mut rig = Rig::new();
    let (chardev, mut far) = rig.mux();
    let mut port = chardev.attach().unwrap();
    let sent = pattern(1 << 20);
    let taken = port.write(&sent);
    assert!(taken < sent.len());
    far.shutdown(std::net::Shutdown::Write).unwrap();
    rig.turns();
    far.set_nonblocking(false).unwrap();
    let mut got = vec![0; taken];
    let thread = std::thread::spawn(move || {
        far.read_exact(&mut got).unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0, "then the connection ends");
        got
    });
    rig.until("end", || thread.is_finished());
    assert!(thread.join().unwrap() == sent[..taken]);
    assert_eq!(port.take_focus(), Some(false));
}

#[test]
fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
    let mut rig = Rig::new();
    let path = rig.path("s");
    drop(UnixListener::bind(&path).unwrap());
    let chardev = rig.open(&format!("unix:{path},server,nowait"));
    let message = rig.try_open(&format!("unix:{path},server,nowait")).err().unwrap().to_string();
    assert!(message.contains("Address already in use: another program"), "{message}");
    UnixStream::connect(&path).unwrap();
    rig.turns();
    drop(chardev);

    let file = rig.path("file");
    fs::write(&file, "precious").unwrap();
    assert!(rig.try_open(&format!("unix:{file},server,nowait")).is_err());
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn a_tcp_server_shows_its_port_and_its_client() {
    let mut rig = Rig::new();
    let chardev = rig.open("tcp:127.0.0.1:0,server,nowait,nodelay");
    let filename = chardev.info()[0].filename.clone();
    let address = filename.strip_prefix("disconnected:tcp:").unwrap();
    let address = address.strip_suffix(",server=on").unwrap();
    assert!(!address.ends_with(":0"));
    let mut far = TcpStream::connect(address).unwrap();
    let mut port = chardev.attach().unwrap();
    far.write_all(b"hello").unwrap();
    let mut got = Vec::new();
    rig.until("input", || {
        got.extend(input_of(&mut *port));
        got == b"hello"
    });
    let expected = format!("tcp:{address},server=on <-> {}", far.local_addr().unwrap());
    assert_eq!(chardev.info()[0].filename, expected);
    let message = rig.try_open(&format!("tcp:{address},server,nowait")).err().unwrap().to_string();
    assert!(message.contains("choose another port"), "{message}");
}

#[test]
fn a_server_that_waits_has_its_client_from_the_start() {
    let mut rig = Rig::new();
    let path = rig.path("s");
    let client = std::thread::spawn({
        let path = path.clone();
        move || loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return stream,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    let chardev = rig.open(&format!("unix:{path},server"));
    assert_eq!(chardev.attach().unwrap().take_focus(), Some(true));
    drop(client.join().unwrap());
    let report = &rig.reports.lock().unwrap()[0];
    assert!(report.starts_with("waiting for connection on: disconnected:unix:"), "{report}");
}

#[test]
fn a_client_connects_and_says_when_it_cannot() {
    let mut rig = Rig::new();
    let path = rig.path("s");
    let message = rig.try_open(&format!("unix:{path}")).err().unwrap().to_string();
    assert!(message.contains("start the server first"), "{message}");
    let listener = UnixListener::bind(&path).unwrap();
    let chardev = rig.open(&format!("unix:{path}"));
    let (far, _) = listener.accept().unwrap();
    assert_eq!(chardev.info()[0].filename, format!("unix:{path}"));
    drop(far);
    let _port = chardev.attach().unwrap();
    rig.turns();
    assert_eq!(chardev.info()[0].filename, format!("disconnected:unix:{path}"));
}

#[test]
fn a_pty_survives_its_users() {
    let mut rig = Rig::new();
    let chardev = rig.open("pty");
    let mut port = chardev.attach().unwrap();
    let report = rig.reports.lock().unwrap()[0].clone();
    let name = report.strip_prefix("char device redirected to ").unwrap();
    let name = name.strip_suffix(" (label serial0)").unwrap();
    assert_eq!(chardev.info()[0].filename, format!("pty:{name}"));
    assert_eq!(port.write(&[b'x'; 1 << 20]), 1 << 20, "nobody is there to wait for");
    for text in ["first\x03\n", "second\r"] {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
        let mut far = File::from(rustix::fs::open(name, flags, Mode::empty()).unwrap());
        let size = rustix::termios::Winsize { ws_row: 0, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&far, size).unwrap();
        rig.turns();
        assert_eq!((port.take_focus(), port.width()), (Some(true), Some(99)));
        far.write_all(text.as_bytes()).unwrap();
        rig.turns();
        assert_eq!(input_of(&mut *port), text.as_bytes(), "as raw as it was written");
        assert_eq!(port.write(text.as_bytes()), text.len());
        assert_eq!(output_at(&far), text);
        drop(far);
        rig.turns();
        assert_eq!((port.take_focus(), port.width()), (Some(false), None));
    }
    fs::write(name, "in passing").unwrap();
    rig.turns();
    assert_eq!(input_of(&mut *port), b"in passing");
}

#[test]
fn a_pty_whose_user_is_slow_loses_nothing() {
    let mut rig = Rig::new();
    let chardev = rig.open("pty");
    let mut port = chardev.attach().unwrap();
    let filename = chardev.info()[0].filename.clone();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    let far = rustix::fs::open(&filename["pty:".len()..], flags, Mode::empty()).unwrap();
    let mut far = File::from(far);
    rig.turns();
    let sent: Vec<u8> = pattern(300_000);
    let (mut taken, mut got, mut piece) = (0, Vec::new(), [0; 1000]);
    rig.until("all of it", || {
        taken += port.write(&sent[taken..]);
        if let Ok(n) = far.read(&mut piece) {
            got.extend_from_slice(&piece[..n]);
        }
        got.len() >= sent.len()
    });
    assert!(got == sent);
}

#[test]
fn backends_have_names() {
    let mut rig = Rig::new();
    let spec = BackendSpec::parse_keyed("null,id=con0").unwrap();
    let made = rig.chardevs.open(&spec, "unused").unwrap();
    assert_eq!(made.label(), "con0");
    assert!(Arc::ptr_eq(&made, &rig.open("chardev:con0")));
    let failure = |rig: &mut Rig, spec: &str| rig.try_open(spec).err().unwrap().to_string();
    assert!(failure(&mut rig, "chardev:con1").contains("did you mean 'con0'?"));
    let message = rig.chardevs.open(&spec, "unused").err().unwrap().to_string();
    assert!(message.contains("two character backends named 'con0'"));
    let _port = made.attach().unwrap();
    assert!(made.attach().err().unwrap().to_string().contains("mux=on"));
}

#[test]
fn info_shows_a_multiplexer_and_its_base() {
    let mut rig = Rig::new();
    let (chardev, _far) = rig.mux();
    let _port = chardev.attach().unwrap();
    let lines: Vec<_> =
        rig.chardevs.info().into_iter().map(|i| (i.label, i.filename, i.frontend_open)).collect();
    let base = format!("unix:{},server=on", rig.path("mux"));
    assert_eq!(
        lines,
        [("serial0".into(), "mux".into(), true), ("serial0-base".into(), base, true)]
    );
}

#[test]
fn paths_that_cannot_be_had() {
    let mut rig = Rig::new();
    let directory = rig.path("");
    for (spec, part) in [
        (format!("file:{directory}no/where"), "create it, or the directory"),
        (format!("file:{directory}"), "give the name of a file in it"),
        (format!("pipe:{directory}p"), "mkfifo"),
        (format!("unix:{directory}no/where,server,nowait"), "create the directory"),
        (format!("unix:{directory}{},server,nowait", "x".repeat(200)), "shorter path"),
        ("tcp:no.such.host.invalid:1,server,nowait".to_owned(), "address of this host"),
        ("tcp:127.0.0.1:1".to_owned(), "start the server first"),
    ] {
        let message = rig.try_open(&spec).err().unwrap_or_else(|| panic!("{spec}")).to_string();
        assert!(message.contains(part) && !message.contains('\n'), "{spec}: {message}");
    }
}
