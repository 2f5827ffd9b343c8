//! `smp`: starts the other processors by INIT and SIPI; all add to one counter with locked instructions; then IPIs: to one,
//! to all others, and an NMI. `cpus=N` on the command line stands for the MADT, `x2apic` for x2APIC mode.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use runtime::interrupts::{self, Frame};
use runtime::start::MAX_CPUS;
use runtime::{Verdict, apic, boot, clock, ensure, guest, port, say, smp};

guest!("smp", main);

const ROUNDS: u32 = 1000;
const TO_ONE: u8 = 0x50;
const TO_OTHERS: u8 = 0x51;
/// With the sender's APIC id added: two interrupts with the same vector may become one.
const ANSWERS: u8 = 0x80;
const NMI: u8 = 2;

/// The local APIC's id of each processor, by index, plus 1.
static IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static GO: AtomicBool = AtomicBool::new(false);
static COUNTER: AtomicU32 = AtomicU32::new(0);
static FINISHED: AtomicU32 = AtomicU32::new(0);
/// How many of each vector have been taken, by all together.
static TAKEN: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

fn main() -> Verdict {
    for vector in (ANSWERS..ANSWERS + MAX_CPUS as u8).chain([TO_ONE, TO_OTHERS, NMI]) {
        interrupts::handle(vector, taken);
    }
    if boot::has("x2apic") {
        ensure!(apic::enable_x2(), "CPUID has no x2APIC");
    }
    let others = smp::start(processor)?;
    IDS[0].store(apic::id() + 1, SeqCst);
    let all = others as usize + 1;
    ensure!(
        clock::until(|| IDS[..all].iter().all(|id| id.load(SeqCst) != 0)),
        "a processor is silent"
    );
    for (index, id) in IDS[..all].iter().enumerate() {
        say!("processor ", index, " apic id ", id.load(SeqCst) - 1);
    }

    GO.store(true, SeqCst);
    add();
    ensure!(clock::until(|| FINISHED.load(SeqCst) == all as u32), "not all have added");
    say!("counter ", COUNTER.load(SeqCst), " of ", ROUNDS * all as u32);
    ensure!(COUNTER.load(SeqCst) == ROUNDS * all as u32, "additions are lost");

    for id in &IDS[1..all] {
        let before = count(TO_ONE);
        apic::send(id.load(SeqCst) - 1, 0x4000 | u32::from(TO_ONE));
        ensure!(clock::until(|| count(TO_ONE) == before + 1), "an IPI to one does not arrive");
    }
    apic::send(0, 0xc_4000 | u32::from(TO_OTHERS));
    ensure!(clock::until(|| count(TO_OTHERS) == others), "an IPI to all others does not arrive");
    port::sti();
    ensure!(clock::until(|| answers() == others), "the answers to it do not arrive");
    port::cli();
    if others > 0 {
        apic::send(IDS[1].load(SeqCst) - 1, 0x4400);
        ensure!(clock::until(|| count(NMI) == 1), "an NMI does not arrive");
    }
    say!(
        "ipis to one ",
        count(TO_ONE),
        " to all others ",
        count(TO_OTHERS),
        " answers ",
        answers(),
        " nmi ",
        count(NMI)
    );
    Ok(())
}

fn processor(index: usize) -> ! {
    IDS[index].store(apic::id() + 1, SeqCst);
    while !GO.load(SeqCst) {
        port::pause();
    }
    add();
    loop {
        port::wait();
    }
}

fn add() {
    for _ in 0..ROUNDS {
        COUNTER.fetch_add(1, SeqCst);
    }
    FINISHED.fetch_add(1, SeqCst);
}

fn count(vector: u8) -> u32 {
    TAKEN[vector as usize].load(SeqCst)
}

fn answers() -> u32 {
    (ANSWERS..ANSWERS + MAX_CPUS as u8).map(count).sum()
}

fn taken(frame: &mut Frame) {
    let vector = frame.vector as u8;
    TAKEN[vector as usize].fetch_add(1, SeqCst);
    if vector != NMI {
        apic::eoi();
    }
    if vector == TO_OTHERS {
        let vector = u32::from(ANSWERS) + apic::id() % MAX_CPUS as u32;
        apic::send(IDS[0].load(SeqCst) - 1, 0x4000 | vector);
    }
}
