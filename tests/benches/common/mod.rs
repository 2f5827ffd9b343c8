//! What the benchmarks share: the programs that are measured, and tables.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// RAM of every machine that is measured.
pub(crate) const RAM: &str = "128M";

/// Runs a benchmark; says so, on one line, on a machine where there is nothing to measure.
pub(crate) fn main(bench: impl FnOnce() -> Result<()>) {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return println!("NOT RUN: the benchmarks need /dev/kvm ({error})");
    }
    if let Err(error) = bench() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

/// vmm running `guest`, with the guest's bytes to port 0xE9 on stdout, COM1 on `serial`, no monitor.
pub(crate) fn vmm(guest: &str, serial: &str) -> Command {
    let mut command = Command::new(tests::program());
    command.args(["--enable-kvm", "-m", RAM, "--display", "none", "--monitor", "none"]);
    command.args(["--serial", serial, "--chardev", "file,id=out,path=/dev/stdout"]);
    command.args(["--device", "isa-debugcon,iobase=0xe9,chardev=out"]);
    command.arg("--kernel").arg(tests::guest(guest));
    command
}

/// The yardstick, compiled from `bare.c`.
pub(crate) struct Bare(PathBuf);

impl Bare {
    pub(crate) fn build() -> Result<Self> {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let program = dir.join("bare");
        fs::create_dir_all(dir)?;
        let source = tests::repository().join("tests/benches/bare.c");
        let status = Command::new("cc").arg("-O2").arg("-o").arg(&program).arg(source).status()?;
        if !status.success() {
            return Err("the C compiler does not take tests/benches/bare.c".into());
        }
        Ok(Self(program))
    }

    pub(crate) fn command(&self, guest: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg(tests::guest(guest));
        command
    }
}

/// Prints rows in columns, the first of them to the left, under a title.
pub(crate) fn print_table(title: &str, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    println!("\n{title}\n");
    for row in rows {
        let cells = (0..columns).map(|column| {
            let (cell, width) = (row.get(column).map_or("", String::as_str), width(column));
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        println!("  {}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

/// A row of a table.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// The middle one of `samples`, which are not empty.
pub(crate) fn median<T: Copy + PartialOrd>(samples: &[T]) -> T {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted[sorted.len() / 2]
}

/// `1.234 ms`.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}
