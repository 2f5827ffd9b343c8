//! Bad input: one or two lines with the cause and the remedy, exit status 1, and nothing left
//! behind: no panic, no socket, a terminal as it was.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use tests::{
    Accel, Finished, TempDir, Terminal, Vmm, file_of, guest, image, notice, program, with_kvm,
};

/// Whether the program refused politely, and what it said.
fn refused(finished: &Finished, what: &str) -> String {
    let said = finished.complaints();
    assert_eq!(finished.status(), 1, "{what}: {said}");
    assert!((1..=2).contains(&said.lines().count()), "{what}: {said}");
    assert!(said.starts_with("vmm: "), "{what}: {said}");
    assert!(said.lines().all(|line| !line.trim().is_empty()), "{what}: {said}");
    for bad in ["panicked", "backtrace", "RUST_", ".rs:", "unwrap", "Err("] {
        assert!(!said.contains(bad), "{what}: {said}");
    }
    said
}

/// A table of bad command lines: the arguments, and words that the message has.
///
/// `{...}` in an argument names one of the files that [`files`] makes.
const TABLE: &[(&str, &[&str])] = &[
    // Kernels.
    ("", &["nothing to boot", "--kernel FILE"]),
    ("--kernel {missing}", &["cannot open", "no such file", "--kernel"]),
    ("--kernel {empty}", &["is empty", "--kernel"]),
    ("--kernel {text}", &["not a bzImage, ELF or multiboot", "x86-64"]),
    ("--kernel {dir}", &["is a directory", "regular file"]),
    ("--kernel /dev/null", &["is a device", "regular file"]),
    ("--kernel {cut}", &["truncated", "build or fetch it again"]),
    ("--kernel {gzip}", &["compressed with gzip", "unpack"]),
    ("--kernel {arm}", &["ELF file for AArch64", "x86-64"]),
    ("--kernel {elf32}", &["32-bit ELF file without a multiboot header", "64-bit kernel"]),
    ("--kernel {hello} -m 1", &["needs RAM", "1 MiB", "-m 3M"]),
    ("--kernel {hello} --append {long}", &["command line", "shorten --append"]),
    ("--kernel {hello} --initrd {missing}", &["cannot open", "--initrd"]),
    ("--kernel {hello} --initrd {empty}", &["is empty", "--initrd"]),
    ("--kernel {hello} --initrd {dir}", &["is a directory", "--initrd"]),
    ("--kernel {hello} --initrd {big}", &["does not fit", "larger -m"]),
    ("--kernel {protected} --initrd {missing}", &["cannot open", "--initrd"]),
    ("--bios {missing}", &["cannot open", "--bios"]),
    ("--bios {empty}", &["is empty", "--bios"]),
    ("--bios {text}", &["multiple of 64 KiB", "--bios"]),
    ("--kernel {hello} --bios {realmode}", &["exclude each other"]),
    ("--bios {realmode} --initrd {text}", &["--initrd needs a --kernel"]),
    // Sizes and numbers.
    ("--kernel {hello} -m 0", &["--memory", "'0'", "at least 1M"]),
    ("--kernel {hello} -m 1000T", &["cannot allocate 1000 TiB", "smaller -m"]),
    ("--kernel {hello} -m lots", &["'lots'", "256M or 2G"]),
    ("--kernel {hello} -m -5", &["'-5'", "256M or 2G"]),
    ("--kernel {hello} -m 99999999999999999999", &["--memory", "256M or 2G"]),
    ("--kernel {hello} -m 1G -m 2G", &["--memory", "twice"]),
    ("--kernel {hello} --smp 0", &["--smp", "'0'", "number from"]),
    ("--kernel {hello} --smp 100000", &["--smp", "'100000'", "number from"]),
    ("--kernel {hello} --smp two", &["--smp", "'two'", "number from"]),
    ("--kernel {hello} --smp 4,cores=3", &["are not 4 cpus", "make them agree"]),
    ("--kernel {hello} --uuid 1234", &["--uuid", "such as"]),
    ("--kernel {hello} --echr 300", &["--echr", "from 0 to 255"]),
    // Names.
    ("--kernal {hello}", &["no option --kernal", "did you mean --kernel?"]),
    ("-kernal {hello}", &["did you mean --kernel?"]),
    ("{hello}", &["is no option", "--kernel FILE"]),
    ("--kernel", &["--kernel", "needs a value"]),
    ("--kernel {hello} --machine cp", &["--machine", "did you mean 'pc'?"]),
    ("--kernel {hello} --machine pc,apci=on", &["'apci'", "did you mean 'acpi'?"]),
    ("--kernel {hello} --machine pc,acpi=maybe", &["'maybe'", "on or off"]),
    ("--kernel {hello} --accel kmv", &["did you mean 'kvm'?"]),
    ("--kernel {hello} --accel soft --enable-kvm", &["contradict", "leave one out"]),
    ("--kernel {hello} --cpu pentium", &["no model 'pentium'", "--cpu help"]),
    ("--kernel {hello} --cpu host,+popcmt", &["no feature 'popcmt'", "did you mean 'popcnt'?"]),
    ("--kernel {hello} --display gtk", &["'gtk'", "none"]),
    ("--kernel {hello} -d everything", &["'everything'", "known are"]),
    ("--kernel {hello} --rtc base=never", &["'never'", "such as"]),
    ("--kernel {hello} --rtc clock=sundial", &["'sundial'", "host or vm"]),
    // Devices.
    ("--kernel {hello} --device toaster", &["no 'toaster'", "known are"]),
    ("--kernel {hello} --device isa-debug-exi", &["did you mean 'isa-debug-exit'?"]),
    ("--kernel {hello} --device isa-debug-exit,ibase=1", &["'ibase'", "did you mean 'iobase'?"]),
    ("--kernel {hello} --device isa-debug-exit,iobase=0xzz", &["'0xzz'", "a number from"]),
    ("--kernel {hello} --device isa-debug-exit,iobase=0x3f8", &["serial0", "another address"]),
    ("--kernel {hello} --device pvpanic --device pvpanic", &["pvpanic already is", "another"]),
    ("--kernel {hello} --device isa-debugcon", &["lacks chardev", "add chardev="]),
    ("--kernel {hello} --device isa-debugcon,chardev=x", &["no chardev 'x'", "--chardev"]),
    // Backends.
    ("--kernel {hello} --chardev null", &["lacks an id", "id=NAME"]),
    ("--kernel {hello} --chardev nul,id=a", &["did you mean 'null'?"]),
    ("--kernel {hello} --chardev null,id=a --chardev null,id=a", &["two", "'a'", "another id"]),
    ("--kernel {hello} --serial nonsense", &["'nonsense'", "mon:stdio"]),
    ("--kernel {hello} --serial file:{missing}/x", &["cannot open", "create it"]),
    ("--kernel {hello} --serial file:{dir}", &["is a directory", "name of a file"]),
    ("--kernel {hello} --serial pipe:{missing}", &["no pipe", "mkfifo"]),
    ("--kernel {hello} --serial unix:{missing}/s,server", &["cannot listen", "directory"]),
    ("--kernel {hello} --serial unix:{missing}", &["cannot connect", "start the server first"]),
    ("--kernel {hello} --serial unix:{busy},server", &["cannot listen", "already in use"]),
    ("--kernel {hello} --serial unix:{busy},severe", &["did you mean 'server'?"]),
    ("--kernel {hello} --serial tcp:127.0.0.1:{port},server", &["already in use", "port"]),
    ("--kernel {hello} --serial tcp:127.0.0.1:99999", &["'99999'", "from 0 to 65535"]),
    ("--kernel {hello} --serial chardev:none", &["no character backend", "--chardev"]),
    ("--kernel {hello} --serial stdio --serial stdio", &["stdio is already used", "mon:stdio"]),
    ("--kernel {hello} --qmp nonsense", &["'nonsense'", "mon:stdio"]),
    ("--kernel {hello} --pidfile {missing}/pid", &["cannot write", "check the path"]),
    ("--kernel {hello} --fw_cfg name=x", &["--fw_cfg x", "file=PATH or string=TEXT"]),
    ("--kernel {hello} --fw_cfg name=x,file={missing}", &["cannot read", "check the path"]),
    ("--kernel {hello} --fw_cfg name=etc/e820,string=x", &["etc/e820", "another name"]),
];

/// The files that [`TABLE`] names, by name.
fn files(dir: &TempDir) -> Vec<(&'static str, PathBuf)> {
    let hello = fs::read(guest("hello")).unwrap();
    let mut arm = hello.clone();
    // e_machine.
    arm[18..20].copy_from_slice(&183u16.to_le_bytes());
    let mut elf32 = fs::read(guest("protected")).unwrap();
    let magic = 0x1BAD_B002_u32.to_le_bytes();
    let at = elf32.windows(4).position(|window| window == magic).unwrap();
    elf32[at] ^= 1;
    fs::create_dir(dir.join("dir")).unwrap();
    let big = file_of(dir, "big", b"");
    fs::File::options().write(true).open(&big).unwrap().set_len(1 << 30).unwrap();
    vec![
        ("missing", dir.join("missing")),
        ("dir", dir.join("dir")),
        ("busy", dir.join("busy")),
        ("hello", guest("hello")),
        ("protected", guest("protected")),
        ("realmode", guest("realmode")),
        ("empty", file_of(dir, "empty", b"")),
        ("text", file_of(dir, "text", b"a text is no kernel\n")),
        ("gzip", file_of(dir, "gzip", b"\x1F\x8B\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0")),
        ("cut", file_of(dir, "cut", &hello[..4000])),
        ("arm", file_of(dir, "arm", &arm)),
        ("elf32", file_of(dir, "elf32", &elf32)),
        ("big", big),
    ]
}

#[test]
fn bad_command_lines_are_refused() {
    let dir = TempDir::new();
    let mut places = files(&dir);
    places.push(("long", "x".repeat(70_000).into()));
    let busy = UnixListener::bind(dir.join("busy")).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    places.push(("port", tcp.local_addr().unwrap().port().to_string().into()));
    let files = dir.names();
    let terminal = Terminal::new();
    let settings = terminal.settings();
    assert!(TABLE.len() >= 30);
    let kvm = tests::reasons().iter().all(|(accel, _)| *accel != Accel::Kvm);
    for (line, words) in TABLE {
        if !kvm && !fails_early(line) {
            notice(&format!("{line:?}: there is no machine to be had without /dev/kvm"));
            continue;
        }
        let args = line.split_whitespace().map(|arg| {
            places.iter().fold(arg.to_owned(), |arg, (name, path)| {
                arg.replace(&format!("{{{name}}}"), path.to_str().unwrap())
            })
        });
        // A socket that is already there when the rest goes wrong has to go again.
        let own = line.contains("--serial");
        let vmm = Vmm::bare().serial((!own).then_some("mon:stdio")).monitor(None).with_qmp();
        let finished = vmm.args(args).start_on(&terminal).finish();
        let said = refused(&finished, line).to_lowercase();
        for word in *words {
            assert!(said.contains(&word.to_lowercase()), "{line}: no {word:?} in: {said}");
        }
        assert_eq!(terminal.settings(), settings, "{line}: the terminal is not as it was");
        assert!(finished.files.is_empty(), "{line}: left behind: {:?}", finished.files);
        assert_eq!(dir.names(), files, "{line}: left behind");
    }
    drop(busy);
}

/// Whether a line is refused before an accelerator is opened.
fn fails_early(line: &str) -> bool {
    let late = ["--kernel {", "--bios {"].iter().any(|option| line.starts_with(option));
    !late || line.contains("--smp") || line.contains("--machine")
}

#[test]
fn what_is_printed_on_request_is_no_error() {
    for (args, word) in [
        (&["--version"][..], env!("CARGO_PKG_VERSION")),
        (&["--help"], "--kernel"),
        (&["-h"], "--kernel"),
        (&["--device", "help"], "isa-debug-exit"),
        (&["-d", "help"], "cpu_reset"),
        (&["--generate", "man"], ".TH"),
        (&["--generate", "bash"], "complete"),
    ] {
        let output = Command::new(program()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(word), "{args:?}");
    }
}

#[test]
fn kernels_that_are_cut_short_are_refused() {
    with_kvm(|| {
        let Some(kernel) = image("bzImage") else { return };
        let whole = fs::read(kernel).unwrap();
        for len in [1, 511, 512, 1000, 20_000, whole.len() / 4 * 3] {
            let dir = TempDir::new();
            let path = file_of(&dir, "cut", &whole[..len]);
            let vmm = Vmm::new(Accel::Kvm).arg("--kernel").arg(path);
            let said = refused(&vmm.start().finish(), &format!("{len} bytes"));
            assert!(said.contains("truncated") || said.contains("not a bzImage"), "{said}");
        }
    });
}

#[test]
fn no_kvm_device() {
    // A mount namespace of its own, whose /dev has nothing.
    let hide = "mount -t tmpfs none /dev && exec \"$@\"";
    let launcher = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    let tried = Command::new(launcher[0]).args(&launcher[1..]).arg("true").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return notice("a host without /dev/kvm: mount namespaces need root");
    }
    for option in ["--enable-kvm", "--accel=kvm"] {
        let vmm = Vmm::bare().arg("--kernel").arg(guest("hello")).arg(option);
        let said = refused(&vmm.under(launcher).start().finish(), option);
        assert!(said.contains("cannot open /dev/kvm: No such file"), "{said}");
        assert!(said.contains("kvm_intel"), "{said}");
    }
}

#[test]
fn no_permission_for_kvm() {
    if !rustix::process::geteuid().is_root() || !fs::exists("/dev/kvm").unwrap() {
        return notice("a user without permission for /dev/kvm: to become one takes root");
    }
    if fs::metadata("/dev/kvm").unwrap().permissions().mode() & 0o006 != 0 {
        return notice("a user without permission for /dev/kvm: everybody has it here");
    }
    // Where the program lies others may not be allowed to look.
    let dir = TempDir::new();
    let copy = |from: PathBuf, name: &str| {
        let to = dir.join(name);
        fs::copy(from, &to).unwrap();
        to
    };
    let copied = copy(program().to_owned(), "vmm");
    let vmm = Vmm::bare().program(copied).arg("--kernel").arg(copy(guest("hello"), "hello"));
    let launcher = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let finished = vmm.arg("--enable-kvm").under(launcher).start().finish();
    let said = refused(&finished, "as nobody");
    assert!(said.contains("cannot open /dev/kvm: Permission denied"), "{said}");
    assert!(said.contains("usermod -aG kvm"), "{said}");
}
