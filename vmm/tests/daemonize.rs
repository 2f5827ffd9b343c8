//! `--daemonize`: whoever starts the program learns by its exit status whether there is a machine.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Files of one test, removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vmm-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        // Firmware that halts at once: hlt at the reset vector, 16 bytes before the end.
        let mut rom = vec![0; 1 << 16];
        rom[0xFFF0..0xFFF3].copy_from_slice(&[0xF4, 0xEB, 0xFD]);
        fs::write(path.join("rom"), rom).unwrap();
        Self(path)
    }

    /// Runs the program here, with its output going to files: a pipe would stay open in the
    /// background process if that did not let go of it, and this is not to hang then.
    fn run(&self, args: &str) -> Output {
        let file = |name| fs::File::create(self.0.join(name)).unwrap();
        let status = Command::new(env!("CARGO_BIN_EXE_vmm"))
            .args(args.split(' '))
            .current_dir(&self.0)
            .stdin(std::process::Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .status()
            .unwrap();
        let read = |name| fs::read(self.0.join(name)).unwrap();
        Output { status, stdout: read("stdout"), stderr: read("stderr") }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn has_kvm(test: &str) -> bool {
    let usable = cfg!(feature = "kvm")
        && fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        eprintln!("NOT RUN: {test}: /dev/kvm cannot be opened");
    }
    usable
}

#[test]
fn the_machine_stays_when_the_command_has_ended() {
    if !has_kvm("daemonize") {
        return;
    }
    let directory = Directory::new("daemonize");
    let output = directory
        .run("-enable-kvm -bios rom -daemonize -pidfile pid -monitor unix:monitor,server,nowait");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pid = fs::read_to_string(directory.0.join("pid")).unwrap();
    let process = PathBuf::from("/proc").join(pid.trim());
    for fd in 0..3 {
        let target = fs::read_link(process.join(format!("fd/{fd}"))).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let (session, terminal) = (fields[3], fields[4]);
    assert!(session != pid.trim() && terminal == "0", "it leads no session, has no terminal");

    let mut monitor = UnixStream::connect(directory.0.join("monitor")).unwrap();
    monitor.write_all(b"info status\nquit\n").unwrap();
    let mut text = String::new();
    monitor.read_to_string(&mut text).unwrap();
    assert!(text.contains("VM status: running"), "{text}");
    // It goes just after the monitor's connection.
    let deadline = Instant::now() + Duration::from_secs(60);
    while directory.0.join("pid").exists() {
        assert!(Instant::now() < deadline, "the machine has quit, and its pidfile is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!directory.0.join("monitor").exists());
}

#[test]
fn an_error_reaches_whoever_started_it() {
    if !has_kvm("daemonize with an error") {
        return;
    }
    let directory = Directory::new("daemonize-error");
    for (args, expected) in [
        ("-enable-kvm -bios rom -daemonize -pidfile nowhere/pid", "nowhere/pid"),
        ("-enable-kvm -bios rom -daemonize -serial unix:nowhere/socket,server", "nowhere/socket"),
        ("-enable-kvm -bios none -daemonize", "none"),
    ] {
        let output = directory.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}
