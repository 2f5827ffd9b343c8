//! Start-up, way out, memory and size, beside a bare program that makes the same KVM calls (`bare.c`).
//!
//! The guest is `null`: one byte to port 0xE9, then power-off. Both programs write that byte to a pipe. Time begins before
//! the program is spawned; first `out` is when the byte can be read, exit when the process has been waited for. The
//! programs run in turn, so that what the machine does besides hits all of them alike.

mod common;

use std::fs;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Bare, Result, median, ms, print_table, row, vmm};

const ROUNDS: usize = 100;
/// QEMU takes seconds where KVM emulates ring 0: it runs firmware first.
const PEER_ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    common::main(|| {
        start_up()?;
        footprint()
    });
}

/// One run.
struct Run {
    first_out: Duration,
    exit: Duration,
}

/// Starts `command` with a pipe as its stdout and reads the guest's byte from it.
fn until_first_out(mut command: Command) -> Result<(Child, Instant, Instant)> {
    let (mut reader, writer) = io::pipe()?;
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    let start = Instant::now();
    let child = command.spawn()?;
    // It has the pipe's other end.
    drop(command);
    let mut byte = [0];
    reader
        .read_exact(&mut byte)
        .map_err(|_| format!("the guest did not come to its out: {what}"))?;
    Ok((child, start, Instant::now()))
}

fn measure(command: Command) -> Result<Run> {
    let what = format!("{command:?}");
    let (mut child, start, first) = until_first_out(command)?;
    let status = child.wait()?;
    let exit = start.elapsed();
    if !status.success() {
        return Err(format!("{status}: {what}").into());
    }
    Ok(Run { first_out: first - start, exit })
}

fn start_up() -> Result<()> {
    let program = Bare::build()?;
    let mut bare = Vec::new();
    let mut pc = Vec::new();
    let mut microvm = Vec::new();
    // The first round warms the page cache.
    for round in 0..=ROUNDS {
        let keep = |runs: &mut Vec<Run>, run| {
            if round > 0 {
                runs.push(run);
            }
        };
        keep(&mut bare, measure(program.command("null"))?);
        keep(&mut pc, measure(vmm("null", "none"))?);
        let mut command = vmm("null", "none");
        command.args(["--machine", "microvm"]);
        keep(&mut microvm, measure(command)?);
    }

    let first = |runs: &[Run]| median(&runs.iter().map(|run| run.first_out).collect::<Vec<_>>());
    let exit = |runs: &[Run]| median(&runs.iter().map(|run| run.exit).collect::<Vec<_>>());
    let (bare_first, bare_exit) = (first(&bare), exit(&bare));
    let mut rows = vec![row(["", "first out", "x bare", "exit", "x bare"])];
    for (name, runs) in [("bare program", &bare), ("vmm", &pc), ("vmm --machine microvm", &microvm)]
    {
        let (first, exit) = (first(runs), exit(runs));
        rows.push(vec![
            name.to_owned(),
            ms(first),
            format!("{:.2}", first.div_duration_f64(bare_first)),
            ms(exit),
            format!("{:.2}", exit.div_duration_f64(bare_exit)),
        ]);
    }
    for machine in ["microvm", "q35"] {
        if let Some(first) = peer(machine)? {
            rows.push(vec![
                format!("QEMU -M {machine}"),
                ms(first),
                format!("{:.0}", first.div_duration_f64(bare_first)),
            ]);
        }
    }
    print_table(
        &format!("Start-up from exec, null guest, 128 MiB, 1 vCPU, KVM: medians of {ROUNDS} runs"),
        &rows,
    );
    Ok(())
}

/// The time in which QEMU gets to the first `out`, if it is installed and gets there.
fn peer(machine: &str) -> Result<Option<Duration>> {
    let mut runs = Vec::new();
    for _ in 0..PEER_ROUNDS {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string());
        command.args(["qemu-system-x86_64", "-accel", "kvm", "-m", common::RAM, "-M", machine]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-chardev"]);
        command.args([
            "stdio,id=out",
            "-device",
            "isa-debugcon,iobase=0xe9,chardev=out",
            "-kernel",
        ]);
        command.arg(tests::guest("null"));
        let Ok((mut child, start, first)) = until_first_out(command) else { return Ok(None) };
        runs.push(first - start);
        // microvm has no power-off that this guest knows. `timeout` passes the signal on.
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::TERM,
        )?;
        child.wait()?;
    }
    Ok(Some(median(&runs)))
}

/// Memory of a machine that has run and stands still, and the program's size.
fn footprint() -> Result<()> {
    let mut command = vmm("null", "none");
    command.arg("--no-shutdown");
    let (mut child, ..) = until_first_out(command)?;
    // The guest powers off right after its byte.
    thread::sleep(Duration::from_millis(300));
    let proc = format!("/proc/{}", child.id());
    let smaps = fs::read_to_string(format!("{proc}/smaps"))?;
    let status = fs::read_to_string(format!("{proc}/status"))?;
    child.kill()?;
    child.wait()?;

    let (private, guest) = private_memory(&smaps);
    let peak = kib(&status, "VmHWM:").saturating_sub(kib(&status, "RssShmem:"));
    let size = fs::metadata(tests::program())?.len();
    let in_mib = |kib: u64| format!("{:.2} MiB", kib as f64 / 1024.0);
    print_table(
        "Memory and size: null guest, 128 MiB, at power-off",
        &[
            row(["private memory without guest RAM", &in_mib(private)]),
            row([
                "peak resident memory without guest RAM, shared libraries included",
                &in_mib(peak),
            ]),
            row(["guest RAM touched", &in_mib(guest)]),
            row(["release binary", &format!("{:.2} MB", size as f64 / 1e6)]),
        ],
    );
    Ok(())
}

/// KiB that are this process's alone, outside of guest RAM and in it.
fn private_memory(smaps: &str) -> (u64, u64) {
    let (mut outside, mut inside, mut in_ram) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Private_Clean:" | "Private_Dirty:") => {
                let kib: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                if in_ram { inside += kib } else { outside += kib }
            }
            // A mapping's first line: its addresses.
            Some(word) if !word.ends_with(':') => in_ram = line.contains("memfd:guest-ram"),
            _ => {}
        }
    }
    (outside, inside)
}

/// The value of a line of `/proc/PID/status` in KiB.
fn kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}
