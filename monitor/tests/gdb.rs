//! The gdb stub, packet by packet, on a machine that is only data.

mod common;

use std::cell::RefCell;

use common::{CODE, CODE_64, Fake};
use monitor::gdb::{Access, Debuggee, Gdb, Point, Register, Resume, Trap, WatchKind};
use monitor::state::RunState;
use monitor::{CommandError, Control};

thread_local! {
    static MACHINE: RefCell<Option<Fake>> = const { RefCell::new(None) };
    static TRAP: RefCell<Option<(usize, Trap)>> = const { RefCell::new(None) };
}

struct Here;

impl Access for Here {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Debuggee)) {
        MACHINE.with_borrow_mut(|machine| machine.as_mut().map_or((), |machine| f(machine)));
    }
}

impl Debuggee for Fake {
    fn write_registers(
        &mut self,
        cpu: usize,
        values: &[(Register, u128)],
    ) -> Result<(), CommandError> {
        self.log.push(format!("set {cpu} {values:x?}"));
        Ok(())
    }

    fn write_virtual(&mut self, _: usize, addr: u64, data: &[u8]) -> Result<(), CommandError> {
        if addr >= 1 << 30 {
            return Err(CommandError::Unmapped(addr));
        }
        self.log.push(format!("write {addr:x} {data:x?}"));
        Ok(())
    }

    fn set_point(&mut self, point: Point, on: bool) -> Result<(), CommandError> {
        if point == Point::Hardware(0xBAD) {
            return Err(CommandError::Refused("no more".to_owned()));
        }
        self.log.push(format!("{} {point:x?}", if on { "add" } else { "remove" }));
        Ok(())
    }

    fn clear_points(&mut self) {
        self.log.push("clear".to_owned());
    }

    fn resume(&mut self, how: &[Resume]) -> Result<(), CommandError> {
        self.log.push(format!("resume {how:?}"));
        if self.status.needs_reset() {
            return Err(CommandError::NeedsReset);
        }
        self.status = RunState::Running;
        Ok(())
    }

    fn take_trap(&mut self) -> Option<(usize, Trap)> {
        TRAP.take()
    }
}

fn machine<R>(f: impl FnOnce(&mut Fake) -> R) -> R {
    MACHINE.with_borrow_mut(|machine| f(machine.as_mut().unwrap()))
}

/// A session with a client, on a stopped machine.
fn session(fake: Fake) -> Gdb {
    MACHINE.set(Some(fake));
    let mut gdb = Gdb::new(Box::new(Here));
    gdb.open();
    machine(|machine| {
        assert_eq!(machine.log, ["clear", "stop"]);
        machine.log.clear();
    });
    gdb
}

fn framed(packet: &str) -> String {
    let sum = packet.bytes().fold(0_u8, |sum, byte| sum.wrapping_add(byte));
    format!("${packet}#{sum:02x}")
}

/// Undoes run-length encoding (gdb's manual, E.1).
fn expanded(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, out.chars().last()) {
            ('*', Some(last)) => {
                let count = chars.next().unwrap() as usize - 29;
                out.extend(std::iter::repeat_n(last, count));
            }
            _ => out.push(c),
        }
    }
    out
}

/// Sends a packet; gives the contents of the answer.
fn ask(gdb: &mut Gdb, packet: &str) -> String {
    let out = String::from_utf8(gdb.feed(framed(packet).as_bytes())).unwrap();
    answer(&out)
}

fn answer(out: &str) -> String {
    let parts: Vec<_> =
        out.split('$').skip(1).map(|part| expanded(part.rsplit_once('#').unwrap().0)).collect();
    parts.join("|")
}

fn done() -> Vec<String> {
    machine(|machine| std::mem::take(&mut machine.log))
}

#[test]
fn registers_and_memory() {
    let mut gdb = session(common::long_mode());
    let all = ask(&mut gdb, "g");
    // RAX comes first, little-endian; RIP is the 17th.
    assert!(all.starts_with("f0debc9a78563412"), "{all}");
    assert_eq!(&all[16 * 16..17 * 16], "e700ffff00000000");
    assert_eq!(ask(&mut gdb, "p10"), "e700ffff00000000");
    assert_eq!(ask(&mut gdb, "p12"), "18000000", "cs");
    assert_eq!(ask(&mut gdb, "p63"), "", "there is none");
    assert_eq!(ask(&mut gdb, "P0=0100000000000000"), "OK");
    let changed = format!("G{}{}", "ff".repeat(8), &all[16..]).replace("xx", "00");
    assert_eq!(ask(&mut gdb, &changed), "OK");
    let code: String = CODE_64[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(ask(&mut gdb, &format!("m{CODE:x},8")), code);
    assert_eq!(ask(&mut gdb, "m7fffffe,4"), "0000", "as far as memory goes");
    assert!(ask(&mut gdb, "m40000000,4").starts_with('E'));
    assert_eq!(ask(&mut gdb, "M1000,2:abcd"), "OK");
    assert!(ask(&mut gdb, "M40000000,1:00").starts_with('E'));
    let done = done();
    assert_eq!(done[0], "set 0 [(Gpr(0), 1)]");
    assert!(done[1].starts_with("set 0 [(Gpr(0), ffffffffffffffff)"), "{}", done[1]);
    assert_eq!(done[2], "write 1000 [ab, cd]");
}

#[test]
fn the_target_description_comes_in_pieces() {
    let mut gdb = session(common::long_mode());
    assert!(ask(&mut gdb, "qSupported:xmlRegisters=i386").contains("qXfer:features:read+"));
    let mut xml = String::new();
    loop {
        let piece = ask(&mut gdb, &format!("qXfer:features:read:target.xml:{:x},400", xml.len()));
        xml.push_str(&piece[1..]);
        if piece.starts_with('l') {
            break;
        }
    }
    for name in ["rax", "eflags", "st7", "xmm15", "ymm15h", "fs_base", "k_gs_base", "cr8", "efer"] {
        assert!(xml.contains(&format!("name=\"{name}\"")), "{name}");
    }
    assert!(ask(&mut gdb, "qXfer:features:read:other.xml:0,400").starts_with('E'));
}

#[test]
fn points_are_set_and_removed() {
    let mut gdb = session(common::long_mode());
    for packet in ["Z0,1000,1", "Z1,2000,1", "Z2,3000,8", "Z3,3000,4", "Z4,3000,2", "z0,1000,1"] {
        assert_eq!(ask(&mut gdb, packet), "OK", "{packet}");
    }
    assert!(ask(&mut gdb, "Z1,bad,1").starts_with('E'));
    assert_eq!(ask(&mut gdb, "Z9,0,1"), "");
    assert_eq!(
        done(),
        [
            "add Software(1000)",
            "add Hardware(2000)",
            "add Watch { address: 3000, len: 8, kind: Write }",
            "add Watch { address: 3000, len: 4, kind: Read }",
            "add Watch { address: 3000, len: 2, kind: Access }",
            "remove Software(1000)",
        ]
    );
}

#[test]
fn it_goes_on_and_says_what_stopped_it() {
    let mut gdb = session(common::reset());
    assert_eq!(ask(&mut gdb, "qfThreadInfo"), "m01,02");
    assert_eq!(ask(&mut gdb, "Z1,fff0,1"), "OK");
    for (packet, resumed, trap, said) in [
        ("vCont;c", "Continue, Continue", Trap::Breakpoint(0xFFF0), "T05thread:02;hwbreak:;"),
        ("vCont;s:2", "Stay, Step", Trap::Step, "T05thread:02;"),
        ("vCont;s:1;c", "Step, Continue", Trap::Breakpoint(1), "T05thread:02;swbreak:;"),
        (
            "c",
            "Continue, Continue",
            Trap::Watch(0x80, WatchKind::Access),
            "T05thread:02;awatch:80;",
        ),
    ] {
        done();
        if packet == "c" {
            assert_eq!(ask(&mut gdb, "Hc-1"), "OK");
        }
        assert_eq!(ask(&mut gdb, packet), "", "{packet}");
        assert_eq!(done(), [format!("resume [{resumed}]")], "{packet}");
        assert!(gdb.sync().is_empty(), "it runs");
        machine(|machine| machine.status = RunState::Debug);
        TRAP.set(Some((1, trap)));
        assert_eq!(answer(std::str::from_utf8(&gdb.sync()).unwrap()), said);
        assert!(gdb.sync().is_empty(), "it has been said");
    }
}

#[test]
fn ctrl_c_stops_it_once() {
    let mut gdb = session(common::reset());
    assert_eq!(ask(&mut gdb, "vCont;c"), "");
    let out = String::from_utf8(gdb.feed(b"\x03")).unwrap();
    assert_eq!(answer(&out), "T02thread:01;");
    assert!(gdb.feed(b"\x03").is_empty(), "it stands still already");
    // A machine that cannot go on says so at once.
    machine(|machine| machine.status = RunState::InternalError);
    assert_eq!(ask(&mut gdb, "vCont;c"), "T06thread:01;");
}

#[test]
fn the_console_answers() {
    let mut gdb = session(common::long_mode());
    let hex: String = "info status".bytes().map(|byte| format!("{byte:02x}")).collect();
    let out = ask(&mut gdb, &format!("qRcmd,{hex}"));
    let text: String = "VM status: paused\n".bytes().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(out, format!("O{text}|OK"));
}

#[test]
fn leaving_lets_it_run_and_killing_ends_it() {
    let mut gdb = session(common::reset());
    assert_eq!(ask(&mut gdb, "D"), "OK");
    assert_eq!(done(), ["clear", "cont"]);
    // Another client on the same wire.
    assert!(ask(&mut gdb, "?").starts_with("T05"));
    assert_eq!(done(), ["clear", "stop"]);
    gdb.feed(framed("k").as_bytes());
    assert_eq!(done(), ["clear", "quit"]);
    gdb.open();
    done();
    assert_eq!(ask(&mut gdb, "vCont;c"), "");
    assert_eq!(answer(std::str::from_utf8(&gdb.ended(3)).unwrap()), "W03");
    gdb.open();
    done();
    gdb.close();
    assert_eq!(done(), ["clear"], "it stays as it is");
}

#[test]
fn damage_on_the_wire_is_survived() {
    let mut gdb = session(common::long_mode());
    assert_eq!(gdb.feed(b"$p10#00"), b"-");
    let rip = gdb.feed(framed("p10").as_bytes());
    assert_eq!(gdb.feed(b"-"), rip, "once more");
    assert_eq!(gdb.feed(b"+"), b"");
    for packet in ["", "G00", "m", "Hgzz", "vCont;x", "P", "Z0", "qRcmd,zz", "X0,5:", "vCont;s:p1."]
    {
        gdb.feed(framed(packet).as_bytes());
        assert_eq!(ask(&mut gdb, "p10"), "e700ffff00000000", "after {packet:?}");
    }
    // Anything at all.
    let mut seed = 0x1234_5678_u64;
    for _ in 0..3000 {
        let mut bytes = Vec::new();
        for _ in 0..seed % 40 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.push(b"$#+-\x03gGmMpPqvXZzHcsDk?0123456789abcdef,;:."[seed as usize % 41]);
        }
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        gdb.feed(&bytes);
        gdb.feed(
            framed(&String::from_utf8_lossy(&bytes).replace(['$', '#', '\x03'], "")).as_bytes(),
        );
    }
    gdb.open();
    machine(|machine| machine.stop()).unwrap();
    assert_eq!(ask(&mut gdb, "p10"), "e700ffff00000000");
}
