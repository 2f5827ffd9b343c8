//! The human monitor on a terminal: editing, history, completion; and out of a pipe.

mod common;

use std::collections::BTreeMap;

use common::{DATA, Fake};
use monitor::Hmp;
use monitor::state::RunState;

/// What a terminal shows of the bytes that it gets: rows, and the cursor's column in the last one.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    column: usize,
}

impl Screen {
    fn show(&mut self, bytes: &[u8]) {
        let text = std::str::from_utf8(bytes).expect("output is UTF-8");
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if self.rows.is_empty() {
                self.rows.push(Vec::new());
            }
            let row = self.rows.last_mut().unwrap();
            match c {
                '\r' => self.column = 0,
                '\n' => self.rows.push(Vec::new()),
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let mut number = String::new();
                    let end = loop {
                        match chars.next().unwrap() {
                            digit @ '0'..='9' => number.push(digit),
                            end => break end,
                        }
                    };
                    let count = number.parse().unwrap_or(1);
                    match end {
                        'D' => self.column = self.column.checked_sub(count).unwrap(),
                        'C' => self.column += count,
                        'K' => row.truncate(self.column),
                        'J' => self.rows.clear(),
                        'H' => self.column = 0,
                        other => panic!("ESC [ {number} {other}"),
                    }
                }
                c => {
                    row.resize(row.len().max(self.column + 1), ' ');
                    row[self.column] = c;
                    self.column += 1;
                }
            }
        }
    }

    fn row(&self) -> String {
        self.rows.last().unwrap().iter().collect()
    }
}

struct Console {
    machine: Fake,
    hmp: Hmp,
    screen: Screen,
}

impl Console {
    fn new() -> Self {
        let machine = common::long_mode();
        let mut hmp = Hmp::new("(vmm) ");
        let mut screen = Screen::default();
        screen.show(&hmp.open(&machine));
        Self { machine, hmp, screen }
    }

    /// Types, and gives the last row.
    fn types(&mut self, keys: &str) -> String {
        self.screen.show(&self.hmp.feed(&mut self.machine, keys.as_bytes()));
        self.screen.row()
    }

    /// Runs a line; gives what it printed.
    fn runs(&mut self, line: &str) -> String {
        let out = self.hmp.feed(&mut self.machine, format!("{line}\n").as_bytes());
        let out = String::from_utf8(out).unwrap();
        let printed = out.split_once("\r\n").unwrap().1;
        printed.strip_suffix("(vmm) ").unwrap_or(printed).replace("\r\n", "\n")
    }
}

#[test]
fn the_greeting_and_the_prompt_come_first() {
    let machine = common::reset();
    let greeting = Hmp::new("(vmm) ").open(&machine);
    assert_eq!(
        String::from_utf8(greeting).unwrap(),
        "vmm 1.2.3 monitor - type 'help' for more information\r\n(vmm) "
    );
}

#[test]
fn lines_out_of_a_pipe_come_back_plainly() {
    let mut console = Console::new();
    let out = console.hmp.feed(&mut console.machine, b"info name\n\r\ninfo kvm\r\nquit\rstop\r");
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "info name\r\ngolden\r\n(vmm) \r\n(vmm) info kvm\r\nkvm support: disabled\r\n(vmm) quit\r\n"
    );
    assert_eq!(console.machine.log, ["quit"]);
}

#[test]
fn a_line_can_be_edited() {
    for (keys, line, cursor) in [
        ("stxp\x1b[D\x1b[D\x1b[3~o\x05!", "stop!", 5),
        ("one two\x17three", "one three", 9),
        ("one two \x17", "one ", 4),
        ("one two\x01\x0b", "", 0),
        ("one two\x1bbX", "one Xtwo", 5),
        ("one two\x01\x1bf\x0b", "one", 3),
        ("one two\x01\x1bd", " two", 0),
        ("one two\x1b[1;5D\x15", "two", 0),
        ("one\x7f\x08\x08\x08two", "two", 3),
        ("né\x1b[Dx\x7f\x7f😀", "😀é", 1),
        ("abc\x1bOHx\x1b[4~y", "xabcy", 5),
        ("abc\x02\x02\x04\x06z", "acz", 3),
        ("a\x1b[99;99~b\x1bzc\x00\x1b[", "abc", 3),
    ] {
        let mut console = Console::new();
        // In one piece, and byte by byte.
        assert_eq!(console.types(keys), format!("(vmm) {line}"), "{keys:?}");
        assert_eq!(console.screen.column, 6 + cursor, "{keys:?}");
        let mut console = Console::new();
        for byte in keys.as_bytes() {
            console.screen.show(&console.hmp.feed(&mut console.machine, &[*byte]));
        }
        assert_eq!(console.screen.row(), format!("(vmm) {line}"), "{keys:?}");
    }
}

#[test]
fn a_line_longer_than_the_row_scrolls_and_comes_back_whole() {
    let mut console = Console::new();
    console.hmp.set_width(20);
    assert_eq!(console.types("print 1+2+3+4+5+6+7"), "(vmm) 1+2+3+4+5+6+7");
    assert_eq!(console.types("\x01"), "(vmm) print 1+2+3+4");
    assert_eq!(console.screen.column, 6);
    console.types("\r");
    let rows: Vec<String> = console.screen.rows.iter().map(|row| row.iter().collect()).collect();
    assert_eq!(rows[1..], ["(vmm) print 1+2+3+4+5+6+7", "0x1c", "(vmm) "]);
}

#[test]
fn the_history_keeps_what_was_typed() {
    let mut console = Console::new();
    console.types("info name\rinfo kvm\rinfo name\r");
    assert_eq!(console.types("sto\x1b[A"), "(vmm) info name");
    assert_eq!(console.types("\x10"), "(vmm) info kvm");
    assert_eq!(console.types("\x10\x10"), "(vmm) info kvm");
    assert_eq!(console.types("\x1b[B"), "(vmm) info name");
    assert_eq!(console.types("\x0e"), "(vmm) sto");
    assert_eq!(console.types("\x1b[B"), "(vmm) sto");
    assert_eq!(console.types("\x03"), "(vmm) ");
    assert_eq!(console.types("ab\x1b[D\x0c"), "(vmm) ab");
    assert_eq!(console.screen.rows.len(), 1);
    assert_eq!(console.screen.column, 7);
}

#[test]
fn tab_completes_what_has_one_meaning() {
    for (keys, line) in [
        ("inf\t", "info "),
        ("info reg\t", "info registers "),
        ("info mt\t", "info mtree "),
        ("help inf\tst\t", "help info status "),
        ("system_\tr\t", "system_reset "),
        ("st\tinfo", "stop info"),
        ("x/10i $ri\t", "x/10i $rip "),
        ("p 1+$r1\t5", "p 1+$r15"),
        ("info registers -\t", "info registers -a "),
        ("cpu \t", "cpu 0 "),
        ("memsave 0 16 no\t", "memsave 0 16 notes "),
        ("memsave 0 16 dumps/\t", "memsave 0 16 dumps/first "),
        ("memsave 0 16 \"dumps\t", "memsave 0 16 \"dumps/"),
        ("nonsense \t", "nonsense "),
        ("stop \t", "stop "),
        ("info lap x\x1b[D\x1b[D\t", "info lapic  x"),
    ] {
        assert_eq!(Console::new().types(keys), format!("(vmm) {line}"), "{keys:?}");
    }
}

#[test]
fn tab_lists_what_has_several() {
    let mut console = Console::new();
    assert_eq!(console.types("memsave 0 16 d\t"), "(vmm) memsave 0 16 dump");
    let rows: Vec<String> = console.screen.rows.iter().map(|row| row.iter().collect()).collect();
    assert_eq!(rows[1..3], ["(vmm) memsave 0 16 dump", "dump.bin  dumps/    "]);
    assert_eq!(console.types("\x15info \t"), "(vmm) info ");
    let rows = &console.screen.rows;
    let listed: String = rows[4..rows.len() - 1].iter().flatten().collect();
    let listed: Vec<&str> = listed.split_whitespace().collect();
    let info = monitor::commands().filter(|row| row.parent() == Some("info"));
    let mut known: Vec<_> = info.flat_map(monitor::Command::names).collect();
    known.sort_unstable();
    assert_eq!(listed, known);
    let widths: Vec<_> = rows[4..rows.len() - 2].iter().map(Vec::len).collect();
    assert!(widths.iter().all(|width| *width == widths[0] && *width < 80), "{widths:?}");
}

#[test]
fn registers_go_by_the_names_of_today_too() {
    let mut console = Console::new();
    assert_eq!(console.runs("p/x $rax"), "0x123456789abcdef0\n");
    assert_eq!(console.runs("p $rip"), "0xffff00e7\n");
    assert_eq!(console.runs("p $cr0"), "0x80000033\n");
    assert_eq!(console.runs("p $gdt.base + $tr.limit"), "0xffff0157\n");
    console.machine.cpus[0].rip = common::CODE;
    assert_eq!(
        console.runs("x/2i $rip"),
        "0x00011000:  55                       pushq    %rbp\n\
         0x00011001:  48 89 e5                 movq     %rsp, %rbp\n"
    );
}

#[test]
fn memory_goes_into_files() {
    let mut console = Console::new();
    assert_eq!(console.runs("memsave 0x10000 4 \"with space\""), "");
    assert_eq!(console.runs("pmemsave 0x10000+1 2 /tmp/file"), "");
    assert_eq!(console.runs("pmemsave 0x10000/2*2 3/1 rel/ative"), "");
    assert_eq!(console.runs("pmemsave 0 0x30001 big"), "");
    assert_eq!(
        console.runs("pmemsave 0x7ffffff 2 edge"),
        "Error: Invalid addr 0x0000000007ffffff/size 2 specified\n"
    );
    let files: BTreeMap<_, _> = console.machine.files.take();
    assert_eq!(files["with space"], [0x0b, 0x30, 0x55, 0x7a]);
    assert_eq!(files["/tmp/file"], [0x30, 0x55]);
    assert_eq!(files["rel/ative"], [0x0b, 0x30, 0x55]);
    assert_eq!(files["big"].len(), 0x30001);
    assert_eq!(files["big"][DATA as usize], 0x0b);
}

#[test]
fn code_up_to_the_end_of_memory_is_shown() {
    let mut console = Console::new();
    console.machine.memory.push((0x7ff_fffe, vec![0x90, 0x48]));
    assert_eq!(
        console.runs("x/5i 0x7fffffe"),
        "0x07fffffe:  90                       nop      \n0x7ffffff: unable to read memory\n"
    );
    assert_eq!(
        console.runs("xp/i 0xffffffffffffffff"),
        "0xffffffffffffffff: unable to read memory\n"
    );
    assert_eq!(
        console.runs("x/2xb 0xffffffffffffffff"),
        "ffffffffffffffff: Cannot access memory\n"
    );
    console.machine.memory.push((0x2000, vec![0x06, 0x90]));
    assert_eq!(
        console.runs("x/2i 0x2000"),
        "0x00002000:  06                       .byte    0x06\n\
         0x00002001:  90                       nop      \n"
    );
}

#[test]
fn one_command_does_not_flood_the_console() {
    let mut console = Console::new();
    assert_eq!(
        console.runs("x/99999999999999999999xb 0"),
        "18446744073709551615 bytes are too many at once: ask for at most 1048576, or use memsave\n"
    );
    assert_eq!(
        console.runs("x/99999i 0"),
        "99999 instructions are too many at once: ask for at most 16384, or use memsave\n"
    );
    let deep = format!("p {}1", "(".repeat(4000));
    assert_eq!(
        console.runs(&deep),
        "expression is nested too deeply\nTry \"help p\" for more information\n"
    );
    assert_eq!(console.runs("p/d (-9223372036854775807-1)/-1"), "-9223372036854775808\n");
}

#[test]
fn states_are_named_and_some_ask_for_a_reset() {
    let mut console = Console::new();
    for (state, text) in [
        (RunState::Paused, "VM status: paused\n"),
        (RunState::InternalError, "VM status: paused (internal-error)\n"),
        (RunState::GuestPanicked, "VM status: paused (guest-panicked)\n"),
        (RunState::Shutdown, "VM status: paused (shutdown)\n"),
    ] {
        console.machine.status = state;
        assert_eq!(console.runs("info status"), text);
    }
    assert_eq!(console.runs("cont"), "Error: Resetting the Virtual Machine is required\n");
    assert_eq!(console.machine.status, RunState::Shutdown);
}

#[test]
fn the_upper_halves_of_ymm_are_shown_where_there_are_any() {
    let mut console = Console::new();
    let mut high = [0; 16];
    high[2] = 0x1234_5678_9abc_def0_1234_5678_9abc_def0;
    console.machine.cpus[0].ymm_high = Some(high);
    let shown = console.runs("info registers");
    let ymm: Vec<_> = shown.lines().filter(|line| line.starts_with("YMM")).collect();
    assert_eq!(ymm.len(), 16);
    assert_eq!(
        ymm[1..3],
        [
            "YMM01=0000000000000000 0000000000000000 0000000000000000 123456789abcdef0",
            "YMM02=123456789abcdef0 123456789abcdef0 0000000000000000 0000000000000000",
        ]
    );
}

#[test]
fn the_apic_dump_knows_all_destination_modes() {
    let mut console = Console::new();
    let mut icr2 = |change: fn(&mut monitor::state::LocalApic)| {
        change(&mut console.machine.apics[0]);
        let shown = console.runs("info lapic");
        shown.lines().find(|line| line.starts_with("ICR2")).unwrap().to_owned()
    };
    let flat = icr2(|apic| (apic.icr_low, apic.icr_high) = (0x800, 0x0500_0000));
    assert_eq!(flat, "ICR2\t 0x05000000 mask 00000101 (APIC ID)");
    let cluster = icr2(|apic| apic.dfr = 0);
    assert_eq!(cluster, "ICR2\t 0x05000000 cluster 0 mask 0101 (APIC ID)");
    let x2apic = icr2(|apic| (apic.x2apic, apic.icr_high) = (true, 0x0001_0003));
    assert_eq!(x2apic, "ICR2\t 0x00010003 cluster 1 mask 0000000000000011 (X2APIC ID)");
    let physical = icr2(|apic| apic.icr_low = 0);
    assert_eq!(physical, "ICR2\t 0x00010003 cpu 65539 (X2APIC ID)");
    let shorthand = icr2(|apic| apic.icr_low = 2 << 18);
    assert_eq!(shorthand, "ICR2\t 0x00010003");
}

#[test]
fn help_lists_every_command() {
    let mut console = Console::new();
    let all = console.runs("help");
    assert!(all.contains("system_reset  -- press the reset button\n"));
    assert!(all.contains("x /fmt addr -- show memory at a virtual address; /i disassembles\n"));
    let info = console.runs("info");
    assert!(info.contains(
        "info kvm  -- whether KVM runs the guest, and how often the software CPU stood in for it\n"
    ));
    assert_eq!(console.runs("help info"), info);
    for line in all.lines().chain(info.lines()) {
        assert!(line.contains(" -- "), "{line}");
    }
}

#[test]
fn drives_are_shown_and_changed() {
    let mut console = Console::new();
    assert_eq!(
        console.runs("info block"),
        "virtio0 (#block100): disk.qcow2 (qcow2)\n\
         \x20   Attached to:      /machine/peripheral/disk/virtio-backend\n\
         \x20   Cache mode:       writeback, direct\n\
         \x20   Backing file:     base.raw (chain depth: 1)\n\
         \x20   I/O throttling:   bps=0 bps_rd=0 bps_wr=0 iops=100 iops_rd=0 iops_wr=0\n\
         \n\
         none0: [not inserted]\n"
    );
    assert!(console.runs("info block none0").starts_with("none0:"));
    assert!(console.runs("info blockstats").starts_with("virtio0: rd_bytes=512 wr_bytes=0 "));
    assert_eq!(console.runs("block_resize virtio0 2G"), "");
    assert_eq!(console.runs("drive_add 0 file=x,if=none,id=d"), "OK\n");
    console.runs("commit all");
    assert_eq!(
        console.machine.log,
        [
            "Resize { device: \"virtio0\", size: 2147483648 }",
            "Add(\"file=x,if=none,id=d\")",
            "Commit(\"all\")"
        ]
    );
    assert!(console.runs("block_resize virtio0 wide").contains("expects a size"));
}
