//! A machine that runs: what an exit costs, how soon the monitor answers while the guest spins, and what an idle machine does.

mod common;

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Bare, Result, median, ms, print_table, row, vmm};
use tests::{Accel, Vmm};

/// Writes of each stretch of the guest `exits`.
const WRITES: f64 = 20_000.0;
const ROUNDS: usize = 7;
const QUESTIONS: usize = 200;
/// How long an idle machine is watched.
const IDLE: Duration = Duration::from_secs(10);

fn main() {
    common::main(|| {
        exits()?;
        monitor();
        idle()
    });
}

/// The time that a port write takes, in ring 0 and in ring 3.
fn time_exits(mut command: Command) -> Result<[f64; 2]> {
    let (mut reader, writer) = io::pipe()?;
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    let mut child = command.spawn()?;
    // It has the pipe's other end.
    drop(command);
    let mut marks = Vec::new();
    for mark in *b"03." {
        let mut byte = [0];
        reader.read_exact(&mut byte).map_err(|_| format!("the guest ends early: {what}"))?;
        marks.push(Instant::now());
        if byte[0] != mark {
            return Err(format!("the guest is not itself: {what}").into());
        }
    }
    child.wait()?;
    let micros = |from: usize| (marks[from + 1] - marks[from]).as_secs_f64() * 1e6 / WRITES;
    Ok([micros(0), micros(1)])
}

fn exits() -> Result<()> {
    let program = Bare::build()?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(time_exits(program.command("exits"))?);
        ours.push(time_exits(vmm("exits", "null"))?);
    }
    let mut rows = vec![row(["", "ring 0", "a second", "ring 3", "a second"])];
    for (name, runs) in [("bare program", bare), ("vmm", ours)] {
        let mut cells = vec![name.to_owned()];
        for ring in 0..2 {
            let micros = median(&runs.iter().map(|run| run[ring]).collect::<Vec<_>>());
            cells.push(format!("{micros:.2} us"));
            cells.push(format!("{:.0}", 1e6 / micros));
        }
        rows.push(cells);
    }
    let title = format!("Port write and its exit: medians of {ROUNDS} runs of {WRITES} writes");
    print_table(&title, &rows);
    Ok(())
}

/// Asks the monitor while the guest spins.
fn monitor() {
    let machine = Vmm::new(Accel::Kvm).guest("spin").with_hmp().start();
    machine.wait_for("spinning");
    let hmp = machine.hmp();
    let mut rows = vec![row(["", "median", "longest"])];
    for command in ["info status", "info registers", "x/10i $rip"] {
        let times: Vec<_> = (0..QUESTIONS)
            .map(|_| {
                let start = Instant::now();
                hmp.command(command);
                start.elapsed()
            })
            .collect();
        let longest = times.iter().copied().max().unwrap_or_default();
        rows.push(row([command, &ms(median(&times)), &ms(longest)]));
    }
    hmp.send("quit");
    machine.finish();
    print_table(&format!("Monitor while the guest spins: {QUESTIONS} questions each"), &rows);
}

/// What all threads of a process have done.
#[derive(Clone, Copy)]
struct Work {
    switches: u64,
    /// Nanoseconds on a CPU.
    cpu: u64,
}

impl Work {
    fn of(threads: &[impl AsRef<Path>]) -> Result<Self> {
        let mut work = Self { switches: 0, cpu: 0 };
        for thread in threads {
            let status = fs::read_to_string(thread.as_ref().join("status"))?;
            let switches = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
            work.switches +=
                switches.filter_map(|(_, n)| n.trim().parse::<u64>().ok()).sum::<u64>();
            let schedstat = fs::read_to_string(thread.as_ref().join("schedstat"))?;
            let cpu = schedstat.split_ascii_whitespace().next().and_then(|n| n.parse::<u64>().ok());
            work.cpu += cpu.unwrap_or(0);
        }
        Ok(work)
    }
}

/// Watches a machine whose guest halts.
fn idle() -> Result<()> {
    let machine = Vmm::new(Accel::Kvm).guest("halt").with_hmp().start();
    machine.wait_for("halted");
    // Until the probe of the accelerator has run, too.
    thread::sleep(Duration::from_secs(1));
    let before = Work::of(&machine.threads())?;
    thread::sleep(IDLE);
    let after = Work::of(&machine.threads())?;
    machine.hmp().send("quit");
    machine.finish();
    let switches = (after.switches - before.switches).to_string();
    let cpu = ms(Duration::from_nanos(after.cpu - before.cpu));
    print_table(
        &format!("Idle machine, watched for {} s", IDLE.as_secs()),
        &[row(["wake-ups of all its threads", &switches]), row(["CPU time", &cpu])],
    );
    Ok(())
}
