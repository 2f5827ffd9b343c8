//! The host as an oracle: instructions run natively in ring 3 and in the interpreter, and must
//! leave the same registers, flags, vector state and memory, and raise the same faults.
//!
//! A case is a form of iced's `Code` table that the CPU claims, as bytes with random operands
//! (`form`); it is placed once and run with many operand sets (`template`, `values`). Each thread
//! is a `lane` with memory of its own. Both sides see the same linear addresses.
//!
//! `ORACLE_CASES` and `ORACLE_SEED` choose how much and what, `ORACLE_CHUNK` a single chunk of it.

#[path = "../common/mod.rs"]
mod common;
mod excuse;
mod form;
mod lane;
mod native;
mod report;
mod sides;
mod soft;
mod template;
mod values;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::Rng;
use iced_x86::{Code, InstructionInfoFactory};
use lane::Lane;
use report::Report;
use sides::Sides;
use template::{Sequence, Template};

/// Templates in a chunk of work, which is a seed's smallest part that can be repeated.
const CHUNK: u64 = 256;
/// Operand sets that each template is run with.
const SETS: u64 = 24;
/// Of so many templates, one is a block of several instructions.
const BLOCKS: u64 = 8;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// Runs chunk after chunk until none is left.
fn work(lane: Lane, seed: u64, chunks: std::ops::Range<u64>, next: &AtomicU64) -> Report {
    let mut report = Report::default();
    let mut sides = Sides::new(lane);
    let claimed = form::claimed(&sides.soft.vcpu);
    let mut usable = Vec::new();
    for code in &claimed {
        let mut instr = iced_x86::Instruction::default();
        instr.set_code(*code);
        match form::exclusion(&instr) {
            Some(why) => _ = report.excluded.insert(*code, why),
            None => usable.push(*code),
        }
    }
    report.usable.clone_from(&usable);
    loop {
        let chunk = next.fetch_add(1, Ordering::Relaxed);
        if chunk >= chunks.end {
            return report;
        }
        let mut rng = Rng::new(seed.wrapping_mul(0x1_0000_0001) ^ chunk << 20);
        report.place = format!("seed {seed}, chunk {chunk}");
        sides.fill(&mut rng);
        for i in 0..CHUNK {
            if rng.below(BLOCKS) == 0 {
                sequence(&mut sides, &usable, &mut rng, &mut report);
            } else {
                // All forms in turn, so that none is left out.
                let code = usable[(chunk * CHUNK + i) as usize % usable.len()];
                let from_table = rng.below(16) != 0;
                single(&mut sides, from_table.then_some(code), &mut rng, &mut report);
            }
        }
    }
}

/// An encoded instruction at `at`: of `code`, or of random bytes that decode to something.
fn template(
    sides: &mut Sides,
    code: Option<Code>,
    at: u64,
    rng: &mut Rng,
    factory: &mut InstructionInfoFactory,
) -> Option<Template> {
    (0..40).find_map(|_| {
        let encoded = match code {
            Some(code) => form::make(code, rng, at)?,
            None => form::random(rng, at)?,
        };
        if !sides.soft.vcpu.offers(&encoded.instr) || !common::host_offers(&encoded.instr) {
            return None;
        }
        Template::new(encoded, at, sides.lane, rng, factory)
    })
}

/// One instruction with many operand sets.
fn single(sides: &mut Sides, code: Option<Code>, rng: &mut Rng, report: &mut Report) {
    let mut factory = InstructionInfoFactory::new();
    let slot = sides.lane.slot();
    // Now and then the instruction itself crosses pages.
    let at = if rng.below(32) == 0 { slot + 0x800 - rng.below(12) } else { slot };
    let Some(template) = template(sides, code, at, rng, &mut factory) else { return };
    sides.place(template.at, &template.bytes, template.target);
    let mut base = values::state(rng, sides.lane);
    values::stack(rng, &mut base, sides.lane);
    let rule = sides::Rule {
        undefined: template.undefined,
        excuse: excuse::of(&template.instr),
        loose: excuse::loose(&template.instr),
        mask: template.instr.is_vsib().then(|| {
            let wide = template.instr.memory_size().element_size() == 8;
            let signs = if wide { 1 << 63 } else { 1 << 63 | 1 << 31 };
            (template.instr.op2_register().number(), signs)
        }),
        memory: template.has_memory(),
        block: false,
    };
    let name = format!("{:?}", template.instr.code());
    let run = sides.batch(&rule, rng, report, &name, &template.bytes, SETS, |rng, data, state| {
        state.clone_from(&base);
        template.operands(rng, state, data)
    });
    *report.covered.entry(template.instr.code()).or_default() += run;
}

/// A block of 2 to 20 instructions with some operand sets.
fn sequence(sides: &mut Sides, usable: &[Code], rng: &mut Rng, report: &mut Report) {
    let mut factory = InstructionInfoFactory::new();
    let slot = sides.lane.slot();
    let mut base = values::state(rng, sides.lane);
    values::stack(rng, &mut base, sides.lane);
    base.rip = slot;
    let wanted = 2 + rng.below(19) as usize;
    let (mut block, mut count) = (Sequence::default(), 0);
    for _ in 0..20 * wanted {
        let code = usable[rng.below(usable.len() as u64) as usize];
        let at = slot + block.bytes.len() as u64;
        if let Some(template) = template(sides, Some(code), at, rng, &mut factory)
            && block.add(&template, &base, &mut factory)
        {
            count += 1;
            if count == wanted {
                break;
            }
        }
    }
    sides.place(slot, &block.bytes, None);
    let rule = sides::Rule {
        undefined: block.undefined,
        excuse: None,
        loose: false,
        mask: None,
        memory: true,
        block: true,
    };
    let bytes = &block.bytes;
    report.blocks += sides.batch(&rule, rng, report, "block", bytes, SETS, |rng, _, state| {
        let gpr = base.gpr;
        state.clone_from(&base);
        state.gpr = gpr;
        state.rflags = rng.next() & values::ARITH | 0x202;
        for n in 0..16 {
            if rng.below(4) == 0 {
                values::vector(rng, state, n);
            }
        }
        values::x87(rng, state);
        values::mxcsr(rng, state);
        true
    });
}

#[test]
fn the_host_and_the_interpreter_agree() {
    let cases = setting("ORACLE_CASES").unwrap_or(20_000_000);
    let seed = setting("ORACLE_SEED").unwrap_or(1);
    let only = setting("ORACLE_CHUNK");
    let chunks = match only {
        Some(chunk) => chunk..chunk + 1,
        None => 0..cases.div_ceil(CHUNK * SETS),
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let lanes = threads.min(Lane::MAX).min(chunks.end - chunks.start);
    println!("seed {seed}, {cases} cases, {lanes} lanes");
    let next = AtomicU64::new(chunks.start);
    let total = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for i in 0..lanes {
            let (next, total, chunks) = (&next, &total, chunks.clone());
            scope.spawn(move || {
                let report = work(Lane(i), seed, chunks, next);
                total.lock().unwrap().merge(report);
            });
        }
    });
    let total = total.into_inner().unwrap();
    total.print();
    // Each form comes up once in so many chunks.
    if chunks.end - chunks.start > 2 * total.usable.len() as u64 / CHUNK + 40 {
        assert!(total.missed().is_empty(), "never tried: {:?}", total.missed());
    }
    assert!(total.failures.is_empty(), "seed {seed}: {} forms differ", total.failures.len());
}
