//! The console: the terminal is put back on every way out, nothing is lost on the way in or out, and
//! stdin and stdout may be anything.

use std::fs::{self, File};
use std::io::{PipeReader, Read, Write, pipe};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tests::{
    Accel, Machine, Terminal, Transcript, Vmm, emulates_ring0, file_of, guest, on_each_accel, soak,
};

/// A spinning guest on a terminal, which is raw by then.
fn on_terminal(accel: Accel, terminal: &Terminal, backend: &str) -> Machine {
    let before = terminal.settings();
    let vmm = Vmm::new(accel).guest("spin").serial(Some(backend)).monitor(None);
    let machine = vmm.start_on(terminal);
    terminal.wait_for("spinning", machine.deadline());
    assert_ne!(terminal.settings(), before, "the terminal is not raw");
    machine
}

#[test]
fn the_terminal_is_put_back_after_a_signal() {
    on_each_accel(|accel| {
        let terminal = Terminal::new();
        let before = terminal.settings();
        for backend in ["mon:stdio", "stdio"] {
            for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
                let machine = on_terminal(accel, &terminal, backend);
                machine.signal(signal);
                machine.finish().succeeded();
                assert_eq!(terminal.settings(), before, "{backend}, {signal:?}");
            }
        }
    });
}

#[test]
fn the_terminal_is_put_back_after_the_users_keys() {
    on_each_accel(|accel| {
        let terminal = Terminal::new();
        let before = terminal.settings();
        // Without a monitor on it, Ctrl-C is for the program; with one it is for the guest.
        for (backend, keys) in
            [("stdio", "\x03"), ("mon:stdio", "\x01x"), ("mon:stdio", "\x03\x01cquit\n")]
        {
            let machine = on_terminal(accel, &terminal, backend);
            terminal.send(keys);
            machine.finish().succeeded();
            assert_eq!(terminal.settings(), before, "{backend}, {keys:?}");
        }
    });
}

#[test]
fn the_terminal_is_put_back_after_the_guests_end() {
    on_each_accel(|accel| {
        let terminal = Terminal::new();
        let before = terminal.settings();
        for (name, words, status) in
            [("hello", "", 0), ("triplefault", "", 0), ("doorbell", "pio:0xf4:4=20", 41)]
        {
            let vmm = Vmm::new(accel).guest(name).append(words).arg("--no-reboot");
            let machine = vmm.serial(None).monitor(None).start_on(&terminal);
            machine.finish().ended_with(status);
            assert_eq!(terminal.settings(), before, "{name}");
        }
    });
}

#[test]
fn a_terminal_that_goes_away_ends_the_program() {
    on_each_accel(|accel| {
        let terminal = Terminal::new();
        let machine = on_terminal(accel, &terminal, "mon:stdio");
        machine.signal(Signal::HUP);
        drop(terminal);
        machine.finish().ended_with(0);
    });
}

/// Bytes that look like nothing else, without Ctrl-D, which ends the guest.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x1234_5678_u32;
    let mut byte = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        if x as u8 == 4 { 5 } else { x as u8 }
    };
    (0..len).map(|_| byte()).collect()
}

/// Reads to the end, late and in small pieces at first, so that the pipe fills up.
fn read_slowly(mut pipe: PipeReader) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = [0; 1000];
    thread::sleep(Duration::from_millis(300));
    for round in 0.. {
        match pipe.read(&mut piece).unwrap() {
            0 => break,
            count => all.extend_from_slice(&piece[..count]),
        }
        if round < 100 {
            thread::sleep(Duration::from_millis(10));
        }
    }
    all
}

#[test]
fn nothing_is_lost_when_the_reader_is_slow() {
    on_each_accel(|accel| {
        // More than a pipe holds, so that it backs up to the guest on both sides.
        let slow = accel == Accel::Kvm && emulates_ring0();
        let len = if slow { soak(160 << 10, 1 << 20) } else { 1 << 20 } as usize;
        for words in ["", "irq"] {
            let (reader, writer) = pipe().unwrap();
            let vmm = Vmm::new(accel).guest("echo").append(words).within(soak(170, 1800));
            let mut machine = vmm.start_with(Stdio::piped(), writer);
            let mut stdin = machine.take_stdin();
            let sent = noise(len);
            let typing = sent.clone();
            let typist = thread::spawn(move || {
                stdin.write_all(&typing).unwrap();
                stdin.write_all(&[4]).unwrap();
            });
            let came = read_slowly(reader);
            typist.join().unwrap();
            machine.finish().succeeded();
            let head = b"echo\r\nready\r\n".len();
            let tail = b"\r\nok\r\n".len();
            assert_eq!(came.len(), head + len + tail, "{words:?}: bytes are lost or doubled");
            assert!(came[head..head + len] == sent, "{words:?}: bytes are changed");
        }
    });
}

#[test]
fn a_reader_that_goes_away_ends_nothing() {
    on_each_accel(|accel| {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let vmm = Vmm::new(accel).guest("hello");
        vmm.start_with(Stdio::null(), writer).finish().ended_with(0);
        let full = Vmm::new(accel).guest("hello").redirected(">/dev/full").start();
        full.finish().ended_with(0);
        let closed = Vmm::new(accel).guest("hello").redirected(">&-").start();
        closed.finish().ended_with(0);
    });
}

#[test]
fn stdin_may_be_closed_or_nothing_or_a_file() {
    on_each_accel(|accel| {
        for redirection in ["<&-", "</dev/null", "</"] {
            for backend in ["stdio", "mon:stdio"] {
                let vmm = Vmm::new(accel).guest("hello").serial(Some(backend)).monitor(None);
                let finished = vmm.redirected(redirection).start().finish();
                finished.succeeded().says(&["Hello from vmm guest\n", "ok\n"]);
            }
        }
        let vmm = Vmm::new(accel).guest("echo");
        let text = [&noise(20_000)[..], &[4]].concat();
        let input = File::open(file_of(vmm.dir(), "input", &text)).unwrap();
        let finished = vmm.start_with(input, Stdio::piped()).finish();
        let head = b"echo\r\nready\r\n".len();
        assert!(finished.output[head..].starts_with(&text[..20_000]));
        finished.ended_with(0);
    });
}

#[test]
fn stdout_may_be_a_file() {
    on_each_accel(|accel| {
        let vmm = Vmm::new(accel).guest("counter").append("rounds=2 user=100");
        let path = file_of(vmm.dir(), "output", b"");
        let file = File::options().append(true).open(&path).unwrap();
        let machine = vmm.start_with(Stdio::null(), file);
        // The directory goes with the machine.
        let text = wait_for_text(&machine, &path, "ok\r\n");
        assert!(text.starts_with("counter\r\nround 1 "), "{text}");
        machine.finish().ended_with(0);
    });
}

fn wait_for_text(machine: &Machine, path: &Path, end: &str) -> String {
    loop {
        let text = fs::read_to_string(path).unwrap();
        if text.ends_with(end) {
            return text;
        }
        assert!(std::time::Instant::now() < machine.deadline(), "{}: {text}", path.display());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn serial_on_a_socket_a_file_and_a_pseudo_terminal() {
    on_each_accel(|accel| {
        // A socket, which the guest waits for.
        let vmm = Vmm::new(accel).guest("echo");
        let path = vmm.dir().join("serial");
        let machine = vmm.serial(Some(&format!("unix:{},server=on", path.display()))).start();
        let mut stream = connect(&machine, &path);
        let output = Transcript::of(stream.try_clone().unwrap());
        output.wait_for("ready\r\n", machine.deadline());
        stream.write_all(b"by socket").unwrap();
        output.wait_for("by socket", machine.deadline());
        stream.write_all(&[4]).unwrap();
        output.wait_for("ok", machine.deadline());
        let finished = machine.finish();
        finished.ended_with(0);
        assert!(finished.files.is_empty(), "left behind: {:?}", finished.files);

        // A file.
        let vmm = Vmm::new(accel).guest("hello");
        let path = vmm.dir().join("serial");
        let machine = vmm.serial(Some(&format!("file:{}", path.display()))).start();
        let kept = machine.dir().join("serial");
        wait_for_file(&machine, &kept);
        wait_for_text(&machine, &kept, "ok\r\n");
        machine.finish().ended_with(0);

        // A pseudo-terminal, whose name is told.
        let machine = Vmm::new(accel).guest("echo").serial(Some("pty")).start();
        let said = machine.wait_for_error(" (label serial0)");
        let name = said.split_whitespace().find(|word| word.starts_with("/dev/pts/")).unwrap();
        let mut line = Terminal::open(Path::new(name));
        let output = Transcript::of(line.try_clone().unwrap());
        line.write_all(b"by pty").unwrap();
        output.wait_for("by pty", machine.deadline());
        line.write_all(&[4]).unwrap();
        machine.finish().ended_with(0);
    });
}

fn wait_for_file(machine: &Machine, path: &Path) {
    while !path.exists() {
        assert!(std::time::Instant::now() < machine.deadline(), "no {}", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}

fn connect(machine: &Machine, path: &Path) -> UnixStream {
    wait_for_file(machine, path);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(e) if std::time::Instant::now() > machine.deadline() => panic!("{e}"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn the_debug_console_has_a_backend_of_its_own() {
    on_each_accel(|accel| {
        let vmm = Vmm::new(accel).arg("--kernel").arg(guest("null"));
        let path = vmm.dir().join("debug");
        let chardev = format!("file,id=d,path={}", path.display());
        let vmm = vmm.args(["--chardev", &chardev, "--device", "isa-debugcon,chardev=d"]);
        let mut machine = vmm.start();
        assert!(machine.ends_within(Duration::from_secs(50)));
        assert_eq!(fs::read(machine.dir().join("debug")).unwrap(), b"!");
        machine.finish().succeeded();
    });
}

#[test]
fn the_pidfile_is_there_while_the_program_is() {
    on_each_accel(|accel| {
        let vmm = Vmm::new(accel).guest("spin");
        let path = vmm.dir().join("pid");
        let machine = vmm.arg("--pidfile").arg(&path).start();
        machine.wait_for("spinning");
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", machine.pid()));
        machine.signal(Signal::TERM);
        let finished = machine.finish();
        finished.succeeded();
        assert!(finished.files.is_empty(), "left behind: {:?}", finished.files);
    });
}
