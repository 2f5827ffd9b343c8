//! What an accelerator owes the machine: exits, interrupts, doorbells, the dirty log, and the state
//! of its vCPUs.

use std::process::Command;
use std::time::{Duration, Instant};

use board::accel::{Doorbell, Space};
use board::memory::PAGE_SIZE;
use board::vcpu::{MpState, gpr};
use board::{Msi, Region, Width};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use tests::{Accel, Access, Rig, TempDir, guest, notice, on_each_accel, soak, with_kvm};

fn rig(accel: Accel, guest_name: &str, append: &str, more: &[&str]) -> Rig {
    let kernel = guest(guest_name);
    let kernel = kernel.to_str().expect("the path is text");
    let args = ["--accel", accel.name(), "-m", "16M", "--kernel", kernel, "--append", append];
    Rig::new(60, &[&args[..], more].concat())
}

fn new_eventfd() -> OwnedFd {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    eventfd(0, flags).expect("the host has fds left")
}

/// How often an eventfd has been signalled since the last call.
fn rings(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(rustix::io::Errno::AGAIN) => 0,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn mmio_exits_from_both_rings_have_every_width() {
    on_each_accel(|accel| {
        let mut rig = rig(accel, "longmode", "hole=0xd0000010", &[]);
        let (slot, record) = rig.recorder();
        let page = 0xD000_0000..=0xD000_0FFF;
        rig.machine.mmio().map(page, &slot, Region(0), Width::Qword).unwrap();
        rig.boot();
        let output = rig.finish();
        assert!(output.contains("memory-mapped at 0xd0000010: 0x1716151413121110\n"), "{output}");
        let value: Vec<u8> = (0x10..0x18).collect();
        let reads = [1, 2, 4, 8].map(|width| Access::Read(0x10, width));
        let writes = [1, 2, 4, 8].map(|width| Access::Write(0x10, value[..width].to_vec()));
        let one_ring: Vec<_> = reads.into_iter().chain(writes).collect();
        // Ring 0, then ring 3.
        assert_eq!(record.take(), [one_ring.clone(), one_ring].concat());
    });
}

#[test]
fn port_exits_have_every_width_and_strings_come_whole() {
    on_each_accel(|accel| {
        let words = "pio:0x1000:1=0x11 pio:0x1002:2=0x2222 pio:0x1004:4=0x44444444 \
                     pio:0x1001:1 pio:0x1002:2 pio:0x1004:4";
        let mut rig = rig(accel, "doorbell", words, &[]);
        let (slot, record) = rig.recorder();
        rig.machine.pio().map(0x1000..=0x1007, &slot, Region(0), Width::Dword).unwrap();
        rig.boot();
        let output = rig.finish();
        for line in ["pio 0x1001: 0x1\n", "pio 0x1002: 0x302\n", "pio 0x1004: 0x7060504\n"] {
            assert!(output.contains(line), "{output}");
        }
        let write = |offset, byte, width| Access::Write(offset, vec![byte; width]);
        assert_eq!(
            record.take(),
            [
                write(0, 0x11, 1),
                write(2, 0x22, 2),
                write(4, 0x44, 4),
                Access::Read(1, 1),
                Access::Read(2, 2),
                Access::Read(4, 4)
            ]
        );
    });
}

/// `--machine` options for who has the PICs and the I/O APIC.
fn irqchips(accel: Accel) -> &'static [&'static str] {
    match accel {
        Accel::Kvm => &["pc,kernel-irqchip=split", "pc,kernel-irqchip=on"],
        Accel::Soft => &["pc"],
    }
}

/// A guest that prints the vectors it takes, until [`end`].
fn vectors(accel: Accel, words: &str, machine: &str) -> Rig {
    let mut rig = rig(accel, "vectors", words, &["--machine", machine]);
    rig.boot();
    rig.wait_for("ready\n");
    rig
}

fn message(vector: u32) -> Msi {
    Msi { address: 0xFEE0_0000, data: vector }
}

fn wait_for_vector(rig: &mut Rig, vector: u32, times: usize) {
    let line = format!("irq {vector:02x}\n");
    rig.until(&line, |rig| rig.output().matches(&line).count() >= times);
}

fn pulse(rig: &Rig, gsi: u32) {
    rig.set_irq(gsi, true);
    rig.set_irq(gsi, false);
}

#[test]
fn lines_interrupt_through_the_pics() {
    on_each_accel(|accel| {
        for machine in irqchips(accel) {
            for words in ["pic", "virtwire"] {
                let mut rig = vectors(accel, words, machine);
                // Lines of ISA alone: those that PCI has as well are level-triggered.
                for (line, vector) in [(5, 0x25), (7, 0x27), (14, 0x2E), (15, 0x2F)] {
                    for times in 1..=3 {
                        rig.set_irq(line, true);
                        wait_for_vector(&mut rig, vector, times);
                        rig.set_irq(line, false);
                    }
                }
                assert_eq!(rig.output().matches("irq").count(), 12, "{}", rig.output());
            }
        }
    });
}

#[test]
fn lines_interrupt_through_the_io_apic() {
    on_each_accel(|accel| {
        let xapic = irqchips(accel).iter().map(|machine| (*machine, ""));
        // KVM's CPUID has x2APIC at any rate.
        let x2apic = (accel == Accel::Kvm).then_some(("pc", "x2apic"));
        for (machine, words) in xapic.chain(x2apic) {
            let mut rig = vectors(accel, words, machine);
            for pin in [1, 5, 15, 16, 23] {
                for times in 1..=3 {
                    pulse(&rig, pin);
                    wait_for_vector(&mut rig, 0x30 + pin, times);
                }
            }
            rig.send(message(0x7F));
            assert_eq!(rig.finish().matches("irq").count(), 15 + 1);
        }
    });
}

#[test]
fn a_level_interrupts_until_it_is_lowered() {
    on_each_accel(|accel| {
        for machine in irqchips(accel) {
            let mut rig = vectors(accel, "level=5,20", machine);
            for pin in [5, 20] {
                rig.set_irq(pin, true);
                // Nobody lowers the line, so each end of interrupt makes the next one.
                wait_for_vector(&mut rig, 0x30 + pin, 3);
                rig.set_irq(pin, false);
            }
            rig.send(message(0x7F));
            rig.finish();
        }
    });
}

#[test]
fn messages_and_irqfds_interrupt() {
    with_kvm(|| {
        for machine in irqchips(Accel::Kvm) {
            let mut rig = vectors(Accel::Kvm, "", machine);
            for vector in [0x40, 0x5A, 0xFE] {
                rig.send(message(vector));
                wait_for_vector(&mut rig, vector, 1);
            }
            let (first, second) = (new_eventfd(), new_eventfd());
            let signal = |fd: &OwnedFd| rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
            let add = |rig: &Rig, fd: &OwnedFd, vector| {
                let irqfds = rig.machine.accel().irqfds().expect("KVM has irqfds");
                irqfds.add(fd.as_fd(), message(vector)).unwrap()
            };
            let gsi = add(&rig, &first, 0x61);
            let other = add(&rig, &second, 0x62);
            assert!(gsi >= 24 && other >= 24 && gsi != other);
            for times in 1..=3 {
                signal(&first);
                wait_for_vector(&mut rig, 0x61, times);
                signal(&second);
                wait_for_vector(&mut rig, 0x62, times);
            }
            let irqfds = rig.machine.accel().irqfds().expect("KVM has irqfds");
            irqfds.set(gsi, Some(message(0x63))).unwrap();
            irqfds.remove(second.as_fd(), other).unwrap();
            signal(&first);
            signal(&second);
            wait_for_vector(&mut rig, 0x63, 1);
            rig.send(message(0x7F));
            let output = rig.finish();
            assert_eq!(output.matches("irq").count(), 3 + 6 + 1 + 1, "{output}");
        }
    });
}

#[test]
fn nmis_come_to_a_halted_vcpu() {
    on_each_accel(|accel| {
        let mut rig = vectors(accel, "", "pc");
        rig.machine.vcpus().with(0, |vcpu| vcpu.nmi()).unwrap();
        wait_for_vector(&mut rig, 2, 1);
    });
}

#[test]
fn doorbells_ring_instead_of_exits() {
    let bell = |space, address, width, value| Doorbell { space, address, width, value };
    let bells = [
        bell(Space::Pio, 0x1000, 1, None),
        bell(Space::Pio, 0x1002, 2, Some(7)),
        bell(Space::Pio, 0x1004, 4, None),
        bell(Space::Mmio, 0xD000_0000, 4, None),
        bell(Space::Mmio, 0xD000_0008, 2, Some(0x55)),
        bell(Space::Mmio, 0xD000_0010, 8, Some(0x1_0000_0000)),
        bell(Space::Mmio, 0xD000_0018, 0, None),
    ];
    let words = "pio:0x1000:1=9 pio:0x1000:1=8 pio:0x1002:2=7 pio:0x1002:2=6 pio:0x1004:4=1 \
                 mmio:0xd0000000:4=1 mmio:0xd0000000:2=2 mmio:0xd0000008:2=0x55 \
                 mmio:0xd0000008:2=0x56 mmio:0xd0000010:8=0x100000000 mmio:0xd0000018:1=1 \
                 mmio:0xd0000018:4=1 mmio:0xd0000018:8=1 repeat=3";
    with_kvm(|| {
        let mut rig = rig(Accel::Kvm, "doorbell", words, &[]);
        let (slot, record) = rig.recorder();
        rig.machine.pio().map(0x1000..=0x1007, &slot, Region(0), Width::Dword).unwrap();
        let page = 0xD000_0000..=0xD000_0FFF;
        rig.machine.mmio().map(page, &slot, Region(1), Width::Qword).unwrap();
        let fds = bells.map(|bell| {
            let fd = new_eventfd();
            rig.machine.accel().doorbells().unwrap().add(bell, fd.as_fd()).unwrap();
            fd
        });
        // One that is taken away again rings no more.
        let gone = new_eventfd();
        let bell = bell(Space::Pio, 0x1006, 1, None);
        let doorbells = rig.machine.accel().doorbells().unwrap();
        doorbells.add(bell, gone.as_fd()).unwrap();
        doorbells.remove(bell, gone.as_fd()).unwrap();
        rig.boot();
        rig.until("the end", |rig| rig.machine.ending().is_some());
        assert_eq!(fds.each_ref().map(rings), [6, 3, 3, 3, 3, 3, 9]);
        // What no bell takes is an exit: another value, another width.
        let rest = [
            Access::Write(2, vec![6, 0]),
            Access::Write(0, vec![2, 0]),
            Access::Write(8, vec![0x56, 0]),
        ];
        assert_eq!(record.take(), rest.iter().cycle().take(9).cloned().collect::<Vec<_>>());
    });
}

#[test]
fn the_dirty_log_names_the_pages_that_the_guest_wrote() {
    on_each_accel(|accel| {
        // Every second page of 16, then a write across a page's end.
        let mut rig =
            rig(accel, "doorbell", "dirty:0x800000:0x10000:0x2000 mmio:0x900ffe:4=1", &[]);
        let mut map = rig.machine.memory().clone();
        map.log_dirty(true);
        rig.machine.accel().set_memory(&map).unwrap();
        rig.machine.cont();
        rig.until("the end", |rig| rig.machine.ending().is_some());
        let dirty = |log: &[u64]| {
            let set = |page: &u64| log[*page as usize / 64] & 1 << (page % 64) != 0;
            (0x80_0000 / PAGE_SIZE..0xA0_0000 / PAGE_SIZE).filter(set).collect::<Vec<_>>()
        };
        let log = rig.machine.accel().take_dirty(0).unwrap();
        let expected: Vec<_> = (0x800..0x810).step_by(2).chain([0x900, 0x901]).collect();
        assert_eq!(dirty(&log), expected);
        let again = rig.machine.accel().take_dirty(0).unwrap();
        assert!(again.iter().all(|word| *word == 0), "taking the log clears it");
        map.log_dirty(false);
        rig.machine.accel().set_memory(&map).unwrap();
        assert!(rig.machine.accel().take_dirty(0).unwrap().is_empty());
    });
}

#[test]
fn the_dirty_log_names_the_pages_that_a_device_wrote() {
    on_each_accel(|accel| {
        let mut rig = rig(accel, "fwcfg", "", &[]);
        let ram = rig.machine.memory().ram().clone();
        ram.log_dirty(true);
        rig.machine.cont();
        rig.until("the end", |rig| rig.machine.ending().is_some());
        let pages = |log: Vec<u64>| log.iter().map(|word| word.count_ones()).sum::<u32>();
        // The requests and the buffer of fw_cfg's DMA, in the guest's data and stack.
        let written = pages(ram.take_dirty().remove(0));
        assert!((1..=4).contains(&written), "{written} pages");
        assert_eq!(pages(ram.take_dirty().remove(0)), 0);
    });
}

#[test]
fn the_registers_of_every_vcpu_can_be_seen() {
    on_each_accel(|accel| {
        let mut rig = rig(accel, "spin", "", &["--smp", "2"]);
        rig.boot();
        rig.wait_for("spinning on 2\n");
        for index in 0..2 {
            let mut state = rig.machine.vcpu_state(index).unwrap();
            // The second one comes to its loop some time.
            rig.until("the loop", |rig| {
                state = rig.machine.vcpu_state(index).unwrap();
                state.gpr[gpr::RDX] == 0x4444_4444_4444_4444
            });
            assert_eq!(state.gpr[gpr::RAX], 0x1111_1111_1111_1111);
            assert_eq!(state.gpr[gpr::RBX], 0x2222_2222_2222_2222);
            assert_eq!(state.gpr[gpr::RCX], 0x3333_3333_3333_3333);
            assert_eq!(state.gpr[15], index as u64);
            assert_eq!((state.cpl(), state.mp_state), (0, MpState::Runnable));
            assert!(state.long_mode());
            assert_eq!(state.lapic.unwrap().registers[2] >> 24, index as u32);
        }
    });
}

/// What makes the counter, whose lines are always the same, be in rings 0 and 3 for about as long.
fn counter_words(accel: Accel) -> &'static str {
    match accel {
        Accel::Soft => "rounds=3 kernel=100000 user=3000",
        Accel::Kvm if accel.lacks_instructions() => "rounds=3 kernel=3000 user=20000000",
        Accel::Kvm => "rounds=3 kernel=1000000 user=1000000",
    }
}

/// Runs the counter on `from` for `delay`, saves it, goes on in a new process on `to`, and gives all
/// lines together and the ring in which it was.
fn interrupted(from: Accel, to: Accel, words: &str, delay: Duration) -> Option<(String, u8)> {
    let mut first = rig(from, "counter", words, &[]);
    first.boot();
    let start = Instant::now();
    while start.elapsed() < delay && first.machine.ending().is_none() {
        first.turn();
    }
    if first.machine.ending().is_some() {
        return None;
    }
    let dir = TempDir::new();
    let ring = first.save(dir.path())[0].cpl();
    // Output that is on its way to the file.
    first.turn();
    let before = first.output();
    drop(first);

    let kernel = guest("counter");
    let mut command = Command::new(env!("CARGO_BIN_EXE_resume"));
    command.arg(dir.path()).args(["--accel", to.name(), "-m", "16M"]);
    command.args(["--append", words, "--kernel"]);
    let output = command.arg(kernel).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "after {delay:?}, ring {ring}:\n{before}{errors}");
    Some((before + &String::from_utf8_lossy(&output.stdout), ring))
}

#[test]
fn a_state_saved_in_mid_run_goes_on_in_a_new_process() {
    on_each_accel(|accel| {
        let words = counter_words(accel);
        let start = Instant::now();
        let mut whole = rig(accel, "counter", words, &[]);
        whole.boot();
        let expected = whole.finish();
        assert!(expected.ends_with("ok\n"), "{expected}");
        let length = start.elapsed().as_nanos() as u64;

        let (mut rings, mut random) = ([0; 4], 0x9E37_79B9_7F4A_7C15_u64);
        for moment in 0..soak(10, 200) + 30 {
            if moment >= soak(10, 200) && rings[0] > 0 && rings[3] > 0 {
                return;
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let delay = Duration::from_nanos((random >> 16) % length);
            if let Some((all, ring)) = interrupted(accel, accel, words, delay) {
                assert_eq!(all, expected, "saved after {delay:?} in ring {ring}");
                rings[usize::from(ring)] += 1;
            }
        }
        panic!("{accel:?}: no moment in both rings: {rings:?}");
    });
}

#[test]
fn a_state_goes_on_on_another_accelerator() {
    if !tests::reasons().is_empty() {
        return notice("a state from one accelerator on another: there is only one");
    }
    for (from, to) in [(Accel::Kvm, Accel::Soft), (Accel::Soft, Accel::Kvm)] {
        let words = "rounds=6 kernel=3000 user=300 noavx";
        let mut whole = rig(from, "counter", words, &[]);
        whole.boot();
        let start = Instant::now();
        let expected = whole.finish();
        let length = start.elapsed();
        let mut done = 0;
        for part in 1..20 {
            if let Some((all, ring)) = interrupted(from, to, words, length * part / 20) {
                assert_eq!(all, expected, "from {from:?} to {to:?}, in ring {ring}");
                done += 1;
            }
        }
        assert!(done > 0, "{from:?} was never in mid-run");
    }
}
