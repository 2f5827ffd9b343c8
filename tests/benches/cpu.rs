//! The software CPU beside QEMU's: the programs of `images/bench` natively and in the small Linux under both, and the boot
//! of Debian's cloud kernel to its init. One vCPU.
//!
//! | Environment | Default | |
//! |---|---|---|
//! | `CPU_BENCH_ROUNDS` | 3 | runs of each, in turn, so that what the machine does besides hits all alike; 0 is no table |
//! | `CPU_BENCH_SCALE` | 0.1 | of the programs' work; at 1 each takes 0.1 to 0.3 seconds natively |
//! | `CPU_BENCH_PROGRAMS` | all | names as `bench list` prints them, with commas |
//! | `CPU_BENCH_BOOTS` | 3 | boots of the cloud kernel |
//! | `CPU_BENCH_ACCEL` | soft | what vmm's `--accel` gets |
//! | `VMM` | built | the program to measure, instead of the release build of this tree |
//!
//! A program's seconds are those of the clock of the machine that it runs in, guest or host. Those of a boot are the host's,
//! from before the emulator is spawned. CPU seconds are those of the whole emulator process; they bear load on the host
//! better. Checksums have to be the same everywhere.

#[expect(dead_code, reason = "the start-up benchmark uses the rest of it")]
mod common;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::{Result, median, print_table, row};

/// The largest program takes 64 MiB.
const RAM: &str = "256M";
/// For the whole life of a machine.
const PATIENCE: Duration = Duration::from_secs(1200);
/// What the initramfs prints first.
const INIT: &str = "vmm: init reached";

fn main() {
    let mut failed = false;
    for part in [programs, boot] {
        if let Err(error) = part() {
            eprintln!("error: {error}");
            failed = true;
        }
    }
    std::process::exit(failed.into());
}

/// The value of an environment variable, if it is set and not empty.
fn setting<T: FromStr>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Ok(value) if !value.is_empty() => {
            value.parse().map_err(|_| format!("{name}={value}: it takes a number").into())
        }
        _ => Ok(default),
    }
}

fn accel() -> String {
    env::var("CPU_BENCH_ACCEL").unwrap_or_else(|_| "soft".to_owned())
}

/// What boots guests.
#[derive(Clone, Copy, PartialEq)]
enum Emulator {
    Qemu,
    Vmm,
}

impl Emulator {
    /// Those that are there; says which are not.
    fn all() -> Vec<Self> {
        let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
        match qemu {
            Ok(_) => vec![Self::Qemu, Self::Vmm],
            Err(error) => {
                tests::notice(&format!("qemu-system-x86_64: {error}"));
                vec![Self::Vmm]
            }
        }
    }

    fn name(self) -> String {
        match self {
            Self::Qemu => "QEMU TCG".to_owned(),
            Self::Vmm => format!("vmm {}", accel()),
        }
    }

    /// A machine with the guest's console on stdout. Guest RAM is a memfd with both, so that it can be told from the rest.
    fn command(self, kernel: &Path, initrd: &Path, append: &str) -> Command {
        let mut command = match self {
            Self::Qemu => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args([
                    "-accel",
                    "tcg",
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                ]);
                command.args(["-machine", "pc,memory-backend=ram", "-m", RAM, "-object"]);
                command.arg(format!("memory-backend-memfd,id=ram,size={RAM}"));
                command.args(["-serial", "stdio", "-no-reboot"]);
                command
            }
            Self::Vmm => {
                let mut command = Command::new(tests::program());
                command.args(["--accel", &accel(), "-m", RAM, "--display", "none"]);
                command.args(["--monitor", "none", "--serial", "stdio", "--no-reboot"]);
                command
            }
        };
        command.args([OsStr::new("-kernel"), kernel.as_os_str()]);
        command
            .args([OsStr::new("-initrd"), initrd.as_os_str(), OsStr::new("-append")])
            .arg(append);
        command
    }
}

/// What a process used up to some moment.
#[derive(Clone, Copy, Default)]
struct Usage {
    cpu: f64,
    /// Peak resident memory that is not guest RAM.
    memory: u64,
}

impl Usage {
    /// Brings it up to date, unless the process has ended.
    fn look(&mut self, pid: u32) {
        let (Ok(stat), Ok(status)) = (
            fs::read_to_string(format!("/proc/{pid}/stat")),
            fs::read_to_string(format!("/proc/{pid}/status")),
        ) else {
            return;
        };
        // proc(5): utime and stime are the 14th and 15th fields, in ticks of 10 ms; the name, in parentheses, is the 2nd.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
        let ticks: u64 =
            fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        self.cpu = ticks as f64 / 100.0;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or(0)
        };
        self.memory = self.memory.max((kib("RssAnon:") + kib("RssFile:")) << 10);
    }
}

/// A run of an emulator.
struct Run {
    /// The console's lines, and when each came, from before the emulator was spawned.
    output: Vec<(Duration, String)>,
    /// The time of the last line.
    wall: Duration,
    usage: Usage,
}

impl Run {
    /// From init's first line to the last one.
    fn since_init(&self) -> Duration {
        let init = self.output.iter().find(|(_, line)| line.ends_with(INIT));
        self.wall - init.map_or(Duration::ZERO, |(at, _)| *at)
    }
}

/// A process that does not outlive its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a machine up to the line that ends with `until`, or to its own end.
fn run(mut command: Command, until: Option<&str>) -> Result<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = Killed(command.spawn().map_err(|error| format!("{command:?}: {error}"))?);
    let lines = lines_of(child.0.stdout.take().ok_or("no stdout")?);
    let mut run = Run { output: Vec::new(), wall: Duration::ZERO, usage: Usage::default() };
    loop {
        match lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
            Ok((at, line)) => {
                run.usage.look(child.0.id());
                run.wall = at - start;
                let last = until.is_some_and(|text| line.ends_with(text));
                run.output.push((run.wall, line));
                if last {
                    return Ok(run);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("{}: not done within {PATIENCE:?}", tail(&run.output)).into());
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let mut said = String::new();
    child.0.stderr.take().ok_or("no stderr")?.read_to_string(&mut said)?;
    let status = child.0.wait()?;
    if until.is_some() || !status.success() {
        let why = said.lines().next().unwrap_or("nothing on stderr").to_owned();
        return Err(format!("{}: {status}: {why}", tail(&run.output)).into());
    }
    Ok(run)
}

fn tail(output: &[(Duration, String)]) -> &str {
    output.last().map_or("it printed nothing", |(_, line)| line)
}

/// The lines that come from a guest's console, and when.
fn lines_of(stdout: ChildStdout) -> Receiver<(Instant, String)> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send((Instant::now(), text)).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// The images that both tables take.
struct Images {
    bench: PathBuf,
    initrd: PathBuf,
}

fn build_images() -> Result<Images> {
    let images = tests::repository().join("images");
    let bench = output_of(&mut Command::new(images.join("bench/build.sh")))?;
    let mut initramfs = Command::new(images.join("linux/build-initramfs.sh"));
    initramfs.args(["--add", &bench, "--output", "initramfs-bench.cpio"]);
    Ok(Images { initrd: output_of(&mut initramfs)?.into(), bench: bench.into() })
}

/// What a command prints, without its last newline.
fn output_of(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Seconds and checksum of each run of each program, in one place.
type Results = BTreeMap<String, Vec<(f64, String)>>;

/// Adds the lines of `bench` that are among `output`.
fn collect<'a>(
    results: &mut Results,
    names: &[String],
    output: impl Iterator<Item = &'a str> + Clone,
) -> Result<()> {
    for name in names {
        let mut lines = output.clone().map(|line| line.split(' ').collect::<Vec<_>>());
        let words = lines.find(|words| words.len() == 3 && words[0] == name).ok_or_else(|| {
            format!("no line of {name}; the last one is: {:?}", output.clone().last())
        })?;
        // A CPU without the instructions says `absent` in place of the seconds.
        if let Ok(seconds) = words[1].parse() {
            results.entry(name.clone()).or_default().push((seconds, words[2].to_owned()));
        }
    }
    Ok(())
}

/// One emulator's part of a table. What fails leaves it, with a notice.
struct Guest {
    emulator: Emulator,
    results: Results,
    runs: Vec<Run>,
}

/// Lets each emulator do `rounds` runs, in turn, with `before` first in each round.
fn rounds(
    count: usize,
    mut before: impl FnMut() -> Result<()>,
    mut run: impl FnMut(&mut Guest) -> Result<Run>,
) -> Result<Vec<Guest>> {
    let guest = |emulator| Guest { emulator, results: Results::new(), runs: Vec::new() };
    let mut guests: Vec<_> = Emulator::all().into_iter().map(guest).collect();
    for _ in 0..count {
        before()?;
        guests.retain_mut(|guest| match run(guest) {
            Ok(run) => {
                guest.runs.push(run);
                true
            }
            Err(error) => {
                tests::notice(&format!("{}: {error}", guest.emulator.name()));
                false
            }
        });
    }
    Ok(guests)
}

fn programs() -> Result<()> {
    let count = setting("CPU_BENCH_ROUNDS", 3)?;
    let scale = setting("CPU_BENCH_SCALE", 0.1_f64)?.to_string();
    if count == 0 {
        return Ok(());
    }
    let Some(kernel) = tests::image("vmlinux-acpi") else { return Ok(()) };
    let images = build_images()?;
    let list = output_of(Command::new(&images.bench).arg("list"))?;
    let chosen = setting("CPU_BENCH_PROGRAMS", String::new())?;
    let names: Vec<String> = match chosen.as_str() {
        "" => list.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect(),
        _ => chosen.split(',').map(str::to_owned).collect(),
    };

    let append = format!("console=ttyS0 panic=-1 quiet bench={},{scale}", names.join(","));
    let mut native = Results::new();
    let guests = rounds(
        count,
        || {
            let output = output_of(Command::new(&images.bench).args(&names).arg(&scale))?;
            collect(&mut native, &names, output.lines())
        },
        |guest| {
            let mut command = guest.emulator.command(&kernel, &images.initrd, &append);
            if guest.emulator == Emulator::Qemu {
                // Its default CPU has no AVX2; five-level paging would slow its page walks.
                command.args(["-cpu", "max,la57=off"]);
            }
            let run = run(command, None)?;
            collect(&mut guest.results, &names, run.output.iter().map(|(_, line)| line.as_str()))?;
            Ok(run)
        },
    )?;

    print_programs(&names, &native, &guests, &format!("scale {scale}, medians of {count} runs"));
    print_runs(&guests);
    compare_checksums(&native, &guests)
}

/// A program's median seconds.
fn seconds(results: &Results, name: &str) -> Option<f64> {
    let times: Vec<_> = results.get(name)?.iter().map(|(seconds, _)| *seconds).collect();
    Some(median(&times))
}

fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b?)
}

fn print_programs(names: &[String], native: &Results, guests: &[Guest], how: &str) {
    let guest = |emulator| guests.iter().find(|guest| guest.emulator == emulator);
    let mut header = row(["", "native"]);
    header.extend(guests.iter().map(|guest| guest.emulator.name()));
    header.extend(row(["vmm/QEMU", "vmm/native"]));
    let mut rows = vec![header];
    let mut ratios = [Vec::new(), Vec::new()];
    for name in names {
        let at_home = seconds(native, name);
        let in_guest = |emulator| guest(emulator).and_then(|guest| seconds(&guest.results, name));
        let ours = in_guest(Emulator::Vmm);
        let mut row = vec![name.clone(), cell(at_home, 4)];
        row.extend(guests.iter().map(|guest| cell(seconds(&guest.results, name), 4)));
        for (all, other) in ratios.iter_mut().zip([in_guest(Emulator::Qemu), at_home]) {
            let ratio = ratio(ours, other);
            all.extend(ratio);
            row.push(cell(ratio, 2));
        }
        rows.push(row);
    }
    let mut last = row(["geometric mean", ""]);
    last.extend(guests.iter().map(|_| String::new()));
    last.extend(ratios.map(|all| {
        let logs: f64 = all.iter().map(|ratio: &f64| ratio.ln()).sum();
        cell((!all.is_empty()).then(|| (logs / all.len() as f64).exp()), 2)
    }));
    rows.push(last);
    print_table(
        &format!("Programs, seconds by the guest's clock: small Linux, {RAM}, 1 vCPU, {how}"),
        &rows,
    );
}

/// What the whole runs took, by the host's reckoning.
fn print_runs(guests: &[Guest]) {
    let mut rows =
        vec![row(["", "guest's seconds", "host's seconds", "CPU seconds", "memory over RAM"])];
    for guest in guests {
        let of = |value: fn(&Run) -> f64| median(&guest.runs.iter().map(value).collect::<Vec<_>>());
        let total: f64 =
            guest.results.keys().filter_map(|name| seconds(&guest.results, name)).sum();
        rows.push(vec![
            guest.emulator.name(),
            cell(Some(total), 2),
            cell(Some(of(|run| run.since_init().as_secs_f64())), 2),
            cell(Some(of(|run| run.usage.cpu)), 2),
            format!("{:.1} MiB", of(|run| run.usage.memory as f64) / f64::from(1 << 20)),
        ]);
    }
    print_table(
        "The same runs: sum of the above; init to the end with what the programs prepare; all from the start",
        &rows,
    );
}

/// # Errors
/// The programs whose results are not the same everywhere.
fn compare_checksums(native: &Results, guests: &[Guest]) -> Result<()> {
    let mut wrong = String::new();
    for (name, runs) in native {
        let expected = &runs[0].1;
        let places = guests.iter().map(|guest| (guest.emulator.name(), &guest.results));
        for (place, results) in places.chain([("natively".to_owned(), native)]) {
            let others = results.get(name).into_iter().flatten().map(|(_, checksum)| checksum);
            if let Some(other) = others.into_iter().find(|checksum| *checksum != expected) {
                wrong += &format!("\n  {name} {place}: checksum {other} in place of {expected}");
            }
        }
    }
    if wrong.is_empty() {
        println!("\n  Checksums are the same everywhere.");
        return Ok(());
    }
    Err(format!("results differ:{wrong}").into())
}

fn boot() -> Result<()> {
    let count = setting("CPU_BENCH_BOOTS", 3)?;
    if count == 0 {
        return Ok(());
    }
    let Some(kernel) = tests::image("vmlinuz-cloud") else { return Ok(()) };
    let initrd = build_images()?.initrd;
    let guests = rounds(
        count,
        || Ok(()),
        |guest| {
            let append = "console=ttyS0 panic=-1 quiet";
            run(guest.emulator.command(&kernel, &initrd, append), Some(INIT))
        },
    )?;

    let of = |guest: &Guest, value: fn(&Run) -> f64| {
        median(&guest.runs.iter().map(value).collect::<Vec<_>>())
    };
    let wall = |guest: &Guest| of(guest, |run| run.wall.as_secs_f64());
    let cpu = |guest: &Guest| of(guest, |run| run.usage.cpu);
    let qemu = guests.iter().find(|guest| guest.emulator == Emulator::Qemu);
    let mut rows = vec![row(["", "wall", "x QEMU", "CPU seconds", "x QEMU", "memory over RAM"])];
    for guest in &guests {
        rows.push(vec![
            guest.emulator.name(),
            format!("{:.2} s", wall(guest)),
            cell(ratio(Some(wall(guest)), qemu.map(wall)), 2),
            cell(Some(cpu(guest)), 2),
            cell(ratio(Some(cpu(guest)), qemu.map(cpu)), 2),
            format!("{:.1} MiB", of(guest, |run| run.usage.memory as f64) / f64::from(1 << 20)),
        ]);
    }
    print_table(
        &format!("Debian's cloud kernel to init, bzImage, {RAM}, 1 vCPU, medians of {count} runs"),
        &rows,
    );
    Ok(())
}
